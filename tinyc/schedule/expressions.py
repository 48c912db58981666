"""Nodes as scalar expressions at an index. Views disappear: they only rewrite the index."""
from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from tinyc import config
from tinyc.ir import dtype as dtypes
from tinyc.ir.dtype import DType, decode, encode
from tinyc.ir.halves import is_widening
from tinyc.ir.index import Affine, Data
from tinyc.ir.loop import Apply, Check, Const, Expr, Index, Read, Within, free_vars, walk
from tinyc.ir.node import Node
from tinyc.ir.ops import Op
from tinyc.ir.plan import Buf
from tinyc.ir.program import Site
from tinyc.ir.views import Between, Divides, source_index
from tinyc.schedule.stored import AFFINE_VIEWS, KEPT

if TYPE_CHECKING:
    from tinyc.schedule.stage import Builder

# What gives one of its last two operands, or minus that.
EXACT = (Op.NEG, Op.MAX, Op.WHERE)


class Reader:
    """Lowers nodes to scalar expressions at an index; shared subexpressions stay shared."""

    def __init__(self, b: Builder):
        self.b = b
        self.memo: dict[tuple, Expr] = {}
        self.reads: list[Read] = []
        self.members: dict[Node, None] = {}

    def value(self, n: Node, idx: tuple[Affine, ...], guard: tuple[Within, ...]) -> Expr:
        """The value of `n` at `idx`: a read if it is stored, its expression otherwise."""
        buf = self.b.place.get(n)
        if buf is not None:
            return self.read(buf, idx, guard)
        return self.computed(n, idx, guard)

    def read(self, buf: Buf, idx: tuple[Affine, ...], guard: tuple[Within, ...]) -> Expr:
        key = (buf, idx, guard)
        found = self.memo.get(key)
        if found is None:
            fresh = Read(buf, idx, guard)
            self.reads.append(fresh)
            found = self.memo[key] = fresh
        return found

    def computed(self, n: Node, idx: tuple[Affine, ...], guard: tuple[Within, ...]) -> Expr:
        key = (n, idx, guard)
        found = self.memo.get(key)
        if found is None:
            self.members[n] = None
            found = self.memo[key] = self.lower(n, idx, guard)
        return found

    def lower(self, n: Node, idx: tuple[Affine, ...], guard: tuple[Within, ...]) -> Expr:
        op = n.op
        if op is Op.CONST:
            return Const(n.value, n.dtype)
        if op is Op.IOTA:
            return Index(idx[0], n.dtype)
        if op is Op.PAD:
            at, conds = source_index(n, idx)
            return self.guarded(n.src[0], at, as_guard(conds), guard)
        if op in AFFINE_VIEWS or op in KEPT:
            at, _ = source_index(n, idx)
            return self.value(n.src[0], at, guard)
        if op is Op.GATHER:
            return self.gathered(n, idx, guard)
        args = tuple(self.value(s, idx, guard) for s in n.src)
        return self.single(args[0]) if is_widening(n) else Apply(op, args, n.dtype)

    def single(self, half: Expr) -> Expr:
        """An expression of halves as f32; nothing is rounded that needs not be."""
        found = self.memo.get((half,))
        if found is None:
            found = self.memo[(half,)] = self.widened(half)
        return found

    def widened(self, half: Expr) -> Expr:
        if isinstance(half, Const):
            return Const(half.value, dtypes.f32)
        if isinstance(half, Apply) and half.op is Op.WHERE:
            cond, yes, no = half.args
            return Apply(Op.WHERE, (cond, self.single(yes), self.single(no)), dtypes.f32)
        if isinstance(half, Apply) and half.op is Op.CAST and is_half(half.args[0], half.dtype):
            return half.args[0]
        return Apply(Op.CAST, (half,), dtypes.f32)

    def guarded(self, n: Node, idx: tuple[Affine, ...], inner: tuple[Within, ...],
                outer: tuple[Within, ...] = ()) -> Expr:
        """`n` at `idx` where the guard holds, else zero; nothing outside is read."""
        value = self.value(n, idx, outer + inner)
        if not inner or isinstance(value, Read):
            return value
        cond: Expr = inner[0]
        for g in inner[1:]:
            cond = Apply(Op.AND, (cond, g), dtypes.bool_)
        zero = Const(n.dtype.wide.np.type(0).item(), n.dtype)
        return Apply(Op.WHERE, (cond, value, zero), n.dtype)

    def gathered(self, n: Node, idx: tuple[Affine, ...], guard: tuple[Within, ...]) -> Expr:
        (axis,) = n.attrs
        x, index = n.src
        rank = len(index.shape)
        at = self.checked(index, idx[axis:axis + rank], x.shape[axis], n, guard)
        found = Affine.of(Data(at, x.shape[axis], free_vars(at)))
        source = (*idx[:axis], found, *idx[axis + rank:])
        value = self.value(x, source, guard)
        if isinstance(at, Check) and all(e is not at for e in walk(value)):
            # What is the same everywhere reads no index, but an index out of range is an error.
            held = Apply(Op.EQ, (at, at), dtypes.bool_)
            value = Apply(Op.WHERE, (held, value, value), n.dtype)
        return value

    def checked(self, index: Node, idx: tuple[Affine, ...], bound: int, user: Node,
                guard: tuple[Within, ...]) -> Expr:
        """An index read from memory, kept inside its bound unless checks are switched off."""
        if not config.current().bounds:
            return self.value(index, idx, guard)
        sites = self.b.plan.sites
        sites.append(Site(user.op.name.lower(), bound, user.origin))
        return Check(self.value(index, idx, guard), bound, len(sites), index.dtype)


def is_half(e: Expr, dtype: DType) -> bool:
    """True if each value of an expression in f32 is one of a dtype of halves."""
    if isinstance(e, Const):
        return decode(encode(e.value, dtype), dtype) == e.value
    if not isinstance(e, Apply) or e.dtype is not dtypes.f32:
        return False
    if e.op is Op.CAST:
        return e.args[0].dtype is dtype
    return e.op in EXACT and all(is_half(a, dtype) for a in e.args[-2:])


def as_guard(conds: Iterable) -> tuple[Within, ...]:
    """View conditions as guards on indices."""
    out = []
    for c in conds:
        if isinstance(c, Between):
            out.append(Within(c.index, c.lo, c.hi, 1, dtypes.bool_))
        elif isinstance(c, Divides):
            lo, hi = c.index.bounds()
            out.append(Within(c.index, lo, hi + 1, c.n, dtypes.bool_))
    return tuple(out)
