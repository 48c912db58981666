"""Random typed graphs over the whole op set, with the values that make every op well defined.

The generator evaluates each node as it builds it. So it knows where an index is in range, which
float arguments are safe, and which floats are exact: only those are compared, floored, or cast to
integers, since a last bit that differs must not decide anything. `choose(n)` gives an int in 0..n-1
and is the only source of chance, so hypothesis and a seeded generator can both drive it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from tinyc.ir import build as b
from tinyc.ir import dtype as d
from tinyc.ir.evaluate import EVAL
from tinyc.ir.node import Node, toposort
from tinyc.ir.ops import Op

Choose = Callable[[int], int]

INTEGERS = (d.i64, d.i32, d.u8, d.i8, d.u32, d.i16, d.u16, d.u64)
SIZES = (3, 2, 1, 4, 5, 7, 9, 17, 0)
MAX_ELEMENTS = 700
ROUNDING = {Op.EXP, Op.LOG, Op.SQRT, Op.SIN, Op.COS, Op.TANH, Op.ERF, Op.DIV, Op.POW, Op.BITCAST}


@dataclass
class Graph:
    """Nodes built so far with their values, and the arrays that stand behind the buffers."""

    choose: Choose
    pool: list[Node] = field(default_factory=list)
    memory: dict[int, np.ndarray] = field(default_factory=dict)
    values: dict[Node, np.ndarray] = field(default_factory=dict)
    exact: dict[Node, bool] = field(default_factory=dict)
    assigned: dict[Node, Node] = field(default_factory=dict)
    special: bool = False
    device: str = "cpu"

    # -- chance ----------------------------------------------------------------------------------

    def pick(self, options):
        return options[self.choose(len(options))]

    def chance(self, one_in: int) -> bool:
        return self.choose(one_in) == one_in - 1

    def node(self, accept: Callable[[Node], bool] = lambda n: True) -> Node | None:
        """A node of the pool that is acceptable, late ones more often."""
        found = [n for n in self.pool if accept(n)]
        if not found:
            return None
        k = self.choose(len(found) + 3)
        return found[-1 - k // 2] if k // 2 < len(found) and k % 2 else found[k % len(found)]

    # -- values ----------------------------------------------------------------------------------

    def add(self, n: Node) -> Node:
        """Put a node, and all below it, into the pool's tables; n itself into the pool."""
        for m in toposort((n,)):
            if m not in self.values:
                self.values[m] = self.value_of(m)
                self.exact[m] = self.is_exact(m)
        if n.size <= MAX_ELEMENTS and len(n.shape) <= 5 and n not in self.pool:
            self.pool.append(n)
        return n

    def value_of(self, n: Node) -> np.ndarray:
        if n.op is Op.BUFFER:
            return self.memory[n.attrs[0]]
        with np.errstate(all="ignore"):
            return np.asarray(EVAL[n.op](n, *[self.values[s] for s in n.src]), n.dtype.np)

    def is_exact(self, n: Node) -> bool:
        """True if no order of summing and no fused multiply-add can change a bit of the value."""
        if n.dtype.kind != "f":
            return True
        exact = n.op not in ROUNDING and all(self.exact[s] for s in n.src)
        return exact and self.is_dyadic(n)

    def is_dyadic(self, n: Node) -> bool:
        v = self.values[n].astype(np.float64)
        v = v[np.isfinite(v)]
        return bool((np.abs(v) <= 1 << 14).all() and (v * 8 == np.floor(v * 8)).all())

    def largest(self, n: Node) -> float:
        v = np.abs(self.values[n].astype(np.float64))
        v = v[np.isfinite(v)]
        return float(v.max()) if v.size else 0.0

    def within(self, n: Node, lo: float, hi: float) -> bool:
        """True if all finite values lie between, and the value is finite wherever inexact."""
        v = self.values[n].astype(np.float64)
        v = v[np.isfinite(v)]
        return bool(((v >= lo) & (v <= hi)).all())

    # -- leaves ----------------------------------------------------------------------------------

    def shape(self, rank: int | None = None) -> tuple[int, ...]:
        rank = self.pick((2, 1, 3, 2, 0, 4)) if rank is None else rank
        sizes: list[int] = []
        for _ in range(rank):
            n = self.pick(SIZES[:5] if self.chance(2) else SIZES)
            sizes.append(n if np.prod([*sizes, n], dtype=int) <= MAX_ELEMENTS else 1)
        return tuple(sizes)

    def buffer(self, dtype: d.DType, shape: tuple[int, ...]) -> Node:
        uid = len(self.memory) + 1
        self.memory[uid] = self.array(dtype, shape)
        return self.add(b.buffer(uid, 0, shape, dtype, self.device))

    def array(self, dtype: d.DType, shape: tuple[int, ...]) -> np.ndarray:
        """Small halves for floats, small numbers and sometimes extremes for integers."""
        rng = np.random.default_rng(self.choose(1 << 16))
        if dtype.kind == "b":
            return np.asarray(rng.random(shape) < 0.5)
        if dtype.kind == "f":
            out = np.array(rng.integers(-6, 7, shape) / 2, dtype.np)
            if self.special and out.size and self.chance(2):
                out.flat[rng.integers(out.size)] = rng.choice([np.nan, np.inf, -np.inf, -0.0])
            return out
        low, high = d.limits(dtype)
        if self.chance(3):
            return np.array(rng.integers(low, high, shape, dtype.np, endpoint=True))
        return np.array(rng.integers(max(low, -4), 6, shape), dtype.np)

    def float_like(self, n: Node) -> Node:
        """A float operand that fits `n`: from the pool, or a new buffer, broadcast sometimes."""
        found = self.node(lambda m: m.dtype is n.dtype and fits(m.shape, n.shape))
        if found is not None and not self.chance(3):
            return found
        shape = tuple(1 if self.chance(4) else s for s in n.shape)
        shape = shape[self.choose(len(shape) + 1) if self.chance(3) else 0:]
        return self.buffer(n.dtype, shape)


