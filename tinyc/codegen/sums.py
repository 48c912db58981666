"""Long sums: in blocks, whose totals are added with twice the digits.

Each addition to a sum rounds it. The lanes of a block of a thousand numbers add few enough of them
that little is lost, and of what the blocks lose most averages out. The totals of f32 are added as
f64, those of f64 with what each addition loses in a second number (Knuth's two-sum), so they lose
nothing, and the error of a sum does not grow with its length.
"""
from __future__ import annotations

from dataclasses import dataclass, replace

from tinyc.codegen import primitives as p
from tinyc.ir.dtype import bool_, f32, f64
from tinyc.ir.index import Affine
from tinyc.ir.loop import (
    Alloc,
    Apply,
    Const,
    Expr,
    For,
    If,
    Load,
    Stmt,
    Storage,
    Store,
    converted,
    replace_storage,
    statements,
)
from tinyc.ir.ops import Op

# Bytes of numbers to a block, at most: enough for the time that its total takes to be small.
BLOCK = 4096
# So many numbers are added one by one without loss where that is done once.
FEW = 64
ZERO = Affine.const_of(0)


@dataclass(frozen=True)
class Total:
    """The register of a total, and that of what its additions have lost, if they lose anything."""

    sum: Storage
    lost: Storage | None

    def begun(self, note: str) -> list[Stmt]:
        """The registers, cleared."""
        both = [self.sum] if self.lost is None else [self.sum, self.lost]
        return [stmt for s in both for stmt in (
            Alloc(s), Store(s, ZERO, Const(0.0, f64), None, note))]

    def added(self, value: Expr, note: str) -> list[Stmt]:
        """A number added to it."""
        if self.lost is None:
            return [Store(self.sum, ZERO, converted(value, f64), "sum", note)]
        name = f"{self.sum.name}_{p.fresh_number()}"
        after, part = (Storage(name + end, 1, f64, "register") for end in ("a", "p"))
        total, new, got = (Load(s, ZERO) for s in (self.sum, after, part))
        lost = Apply(Op.ADD, (minus(total, minus(new, got)), minus(value, got)), f64)
        all_lost = Apply(Op.ADD, (Load(self.lost, ZERO), lost), f64)
        return [Alloc(after), Store(after, ZERO, Apply(Op.ADD, (total, value), f64), None, note),
                Alloc(part), Store(part, ZERO, minus(new, total), None, note),
                Store(self.lost, ZERO, all_lost, None, note),
                Store(self.sum, ZERO, new, None, note)]

    def value(self) -> Expr:
        """All of it. Of infinities and NaN differences are NaN: then the sum alone is right."""
        total = Load(self.sum, ZERO)
        if self.lost is None:
            return total
        lost = Load(self.lost, ZERO)
        held = Apply(Op.EQ, (lost, lost), bool_)
        return Apply(Op.WHERE, (held, Apply(Op.ADD, (total, lost), f64), total), f64)


def total_of(r: Storage) -> Total:
    """The total of a register of f32 or f64."""
    total = Storage(f"{r.name}_w{p.fresh_number()}", 1, f64, "register")
    return Total(total, Storage(f"{total.name}l", 1, f64, "register") if r.dtype is f64 else None)


def minus(x: Expr, y: Expr) -> Expr:
    """x - y"""
    return Apply(Op.SUB, (x, y), f64)


