"""Cut the rows of chained contractions into blocks, so that what lies between them stays in cache.

Attention multiplies twice: scores of all pairs, rows of them normalised, then sums over the second
axis. Fusion keeps both products in one loop over heads, with all scores of a head between them. For
long sequences those leave the cache, so the rows (queries) are cut: each block has its rows
complete, and sums over rows, in the backward pass, run on from block to block. Nothing here knows
attention: any chain whose members all run along one axis is cut.
"""
from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from types import MappingProxyType

from tinyc.diagnostics import Remark
from tinyc.ir.index import Affine, Var
from tinyc.ir.loop import Expr, Read
from tinyc.ir.plan import Buf, Leaf, Loop, Plan, Stage, Tree, stages_of
from tinyc.ir.program import Target
from tinyc.schedule.skip import (
    Edge,
    Kept,
    asks_indices,
    find_edge,
    limit_columns,
    outer_loops,
)

MIN_ROWS = 32
# Rows of a block that is cut for its edge alone, and how many there are at least: of two, a quarter
# is left out, which pays for no more than the loops around blocks.
EDGE_ROWS = 32
EDGE_BLOCKS = 3
# What lies between the contractions may take this share of the second-level cache.
SHARE = 4


def block_rows(plan: Plan, target: Target) -> list[Remark]:
    """Cut rows where that pays and is legal; changes the stages, which then are placed anew."""
    chosen: list[tuple[list[Stage], dict[Stage, Var], int, Edge | None]] = []
    kept: dict[Buf, Kept] = {}
    for body, around in bodies(plan):
        rows, size = choose_rows(body, around, plan, target) or ({}, 0)
        edge = choose_edge(body, rows, size, around, plan, kept)
        if edge is not None:
            rows, size = edge.rows, edge_size(edge, size)
            kept.update((stage.buf, value) for stage, value in edge.kept.items())
        if rows:
            chosen.append((body, rows, size, edge))
    checks: dict[tuple, Stage] = {}
    return [cut_body(plan, *each, checks) for each in chosen]


def cut_body(plan: Plan, body: list[Stage], rows: dict[Stage, Var], size: int, edge: Edge | None,
             checks: dict[tuple, Stage]) -> Remark:
    """Cut the rows of a body into blocks, and its columns where there is an edge."""
    first, blocks = body[0], cut(plan, rows, size)
    for stage, block in blocks.items():
        stage.blocks = (block,) if stage.kind == "contract" else ()
    if edge is not None:
        limit_columns(plan, body, edge, size, blocks, cut(plan, edge.columns, size), checks)
    return Remark(
        "applied", "block", first.name, f"runs in blocks of {size} complete rows" + (
            "" if edge is None else ", each as far as its columns count"),
        first.node.origin, {"rows": size, "members": len(rows)})


def bodies(plan: Plan) -> Iterator[tuple[list[Stage], set[Var]]]:
    """The stages of each loop that holds several contractions, with the loops around them."""
    for nest in plan.nests:
        stack: list[tuple[Tree, set[Var]]] = [(t, set()) for t in nest.body]
        while stack:
            tree, around = stack.pop()
            if isinstance(tree, Loop):
                inner = around | {tree.var}
                stack.extend((t, inner) for t in tree.body)
                leaves = [t for t in tree.body if isinstance(t, Leaf)]
                if sum(leaf.stage.kind == "contract" for leaf in leaves) > 1:
                    yield [s for t in tree.body for s in stages_of(t)], inner


# -- which axis is cut ---------------------------------------------------------------------------