def fits(small: tuple[int, ...], big: tuple[int, ...]) -> bool:
    """True if one shape broadcasts to the other."""
    return len(small) <= len(big) and all(
        s in (1, t) for s, t in zip(reversed(small), reversed(big)))


# -- steps: each adds one node (or a few) to the graph, or does nothing ---------------------------


def unary(g: Graph) -> Node | None:
    x = g.node(lambda n: n.dtype.kind == "f")
    if x is None:
        return None
    op = g.pick(("neg", "exp", "tanh", "log", "sqrt", "sin", "cos", "erf", "floor"))
    safe = {
        "exp": g.within(x, -30, 6), "sin": g.within(x, -50, 50), "cos": g.within(x, -50, 50),
        "log": g.exact[x] or g.within(x, 0.1, 1e6), "sqrt": g.exact[x] or g.within(x, 0.1, 1e6),
        "floor": g.exact[x], "neg": True, "tanh": True, "erf": True,
    }[op]
    return getattr(b, op)(x) if safe else None


def binary(g: Graph) -> Node | None:
    x = g.node(lambda n: n.dtype.kind == "f")
    if x is None or g.largest(x) > 1e4:
        return None
    y = g.float_like(x)
    op = g.pick(("add", "mul", "sub", "maximum", "div", "idiv", "mod", "pow"))
    if op == "div" and not (g.exact[y] or g.within(b_abs(g, y), 0.2, 1e9)):
        return None
    if op in ("idiv", "mod") and not (g.exact[x] and g.exact[y]):
        return None
    if op == "pow" and not (g.within(x, 0.1, 20) and g.within(y, -3, 3)):
        return None
    if g.largest(y) > 1e4:
        return None
    return getattr(b, op)(x, y)


def b_abs(g: Graph, x: Node) -> Node:
    return g.add(b.maximum(x, b.neg(x)))


def safe_division(g: Graph) -> Node | None:
    """x / (1 + y*y): what normalisations are made of."""
    x = g.node(lambda n: n.dtype.kind == "f")
    if x is None or g.largest(x) > 100:
        return None
    y = g.float_like(x)
    return b.div(x, b.add(b.mul(y, y), 1.0)) if g.largest(y) < 100 else None