def in_blocks(body: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
    """Statements whose long sums into registers of floats, those below them too, are in blocks.

    for i < N: s += f(i)
      ->  S = 0; for o < N/B: (t = 0; for i < B: t += f(B*o + i); S += t); s += S
    """
    return long_in_blocks(tuple(t for stmt in body for t in added_once(stmt)))


def added_once(stmt: Stmt) -> tuple[Stmt, ...]:
    """A sum of a few numbers of f64 that runs once, as the totals of chunks are added: no addition
    loses anything."""
    s = stmt.body[0] if isinstance(stmt, For) and len(stmt.body) == 1 else None
    if not isinstance(stmt, For) or not isinstance(s, Store) or stmt.kind != "serial" or not (
            is_sum(s) and s.storage.dtype is f64 and stmt.var.extent <= FEW):
        return (stmt,)
    total = total_of(s.storage)
    return (*total.begun(s.note), replace(stmt, body=tuple(total.added(s.value, s.note))),
            replace(s, value=total.value(), index=ZERO))


def long_in_blocks(body: tuple[Stmt, ...],
                   done: frozenset[Storage] = frozenset()) -> tuple[Stmt, ...]:
    """`in_blocks` at any depth, but for totals of blocks, which are `done`."""
    out: list[Stmt] = []
    for stmt in body:
        found = long_sums(stmt) if isinstance(stmt, For) else {}
        totals = {r: total_of(r) for r in found if r not in done}
        if isinstance(stmt, For) and totals:
            below = done | {total.sum for total in totals.values()}
            made = wide(stmt, totals, {r: found[r] for r in totals})
        else:
            below, made = done, (stmt,)
        out += [replace(s, body=long_in_blocks(s.body, below)) if isinstance(s, (For, If)) else s
                for s in made]
    return tuple(out)


def long_sums(loop: For) -> dict[Storage, Store]:
    """Registers of floats from outside a loop to which it adds more than a block of numbers."""
    inside = {s.storage for s in statements((loop,)) if isinstance(s, Alloc)}
    found: dict[Storage, Store] = {}

    def visit(stmt: For | If, times: int) -> None:
        if isinstance(stmt, For):
            times *= stmt.var.extent
        for s in stmt.body:
            if isinstance(s, (For, If)):
                visit(s, times)
            elif isinstance(s, Store) and is_sum(s) and s.storage not in inside and (
                    times * s.storage.dtype.itemsize > BLOCK):
                found[s.storage] = s

    visit(loop, 1)
    return found


def is_sum(s: Store) -> bool:
    """True for the addition of something to a register of f32 or f64."""
    return s.accumulate == "sum" and s.storage.dtype in (f32, f64) and (
        s.storage.role == "register" and s.storage.size == 1)


def wide(loop: For, totals: dict[Storage, Total], sums: dict[Storage, Store]) -> tuple[Stmt, ...]:
    """A loop whose sums go to totals, which are added to where they went after it."""
    before = [stmt for r, s in sums.items() for stmt in totals[r].begun(s.note)]
    after = [replace(s, value=converted(totals[r].value(), r.dtype), index=ZERO)
             for r, s in sums.items()]
    return (*before, *blocks(loop, totals), *after)


def blocks(stmt: Stmt, totals: dict[Storage, Total]) -> tuple[Stmt, ...]:
    """A statement with the sums in it in blocks that are added to totals."""
    if isinstance(stmt, If):
        return (replace(stmt, body=tuple(t for s in stmt.body for t in blocks(s, totals))),)
    if isinstance(stmt, Store) and stmt.storage in totals and stmt.accumulate:
        total = totals[stmt.storage].sum
        return (replace(stmt, storage=total, value=converted(stmt.value, f64)),)
    if not isinstance(stmt, For):
        return (stmt,)
    inside = max((terms(s, totals) for s in stmt.body), default=0)
    if not inside:
        return (stmt,)
    most = BLOCK // max(r.dtype.itemsize for r in totals)
    if inside * stmt.var.extent <= most:
        return block(stmt, totals)
    if stmt.kind == "serial" and stmt.limit is None and 2 * inside <= most:
        each, *rest = p.split_rest(stmt, block_size(stmt.var.extent, most // inside))
        assert isinstance(each, For)
        body = tuple(t for s in each.body for t in block(s, totals))
        return (replace(each, body=body), *(t for s in rest for t in block(s, totals)))
    return (replace(stmt, body=tuple(t for s in stmt.body for t in blocks(s, totals))),)


def terms(stmt: Stmt, totals: dict[Storage, Total]) -> int:
    """How many numbers a statement adds to one total."""
    if isinstance(stmt, Store):
        return int(stmt.storage in totals and stmt.accumulate is not None)
    if not isinstance(stmt, (For, If)):
        return 0
    inside = max((terms(s, totals) for s in stmt.body), default=0)
    return inside * (stmt.var.extent if isinstance(stmt, For) else 1)


def block_size(extent: int, most: int) -> int:
    """The iterations that are a block: a divisor of all of them if there is a good one."""
    return next((n for n in range(most, most // 2, -1) if extent % n == 0), most)


def block(loop: Stmt, totals: dict[Storage, Total]) -> tuple[Stmt, ...]:
    """A loop that adds to registers of its own, and these to the totals."""
    before: list[Stmt] = []
    after: list[Stmt] = []
    own = {}
    for s in statements((loop,)):
        if isinstance(s, Store) and s.storage in totals and s.storage not in own:
            r = own[s.storage] = Storage(f"{s.storage.name}_b{p.fresh_number()}", 1,
                                         s.storage.dtype, "register")
            before += [Alloc(r), Store(r, ZERO, p.neutral(s), None, s.note)]
            after += totals[s.storage].added(Load(r, ZERO), s.note)
    return (*before, *replace_storage((loop,), own), *after)
