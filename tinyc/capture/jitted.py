"""The callable that `jit` returns: finding the program for a call, or capturing a new one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, overload
from weakref import ref

from tinyc import config, state
from tinyc.capture.arguments import describe_change, flatten, objects, rebuild
from tinyc.capture.frozen import Frozen
from tinyc.capture.guards import Guards
from tinyc.capture.replay import Replay, Spec, capture, spec_of
from tinyc.capture.shortcut import PATIENCE, Shortcut, shortcut
from tinyc.diagnostics import Remark, TinycError, caller_origin, emit, warn_once
from tinyc.ir.node import Graph
from tinyc.ir.printer import to_text
from tinyc.runtime import recorder
from tinyc.tensor import Tensor
from tinyc.tensor.modes import recording

if TYPE_CHECKING:
    from tinyc.ir.program import Program

# From so many programs of one function on, the user is told; so many are kept.
MANY, KEPT = 12, 64


class Variant:
    """A captured program and all that it was made for."""

    def __init__(
        self, static: Any, specs: list[Spec], replay: Replay, guards: Guards, kept: list[Any]
    ) -> None:
        self.static = static
        self.specs = specs
        self.recording = recording.on
        self.cast = recording.cast
        self.epoch = config.epoch()
        self.replay = replay
        self.guards = guards
        self.kept = kept
        self.runs = 0
        self.shortcut: Shortcut | None = None

    def run(self, tensors: list[Tensor]) -> Any:
        """Run the program on the tensors of a call that it fits."""
        self.runs += 1
        if self.runs % PATIENCE == 0 and isinstance(self.static, int):
            checked = (self.specs, self.recording, self.guards)
            self.shortcut = shortcut(self.replay, *checked) or self.shortcut
        return self.replay.run(tensors)

    def fits(self, static: Any, tensors: list[Tensor]) -> bool:
        """Tell whether the program is right for a call."""
        if (
            self.epoch != config.epoch()
            or self.static != static
            or self.recording is not recording.on
            or self.cast is not recording.cast
        ):
            return False
        for spec, tensor in zip(self.specs, tensors):
            if spec_of(tensor) != spec:
                return False
        return self.guards.hold() and self.replay.fits_grads()

    def difference(self, static: Any, tensors: list[Tensor]) -> str:
        """Return in words why the program does not fit a call."""
        found = self.guards.change()
        if found:
            return found
        if self.static != static:
            return _static_difference(self.static, static)
        for number, (spec, tensor) in enumerate(zip(self.specs, tensors)):
            now = spec_of(tensor)
            names = ("shape", "dtype", "device", "requires_grad")
            for name, before, after in zip(names, spec, now):
                if before != after:
                    return f"the {name} of tensor {number} changed from {before} to {after}"
        if self.recording is not recording.on:
            return "no_grad was switched"
        if self.cast is not recording.cast:
            return "autocast was switched"
        if self.epoch != config.epoch():
            return "a module's attribute or mode, a requires_grad or a switch changed"
        return "a gradient is there that was not, or the other way round"


class Jitted:
    """A function that is captured when it is first called; see `jit`."""

    def __init__(self, function: Callable[..., Any], frozen: Frozen | None = None) -> None:
        self._function = function
        self._frozen = frozen
        self._variants: list[Variant] = []
        self._shortcut: Shortcut | None = None
        self._bound: dict[int, tuple[ref[Any], Jitted]] = {}
        self.captures = 0
        functools.update_wrapper(self, function)

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        if instance is None:
            return self
        key = id(instance)
        found = self._bound.get(key)
        if found is None or found[0]() is not instance:
            # The method may not keep its instance alive through the class.
            forget = ref(instance, lambda _: self._bound.pop(key, None))
            found = self._bound[key] = (forget, _Method(self._function, instance, self._frozen))
        return found[1]

    def _call(self, args: tuple, kwargs: dict[str, Any]) -> Any:
        return self._function(*args, **kwargs)

    def _target(self) -> Any:
        """Return the function whose variables the program depends on."""
        return self._function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        shortcut = self._shortcut
        if shortcut is not None and not kwargs:
            found = shortcut(args)
            if found is not None:
                return found
        return self._replayed(args, kwargs)

    def _replayed(self, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Run the program that fits a call, captured now if there is none."""
        if state.capturing.trace is not None:
            return self._call(args, kwargs)
        tensors: list[Tensor] = []
        static: Any = None
        for value in args:
            if not isinstance(value, Tensor):
                break
            tensors.append(value)
        if kwargs or len(tensors) != len(args):
            tensors = []
            static = (flatten(args, tensors), flatten(kwargs, tensors))
        else:
            static = len(tensors)
        variant = self._fitting(static, tensors)
        if variant is not None:
            found = variant.run(tensors)
            self._shortcut = variant.shortcut
            return found
        return self._capture(static, tensors, args, kwargs)

    def _fitting(self, static: Any, tensors: list[Tensor]) -> Variant | None:
        """Return the program that fits a call, which is the latest from now on, or None."""
        for variant in reversed(self._variants):
            if variant.fits(static, tensors):
                if variant is not self._variants[-1]:
                    self._variants.remove(variant)
                    self._variants.append(variant)
                return variant
        return None

    def _capture(
        self, static: Any, tensors: list[Tensor], args: tuple, kwargs: dict[str, Any]
    ) -> Any:
        self._shortcut = None
        if self._variants:
            self._explain(self._variants[-1].difference(static, tensors))
        # Programs of an earlier epoch can never fit again.
        for variant in [v for v in self._variants if v.epoch != config.epoch()]:
            self._drop(variant)
        while len(self._variants) >= KEPT:
            self._drop(self._variants[0])
        self.captures += 1
        specs = [spec_of(tensor) for tensor in tensors]

        def call(inner: list[Tensor]) -> Any:
            left = iter(inner)
            return self._call(rebuild(args, left), rebuild(kwargs, left))

        with recorder.span(f"capture {self._name()}", "capture"):
            replay = capture(self._name(), call, tensors, self._frozen)
        kept = [objects(args), objects(kwargs)] if not isinstance(static, int) else []
        variant = Variant(static, specs, replay, Guards(self._target()), kept)
        self._variants.append(variant)
        return replay.run(tensors)

    def _drop(self, variant: Variant) -> None:
        self._variants.remove(variant)
        variant.replay.retire()

    def _explain(self, reason: str) -> None:
        name = self._name()
        message = f"captured again: {reason}"
        emit(Remark("analysis", "jit", name, message, caller_origin(), {"captures": self.captures}))
        if self.captures == MANY:
            warn_once(
                f"captures {id(self)}",
                f"{name} was captured {MANY} times, the last time because {reason}; what changes "
                "at every call should be a Tensor",
            )

    def _name(self) -> str:
        return getattr(self._function, "__qualname__", "function").replace("<locals>.", "")

    def _repr_html_(self) -> str:
        from tinyc import markup

        name = f"jit {self._name()}"
        program = self._variants[-1].replay.program if self._variants else None
        if program is None:
            return markup.card(name, [f"captured {self.captures} times"])
        figures = [
            markup.plural(len(program.kernels), "kernel"),
            markup.scaled(program.flops, "FLOP"),
            f"{markup.size(program.bytes_moved)} moved",
            f"arena {markup.size(program.arena_size)}",
            f"captured {self.captures} times" if self.captures > 1 else "captured once",
        ]
        table = markup.rows(
            ("kernel", "FLOP", "bytes", "members"),
            (
                (k.name, markup.scaled(k.flops, ""), markup.size(k.bytes_moved), len(k.members))
                for k in program.kernels
            ),
        )
        summary = markup.element("summary", "kernels of the last call's program")
        return markup.card(name, figures, markup.element("details", summary, table))

    def refresh(self) -> None:
        """Let the next call compute anew what was kept of frozen tensors.

        That happens by itself after tinyc has overwritten them: by an optimizer, by assignment, by
        loading. It does not see writes by way of numpy, to an array that shares their memory.
        TinycError where nothing is frozen.
        """
        if self._frozen is None:
            raise TinycError(f"{self._name()}: nothing is frozen; say jit(function, frozen=model)")
        self._frozen.forget()

    # What was captured last

    @property
    def kept(self) -> tuple[Remark, ...]:
        """What was decided about frozen tensors for the last call: what is kept, and what not."""
        folded = self._latest().folded
        return () if folded is None else folded.remarks

    def _latest(self) -> Replay:
        if not self._variants:
            raise TinycError(f"{self._name()}: call the function once, then there is a program")
        return self._variants[-1].replay

    @property
    def program(self) -> Program | None:
        """The program of the last call; None on a device that runs no source."""
        return self._latest().program

    def graph(self) -> str:
        """Return the graph of the last call as text."""
        return to_text(self._latest().graph.outputs)

    def nodes(self) -> Graph:
        """Return the graph of the last call."""
        return self._latest().graph

    def loops(self) -> str:
        """Return the loop trees of the last call's kernels as text."""
        program = self._source_program()
        return "\n\n".join(f"{kernel.name}:\n{kernel.loops}" for kernel in program.kernels)

    def source(self) -> str:
        """Return the source text of the last call's program."""
        return self._source_program().source

    def asm(self) -> str:
        """Return the machine code of the last call's innermost loops, kernel by kernel.

        TinycError where there is no objdump to show it.
        """
        from tinyc.runtime import disassembly

        program = self._source_program()
        if disassembly.find_tool() is None:
            raise TinycError(f"{self._name()}: objdump was not found; install binutils to see code")
        return "\n\n".join(disassembly.kernel_texts(program).values())

    def _source_program(self) -> Program:
        program = self.program
        if program is None:
            raise TinycError(f"{self._name()}: this device runs the graph itself, without source")
        return program


