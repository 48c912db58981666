"""Writing to tensors in place: assignment, the operators with `=`, memory of another tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyc import state
from tinyc.composites import indexing
from tinyc.diagnostics import DTypeError, ShapeError, TinycError, caller_origin
from tinyc.ir import build as b
from tinyc.ir.dtype import converted_array, promote
from tinyc.ir.node import Node
from tinyc.ir.ops import Op, fail
from tinyc.realization import overwrite
from tinyc.state import PLAIN, Handle
from tinyc.tensor.modes import recording

if TYPE_CHECKING:
    from typing_extensions import Self

    from tinyc.ir.dtype import DType
    from tinyc.tensor.core import Tensor


class Writing(Handle):
    """Methods that replace a tensor's values; they return the tensor itself."""

    if TYPE_CHECKING:

        @property
        def dtype(self) -> DType: ...
        def numel(self) -> int: ...
        def clip(self, min: Any = None, max: Any = None) -> Tensor: ...
        def _view(self, function: Callable[..., Node], *arguments: Any) -> Tensor: ...
        def _build(
            self, function: Callable[..., Any], values: Sequence[Any], like: Any = None
        ) -> Any: ...
        def _of_array(self, array: np.ndarray) -> Tensor: ...

    def _in_place(self, function: Callable[..., Node], *values: Any, name: str = "") -> Self:
        """Replace the values by those of function(self, *values)."""
        node, mode = self._build(function, (self, *values))
        self._replace(node, mode, name or function.__name__)
        return self

    def _replace(self, node: Node, mode: Any, name: str) -> None:
        self._check_writable(name)
        own = self.node
        node = _castable(name, node, own)
        if node.shape != own.shape:
            try:
                node = b.expand(node, own.shape)
            except ShapeError:
                fail(
                    ShapeError,
                    name,
                    "the value does not fit",
                    (own, node),
                    "a tensor keeps its shape when written in place",
                )
        self._write(node, mode, caller_origin(2))

    def _check_writable(self, name: str) -> None:
        if not recording.on:
            return
        handle: Handle | None = self
        while handle is not None:
            if handle._is_leaf:
                fail(
                    TinycError,
                    name,
                    "a leaf that requires grad is written in place",
                    (self.node,),
                    "its gradient would be that of a value it no longer has",
                    "write within no_grad()",
                )
            handle = handle._parent

    def _put(self, node: Node, value: Any, name: str, region: Any = None) -> None:
        """Write a value to the whole tensor or to a region of it."""
        piece = self
        if region is not None:
            if 0 in region.sizes:
                return
            piece = self._view(b.slice_, region.starts, region.sizes, region.steps)
        found, mode = self._build(_as_is, (value,), self)
        found = _castable(name, found, node)
        if region is not None:
            found = indexing.region_value(region, found)
        piece._replace(found, mode, name)

    def assign(self, value: Any) -> Self:
        """Replace the values by those of a tensor of the same shape."""
        node, mode = self._build(_as_is, (value,), self)
        if node.shape != self.node.shape:
            fail(
                ShapeError,
                "assign",
                "shapes differ",
                (self.node, node),
                "they must be equal",
                "copy_ broadcasts",
            )
        self._replace(node, mode, "assign")
        return self

    def copy_(self, value: Any) -> Self:
        """Replace the values by those of a tensor that broadcasts to the shape."""
        node, mode = self._build(_as_is, (value,), self)
        self._replace(b.cast(node, self.dtype), mode, "copy_")
        return self

    def load(self, array: Any) -> Self:
        """Write the values of a numpy array of the same shape into memory at once."""
        found = converted_array(np.asarray(array), self.dtype)
        if found.shape != self.node.shape:
            fail(
                ShapeError,
                "load",
                f"an array of shape {found.shape}",
                (self.node,),
                "shapes must be equal",
            )
        origin = caller_origin()
        if state.capturing.trace is not None or (self._parent is not None and self._begin is None):
            self._write(self._of_array(found).node, PLAIN, origin)
        else:
            overwrite(self, found, origin)
        return self

    def fill_(self, value: Any) -> Self:
        """Set all elements to one number."""
        return self._in_place(_filled, value, name="fill_")

    def zero_(self) -> Self:
        """Set all elements to zero."""
        return self._in_place(_filled, 0, name="zero_")

    def add_(self, other: Any, *, alpha: Any = 1) -> Self:
        """Add alpha * other in place."""
        return self._in_place(b.add, other if alpha == 1 else other * alpha, name="add_")

    def sub_(self, other: Any, *, alpha: Any = 1) -> Self:
        """Subtract alpha * other in place."""
        return self._in_place(b.sub, other if alpha == 1 else other * alpha, name="sub_")

    def mul_(self, other: Any) -> Self:
        """Multiply in place."""
        return self._in_place(b.mul, other, name="mul_")

    def div_(self, other: Any) -> Self:
        """Divide in place."""
        return self._in_place(b.div, other, name="div_")

    def clamp_(self, min: Any = None, max: Any = None) -> Self:
        """Limit the elements to min..max in place."""
        return self.copy_(self.clip(min, max))

    clip_ = clamp_

    def __iadd__(self, other: Any) -> Self:
        return self._in_place(b.add, other, name="+=")

    def __isub__(self, other: Any) -> Self:
        return self._in_place(b.sub, other, name="-=")

    def __imul__(self, other: Any) -> Self:
        return self._in_place(b.mul, other, name="*=")

    def __itruediv__(self, other: Any) -> Self:
        return self._in_place(b.div, other, name="/=")

    def __ifloordiv__(self, other: Any) -> Self:
        return self._in_place(b.idiv, other, name="//=")

    def __imod__(self, other: Any) -> Self:
        return self._in_place(b.mod, other, name="%=")

    def __ipow__(self, other: Any) -> Self:
        return self._in_place(b.pow, other, name="**=")

    def __iand__(self, other: Any) -> Self:
        return self._in_place(b.and_, other, name="&=")

    def __ior__(self, other: Any) -> Self:
        return self._in_place(b.or_, other, name="|=")

    def __ixor__(self, other: Any) -> Self:
        return self._in_place(b.xor, other, name="^=")

    # Memory of another tensor

    _begin: Any = None

    @property
    def alias(self) -> tuple[Tensor, Any] | None:
        """The flat tensor whose memory this one uses since `become_alias`, and where it begins."""
        return None if self._begin is None else (self._parent, self._begin)  # type: ignore

    def become_alias(self, base: Tensor, begin: Any) -> None:
        """Make this tensor a stretch of a flat one, from element `begin`; values are not moved."""
        shape = self.node.shape
        self._become_view(base, _stretch, (begin, self.numel(), shape))
        self._begin = begin


def _castable(name: str, node: Node, own: Node) -> Node:
    """Return a node in the dtype of the tensor written to; DTypeError if that loses its kind."""
    if promote(node.dtype, own.dtype).kind != own.dtype.kind:
        fail(
            DTypeError,
            name,
            f"{node.dtype} does not fit into {own.dtype}",
            (own, node),
            "a tensor keeps its dtype when written in place",
            "cast the value",
        )
    return b.cast(node, own.dtype)


def _as_is(x: Node) -> Node:
    return x


def _filled(x: Node, value: Any) -> Node:
    if isinstance(value, Node):
        return b.expand(b.cast(value, x.dtype), x.shape)
    return b.full(x.shape, value, x.dtype)


def _stretch(x: Node, begin: Any, count: Any, shape: tuple) -> Node:
    """Return a stretch of a flat node, looking through writes to other stretches."""
    while x.op is Op.ASSIGN and _apart(x.attrs, begin, count):
        x = x.src[0]
    return b.reshape(b.slice_(x, (begin,), (count,)), shape)


def _apart(region: tuple, begin: Any, count: Any) -> Any:
    (start,), (size,), (step,) = region
    return step == 1 and (start + size <= begin or begin + count <= start)
