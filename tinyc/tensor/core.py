"""Tensor: what users hold. Values, attributes, conversion, writing in place, gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from tinyc import config, state
from tinyc.diagnostics import (
    DTypeError,
    ShapeError,
    TinycError,
    caller_origin,
)
from tinyc.ir import build as b
from tinyc.ir.dtype import (
    DTYPES,
    DType,
    bf16,
    bool_,
    converted_array,
    dtype_named,
    f16,
    f32,
    f64,
    from_numpy,
    i32,
    i64,
    numbers,
    stored,
)
from tinyc.ir.node import Node, toposort
from tinyc.ir.ops import OPS, describe, fail
from tinyc.realization import add_leaf, array_of, is_known, realize
from tinyc.runtime.buffer import Buffer
from tinyc.runtime.device import default_device, get_device
from tinyc.state import CUT, GRAD, PLAIN, Handle
from tinyc.tensor import gradients
from tinyc.tensor.autocast import casted
from tinyc.tensor.create import Creation
from tinyc.tensor.modes import operands, recording
from tinyc.tensor.operations import Operations
from tinyc.tensor.views import Views
from tinyc.tensor.writing import Writing

Scalar = (bool, int, float)
_make = object.__new__


class Size(tuple):
    """A shape: a tuple that knows how many elements it has."""

    __slots__ = ()

    def numel(self) -> int:
        """Return the number of elements."""
        count = 1
        for n in self:
            count *= n
        return count

    def __repr__(self) -> str:
        return f"Size({list(self)})"


class Tensor(Operations, Views, Writing, Creation):
    """An array that is computed when somebody looks, and that can be differentiated.

    `Tensor(data)` copies numbers, nested lists, numpy arrays or another tensor. Python floats
    become f32, ints i64; numpy's types stay. Raises DTypeError for types there are none of, and
    DeviceError for a device that there is not.
    """

    # numpy leaves `array + tensor` to us.
    __array_ufunc__ = None

    def __init__(
        self,
        data: Any,
        dtype: DType | str | None = None,
        device: str | None = None,
        requires_grad: bool = False,
    ) -> None:
        array = host_array(data, as_dtype(dtype) if dtype is not None else None)
        memory = get_device(default_device() if device is None else device)
        buffer = memory.upload(array)
        buffer.categorize("input")
        self._init_buffer(buffer, caller_origin())
        if requires_grad:
            self.requires_grad_()

    @staticmethod
    def _new(node: Node, mode: int = PLAIN) -> Tensor:
        return _make(Tensor)._init_expression(node, mode)

    @staticmethod
    def from_node(node: Node) -> Tensor:
        """Return the tensor of a graph node, through which no gradient passes."""
        return Tensor._new(node, CUT)

    @staticmethod
    def _from_buffer(buffer: Buffer) -> Tensor:
        return Tensor.__new__(Tensor)._init_buffer(buffer, caller_origin(2))

    # Building expressions

    def _unary(self, function: Callable[[Node], Node]) -> Tensor:
        mode = self._mode
        return self._new(function(self.node), mode if recording.on or not mode else CUT)

    def _binary(self, function: Callable[..., Node], x: Any, y: Any) -> Tensor:
        other = y if x is self else x
        if isinstance(other, Handle):
            mode = self._mode | other._mode
            if not mode:
                return self._new(function(x.node, y.node))
            nodes, mode = operands((x, y))
            return self._new(function(*nodes), mode)
        if not isinstance(other, Scalar):
            other = _operand(other)
            if other is None:
                return NotImplemented
            x, y = (self, other) if x is self else (other, self)
            return self._binary(function, x, y)
        mode = self._mode
        if mode and not recording.on:
            mode = CUT
        if x is self:
            return self._new(function(self.node, other), mode)
        return self._new(function(other, self.node), mode)

    def _apply(self, function: Callable[..., Any], *values: Any, **options: Any) -> Any:
        return apply(function, *values, **options)

    def _build(self, function: Callable[..., Any], values: Sequence[Any], like: Any = None) -> Any:
        return build(function, values, like)

    def _of_array(self, array: np.ndarray) -> Tensor:
        return Tensor(array, device=self.device)

    def _view(self, function: Callable[..., Node], *arguments: Any) -> Tensor:
        made = Tensor.__new__(Tensor)
        made._init_view(self, function, arguments)
        if made._mode and not recording.on:
            made._mode = CUT
        return made

    # What it is

    @property
    def shape(self) -> Size:
        """The sizes of the axes."""
        return Size(self.node.shape)

    def size(self, dim: int | None = None) -> Any:
        """Return the shape, or the size of one axis."""
        return self.shape if dim is None else self.shape[dim]

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.node.shape)

    def dim(self) -> int:
        """Return the number of axes."""
        return self.ndim

    def numel(self) -> int:
        """Return the number of elements."""
        return self.node.size

    @property
    def dtype(self) -> DType:
        """The type of the elements."""
        return self.node.dtype

    @property
    def device(self) -> str:
        """Where the tensor is, or will be computed."""
        return state.device_of(self.node)

    @property
    def nbytes(self) -> int:
        """The bytes that the elements take."""
        return self.node.size * self.node.dtype.itemsize

    @property
    def itemsize(self) -> int:
        """The bytes that one element takes."""
        return self.node.dtype.itemsize

    def element_size(self) -> int:
        """Return the bytes that one element takes."""
        return self.node.dtype.itemsize

    def is_floating_point(self) -> bool:
        """Tell whether the elements are floats."""
        return self.node.dtype.is_float

    @property
    def uid(self) -> int:
        """A number that is this memory's alone; the tensor is computed for it."""
        root = self._root
        if root._slot is None:
            realize([root])
        assert root._slot is not None
        return root._slot.buffer.uid

    # Values

    def realize(self, *others: Tensor) -> Tensor:
        """Compute this tensor and others in one program and return this one."""
        realize((self, *others))
        return self

    @staticmethod
    def commit(tensors: Iterable[Tensor] = ()) -> None:
        """Carry out all pending writes in one program; within a capture, leave them to it."""
        realize(tensors)

    def numpy(self) -> np.ndarray:
        """Return the values as a numpy array of their own."""
        return np.array(self._shared("numpy"))

    def _shared(self, name: str) -> np.ndarray:
        """Return the values as numpy sees them; those of bf16 in the dtype of ml_dtypes."""
        array = array_of(self)
        return array if self.dtype is not bf16 else array.view(numpy_bfloat16(name))

    def _numbers(self) -> np.ndarray:
        """Return the values in a dtype that numpy calculates with: halves as f32."""
        return numbers(array_of(self), self.dtype)

    def _printed(self) -> np.ndarray:
        """Return the values as numpy prints them."""
        return self._numbers() if self.dtype is bf16 else array_of(self)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if self.dtype is bf16 and dtype is not None and np.dtype(dtype).kind in "biufc":
            return self._numbers().astype(dtype)
        array = self._shared("np.asarray")
        if copy is False:
            if dtype is not None and array.dtype != dtype:
                raise ValueError(f"np.asarray: {self.dtype} becomes {dtype} only by a copy")
            return array
        return np.array(array, dtype=dtype)

    def __dlpack__(self, **options: Any) -> Any:
        return self._host().__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[Any, int]:
        return self._host().__dlpack_device__()

    def _host(self) -> np.ndarray:
        """Return the memory itself."""
        if self.dtype is bf16:
            raise DTypeError("dlpack: numpy has no bf16 to hand over; use .numpy() or .float()")
        if not is_known(self):
            realize([self])
        return array_of(self)

    def item(self) -> Any:
        """Return the only element as a Python number; ShapeError if there are more or none."""
        array = self._numbers()
        if array.size != 1:
            self._not_one("item", "takes a tensor of one element", "use .tolist() or .numpy()")
        return array.item()

    def _not_one(self, name: str, rule: str, hint: str = "") -> None:
        fail(ShapeError, name, f"there are {self.numel()} elements", (self.node,), rule, hint)

    def tolist(self) -> Any:
        """Return nested lists of Python numbers, or one number."""
        return self._numbers().tolist()

    def __bool__(self) -> bool:
        if self.numel() != 1:
            self._not_one(
                "bool", "the truth of several elements is ambiguous", "use .any() or .all()"
            )
        return bool(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __index__(self) -> int:
        if self.dtype.is_float:
            raise DTypeError(f"index: {describe(self.node)} is no integer")
        return int(self.item())

    def __len__(self) -> int:
        if not self.ndim:
            raise TypeError("len() of a tensor without axes")
        return self.node.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        if not self.ndim:
            raise TypeError("a tensor without axes cannot be iterated over")
        return iter(self.unbind())

    def __contains__(self, value: Any) -> bool:
        return bool((self == value).any())

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if spec or not self.ndim else str(self)

    def __repr__(self) -> str:
        what = f"shape={tuple(self.shape)}, dtype={self.dtype}, device={self.device}"
        what += ", requires_grad=True" if self.requires_grad else ""
        name = type(self).__name__
        if state.capturing.trace is not None:
            pending = sum(OPS[n.op].family not in ("leaf", "view") for n in toposort([self.node]))
            return f"{name}({what}, lazy: {pending} operations pending)"
        values = np.array2string(self._printed(), separator=", ", prefix=name + "(")
        return f"{name}({values}, {what})"

    def _repr_html_(self) -> str:
        from tinyc import markup

        figures = [f"{self.dtype}{list(self.shape)}", self.device]
        figures += ["requires_grad"] if self.requires_grad else []
        if state.capturing.trace is not None:
            return markup.card(type(self).__name__, [*figures, "lazy"])
        values = np.array2string(self._printed(), separator=", ", threshold=200)
        return markup.card(type(self).__name__, figures, markup.pre(values))

    def __reduce__(self) -> Any:
        if self.requires_grad and not self._is_leaf:
            raise TinycError(
                "copy or pickle: only tensors that the user made can be copied with their "
                "requires_grad; use .detach() first"
            )
        values = np.array(array_of(self))
        return _restored, (type(self), values, self.device, self.requires_grad)

    # Conversion

    def to(self, *targets: Any, dtype: Any = None, device: str | None = None) -> Tensor:
        """Return the tensor with another dtype or on another device, or both; else itself.

        DTypeError or DeviceError for names there are none of.
        """
        for target in targets:
            if isinstance(target, Tensor):
                dtype, device = target.dtype, target.device
            elif isinstance(target, str) and target not in DTYPES:
                device = target
            elif target is not None:
                dtype = target
        moved = self
        if device is not None and device != self.device:
            array = array_of(self)
            moved = Tensor._from_buffer(get_device(device).upload(array))
            if self.requires_grad:
                moved.requires_grad_()
        return moved if dtype is None else moved.cast(dtype)

    def cast(self, dtype: Any) -> Tensor:
        """Return the values in another dtype; floats become integers towards zero."""
        wanted = as_dtype(dtype)
        return self if wanted is self.dtype else self._unary(lambda x: b.cast(x, wanted))

    type = astype = cast

    def type_as(self, other: Tensor) -> Tensor:
        """Return the values in the dtype of another tensor."""
        return self.cast(other.dtype)

    def bitcast(self, dtype: Any) -> Tensor:
        """Return the bits read as another dtype of the same width."""
        return self._unary(lambda x: b.bitcast(x, as_dtype(dtype)))

    def half(self) -> Tensor:
        """Return the values as f16, rounded to nearest even."""
        return self.cast(f16)

    def bfloat16(self) -> Tensor:
        """Return the values as bf16, rounded to nearest even."""
        return self.cast(bf16)

    def float(self) -> Tensor:
        """Return the values as f32."""
        return self.cast(f32)

    def double(self) -> Tensor:
        """Return the values as f64."""
        return self.cast(f64)

    def int(self) -> Tensor:
        """Return the values as i32."""
        return self.cast(i32)

    def long(self) -> Tensor:
        """Return the values as i64."""
        return self.cast(i64)

    def bool(self) -> Tensor:
        """Return where elements are not zero."""
        return self.cast(bool_)

    def cpu(self) -> Tensor:
        """Return the tensor on the CPU."""
        return self.to("cpu")

    def clone(self) -> Tensor:
        """Return a copy with memory of its own, through which gradients pass."""
        return self._unary(lambda x: x)

    def contiguous(self) -> Tensor:
        """Return the values in memory of their own, in row-major order."""
        return self if self._parent is None else self._unary(b.materialize)

    def boundary(self) -> Tensor:
        """Return the same elements, complete before a kernel that reads them begins.

        Nothing is fused across: what makes them and what reads them are different kernels. The
        gradient is cut at the same place.
        """
        return self._unary(b.boundary)

    def detach(self) -> Tensor:
        """Return the same elements, through which no gradient passes."""
        made = self._view(_same)
        made._mode = CUT if self._mode else PLAIN
        return made

    @property
    def data(self) -> Tensor:
        """The same elements, through which no gradient passes."""
        return self.detach()

    def allclose(self, other: Any, rtol: Any = 1e-5, atol: Any = 1e-8) -> Any:
        """Tell whether all elements agree within atol + rtol * |other|."""
        return np.allclose(self._numbers(), _plain(other), rtol, atol)

    def equal(self, other: Any) -> Any:
        """Tell whether shape and all elements are equal."""
        return np.array_equal(self._numbers(), _plain(other))

    # Gradients

    @property
    def requires_grad(self) -> Any:
        """Do operations on this tensor take part in differentiation?"""
        return self._mode == GRAD

    @requires_grad.setter
    def requires_grad(self, value: Any) -> None:
        self.requires_grad_(value)

    @property
    def is_leaf(self) -> Any:
        """Was this tensor made by the user, not by a recorded operation?"""
        return self._is_leaf or self._mode != GRAD

    def requires_grad_(self, requires_grad: Any = True) -> Tensor:
        """Let the tensor have a gradient, or have none."""
        if requires_grad == self.requires_grad:
            return self
        if requires_grad:
            if not self.dtype.is_float:
                fail(
                    DTypeError,
                    "requires_grad_",
                    "not a float",
                    (self.node,),
                    "only floats have gradients",
                )
            add_leaf(self)
        elif not self._is_leaf:
            fail(
                TinycError,
                "requires_grad_",
                "the result of an operation",
                (self.node,),
                "only leaves can be switched off",
                "use .detach()",
            )
        else:
            self._mode = PLAIN
            self._is_leaf = False
        config.bump_epoch()
        return self

    _grad: Any = None

    @property
    def grad(self) -> Tensor | None:
        """The gradient that `backward` has accumulated, or None."""
        if state.capturing.trace is not None:
            state.capturing.trace.reads_grad(self)
        found = self._grad
        if found is not None and not isinstance(found, Tensor):
            # Left by a captured program, which makes the tensor when somebody asks for it.
            found = self._grad = found.take()
        return found

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        if value is not None and (
            not isinstance(value, Tensor) or value.node.shape != self.node.shape
        ):
            raise ShapeError(f"grad: {value!r} has not the shape of {describe(self.node)}")
        if state.capturing.trace is not None:
            state.capturing.trace.writes_grad(self)
        self._grad = value

    def backward(
        self,
        gradient: Any = None,
        retain_graph: Any = None,
        create_graph: Any = False,
        inputs: Sequence[Tensor] | None = None,
    ) -> None:
        """Add the derivatives of this tensor to the `.grad` of the leaves it depends on.

        `gradient` is the cotangent, which only a tensor of one element may leave out. The graph
        is given up, once this tensor is computed, unless `retain_graph` or `create_graph`.
        """
        gradients.backward(self, gradient, retain_graph, create_graph, inputs)

    def retain_grad(self) -> None:
        """Let `backward` set `.grad` of this tensor although it is no leaf."""
        if not self.requires_grad:
            fail(
                TinycError,
                "retain_grad",
                "a tensor that does not require grad",
                (self.node,),
                "only others have a gradient",
            )
        gradients.retain(self)

    def register_hook(self, hook: Callable[[Tensor], Tensor | None]) -> None:
        """Call a function with each gradient that reaches this leaf; it may return another."""
        self._hooks = (*self._hooks, hook)

    _hooks: tuple[Callable[..., Any], ...] = ()


def build(
    function: Callable[..., Any], values: Sequence[Any], like: Any = None, **options: Any
) -> Any:
    """Return (node or nodes, mode) of a function of nodes for tensors, arrays and numbers."""
    values = [_operand(v) if isinstance(v, (np.ndarray, np.generic)) else v for v in values]
    nodes, mode = operands([v for v in values if isinstance(v, Handle)])
    left = iter(nodes)
    arguments = [next(left) if isinstance(v, Handle) else v for v in values]
    if like is not None and not isinstance(arguments[0], Node):
        arguments[0] = _constant(arguments[0], like)
    if recording.cast is not None:
        arguments = casted(function, arguments)
    return function(*arguments, **options), mode


def apply(function: Callable[..., Any], *values: Any, **options: Any) -> Any:
    """Return the tensor, or tuple of tensors, of a function of nodes.

    Tensors become nodes, arrays tensors first; anything else is passed as it is, and so are
    `options`, which hold no tensors.
    """
    result, mode = build(function, values, **options)
    if isinstance(result, Node):
        return Tensor._new(result, mode)
    return tuple([Tensor._new(node, mode) for node in result])


def _operand(value: Any) -> Any:
    """Return a tensor for an array or numpy number, None for what is no operand."""
    if isinstance(value, np.generic) and value.dtype.kind in "biuf":
        return Tensor(np.asarray(value))
    return Tensor(value) if isinstance(value, np.ndarray) else None


def _constant(value: Any, like: Tensor) -> Node:
    if isinstance(value, Scalar):
        return b.const(value, like.dtype if like.dtype.is_float else None)
    return Tensor(value, device=like.device).node


_LONG_NAMES = {dtype.np.name: dtype for dtype in DTYPES.values() if dtype is not bf16}
_LONG_NAMES.update(bfloat16=bf16, half=f16)


def as_dtype(dtype: Any) -> DType:
    """Return a dtype given as such, by name, or as numpy's or Python's type."""
    if isinstance(dtype, DType):
        return dtype
    if isinstance(dtype, str):
        return _LONG_NAMES[dtype] if dtype in _LONG_NAMES else dtype_named(dtype)
    plain = {float: f32, int: i64, bool: bool_}.get(dtype)
    return from_numpy(np.dtype(dtype)) if plain is None else plain


def host_array(data: Any, dtype: DType | None) -> np.ndarray:
    """Return data as an array: Python floats become f32 and ints i64, arrays stay."""
    if isinstance(data, Handle):
        array = array_of(data)
    elif isinstance(data, (np.ndarray, np.generic)):
        array = np.asarray(data)
    elif str(getattr(data, "dtype", "")) == "torch.bfloat16":
        array = stored(np.asarray(data.detach().float().cpu()), bf16)  # which numpy can't take over
    else:
        array = _from_python(data)
    if dtype is not None and array.dtype != dtype.np:
        array = converted_array(array, dtype)
    return array


def numpy_bfloat16(name: str) -> Any:
    """Return numpy's type of bf16, which is another package's; DTypeError where that is missing."""
    try:
        from ml_dtypes import bfloat16
    except ImportError:
        raise DTypeError(
            f"{name}: numpy has no bfloat16 of its own; install the package that has:"
            " pip install 'tinyc[bf16]', or use .float() first"
        ) from None
    return bfloat16


def _plain(value: Any) -> np.ndarray:
    """Return a tensor or array in a dtype that numpy has."""
    if isinstance(value, Handle):
        return numbers(array_of(value), value.node.dtype)
    return np.asarray(value)


def _from_python(data: Any) -> np.ndarray:
    try:
        array = np.asarray(data)
    except ValueError as error:
        raise ShapeError(f"Tensor: nested lists of different lengths ({error})") from None
    first = data
    while isinstance(first, (list, tuple)) and first:
        first = first[0]
    if array.dtype == np.float64 and not isinstance(first, (np.ndarray, np.generic, Handle)):
        array = array.astype(np.float32)
    if array.dtype.kind == "O":
        raise DTypeError(f"Tensor: {type(first).__name__} is no number")
    return array


def _restored(kind: Any, array: np.ndarray, device: str, requires_grad: Any) -> Tensor:
    """Return a tensor from what was pickled."""
    made = kind.__new__(kind)
    made._init_buffer(get_device(device).upload(array), caller_origin())
    return made.requires_grad_() if requires_grad else made


def _same(x: Node) -> Node:
    return x