class _Method(Jitted):
    """A captured method of one instance."""

    def __init__(
        self, function: Callable[..., Any], instance: Any, frozen: Frozen | None
    ) -> None:
        super().__init__(function, frozen)
        self._instance = ref(instance)

    def _call(self, args: tuple, kwargs: dict[str, Any]) -> Any:
        return self._function(self._instance(), *args, **kwargs)

    def _target(self) -> Any:
        return self._function.__get__(self._instance())


def _static_difference(before: Any, after: Any) -> str:
    if isinstance(before, int) or isinstance(after, int):
        return "the number or kind of arguments changed"
    for number, (one, other) in enumerate(zip(before[0][1], after[0][1])):
        if one != other:
            return f"argument {number} changed {describe_change(one, other)}"
    for (name, one), (_, other) in zip(before[1][1], after[1][1]):
        if one != other:
            return f"argument {name} changed {describe_change(one, other)}"
    return "the number or kind of arguments changed"


@overload
def jit(function: Callable[..., Any], *, frozen: Any = None) -> Jitted: ...
@overload
def jit(*, frozen: Any) -> Callable[[Callable[..., Any]], Jitted]: ...
def jit(function: Callable[..., Any] | None = None, *, frozen: Any = None) -> Any:
    """Return the function as one native program, captured at its first call.

    Arguments are tensors, also in lists, tuples and dictionaries; everything else is part of the
    program. A call with other shapes, dtypes, devices or plain values captures anew, and so does a
    change of a variable that the function reads, of a module's attribute or mode, or of a switch; a
    remark says which. Tensors that the function reads besides its arguments are state, and are
    overwritten in place where it writes to them. What Python does besides happens at the capture
    only. Tensors have no values inside: looking at one raises TracingError.

    `frozen` is a module, or tensors, that are constant between calls, as weights are when a model
    is used: what is computed from them alone, packed weights among it, is computed once, kept in
    memory, and computed again after tinyc has overwritten one of them (see `Jitted.refresh`).
    TracingError if the function itself overwrites one. `jit(frozen=model)` is a decorator.
    """
    held = None if frozen is None else Frozen(frozen)
    if function is None:
        return lambda function: Jitted(function, held)
    return Jitted(function, held)
