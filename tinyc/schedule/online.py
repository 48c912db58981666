"""Cut rows and columns of chained products into tiles, so that no row is ever complete.

Complete rows (`schedule.block`) lose where rows, and what stands along the columns, leave the
caches, and need a loop around them. Here one loop over blocks of columns makes the scores of a
tile and all that is summed of them, a softmax and its sums of shares among it (`schedule.softmax`).
What needs complete rows, as gradients do, runs in a second loop over the blocks, which makes the
tiles again.
"""
from __future__ import annotations

import math

from tinyc.diagnostics import Remark
from tinyc.ir.cost import elements
from tinyc.ir.dtype import f32
from tinyc.ir.index import Var
from tinyc.ir.plan import Buf, Loop, Plan, Stage, Tree, read_vars, stages_of
from tinyc.ir.program import Target
from tinyc.schedule.block import SHARE, block_size, cut, cut_body, edge_divisor, edge_size
from tinyc.schedule.chains import Chain, Uses, find_chain, operand_bytes, wide_bytes
from tinyc.schedule.skip import Edge, asks_indices, find_edge, limit_columns, outer_loops
from tinyc.schedule.softmax import find_softmax, split_softmax
from tinyc.schedule.tiling import Tiling, repeat_tiles

# Columns, and rows, of a tile: at most, and at least.
TILE = 512
MIN_TILE = 32
# So many tiles are in the second-level cache at once.
TILES = 2
# So many blocks of rows there are at least: for chunks, and since one of each block is half empty
# where columns end at an edge.
BLOCKS = 16
# A product is cut into tiles if it is so many times as large as its operands.
WIDER = 4
# On the chip of a GPU there is room for so many tiles.
CHIP_TILES = 8
# What stands along the columns may take this share of the last-level cache where rows are complete,
# and tiles would be made again for sums over rows; and this one where they are made once.
COLUMNS_SHARE = 4
ONCE_SHARE = 8


def tile_chains(plan: Plan, target: Target) -> list[Remark]:
    """Cut chains into tiles, or blocks of complete rows where `block_rows` finds no loop around
    them; their stages then are placed anew."""
    remarks: list[Remark] = []
    seen: set[Stage] = set()
    checks: dict[tuple, Stage] = {}
    for start in tuple(plan.stages):
        if start in seen or not is_large(start, target):
            continue
        chain = find_chain(plan, Uses(plan), start)
        if chain is None:
            continue
        seen.update(chain.body)
        around = loops_around(plan, chain)
        if sum(s.kind == "contract" for s in chain.body) < 2:
            continue
        if is_long(plan, chain, start, around, target):
            remarks += tile_chain(plan, chain, around, target, checks)
        elif not around:  # with a loop around them `block_rows` cuts them
            remarks += cut_rows(plan, chain, wide_bytes(start), target, checks)
    return remarks


def is_long(plan: Plan, chain: Chain, start: Stage, around: set[Var], target: Target) -> bool:
    """True if complete rows lose: what stands along the columns leaves the caches, or, for blocks
    of threads, the fewest rows of a product do not fit the chip."""
    if target.threads > 1:
        return MIN_TILE * chain.columns[start].extent * start.dtype.itemsize > target.shared
    return standing_bytes(chain, around, plan) > target.l3 // columns_share(chain)