def integer(g: Graph) -> Node | None:
    x = g.node(lambda n: n.dtype.kind in "iub")
    if x is None:
        return None
    found = g.node(lambda m: m.dtype is x.dtype and fits(m.shape, x.shape))
    y = x if found is None else found
    if x.dtype.kind == "b":
        return getattr(b, g.pick(("and_", "or_", "xor", "maximum", "lt", "eq")))(x, y)
    op = g.pick(("add", "mul", "sub", "and_", "or_", "xor", "shl", "shr", "idiv", "mod", "maximum",
                 "neg", "lt", "eq"))
    return b.neg(x) if op == "neg" else getattr(b, op)(x, y)


def compare(g: Graph) -> Node | None:
    x = g.node(lambda n: n.dtype.kind == "f" and g.exact[n])
    if x is None:
        return None
    y = g.float_like(x)
    return getattr(b, g.pick(("lt", "le", "eq", "ne")))(x, y) if g.exact[y] else None


def where(g: Graph) -> Node | None:
    cond = g.node(lambda n: n.dtype.kind == "b")
    if cond is None:
        return None
    x = g.node(lambda n: n.dtype.kind != "b" and fits(cond.shape, n.shape))
    if x is None:
        return None
    y = g.float_like(x) if x.dtype.kind == "f" else x
    return b.where(cond, x, y if g.chance(2) else 0.0 if x.dtype.kind == "f" else 0)


def cast(g: Graph) -> Node | None:
    x = g.node()
    assert x is not None
    to = g.pick((d.f32, d.f64, d.bool_, d.i32, d.i64, d.u8, d.i16, d.u32))
    if x.dtype.kind == "f" and to.kind != "f":
        low, high = (0, 1) if to is d.bool_ else d.limits(to)
        v = g.values[x]
        if not g.exact[x] or not np.isfinite(v).all():
            return None
        if to is not d.bool_ and not g.within(x, low, high):
            return None
    if x.dtype is d.f64 and to is d.f32 and g.largest(x) > 1e30:
        return None
    return b.cast(x, to)


def bitcast(g: Graph) -> Node | None:
    def has_known_bits(n: Node) -> bool:
        return n.dtype.kind in "iu" or (n.dtype.kind == "f" and g.exact[n] and g.values[n].all())

    x = g.node(has_known_bits)
    if x is None:
        return None
    options = [t for t in (*INTEGERS,) if t.itemsize == x.dtype.itemsize]
    return b.bitcast(x, g.pick(options)) if x.dtype.kind != "f" or not has_nan(g, x) else None


def has_nan(g: Graph, x: Node) -> bool:
    return bool(np.isnan(g.values[x]).any())


def reshape(g: Graph) -> Node | None:
    x = g.node()
    assert x is not None
    flat = x.size
    if flat == 0:
        return b.reshape(x, g.pick(((0,), (0, 3), (2, 0))))
    sizes: list[int] = []
    rest = flat
    for _ in range(g.choose(4)):
        divisors = [k for k in range(1, rest + 1) if rest % k == 0]
        k = g.pick(divisors)
        sizes.append(k)
        rest //= k
    return b.reshape(x, (*sizes, rest) if not sizes or rest > 1 else tuple(sizes))


def permute(g: Graph) -> Node | None:
    x = g.node(lambda n: len(n.shape) > 1)
    if x is None:
        return None
    left, perm = list(range(len(x.shape))), []
    while left:
        perm.append(left.pop(g.choose(len(left))))
    return b.permute(x, perm)


def expand(g: Graph) -> Node | None:
    x = g.node(lambda n: n.size <= 60 and len(n.shape) < 4)
    if x is None:
        return None
    shape = [g.pick((2, 3, 5)) if n == 1 and g.chance(2) else n for n in x.shape]
    at = g.choose(len(shape) + 1)
    if g.chance(2):
        return b.expand(x, (*[g.pick((1, 2, 3))] * (at > 0), *shape))
    axes = tuple(i + (i >= at) for i in range(len(shape)))
    return b.expand_axes(x, (*shape[:at], g.pick((1, 2, 3, 4)), *shape[at:]), axes)