def choose_rows(body: list[Stage], around: set[Var], plan: Plan,
                target: Target) -> tuple[dict[Stage, Var], int] | None:
    """(each member's variable that runs along the rows, rows of a block); None: nothing is cut."""
    large = [s for s in body if between(s, body)
             and inner_bytes(s, around, plan) > target.l2 // SHARE]
    if not large:
        return None
    classes = Classes(body)
    widest = max(inner_bytes(s, around, plan) for s in large)
    for v in large[0].axes:
        rows = classes.of_each(body, v)
        size = block_size(v.extent, widest, target) if rows else 0
        if rows and size and all(may_cut(s, rows[s], body) for s in body):
            return rows, size
    return None


def choose_edge(body: list[Stage], rows: dict[Stage, Var], size: int, around: set[Var],
                plan: Plan, kept: dict[Buf, Kept]) -> Edge | None:
    """What can be left out beyond an edge of rows and columns, if there is such an edge."""
    if not any(asks_indices(s.expr) for s in body):
        return None
    classes, tried, loops = Classes(body, kept), set(), outer_loops(plan, body[0], around)
    for value in [s for s in body if between(s, body)]:
        names = plan.mapping[value]
        free = [v for v in value.axes if names.get(v, v) not in around and v.extent > 1]
        for r, c in itertools.permutations(free, 2):
            pair = classes.root(r), classes.root(c)
            if pair in tried:
                continue
            tried.add(pair)
            chosen, columns = classes.of_each(body, r), classes.of_some(body, c)
            if not chosen or not columns or (rows and chosen != rows) or chosen[value] is not r:
                continue
            if all(may_cut(s, chosen[s], body) and stands_alone(s, c) for s, c in columns.items()):
                edge = find_edge(plan, body, chosen, columns, loops, kept)
                if edge is not None and edge_size(edge, size):
                    return edge
    return None


def stands_alone(stage: Stage, v: Var) -> bool:
    """True if a contraction has no other variable on the side of `v`."""
    return stage.kind != "contract" or any(
        [u for u in side if u.extent > 1] == [v] for side in stage.sides())


def edge_size(edge: Edge, size: int) -> int:
    """Rows, and columns, of a block of complete rows for an edge, at most `size` if that is not 0;
    0 if there are none."""
    most = min(size or EDGE_ROWS, EDGE_ROWS)
    return edge_divisor(edge, most, 2 if size else EDGE_BLOCKS)


def edge_divisor(edge: Edge, most: int, parts: int) -> int:
    """Rows, and columns, of a block for an edge: a divisor of both, at most `most`, so that there
    are so many parts; 0 if there is none, or blocks of rows see more than there is."""
    row, column = next((edge.rows[s].extent, c.extent) for s, c in edge.columns.items())
    both = math.gcd(row, column)
    for n in range(min(most, both // parts), MIN_ROWS - 1, -1):
        if both % n == 0 and row // n + -(-edge.last // n) <= column // n:
            return n
    return 0


def between(stage: Stage, body: list[Stage]) -> bool:
    """True if a member's value is read by others of the body alone."""
    return stage.kind in ("contract", "map") and any(stage in s.producers for s in body)


def inner_bytes(stage: Stage, around: set[Var], plan: Plan) -> int:
    """Bytes of a member's value in one iteration of the loops around."""
    names = plan.mapping[stage]
    own = [v.extent for v in stage.axes if names.get(v, v) not in around]
    return math.prod(own) * stage.dtype.itemsize


def block_size(extent: int, nbytes: int, target: Target) -> int:
    """The largest divisor of the extent whose rows fit the share of the cache, or 0."""
    fits = max(MIN_ROWS, target.l2 // SHARE * extent // nbytes)
    return next((n for n in range(min(fits, extent // 2), MIN_ROWS - 1, -1) if extent % n == 0), 0)


def may_cut(stage: Stage, v: Var, body: list[Stage]) -> bool:
    """True if a member can run block by block: complete rows, or a sum that goes on."""
    if stage.kind == "scatter" or stage.hoist is not None or stage.blocks:
        return False
    if v in stage.axes:
        return True
    # A sum over rows is complete only after the last block.
    return stage.kind in ("contract", "sum", "max") and not any(stage in s.producers for s in body)


class Classes:
    """Which variables of a body's members run in step, because one reads what the other makes."""

    def __init__(self, body: list[Stage], kept: Mapping[Buf, Kept] = MappingProxyType({})):
        self.parent: dict[Var, Var] = {}
        self.broken: set[Var] = set()
        made = {s.buf: s for s in body}
        storages = {s.buf.storage for s in body}
        for stage in body:
            for read in stage.reads:
                maker = made.get(read.buf)
                if maker is not None:
                    self.note(read, maker.axes)
                elif read.buf in kept:
                    self.note(read, kept[read.buf].axes)
                elif read.buf.storage in storages:  # a part of what a member makes
                    self.broken.update(v for i in read.index for v in i.free_vars())

    def note(self, read: Read, axes: tuple[Var, ...]) -> None:
        """A read of a value at plain variables joins them with the axes of its maker."""
        for index, axis in zip(read.index, axes):
            v = index.as_var()
            if v is not None and not read.guard:
                self.parent[self.root(v)] = self.root(axis)
            elif axis.extent > 1:
                self.broken.add(axis)
                self.broken.update(index.free_vars())

    def root(self, v: Var) -> Var:
        """The representative of a variable's class."""
        while v in self.parent and self.parent[v] is not v:
            v = self.parent[v]
        return v

    def of_some(self, body: list[Stage], v: Var) -> dict[Stage, Var] | None:
        """The variable in the class of `v` of each member that has one; None if one has several."""
        wanted, found = self.root(v), {}
        if wanted in {self.root(b) for b in self.broken}:
            return None
        for stage in body:
            mine = [u for u in (*stage.axes, *stage.red) if self.root(u) is wanted]
            if len(mine) > 1 or any(u.extent != v.extent for u in mine):
                return None
            if mine:
                found[stage] = mine[0]
        return found

    def of_each(self, body: list[Stage], v: Var) -> dict[Stage, Var] | None:
        """The variable of each member in the class of `v`; None if one has none, or several."""
        found = self.of_some(body, v)
        return found if found is not None and len(found) == len(body) else None


# -- cutting -------------------------------------------------------------------------------------


def cut(plan: Plan, rows: dict[Stage, Var], size: int) -> dict[Stage, Var]:
    """Split the variable of each member, and the dimension of what it makes, into blocks of `size`;
    returns each member's variable over blocks."""
    found: dict[Stage, Var] = {}
    dims: dict[Buf, int] = {}
    for stage, v in rows.items():
        if v in stage.axes:
            dims[stage.buf] = stage.axes.index(v)
    for buf, d in dims.items():
        split_dimension(buf, d, size)
    for stage in plan.stages:
        names: dict[Var, Affine] = {}
        if stage in rows:
            found[stage], row = split_variable(stage, rows[stage], size)
            names[rows[stage]] = Affine.of(found[stage]) * size + Affine.of(row)
        if names or any(r.buf in dims for r in stage.reads):
            rewrite_reads(stage, dims, names, size)
    return found


def split_dimension(buf: Buf, d: int, size: int) -> None:
    """Give a buffer two dimensions, block and row, in the place of one."""
    extent, stride = buf.shape[d], buf.strides[d]
    buf.shape = (*buf.shape[:d], extent // size, size, *buf.shape[d + 1:])
    buf.strides = (*buf.strides[:d], stride * size, stride, *buf.strides[d + 1:])


def split_variable(stage: Stage, v: Var, size: int) -> tuple[Var, Var]:
    """Give a stage two variables, over blocks and inside of one, in the place of one."""
    block, row = Var(f"{v.name}b", v.extent // size), Var(f"{v.name}r", size)

    def both(variables: tuple[Var, ...]) -> tuple[Var, ...]:
        return tuple(u for w in variables for u in ((block, row) if w is v else (w,)))

    stage.axes, stage.red = both(stage.axes), both(stage.red)
    return block, row


def rewrite_reads(stage: Stage, dims: dict[Buf, int], names: dict[Var, Affine], size: int) -> None:
    """Rename variables, and index split buffers by block and row."""
    def leaf(e: Expr) -> Expr:
        if not isinstance(e, Read) or e.buf not in dims:
            return e
        d = dims[e.buf]
        parts = (e.index[d] // size, e.index[d] % size)
        return Read(e.buf, (*e.index[:d], *parts, *e.index[d + 1:]), e.guard)

    stage.rewrite(leaf, lambda a: a.substitute(names))
