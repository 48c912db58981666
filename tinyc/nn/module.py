"""Module: a tree of layers that knows its parameters, buffers and children by name."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

from tinyc import config
from tinyc.diagnostics import TinycError
from tinyc.ir.dtype import DTYPES, bf16, f16, f32, f64
from tinyc.nn.parameter import Parameter
from tinyc.realization import array_of
from tinyc.tensor import Tensor
from tinyc.tensor.core import host_array

M = TypeVar("M", bound="Module")
T = TypeVar("T")


class StateDictError(TinycError, RuntimeError):
    """A state dict whose keys or shapes are not those of the module."""


class IncompatibleKeys(NamedTuple):
    """What ``load_state_dict(strict=False)`` left alone."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class Module:
    """Base class of layers and models.

    Assigning a Parameter or a Module to an attribute registers it; ``forward`` says what the
    module computes. A changed attribute or mode makes captured programs trace again.
    """

    training: bool

    def __init__(self) -> None:
        fresh: dict[str, Any] = {
            "training": True,
            "_parameters": {},
            "_buffers": {},
            "_modules": {},
            "_transient": set(),
        }
        self.__dict__.update(fresh)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the module's output; subclasses define it."""
        raise NotImplementedError(f"{type(self).__name__} must define forward")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)

    # Attributes

    def __setattr__(self, name: str, value: Any) -> None:
        home = self._home(name, value)
        if not _same(home.get(name, _ABSENT), value):
            config.bump_epoch()
        for other in self._homes():
            if other is not home:
                other.pop(name, None)
        home[name] = value

    def _home(self, name: str, value: Any) -> dict[str, Any]:
        """Return the dictionary that an attribute of this name and value belongs to."""
        if "_parameters" not in self.__dict__:
            raise AttributeError(
                f"{type(self).__name__}: call super().__init__() before assigning {name!r}"
            )
        if isinstance(value, Parameter):
            return self._parameters
        if isinstance(value, Module):
            return self._modules
        for home in (self._parameters, self._modules):
            if name in home and value is None:
                return home
        if name in self._parameters:
            raise TypeError(
                f"{type(self).__name__}.{name} is a Parameter; assign an nn.Parameter or None to "
                f"it, not {type(value).__name__}"
            )
        if name in self._buffers and (value is None or isinstance(value, Tensor)):
            return self._buffers
        return self.__dict__

    def _homes(self) -> tuple[dict[str, Any], ...]:
        return self._parameters, self._buffers, self._modules, self.__dict__

    def __getattr__(self, name: str) -> Any:
        # Called only where the instance has no plain attribute of this name.
        for home in ("_parameters", "_buffers", "_modules"):
            entries = self.__dict__.get(home)
            if entries is not None and name in entries:
                return entries[name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __delattr__(self, name: str) -> None:
        for home in self._homes():
            if name in home:
                del home[name]
                self._transient.discard(name)
                config.bump_epoch()
                return
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __dir__(self) -> list[str]:
        names = [*super().__dir__(), *self._parameters, *self._buffers, *self._modules]
        return sorted(set(names))

    def register_parameter(self, name: str, param: Parameter | None) -> None:
        """Register a parameter, or None for one that this instance does without."""
        _check_name(self, name)
        self._parameters[name] = param
        config.bump_epoch()

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Register state that is not trained; it is in ``state_dict`` if ``persistent``."""
        _check_name(self, name)
        self._buffers[name] = tensor
        (self._transient.discard if persistent else self._transient.add)(name)
        config.bump_epoch()

    def add_module(self, name: str, module: Module | None) -> None:
        """Register a child under a name that need not be an identifier."""
        _check_name(self, name)
        self._modules[name] = module
        config.bump_epoch()

    # The tree

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """Yield (name, child) of the direct children, each module once."""
        yield from _unique((name, m) for name, m in self._modules.items() if m is not None)

    def children(self) -> Iterator[Module]:
        """Yield the direct children."""
        return (module for _, module in self.named_children())

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """Yield (dotted name, module) of this module and all below it, each module once."""
        yield from _unique(self._walk(prefix))

    def modules(self) -> Iterator[Module]:
        """Yield this module and all below it."""
        return (module for _, module in self.named_modules())

    def _walk(self, prefix: str) -> Iterator[tuple[str, Module]]:
        """Yield (dotted name, module), a shared module under each of its names."""
        yield prefix, self
        for name, module in self._modules.items():
            if module is not None:
                yield from module._walk(_join(prefix, name))

    def named_parameters(
        self, prefix: str = "", recurse: bool = True
    ) -> Iterator[tuple[str, Parameter]]:
        """Yield (dotted name, parameter), each parameter once."""
        yield from _unique(self._entries("_parameters", prefix, recurse))

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        """Yield the parameters, each once: what an optimizer takes."""
        return (param for _, param in self.named_parameters(recurse=recurse))

    def named_buffers(self, prefix: str = "", recurse: bool = True) -> Iterator[tuple[str, Tensor]]:
        """Yield (dotted name, buffer), each buffer once."""
        yield from _unique(self._entries("_buffers", prefix, recurse))

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]:
        """Yield the buffers."""
        return (buffer for _, buffer in self.named_buffers(recurse=recurse))

    def _entries(self, home: str, prefix: str, recurse: bool) -> Iterator[tuple[str, Any]]:
        for path, module in self._walk(prefix) if recurse else [(prefix, self)]:
            for name, value in module.__dict__[home].items():
                if value is not None:
                    yield _join(path, name), value

    # Modes and moves

    def train(self: M, mode: bool = True) -> M:
        """Set training mode here and below, which dropout and batch norm follow; returns self."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self: M) -> M:
        """Set evaluation mode here and below; returns self."""
        return self.train(False)

    def to(self: M, *targets: Any, dtype: Any = None, device: str | None = None) -> M:
        """Move parameters and buffers to a device, and those that are floats to a dtype.

        Handles stay what they are. Make the optimizer afterwards. Returns self.
        """
        for target in targets:
            if isinstance(target, str) and target not in DTYPES:
                device = target
            else:
                dtype = target
        for tensor in [*self.parameters(), *self.buffers()]:
            _move(tensor, dtype if tensor.is_floating_point() else None, device)
        return self

    def float(self: M) -> M:
        """Make floating-point parameters and buffers f32; returns self."""
        return self.to(f32)

    def half(self: M) -> M:
        """Make floating-point parameters and buffers f16; returns self."""
        return self.to(f16)

    def bfloat16(self: M) -> M:
        """Make floating-point parameters and buffers bf16; returns self."""
        return self.to(bf16)

    def double(self: M) -> M:
        """Make floating-point parameters and buffers f64; returns self."""
        return self.to(f64)

    def requires_grad_(self: M, requires_grad: bool = True) -> M:
        """Freeze or unfreeze all parameters; returns self."""
        for param in self.parameters():
            param.requires_grad_(requires_grad)
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of all parameters, or set them to zero."""
        for param in self.parameters():
            if set_to_none:
                param.grad = None
            elif param.grad is not None:
                param.grad = param.grad.detach() * 0

    def apply(self: M, fn: Callable[[Module], Any]) -> M:
        """Call ``fn`` with every module below and then this one; returns self."""
        for child in self.children():
            child.apply(fn)
        fn(self)
        return self

    # State

    def state_dict(self, prefix: str = "") -> dict[str, Tensor]:
        """Return parameters and persistent buffers by dotted name, in registration order.

        The tensors share storage with the module's: they change as it trains.
        """
        state: dict[str, Tensor] = OrderedDict()
        for path, module in self._walk(prefix.rstrip(".")):
            for name, tensor in module._own_state():
                state[_join(path, name)] = tensor.detach()
        return state

    def _own_state(self) -> Iterator[tuple[str, Tensor]]:
        for name, param in self._parameters.items():
            if param is not None:
                yield name, param
        for name, buffer in self._buffers.items():
            if buffer is not None and name not in self._transient:
                yield name, buffer

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True
    ) -> IncompatibleKeys:
        """Copy tensors or arrays into parameters and buffers, in place, by dotted name.

        Nothing is changed unless all fits. Raises StateDictError naming the keys that are missing
        or unexpected (returned instead with ``strict=False``) and those whose shapes differ.
        """
        own = {
            _join(path, name): tensor
            for path, module in self._walk("")
            for name, tensor in module._own_state()
        }
        missing = [key for key in own if key not in state_dict]
        unexpected = [key for key in state_dict if key not in own]
        arrays = {key: host_array(state_dict[key], None) for key in own if key in state_dict}
        problems = [
            f"{key} has shape {arrays[key].shape} in the state dict but {tuple(own[key].shape)} "
            "in the module"
            for key in arrays
            if arrays[key].shape != tuple(own[key].shape)
        ]
        if strict and missing:
            problems.insert(0, "missing: " + ", ".join(missing))
        if strict and unexpected:
            problems.insert(0, "unexpected: " + ", ".join(unexpected))
        if problems:
            lines = "".join(f"\n  {problem}" for problem in problems)
            raise StateDictError(f"load_state_dict of {type(self).__name__}:{lines}")
        for key, array in arrays.items():
            own[key].load(array)
        return IncompatibleKeys(missing, unexpected)

    # Text

    def extra_repr(self) -> str:
        """Return what stands between the parentheses of the module's repr."""
        return ""

    def __repr__(self) -> str:
        lines = self.extra_repr().splitlines()
        single = len(lines) <= 1 and not self._modules
        for name, module in self._modules.items():
            lines.append(f"({name}): " + repr(module).replace("\n", "\n  "))
        if single:
            return f"{type(self).__name__}({''.join(lines)})"
        return f"{type(self).__name__}(\n  " + "\n  ".join(lines) + "\n)"


_ABSENT = object()
_PLAIN = (bool, int, float, str, type(None))


def _same(before: Any, after: Any) -> bool:
    """Tell whether a program traced with one value holds with the other."""
    if before is after:
        return True
    return type(before) is type(after) and isinstance(after, _PLAIN) and before == after


def _move(tensor: Tensor, dtype: Any, device: str | None) -> None:
    """Give a tensor memory of another dtype or on another device; its handle stays."""
    moved = Tensor(array_of(tensor).ravel(), dtype=dtype, device=device or tensor.device)
    if moved.dtype is tensor.dtype and moved.device == tensor.device:
        return
    grad = tensor.grad
    tensor.grad = None
    tensor.become_alias(moved, 0)
    if grad is not None:
        tensor.grad = grad.detach().to(dtype=dtype, device=device)


def _check_name(module: Module, name: str) -> None:
    if not name or "." in name:
        raise KeyError(f"{type(module).__name__}: {name!r} is empty or has a dot")
    if hasattr(module, name) and not any(name in home for home in module._homes()[:3]):
        raise KeyError(f"{type(module).__name__} already has an attribute {name!r}")


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _unique(pairs: Any) -> Iterator[tuple[str, Any]]:
    seen: set[int] = set()
    for name, value in pairs:
        if id(value) not in seen:
            seen.add(id(value))
            yield name, value