def slice_(g: Graph) -> Node | None:
    x = g.node(lambda n: len(n.shape) > 0)
    if x is None:
        return None
    starts, sizes, steps = [], [], []
    for n in x.shape:
        size = g.choose(n + 1) if g.chance(6) else max(min(n, 1), n - g.choose(3))
        step = g.pick((1, 2, -1, 1, 3, -2))
        while size > 1 and (size - 1) * abs(step) >= n:
            size -= 1
        span = (size - 1) * abs(step) if size else 0
        low = g.choose(n - span) if size else 0
        starts.append(low if step > 0 or not size else low + span)
        sizes.append(size)
        steps.append(step)
    return b.slice_(x, starts, sizes, steps)


def pad(g: Graph) -> Node | None:
    x = g.node(lambda n: 0 < len(n.shape) < 5 and n.size <= 200)
    if x is None:
        return None
    lo = [g.choose(3) for _ in x.shape]
    hi = [g.choose(3) for _ in x.shape]
    interior = [g.pick((0, 0, 0, 1, 2)) for _ in x.shape]
    return b.pad(x, lo, hi, interior)


def window(g: Graph) -> Node | None:
    x = g.node(lambda n: 0 < len(n.shape) < 5 and n.size <= 250)
    if x is None:
        return None
    axis = g.choose(len(x.shape))
    size, stride, dilation = g.pick((2, 3, 1, 4)), g.pick((1, 2, 3)), g.pick((1, 1, 2))
    if (size - 1) * dilation >= x.shape[axis]:
        return None
    return b.window(x, axis, size, stride, dilation)


def fold(g: Graph) -> Node | None:
    x = g.node(lambda n: len(n.shape) > 1 and n.shape[-1] > 0 and n.dtype.kind != "b")
    if x is None or g.special or min(x.shape) < 1 or (g.largest(x) > 1e4 and x.dtype.kind == "f"):
        return None
    axis = g.choose(len(x.shape) - 1)
    stride, dilation = g.pick((1, 2, 3)), g.pick((1, 1, 2))
    n = (x.shape[axis] - 1) * stride + (x.shape[-1] - 1) * dilation + 1 + g.choose(stride)
    return b.fold(x, axis, n, stride, dilation)


def reduce_(g: Graph) -> Node | None:
    x = g.node(lambda n: len(n.shape) > 0)
    if x is None or (x.dtype.kind == "f" and g.largest(x) > 1e4):
        return None
    axes = [a for a in range(len(x.shape)) if g.chance(2)] or [g.choose(len(x.shape))]
    kind = g.pick(("sum", "max"))
    if kind == "max" and any(x.shape[a] == 0 for a in axes):
        kind = "sum"
    return b.reduce_(kind, x, axes, g.chance(2))


def normalise(g: Graph) -> Node | None:
    """x minus its maximum, exponentiated, over its sum: several reductions of one row."""
    x = g.node(lambda n: n.dtype.kind == "f" and len(n.shape) > 0 and n.size > 0)
    if x is None or g.largest(x) > 50 or not np.isfinite(g.values[x]).all():
        return None
    axis = g.choose(len(x.shape))
    e = b.exp(b.sub(x, b.max_(x, axis, True)))
    return b.div(e, b.sum_(e, axis, True))


