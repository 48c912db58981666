"""Operations on tensors that compute: arithmetic, functions, comparisons, reductions, products.

Each is one line around a graph constructor or composite. Names and defaults are PyTorch's; an axis
may be called ``dim`` or ``axis``, and ``keepdim`` be written ``keepdims``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from tinyc.composites import activation, elementwise, indexing, linear, reductions
from tinyc.diagnostics import DTypeError
from tinyc.ir import build as b
from tinyc.ir.node import Node
from tinyc.ir.ops import fail
from tinyc.state import Handle

if TYPE_CHECKING:
    from tinyc.tensor.core import Tensor


class ValuesAndIndices(NamedTuple):
    """What ``max(dim)`` and ``min(dim)`` return."""

    values: Tensor
    indices: Tensor


def axis_of(dim: Any, axis: Any, name: str) -> Any:
    """Return the axis argument, by whichever of its two names it was given."""
    if axis is None:
        return dim
    if dim is not None:
        fail(DTypeError, name, "both dim and axis are given", (), "they are one argument")
    return axis


class Operations(Handle):
    """Methods that build new expressions."""

    if TYPE_CHECKING:

        def _apply(self, function: Callable[..., Any], *operands: Any, **options: Any) -> Any: ...
        def _unary(self, function: Callable[[Node], Node]) -> Tensor: ...
        def _binary(self, function: Callable[..., Node], x: Any, y: Any) -> Tensor: ...

    # Operators

    def __add__(self, other: Any) -> Tensor:
        return self._binary(b.add, self, other)

    def __radd__(self, other: Any) -> Tensor:
        return self._binary(b.add, other, self)

    def __sub__(self, other: Any) -> Tensor:
        return self._binary(b.sub, self, other)

    def __rsub__(self, other: Any) -> Tensor:
        return self._binary(b.sub, other, self)

    def __mul__(self, other: Any) -> Tensor:
        return self._binary(b.mul, self, other)

    def __rmul__(self, other: Any) -> Tensor:
        return self._binary(b.mul, other, self)

    def __truediv__(self, other: Any) -> Tensor:
        return self._binary(b.div, self, other)

    def __rtruediv__(self, other: Any) -> Tensor:
        return self._binary(b.div, other, self)

    def __floordiv__(self, other: Any) -> Tensor:
        return self._binary(b.idiv, self, other)

    def __rfloordiv__(self, other: Any) -> Tensor:
        return self._binary(b.idiv, other, self)

    def __mod__(self, other: Any) -> Tensor:
        return self._binary(b.mod, self, other)

    def __rmod__(self, other: Any) -> Tensor:
        return self._binary(b.mod, other, self)

    def __pow__(self, other: Any) -> Tensor:
        return self._binary(b.pow, self, other)

    def __rpow__(self, other: Any) -> Tensor:
        return self._binary(b.pow, other, self)

    def __matmul__(self, other: Any) -> Tensor:
        return self._apply(linear.matmul, self, other)

    def __rmatmul__(self, other: Any) -> Tensor:
        return self._apply(linear.matmul, other, self)

    def __and__(self, other: Any) -> Tensor:
        return self._binary(b.and_, self, other)

    def __rand__(self, other: Any) -> Tensor:
        return self._binary(b.and_, other, self)

    def __or__(self, other: Any) -> Tensor:
        return self._binary(b.or_, self, other)

    def __ror__(self, other: Any) -> Tensor:
        return self._binary(b.or_, other, self)

    def __xor__(self, other: Any) -> Tensor:
        return self._binary(b.xor, self, other)

    def __rxor__(self, other: Any) -> Tensor:
        return self._binary(b.xor, other, self)

    def __lshift__(self, other: Any) -> Tensor:
        return self._binary(b.shl, self, other)

    def __rlshift__(self, other: Any) -> Tensor:
        return self._binary(b.shl, other, self)

    def __rshift__(self, other: Any) -> Tensor:
        return self._binary(b.shr, self, other)

    def __rrshift__(self, other: Any) -> Tensor:
        return self._binary(b.shr, other, self)

    def __lt__(self, other: Any) -> Tensor:
        return self._binary(b.lt, self, other)

    def __le__(self, other: Any) -> Tensor:
        return self._binary(b.le, self, other)

    def __gt__(self, other: Any) -> Tensor:
        return self._binary(b.gt, self, other)

    def __ge__(self, other: Any) -> Tensor:
        return self._binary(b.ge, self, other)

    def __eq__(self, other: Any) -> Tensor:  # type: ignore[override]
        return self._binary(b.eq, self, other)

    def __ne__(self, other: Any) -> Tensor:  # type: ignore[override]
        return self._binary(b.ne, self, other)

    __hash__ = object.__hash__

    def __neg__(self) -> Tensor:
        return self._unary(b.neg)

    def __pos__(self) -> Tensor:
        return self  # type: ignore[return-value]

    def __abs__(self) -> Tensor:
        return self._unary(elementwise.abs_)

    def __invert__(self) -> Tensor:
        return self._unary(b.invert)

    # Arithmetic by name

    def add(self, other: Any, *, alpha: float = 1) -> Tensor:
        """Return self + alpha * other."""
        return self._binary(b.add, self, other if alpha == 1 else other * alpha)

    def sub(self, other: Any, *, alpha: float = 1) -> Tensor:
        """Return self - alpha * other."""
        return self._binary(b.sub, self, other if alpha == 1 else other * alpha)

    def mul(self, other: Any) -> Tensor:
        """Return self * other."""
        return self._binary(b.mul, self, other)

    def div(self, other: Any) -> Tensor:
        """Return self / other; integers are divided as f32."""
        return self._binary(b.div, self, other)

    def floor_divide(self, other: Any) -> Tensor:
        """Return self // other, rounded down."""
        return self._binary(b.idiv, self, other)

    def remainder(self, other: Any) -> Tensor:
        """Return self % other, with the sign of other."""
        return self._binary(b.mod, self, other)

    def pow(self, exponent: Any) -> Tensor:
        """Return self ** exponent."""
        return self._binary(b.pow, self, exponent)

    def neg(self) -> Tensor:
        """Return -self."""
        return self._unary(b.neg)

    def maximum(self, other: Any) -> Tensor:
        """Return the larger of each two elements; NaN wins."""
        return self._binary(b.maximum, self, other)

    def minimum(self, other: Any) -> Tensor:
        """Return the smaller of each two elements; NaN wins."""
        return self._binary(elementwise.minimum, self, other)

    def clip(self, min: Any = None, max: Any = None) -> Tensor:
        """Return the elements limited to min..max; either may be absent."""
        if min is None and max is None:
            what = "neither min nor max is given"
            fail(DTypeError, "clip", what, (self.node,), "give at least one")
        return self._apply(elementwise.clip, self, min, max)

    clamp = clip

    # Comparison and logic by name

    def eq(self, other: Any) -> Tensor:
        """Return self == other, as bool."""
        return self._binary(b.eq, self, other)

    def ne(self, other: Any) -> Tensor:
        """Return self != other, as bool; true for NaN."""
        return self._binary(b.ne, self, other)

    def lt(self, other: Any) -> Tensor:
        """Return self < other, as bool."""
        return self._binary(b.lt, self, other)

    def le(self, other: Any) -> Tensor:
        """Return self <= other, as bool."""
        return self._binary(b.le, self, other)

    def gt(self, other: Any) -> Tensor:
        """Return self > other, as bool."""
        return self._binary(b.gt, self, other)

    def ge(self, other: Any) -> Tensor:
        """Return self >= other, as bool."""
        return self._binary(b.ge, self, other)

    def logical_not(self) -> Tensor:
        """Return where elements are zero."""
        return self._unary(lambda x: b.invert(_truth(x)))

    def logical_and(self, other: Any) -> Tensor:
        """Return where elements of both are not zero."""
        return self._apply(lambda x, y: b.and_(_truth(x), _truth(y)), self, other)

    def logical_or(self, other: Any) -> Tensor:
        """Return where an element of either is not zero."""
        return self._apply(lambda x, y: b.or_(_truth(x), _truth(y)), self, other)

    def logical_xor(self, other: Any) -> Tensor:
        """Return where an element of exactly one is not zero."""
        return self._apply(lambda x, y: b.xor(_truth(x), _truth(y)), self, other)

    def isnan(self) -> Tensor:
        """Return where elements are NaN."""
        return self._unary(elementwise.isnan)

    def isinf(self) -> Tensor:
        """Return where elements are infinite."""
        return self._unary(elementwise.isinf)

    def isfinite(self) -> Tensor:
        """Return where elements are neither infinite nor NaN."""
        return self._unary(elementwise.isfinite)

    def where(self, condition: Any, other: Any) -> Tensor:
        """Return self where the condition holds, else other."""
        return self._apply(b.where, condition, self, other)

    def masked_fill(self, mask: Any, value: Any) -> Tensor:
        """Return self with a number where the mask holds."""
        return self._apply(lambda m, x, v: b.where(m, _like(v, x), x), mask, self, value)

    # Functions

    def exp(self) -> Tensor:
        """Return e to the power of each element."""
        return self._unary(b.exp)

    def log(self) -> Tensor:
        """Return the natural logarithm."""
        return self._unary(b.log)

    def log1p(self) -> Tensor:
        """Return log(1 + x), exact near 0."""
        return self._unary(elementwise.log1p)

    def sqrt(self) -> Tensor:
        """Return the square root."""
        return self._unary(b.sqrt)

    def rsqrt(self) -> Tensor:
        """Return one over the square root."""
        return self._unary(elementwise.rsqrt)

    def reciprocal(self) -> Tensor:
        """Return one over each element."""
        return self._unary(elementwise.reciprocal)

    def square(self) -> Tensor:
        """Return each element times itself."""
        return self._unary(elementwise.square)

    def sin(self) -> Tensor:
        """Return the sine."""
        return self._unary(b.sin)

    def cos(self) -> Tensor:
        """Return the cosine."""
        return self._unary(b.cos)

    def tanh(self) -> Tensor:
        """Return the hyperbolic tangent."""
        return self._unary(b.tanh)

    def erf(self) -> Tensor:
        """Return the error function."""
        return self._unary(b.erf)

    def floor(self) -> Tensor:
        """Return the elements rounded down."""
        return self._unary(b.floor)

    def ceil(self) -> Tensor:
        """Return the elements rounded up."""
        return self._unary(lambda x: b.neg(b.floor(b.neg(x))) if x.dtype.is_float else x)

    def abs(self) -> Tensor:
        """Return the absolute value."""
        return self._unary(elementwise.abs_)

    def sign(self) -> Tensor:
        """Return -1, 0 or 1."""
        return self._unary(elementwise.sign)

    def sigmoid(self) -> Tensor:
        """Return 1 / (1 + exp(-x))."""
        return self._unary(activation.sigmoid)

    def relu(self) -> Tensor:
        """Return max(x, 0); NaN stays NaN."""
        return self._unary(activation.relu)

    def gelu(self, approximate: str = "none") -> Tensor:
        """Return the Gaussian error linear unit; approximate is "none" or "tanh"."""
        return self._unary(lambda x: activation.gelu(x, approximate))

    def silu(self) -> Tensor:
        """Return x * sigmoid(x)."""
        return self._unary(activation.silu)

    # Reductions

    def sum(
        self, dim: Any = None, keepdim: bool = False, *, axis: Any = None, keepdims: bool = False
    ) -> Tensor:
        """Return the sum over axes, all by default; integers are summed as i64."""
        return self._reduced(reductions.sum_, dim, axis, keepdim or keepdims)

    def mean(
        self, dim: Any = None, keepdim: bool = False, *, axis: Any = None, keepdims: bool = False
    ) -> Tensor:
        """Return the mean over axes, all by default; that of integers is f32."""
        return self._reduced(reductions.mean, dim, axis, keepdim or keepdims)

    def amax(
        self, dim: Any = None, keepdim: bool = False, *, axis: Any = None, keepdims: bool = False
    ) -> Tensor:
        """Return the maximum over axes, all by default; NaN if there is one."""
        return self._reduced(reductions.max_, dim, axis, keepdim or keepdims)

    def amin(
        self, dim: Any = None, keepdim: bool = False, *, axis: Any = None, keepdims: bool = False
    ) -> Tensor:
        """Return the minimum over axes, all by default; NaN if there is one."""
        return self._reduced(reductions.min_, dim, axis, keepdim or keepdims)

    def any(
        self, dim: Any = None, keepdim: bool = False, *, axis: Any = None, keepdims: bool = False
    ) -> Tensor:
        """Return whether any element is not zero."""
        return self._reduced(reductions.any_, dim, axis, keepdim or keepdims)

    def all(
        self, dim: Any = None, keepdim: bool = False, *, axis: Any = None, keepdims: bool = False
    ) -> Tensor:
        """Return whether no element is zero."""
        return self._reduced(reductions.all_, dim, axis, keepdim or keepdims)

    def argmax(
        self, dim: Any = None, keepdim: bool = False, *, axis: Any = None, keepdims: bool = False
    ) -> Tensor:
        """Return the first index of the maximum (i64); without an axis, that into all elements."""
        return self._reduced(reductions.argmax, dim, axis, keepdim or keepdims)

    def argmin(
        self, dim: Any = None, keepdim: bool = False, *, axis: Any = None, keepdims: bool = False
    ) -> Tensor:
        """Return the first index of the minimum (i64); without an axis, that into all elements."""
        return self._reduced(reductions.argmin, dim, axis, keepdim or keepdims)

    def logsumexp(
        self, dim: Any = None, keepdim: bool = False, *, axis: Any = None, keepdims: bool = False
    ) -> Tensor:
        """Return log(sum(exp(x))) without overflow."""
        return self._reduced(reductions.logsumexp, dim, axis, keepdim or keepdims)

    def _reduced(self, function: Callable[..., Node], dim: Any, axis: Any, keep: bool) -> Tensor:
        axes = axis_of(dim, axis, function.__name__.rstrip("_"))
        axes = tuple(axes) if isinstance(axes, list) else axes
        return self._unary(lambda x: function(x, axes, keep))

    def max(
        self, dim: Any = None, keepdim: bool = False, *, axis: Any = None, keepdims: bool = False
    ) -> Any:
        """Return the maximum of all; (values, indices) along an axis; or, of two, the larger."""
        return self._extreme(self.amax, self.argmax, self.maximum, dim, axis, keepdim or keepdims)

    def min(
        self, dim: Any = None, keepdim: bool = False, *, axis: Any = None, keepdims: bool = False
    ) -> Any:
        """Return the minimum of all; (values, indices) along an axis; or, of two, the smaller."""
        return self._extreme(self.amin, self.argmin, self.minimum, dim, axis, keepdim or keepdims)

    def _extreme(
        self, values: Any, indices: Any, pairwise: Any, dim: Any, axis: Any, keep: bool
    ) -> Any:
        if isinstance(dim, Handle):
            return pairwise(dim)
        along = axis_of(dim, axis, "max or min")
        if along is None:
            return values()
        return ValuesAndIndices(values(along, keep), indices(along, keep))

    def var(
        self,
        dim: Any = None,
        unbiased: bool = True,
        keepdim: bool = False,
        *,
        correction: float | None = None,
        axis: Any = None,
        keepdims: bool = False,
    ) -> Tensor:
        """Return the variance: squared distances from the mean over n - correction (n - 1)."""
        return self._spread(reductions.var, dim, unbiased, correction, axis, keepdim or keepdims)

    def std(
        self,
        dim: Any = None,
        unbiased: bool = True,
        keepdim: bool = False,
        *,
        correction: float | None = None,
        axis: Any = None,
        keepdims: bool = False,
    ) -> Tensor:
        """Return the square root of the variance."""
        return self._spread(reductions.std, dim, unbiased, correction, axis, keepdim or keepdims)

    def _spread(
        self,
        function: Callable[..., Node],
        dim: Any,
        unbiased: bool,
        correction: float | None,
        axis: Any,
        keep: bool,
    ) -> Tensor:
        if isinstance(dim, bool):
            dim, unbiased = None, dim
        lost = float(unbiased) if correction is None else correction
        axes = axis_of(dim, axis, function.__name__)
        return self._unary(lambda x: function(x, axes, lost, keep))

    def softmax(self, dim: Any = None, *, axis: Any = None) -> Tensor:
        """Return exp(x) over its sum along an axis."""
        along = axis_of(dim, axis, "softmax")
        return self._apply(reductions.softmax, self, -1 if along is None else along)

    def log_softmax(self, dim: Any = None, *, axis: Any = None) -> Tensor:
        """Return the logarithm of softmax."""
        along = axis_of(dim, axis, "log_softmax")
        return self._apply(reductions.log_softmax, self, -1 if along is None else along)

    # Products

    def matmul(self, other: Any) -> Tensor:
        """Return the matrix product, by numpy's rules for vectors and batches."""
        return self._apply(linear.matmul, self, other)

    mm = bmm = dot = mv = matmul

    def outer(self, other: Any) -> Tensor:
        """Return the products of all pairs of two vectors."""
        return self._apply(lambda x, y: linear.einsum("i,j->ij", [x, y]), self, other)

    # By index

    def gather(self, dim: int, index: Any) -> Tensor:
        """Return the elements at `index` along an axis; both have the same axes."""
        return self._apply(lambda x, i: indexing.take_along_dim(x, i, dim), self, index)

    def take_along_dim(self, indices: Any, dim: int) -> Tensor:
        """Return the elements at `indices` along an axis; other axes broadcast."""
        return self.gather(dim, indices)

    def index_select(self, dim: int, index: Any) -> Tensor:
        """Return the entries of an axis named by a vector of integers."""
        key = (slice(None),) * (dim % max(len(self.node.shape), 1))
        return self._apply(lambda x, i: indexing.index_nodes(x, (*key, i)), self, index)

    def tril(self, diagonal: int = 0) -> Tensor:
        """Return the last two axes on and below a diagonal, zeros above."""
        return self._unary(lambda x: indexing.tril(x, diagonal))

    def triu(self, diagonal: int = 0) -> Tensor:
        """Return the last two axes on and above a diagonal, zeros below."""
        return self._unary(lambda x: indexing.triu(x, diagonal))

    def roll(self, shifts: int, dims: int) -> Tensor:
        """Return the tensor moved along an axis, what leaves entering at the other end."""
        return self._unary(lambda x: indexing.roll(x, shifts, dims))


def _truth(x: Any) -> Any:
    """Return where a node or number is not zero."""
    if not isinstance(x, Node):
        return bool(x)
    return x if x.dtype.kind == "b" else b.ne(x, 0)


def _like(value: Any, x: Node) -> Any:
    return b.cast(value, x.dtype) if isinstance(value, Node) else value