def most_of(target: Target) -> tuple[int, int]:
    """Rows and columns of a tile at most; several tiles fit the second-level cache, or the chip of
    a GPU."""
    if target.threads == 1:
        return target.l2 // (TILES * TILE * f32.itemsize), TILE
    side = max(MIN_TILE, math.isqrt(target.shared // (CHIP_TILES * f32.itemsize)))
    return side, side


def is_large(stage: Stage, target: Target) -> bool:
    """True for a product that leaves the caches, and is much larger than its operands."""
    return (stage.kind == "contract" and stage.buf.storage.role == "arena"
            and wide_bytes(stage) > max(target.l2 // SHARE, WIDER * operand_bytes(stage)))


def loops_around(plan: Plan, chain: Chain) -> set[Var]:
    """The loops that all members share."""
    members, around = set(chain.body), set[Var]()
    inside: list[Tree] = [tree for nest in plan.nests for tree in nest.body]
    while True:
        holds = [t for t in inside if not members.isdisjoint(stages_of(t))]
        if len(holds) != 1 or not isinstance(holds[0], Loop):
            return around
        around.add(holds[0].var)
        inside = holds[0].body


def columns_share(chain: Chain) -> int:
    """The part of the last-level cache that is for what stands along the columns."""
    again = any(chain.rows[s] in s.red for s in chain.body)
    return COLUMNS_SHARE if again else ONCE_SHARE


def standing_bytes(chain: Chain, around: set[Var], plan: Plan) -> int:
    """Bytes of what stands along the columns, which each block of rows passes over."""
    standing: dict[Buf, int] = {}
    for s in chain.body:
        names = plan.mapping[s]
        for buf, used in ((s.buf, set(s.axes)), *((r.buf, read_vars(r)) for r in s.reads)):
            if chain.columns.get(s) in used and chain.rows[s] not in used:
                own = [v for v in used if names.get(v, v) not in around]
                standing[buf] = elements(own) * buf.dtype.itemsize
    return sum(standing.values())


def edge_of(plan: Plan, chain: Chain, around: set[Var]) -> Edge | None:
    """The edge beyond which columns add nothing."""
    if not any(asks_indices(s.expr) for s in chain.body):
        return None
    loops = outer_loops(plan, chain.body[0], around)
    return find_edge(plan, chain.body, chain.rows, chain.columns, loops, {})


def cut_rows(plan: Plan, chain: Chain, nbytes: int, target: Target,
             checks: dict[tuple, Stage]) -> list[Remark]:
    """Cut the rows of a chain alone; no remark if there are no blocks of them."""
    first = next(s for s in chain.body if s in chain.columns)
    edge = edge_of(plan, chain, set())
    size = block_size(chain.rows[first].extent, nbytes, target)
    if edge is not None:
        narrow = edge_size(edge, size)
        edge, size = (edge, narrow) if narrow else (None, size)
    return [cut_body(plan, chain.body, chain.rows, size, edge, checks)] if size else []


def tile_chain(plan: Plan, chain: Chain, around: set[Var], target: Target,
               checks: dict[tuple, Stage]) -> list[Remark]:
    """Cut one chain; no remark if it has no tiles."""
    edge = edge_of(plan, chain, around)
    sizes = tile_sizes(chain, edge, target)
    if not all(sizes):
        return []
    first = chain.body[0]
    rows, columns = cut(plan, chain.rows, sizes[0]), cut(plan, chain.columns, sizes[1])
    t = Tiling(plan, chain.body, rows, columns, outer_loops(plan, first, around),
               ends={s for s in chain.body if s not in chain.columns})
    for s in t.body:
        s.blocks = (t.rows[s], t.columns[s]) if s.kind == "contract" else ()
    if edge is not None:
        limit_columns(plan, t.body, edge, sizes[0], t.rows, t.columns, checks)
    take_out(t)
    for s in tuple(t.body):
        found = find_softmax(t, s)
        if found is not None:
            # A tile on the chip of a GPU is too small for sums of its own.
            split_softmax(t, found, sums=target.threads == 1)
    repeat_tiles(t)
    put_back(t)
    message = f"runs in tiles of {sizes[0]} rows and {sizes[1]} columns" + (
        "" if edge is None else ", as far as columns count") + (
        "" if t.redo is None else "; sums of shares are combined from blocks of columns, and made "
        "anew where one is not finite")
    return [Remark("applied", "online", first.name, message, first.node.origin,
                   {"rows": sizes[0], "columns": sizes[1], "members": len(t.body)})]


def tile_sizes(chain: Chain, edge: Edge | None, target: Target) -> tuple[int, int]:
    """Rows and columns of a tile, divisors of all; 0 if there are none."""
    first = next(s for s in chain.body if s in chain.columns)
    row, column = chain.rows[first], chain.columns[first]
    rows, columns = most_of(target)
    if edge is not None:
        return (edge_divisor(edge, most_along(row, columns), 2),) * 2
    return divisor(row, most_along(row, rows)), divisor(column, most_along(column, columns))


def most_along(v: Var, most: int) -> int:
    """The rows or columns of a tile at most."""
    return min(most, max(MIN_TILE, v.extent // BLOCKS), v.extent // 2)


def divisor(v: Var, most: int) -> int:
    """The largest divisor of an extent for a tile, at most `most`; 0 if there is none."""
    return next((n for n in range(most, MIN_TILE - 1, -1) if v.extent % n == 0), 0)


def take_out(t: Tiling) -> None:
    """Take the members out of the plan; what waits for none of them comes before their place."""
    members, behind = set(t.body), set[Stage]()
    before: list[Stage] = []
    for s in t.plan.stages:
        if s in members:
            continue
        if any(p in members or p in behind for p in (*s.producers, *s.after)):
            behind.add(s)
        else:
            before.append(s)
    t.plan.stages = [*before, *(s for s in t.plan.stages if s in behind)]
    t.start = len(before)


def put_back(t: Tiling) -> None:
    """Put the members into the plan, in order."""
    t.plan.stages[t.start:t.start] = t.body
