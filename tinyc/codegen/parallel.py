"""Which iterations of a loop threads may run side by side, and loops made one that is dealt out."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from tinyc.codegen import primitives as p
from tinyc.codegen.rebase import accesses
from tinyc.ir.cost import elements
from tinyc.ir.index import Affine, Var, unravel
from tinyc.ir.loop import (
    Alloc,
    For,
    Stmt,
    Storage,
    Store,
    limits_of,
    loads_of,
    statements,
    substitute_stmt,
)


def own_registers(body: tuple[Stmt, ...]) -> set[Storage]:
    """What statements declare for themselves."""
    return {s.storage for s in statements(body) if isinstance(s, Alloc)}


def is_split(v: Var, places: Iterable[Affine], inner: set[Var]) -> bool:
    """True if indices are never equal at two values of `v`, at whatever values of `inner` ones.

    In all of them `v` is one and the same digit: what steps less stays below its step, what steps
    more steps by multiples of all its range.
    """
    step: int | None = None
    lows: list[int] = []
    highs: list[int] = []
    rest: set[tuple] = set()
    for index in places:
        c = index.coeff(v)
        if not c or not index.is_linear_in(v) or (step is not None and c != step):
            return False
        step, low, high = c, index.const, index.const
        outer = []
        for atom, k in index.terms:
            if atom is v:
                continue
            if not atom.free_vars() & inner:
                outer.append((atom.key, k))
            elif abs(k) < abs(c):
                low, high = low + min(k * atom.lo, k * atom.hi), high + max(
                    k * atom.lo, k * atom.hi)
            elif k % (c * v.extent):
                return False
        rest.add(tuple(outer))
        lows.append(low)
        highs.append(high)
    return step is not None and len(rest) == 1 and max(highs) - min(lows) < abs(step)


@dataclass(frozen=True)
class Sharing:
    """What becomes of a loop that is dealt out: which registers from outside it sums up, and how.
    """

    sums: dict[Storage, str] = field(default_factory=dict)


def sharing(loop: For) -> Sharing | None:
    """How threads may share the iterations of a loop; None if they depend on each other.

    Each stores to places of its own, to its own registers, adds to registers from outside, or adds
    atomically to what none of them reads.
    """
    inner = {s.var for s in statements(loop.body) if isinstance(s, For)}
    own = own_registers(loop.body)
    touched: dict[Storage, list[Affine]] = {}
    sums: dict[Storage, set[str | None]] = {}
    alone: set[Storage] = set()
    read: set[Storage] = {x.storage for x in loads_of(replace(loop, body=()))}
    for s in statements(loop.body):
        for storage, index in accesses(s):
            touched.setdefault(storage, []).append(index)
        read.update(x.storage for x in loads_of(s))
        if isinstance(s, Store):
            sums.setdefault(s.storage, set()).add(s.accumulate)
            if not s.atomic:
                alone.add(s.storage)
    found: dict[Storage, str] = {}
    for storage, kinds in sums.items():
        if storage in own or storage not in alone | read:
            continue
        if storage.role in ("register", "tile"):
            kind = next(iter(kinds))
            if len(kinds) > 1 or kind is None or storage in read or storage.size > 1:
                return None
            found[storage] = kind
        elif not is_split(loop.var, touched[storage], inner):
            return None
    return Sharing(found)


Chain = tuple[tuple[For, ...], Sharing]


def chain_of(loop: For) -> Chain | None:
    """The perfectly nested loops, this one first, that may be dealt out as one; None if this may
    not."""
    first = sharing(loop)
    if first is None:
        return None
    loops = [loop]
    while len(loops[-1].body) == 1 and isinstance(loops[-1].body[0], For):
        following = loops[-1].body[0]
        fixed = following.limit is None and following.kind in ("serial", "chunk")
        if not fixed or sharing(following) is None:
            break
        loops.append(following)
    return tuple(loops), first


def vector_width(loops: tuple[For, ...], most: int) -> int:
    """How many neighbouring iterations a thread takes at once: as fit accesses of whole vectors.

    Those of the innermost loop, if what it moves moves by single elements.
    """
    last = loops[-1]
    if any(not isinstance(s, (Store, Alloc)) for s in last.body):
        return 1
    moves = {abs(index.coeff(last.var)) if index.is_linear_in(last.var) else 2
             for s in last.body for storage, index in accesses(s) if storage.role != "register"}
    widest = max((storage.dtype.itemsize for s in last.body for storage, index in accesses(s)
                  if index.coeff(last.var)), default=16)
    if 1 not in moves or not moves <= {0, 1}:
        return 1
    width = min(4, most, 16 // widest)
    while width > 1 and last.var.extent % width:
        width //= 2
    return width


def in_one(loops: tuple[For, ...], width: int, at: Affine, part: Var) -> tuple[Stmt, ...]:
    """The body of perfectly nested loops at vector `at` of all their iterations, in order.

    With `width` more than 1 the body is in a loop over the elements of the vector.
    """
    extents = [max(1, loop.var.extent) for loop in loops]
    extents[-1] //= width
    digits = list(unravel(at, extents))
    digits[-1] = digits[-1] * width + Affine.of(part)
    names = dict(zip([loop.var for loop in loops], digits))
    body = p.renamed(tuple(substitute_stmt(s, names) for s in loops[-1].body))
    return (For(part, body, "vector"),) if width > 1 else body


def count(loops: tuple[For, ...]) -> int:
    """How many iterations perfectly nested loops have."""
    return elements([loop.var for loop in loops])


def limit_of_all(loops: tuple[For, ...], width: int) -> Affine | None:
    """Where the vectors of all iterations end, if the first loop has a limit."""
    limit = loops[0].limit
    if limit is None:
        return None
    vectors = limit * count(loops[1:])
    if any(k % width for k in (vectors.const, *(k for _, k in vectors.terms))):
        return None
    return Affine(vectors.const // width, tuple((a, k // width) for a, k in vectors.terms))


def differs_in(stmt: For, variables: set[Var]) -> bool:
    """True if the range of a loop depends on some variables."""
    return any(i.free_vars() & variables for i in limits_of(stmt))