def contract(g: Graph) -> Node | None:
    x = g.node(lambda n: n.dtype.kind != "b" and 0 < len(n.shape) < 5)
    if x is None or (x.dtype.kind == "f" and g.largest(x) > 300):
        return None
    la = list(range(len(x.shape)))
    role = [g.pick(("both", "left", "sum")) for _ in la]
    kept = [i for i in la if role[i] != "left"]
    extra = [10 + k for k in range(g.choose(3))]
    sizes = {**dict(zip(la, x.shape)), **{e: g.pick((5, 4, 8, 1, 17)) for e in extra}}
    lb = shuffled(g, [*kept, *extra])
    shape = tuple(sizes[i] for i in lb)
    if np.prod(shape, dtype=int) > MAX_ELEMENTS:
        return None
    same = g.node(lambda n: n.dtype is x.dtype and n.shape == shape)
    y = same if same is not None and g.chance(2) else g.buffer(x.dtype, shape)
    if y.dtype.kind == "f" and g.largest(y) > 300:
        return None
    lo = shuffled(g, [i for i in la if role[i] != "sum"] + extra)
    if np.prod([sizes[i] for i in lo], dtype=int) > MAX_ELEMENTS:
        return None
    return b.contract(x, y, la, lb, lo) if g.chance(2) else b.contract(y, x, lb, la, lo)


def shuffled(g: Graph, items: list[int]) -> list[int]:
    left, out = list(items), []
    while left:
        out.append(left.pop(g.choose(len(left))))
    return out


def matmul(g: Graph) -> Node | None:
    """A matrix product large enough for register tiles, with an epilogue sometimes."""
    x = g.node(lambda n: n.dtype.kind == "f" and len(n.shape) >= 2 and n.shape[-2] >= 4)
    if x is None or g.largest(x) > 300:
        return None
    w = g.buffer(x.dtype, (g.pick((5, 8, 17, 33)), x.shape[-1]))
    k = len(x.shape)
    y = b.contract(x, w, range(k), (k, k - 1), (*range(k - 1), k))
    if g.chance(2):
        y = b.add(y, g.buffer(x.dtype, (y.shape[-1],)))
    return b.maximum(y, 0.0) if g.chance(2) else y


def index_for(g: Graph, n: int) -> Node | None:
    """An integer node with all values in 0..n-1, made in range if need be."""
    if n == 0:
        return None
    x = g.node(lambda m: m.dtype.kind in "iu" and len(m.shape) < 3 and m.size < 40)
    if x is None:
        x = g.buffer(g.pick((d.i64, d.i32, d.u8)), g.shape(g.choose(2) + 1))
    v = g.values[x]
    if v.size == 0 or ((v >= 0).all() and (v < n).all()):
        return x
    if n > d.limits(x.dtype)[1]:
        return None
    return g.add(b.mod(x, n))


def gather(g: Graph) -> Node | None:
    x = g.node(lambda n: 0 < len(n.shape) < 4)
    if x is None:
        return None
    axis = g.choose(len(x.shape))
    index = index_for(g, x.shape[axis])
    if index is None or index.size * x.size > 5000:
        return None
    return b.gather(x, index, axis)


def scatter_add(g: Graph) -> Node | None:
    u = g.node(lambda n: n.dtype.kind != "b" and 0 < len(n.shape) < 4)
    if u is None or (u.dtype.kind == "f" and g.largest(u) > 1e4):
        return None
    axis = g.choose(len(u.shape))
    rank = 1 + (g.chance(4) and axis + 1 < len(u.shape))
    size = g.pick((3, 5, 1, 8))
    index = g.buffer(g.pick((d.i64, d.i32, d.u8)), u.shape[axis:axis + rank])
    index = g.add(b.mod(index, size))
    return b.scatter_add(u, index, axis, size)


def cat(g: Graph) -> Node | None:
    x = g.node(lambda n: len(n.shape) > 0)
    if x is None:
        return None
    axis = g.choose(len(x.shape))
    pieces = [x]
    for _ in range(g.choose(3)):
        y = g.node(lambda n: n.dtype is x.dtype and len(n.shape) == len(x.shape) and all(
            i == axis or p == q for i, (p, q) in enumerate(zip(n.shape, x.shape))))
        pieces.append(x if y is None else y)
    return b.cat(pieces, axis)


def assign(g: Graph) -> Node | None:
    """A store into a buffer, or a further one into what was assigned; the newest joins the pool."""
    buffers = [n for n in g.values if n.op is Op.BUFFER]
    if not buffers:
        return None
    target = g.pick(buffers)
    now = g.assigned.get(target, target)
    region = slice_region(g, now.shape) if g.chance(2) else None
    shape = now.shape if region is None else region[1]
    value = g.node(lambda n: n.dtype is target.dtype and fits(n.shape, shape))
    if value is None:
        return None
    new = b.assign(now, value) if region is None else b.assign(now, value, *region)
    g.assigned[target] = new
    return new


