"""Optimizer: parameter groups, their hyperparameters and state, and the step."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tinyc import config
from tinyc.diagnostics import Remark, caller_origin, emit
from tinyc.ir.dtype import converted_array
from tinyc.ir.node import BACKWARD, OPTIMIZER, marking
from tinyc.optim.arena import Run, Segment, arrange, runs, state_tensor
from tinyc.runtime import recorder
from tinyc.tensor import Tensor, no_grad
from tinyc.tensor.core import host_array


class ParamGroup(dict):  # type: ignore[type-arg]
    """The parameters and hyperparameters of a group, by name.

    ``group["lr"] = x`` writes a number that programs read, so a schedule never compiles anything,
    and so does what ``make_live`` was called for. Changing any other entry makes captured programs
    trace again. ``initial_lr`` is a schedule's own, and no part of programs.
    """

    def __init__(self, owner: Optimizer, entries: Mapping[str, Any]) -> None:
        super().__init__(entries)
        self.owner = owner
        self.segments: list[Segment] = arrange(self["params"])
        count = len(self["params"])
        self._device = self["params"][0].device if count else None
        self._live = {"lr": self._number(self["lr"])}
        self.steps = self._number(0.0)
        # Steps in which a parameter had no gradient; parameters of one class missed the same.
        self.missed = self._number([0.0] * count)
        self.classes = [0] * count

    def _number(self, value: Any) -> Tensor:
        # f64, so that the rate is exactly the Python number and small biases keep their digits.
        return state_tensor(np.array(value, np.float64), self._device)

    def make_live(self, name: str) -> None:
        """Keep a number, or a tuple of numbers, where programs read it at each run."""
        if name not in self._live:
            self._live[name] = self._number(self[name])
            config.bump_epoch()

    def value(self, name: str) -> Any:
        """Return what a program computes with: a number, or the tensor that holds it."""
        return self._live.get(name, self[name])

    def __setitem__(self, name: str, value: Any) -> None:
        if name == "params":
            raise KeyError("a group's parameters are fixed; use add_param_group")
        if name not in self and name != "initial_lr":
            raise KeyError(f"{type(self.owner).__name__} has no option {name!r}")
        if name == "lr":
            _check_rate(value)
        elif name != "initial_lr":
            self.owner.check({**self, name: value})
        if name in self._live:
            self._live[name].load(np.array(value, np.float64))
        elif name != "initial_lr" and self[name] != value:
            config.bump_epoch()
        super().__setitem__(name, value)
        self.add_states()

    def add_states(self) -> None:
        """Make the states that the hyperparameters ask for and that are not there yet."""
        for segment in self.segments:
            for name in self.owner.state_names(self):
                if name not in segment.state:
                    segment.add_state(name)

    def note_missing(self) -> None:
        """Tell apart the parameters that have a gradient now from those that have none."""
        has_grad = [param.grad is not None for param in self["params"]]
        pairs = list(zip(self.classes, has_grad))
        number = {pair: index for index, pair in enumerate(dict.fromkeys(pairs))}
        classes = [number[pair] for pair in pairs]
        if len(number) > len(set(self.classes)):
            config.bump_epoch()
            self.classes = classes


class Optimizer:
    """Base class: ``zero_grad``, ``step``, the learning rate and the state.

    ``params`` are Tensors, or dictionaries with ``params`` and hyperparameters of their own. The
    parameters are moved into one flat tensor for each group, dtype and device; handles stay what
    they were. A parameter that occurs twice is kept once. ``lr`` may be set at any time and
    never compiles anything; other hyperparameters are part of the program.
    """

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        self.defaults = defaults
        self.param_groups: list[ParamGroup] = []
        groups = list(params)
        if not groups:
            raise ValueError(f"{type(self).__name__}: got no parameters")
        if not isinstance(groups[0], dict):
            groups = [{"params": groups}]
        for group in groups:
            self.add_param_group(group)

    # What a kind of optimizer is

    def state_names(self, group: ParamGroup) -> tuple[str, ...]:
        """Return the names of the flat states that a group needs."""
        return ()

    def counts_steps(self, group: ParamGroup) -> bool:
        """Tell whether the update depends on the number of the step."""
        return False

    def check(self, group: Mapping[str, Any]) -> None:
        """Raise ValueError for hyperparameters out of their range."""

    def update(
        self, group: ParamGroup, scalars: Sequence[Any], run: Run, param: Tensor, grad: Tensor
    ) -> Tensor:
        """Write the run's states and return the new parameters; all tensors are flat."""
        raise NotImplementedError

    def scalars(self, group: ParamGroup, rate: Tensor, done: Tensor) -> tuple[Any, ...]:
        """Return what does not depend on the element, from 0-d f64 rate and steps done before.

        Numbers stay as they are, tensors become of the parameters' dtype; f32 for halves.
        """
        raise NotImplementedError

    # What users call

    def add_param_group(self, group: dict[str, Any]) -> None:
        """Add a group with hyperparameters of its own; the others are the defaults."""
        params = group["params"]
        params = [params] if isinstance(params, Tensor) else list(params)
        taken = {id(param) for other in self.param_groups for param in other["params"]}
        for param in params:
            self._check_param(param, taken)
        entries = {**self.defaults, **group, "params": list({id(p): p for p in params}.values())}
        unknown = entries.keys() - self.defaults.keys() - {"params", "initial_lr"}
        if unknown:
            raise TypeError(f"{type(self).__name__}: unknown option {', '.join(sorted(unknown))}")
        _check_rate(entries["lr"])
        self.check(entries)
        made = ParamGroup(self, entries)
        made.add_states()
        self.param_groups.append(made)

    def _check_param(self, param: Any, taken: set[int]) -> None:
        name = type(self).__name__
        if not isinstance(param, Tensor):
            raise TypeError(f"{name}: parameters are Tensors, not {type(param).__name__}")
        if param.dtype.kind != "f":
            raise TypeError(f"{name}: a parameter of dtype {param.dtype} cannot be optimized")
        if id(param) in taken:
            raise ValueError(f"{name}: a parameter is in more than one group")

    @property
    def lr(self) -> float:
        """The learning rate of the first group; setting it sets that of all groups."""
        return self.param_groups[0]["lr"]

    @lr.setter
    def lr(self, value: float) -> None:
        for group in self.param_groups:
            group["lr"] = value

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients, or set them to zero."""
        for group in self.param_groups:
            for param in group["params"]:
                if set_to_none:
                    param.grad = None
                elif param.grad is not None:
                    param.grad = param.grad.detach() * 0

    def step(self) -> None:
        """Update all parameters that have gradients.

        Outside ``jit`` the update is computed here, together with live tensors, the loss among
        them, that would be computed from the old parameters. Raises RuntimeError where no
        parameter has a gradient.
        """
        params = [param for group in self.param_groups for param in group["params"]]
        if all(param.grad is None for param in params):
            raise RuntimeError(
                f"{type(self).__name__}.step: no parameter has a gradient; call loss.backward() "
                "after zero_grad() and before step()"
            )
        name = f"{type(self).__name__}.step"
        with recorder.span(name, "python"), no_grad(), marking(OPTIMIZER):
            changed = [tensor for group in self.param_groups for tensor in self._step(group)]
        Tensor.commit(changed)

    def _step(self, group: ParamGroup) -> list[Tensor]:
        params = group["params"]
        missing = [index for index, param in enumerate(params) if param.grad is None]
        if len(missing) == len(params):
            return []
        if missing:
            group.note_missing()
            self._remark(group, missing)
        changed: list[Tensor] = []
        for segment in group.segments:
            for run in runs(segment, group.classes):
                self._update_run(group, run)
            changed += [segment.base, *segment.state.values()]
        if self.counts_steps(group):
            # Updates read the old number, so that the new one is stored at the end of their kernel.
            group.steps.assign(group.steps + 1)
            changed.append(group.steps)
        if missing and self.counts_steps(group):
            self._count_missed(group, missing)
            changed.append(group.missed)
        return changed

    def _update_run(self, group: ParamGroup, run: Run) -> None:
        done = group.steps
        if len(set(group.classes)) > 1:
            done = done - group.missed[run.pieces[0].index]
        stored = run.segment.base.dtype
        dtype = stored.wide  # steps are computed, and states kept, in f32 at least
        scalars = [
            scalar.to(dtype) if isinstance(scalar, Tensor) else scalar
            for scalar in self.scalars(group, group.value("lr"), done)
        ]
        with marking(BACKWARD):
            grad = run.gradient().to(dtype)
        if group["maximize"]:
            grad = -grad
        new = self.update(group, scalars, run, run.read_params().to(dtype), grad)
        run.write_params(new.to(stored))

    def _count_missed(self, group: ParamGroup, missing: list[int]) -> None:
        flags = np.zeros(len(group["params"]), np.float64)
        flags[missing] = 1
        group.missed.assign(group.missed + Tensor(flags, device=group.missed.device))

    def _remark(self, group: ParamGroup, missing: list[int]) -> None:
        shapes = ", ".join(str(tuple(group["params"][index].shape)) for index in missing[:4])
        emit(
            Remark(
                "missed",
                "optim",
                f"{type(self).__name__} update",
                f"split into runs: {len(missing)} of {len(group['params'])} parameters have no "
                f"gradient (shapes {shapes}{', ...' if len(missing) > 4 else ''})",
                caller_origin(),
            )
        )

    # State

    def state_dict(self) -> dict[str, Any]:
        """Return the state of each parameter by number, and the groups' hyperparameters.

        The form is PyTorch's. The tensors are copies, so the dictionary is a snapshot.
        """
        state: dict[int, dict[str, Tensor]] = {}
        groups = []
        first = 0
        for group in self.param_groups:
            state.update(self._group_state(group, first))
            numbers = list(range(first, first + len(group["params"])))
            groups.append({**copy.deepcopy(_options(group)), "params": numbers})
            first += len(numbers)
        return {"state": dict(sorted(state.items())), "param_groups": groups}

    def _group_state(
        self, group: ParamGroup, first: int
    ) -> Iterator[tuple[int, dict[str, Tensor]]]:
        steps = group.steps.numpy() - group.missed.numpy()
        for segment in group.segments:
            flat = {name: tensor.numpy() for name, tensor in segment.state.items()}
            for piece in segment.pieces:
                shape = tuple(piece.param.shape)
                entry = {
                    name: Tensor(values[piece.start : piece.stop].reshape(shape).copy())
                    for name, values in flat.items()
                }
                if self.counts_steps(group):
                    entry["step"] = Tensor(steps[piece.index].astype(np.float32))
                if entry:
                    yield first + piece.index, entry

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over the state and hyperparameters of ``state_dict()``, PyTorch's too, in place.

        Training goes on bit for bit as it would have. Raises ValueError for groups, states or
        shapes that are not those of this optimizer; nothing is changed then.
        """
        saved = state_dict["param_groups"]
        sizes = [len(group["params"]) for group in saved]
        own = [len(group["params"]) for group in self.param_groups]
        name = type(self).__name__
        if sizes != own:
            raise ValueError(
                f"{name}.load_state_dict: groups of {sizes} parameters, the optimizer has {own}"
            )
        states = []
        for group, theirs in zip(self.param_groups, saved):
            rows = [state_dict["state"].get(number, {}) for number in theirs["params"]]
            rows = [
                {k: host_array(v, None) for k, v in row.items() if v is not None} for row in rows
            ]
            self._check_state(group, rows)
            states.append(rows)
        for group, theirs, rows in zip(self.param_groups, saved, states):
            for key in (*_options(group), "initial_lr"):
                if key in theirs:
                    group[key] = theirs[key]
            self._load_group(group, rows)

    def _check_state(self, group: ParamGroup, rows: list[dict[str, np.ndarray]]) -> None:
        for number, (param, row) in enumerate(zip(group["params"], rows)):
            for name in self.state_names(group):
                if name in row and row[name].shape != tuple(param.shape):
                    raise ValueError(
                        f"{type(self).__name__}.load_state_dict: {name} of parameter {number} has "
                        f"shape {row[name].shape}, the parameter {tuple(param.shape)}"
                    )

    def _load_group(self, group: ParamGroup, rows: list[dict[str, np.ndarray]]) -> None:
        for segment in group.segments:
            for name, tensor in segment.state.items():
                flat = np.zeros(segment.size, tensor.dtype.np)
                for piece in segment.pieces:
                    if name in rows[piece.index]:
                        row = converted_array(rows[piece.index][name], tensor.dtype)
                        flat[piece.start : piece.stop] = row.ravel()
                tensor.load(flat)
        steps = np.array([float(row.get("step", 0)) for row in rows])
        most = steps.max(initial=0)
        group.steps.load(most)
        group.missed.load(most - steps)
        classes = [int(number) for number in np.unique(steps, return_inverse=True)[1]]
        if classes != group.classes:
            config.bump_epoch()
            group.classes = classes

    def __repr__(self) -> str:
        lines = []
        for number, group in enumerate(self.param_groups):
            lines.append(f"Parameter Group {number}")
            lines += [f"    {name}: {value}" for name, value in sorted(_options(group).items())]
        return f"{type(self).__name__} (\n" + "\n".join(lines) + "\n)"


def _options(group: ParamGroup) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "params"}


def _check_rate(value: Any) -> None:
    if not isinstance(value, (int, float, np.floating)) or isinstance(value, bool):
        raise TypeError(f"optimizer: lr is a number, not {type(value).__name__}")
    if not value >= 0:
        raise ValueError(f"optimizer: lr must be at least 0, not {value}")