def slice_region(g: Graph, shape: tuple[int, ...]):
    starts, sizes, steps = [], [], []
    for n in shape:
        step = g.pick((1, 1, 2, -1))
        size = max(n - g.choose(3), min(n, 1)) if step in (1, -1) else (n + 1) // 2
        span = (size - 1) * abs(step) if size else 0
        low = g.choose(n - span) if size else 0
        starts.append(low + span if step < 0 and size else low)
        sizes.append(size)
        steps.append(step)
    return starts, sizes, steps


def marker(g: Graph) -> Node | None:
    x = g.node()
    assert x is not None
    return b.materialize(x) if g.chance(2) else b.detach(x)


def leaf(g: Graph) -> Node | None:
    kind = g.choose(4)
    if kind == 0:
        return b.iota(g.pick(SIZES), g.pick((d.i64, d.f32, d.i32, d.f64)))
    if kind == 1:
        return b.full(g.shape(), g.pick((0.5, -2.0, 0.0, 3.0)), g.pick((d.f32, d.f64)))
    if kind == 2:
        return g.buffer(g.pick((*INTEGERS, d.bool_)), g.shape())
    return g.buffer(g.pick((d.f32, d.f64)), g.shape())


STEPS = (binary, unary, reduce_, contract, compare, where, permute, reshape, slice_, pad, window,
         expand, gather, scatter_add, fold, cat, cast, integer, safe_division, normalise, matmul,
         assign, marker, bitcast, leaf, binary, unary, reduce_, binary)
SMOOTH = (binary, unary, reduce_, contract, permute, reshape, slice_, pad, window, expand, gather,
          scatter_add, fold, cat, safe_division, normalise, matmul, where, compare, marker)


def grow(g: Graph, steps: int, table=STEPS) -> None:
    """Start from a few buffers and apply random steps."""
    shape = g.shape()
    g.buffer(d.f32, shape)
    g.buffer(d.f32, shape if g.chance(2) else g.shape())
    if table is STEPS:
        g.buffer(g.pick(INTEGERS), g.shape(g.choose(3)))
    for _ in range(steps):
        new = g.pick(table)(g)
        if new is not None:
            g.add(new)


def outputs_of(g: Graph, count: int) -> list[Node]:
    """A few nodes, the last ones first, and the final state of every assigned buffer."""
    old = {n for n in g.values if n.op is Op.ASSIGN}
    found: list[Node] = []
    for n in reversed(g.pool):
        if n not in old and n.op is not Op.BUFFER and len(found) < count:
            found.append(n)
    return found + list(g.assigned.values())


# -- comparing -----------------------------------------------------------------------------------


def tolerance(g: Graph, outputs: list[Node], values: list[np.ndarray]) -> tuple[float, float]:
    """(relative, absolute): errors are in proportion to the largest magnitude met on the way."""
    nodes = [n for n in toposort(outputs) if n.dtype.kind == "f"]
    scale = max([1.0, *(g.largest(n) for n in nodes if n in g.values), *map(magnitude, values)])
    eps = 3e-5 if any(n.dtype is d.f32 for n in nodes) else 1e-9
    return eps, eps * scale


def magnitude(v: np.ndarray) -> float:
    if v.dtype.kind != "f":
        return 0.0
    finite = np.abs(v[np.isfinite(v)])
    return float(finite.max()) if finite.size else 0.0


def assert_same(got: np.ndarray, want: np.ndarray, near: tuple[float, float], what: str) -> None:
    """Integers are exact, NaN and infinities stand at the same places, floats are close."""
    assert got.shape == want.shape and got.dtype == want.dtype, what
    if want.dtype.kind != "f":
        np.testing.assert_array_equal(got, want, err_msg=what)
    else:
        np.testing.assert_allclose(got, want, *near, err_msg=what)
