"""Loop trees -> loop IR: addresses, accumulators, private sums of chunks, contractions."""
from __future__ import annotations

from dataclasses import dataclass, field

from tinyc.codegen.contract import grid_chunks
from tinyc.codegen.gpu_scatter import RowScatter, rows_of
from tinyc.codegen.gpu_scatter_atomic import AtomicScatter, ordered
from tinyc.codegen.primitives import identity
from tinyc.diagnostics import Remark
from tinyc.ir.choices import RULES, Choices
from tinyc.ir.cost import elements, stage_work
from tinyc.ir.dtype import f32, f64
from tinyc.ir.index import Affine, Var
from tinyc.ir.loop import (
    Alloc,
    Const,
    Contraction,
    Expr,
    For,
    Load,
    LoopKernel,
    Read,
    Stmt,
    Storage,
    Store,
    converted,
    rewrite,
)
from tinyc.ir.plan import (
    Buf,
    Leaf,
    Loop,
    Nest,
    Plan,
    Stage,
    Tree,
    is_windowed,
    row_major,
    stages_of,
)
from tinyc.ir.plan_text import kernel_name
from tinyc.ir.program import Target


@dataclass
class Lowering:
    """One nest on its way to a kernel: names of shared loops, accumulators, the chunk's number."""

    plan: Plan
    nest: Nest
    target: Target
    chunk: Var
    mapping: dict[Stage, dict[Var, Affine]] = field(default_factory=dict)
    accumulators: dict[Stage, Buf] = field(default_factory=dict)
    partial: dict[Stage, PrivateBuf] = field(default_factory=dict)

    def rename(self, stage: Stage) -> dict[Var, Affine]:
        found = self.mapping.get(stage)
        if found is None:
            names = self.plan.mapping[stage]
            found = self.mapping[stage] = {v: Affine.of(u) for v, u in names.items()}
        return found


def lower_nest(plan: Plan, nest: Nest, target: Target, choices: Choices = RULES) -> LoopKernel:
    """The unscheduled loops of one kernel."""
    target = choices.on(target)
    stages = nest.stages()
    made = scatter_on_grid(plan, nest, target)
    chunks = made.blocks if made else chunk_count(plan, nest, stages, target)
    low = Lowering(plan, nest, target, Var("chunk", chunks))
    body: list[Stmt] = []
    if stages[0].kind == "scatter":
        body += made.body() if made else (scatter(low, stages[0]),)
    for tree in nest.body if not body else ():
        body.extend(lower_tree(low, tree, (), root=True))
    finish: list[Stmt] = [*made.finish()] if made else []
    if chunks > 1:
        for stage in nest.private:
            finish.extend(combine(low, stage))
    for tree in nest.finish:
        finish.extend(lower_tree(low, tree, (), root=False))
    members = tuple(s.name for s in stages)
    origins = tuple(dict.fromkeys(s.node.origin for s in stages if s.node.origin))
    lines = {s.name: s.node.origin for s in stages if s.node.origin}
    return LoopKernel(kernel_name(nest), tuple(body), tuple(finish), low.chunk,
                      members, origins, lines, made.warp if isinstance(made, RowScatter) else 1)


def scatter_on_grid(plan: Plan, nest: Nest, target: Target) -> RowScatter | AtomicScatter | None:
    """How blocks of threads share a sum by index, with a remark; None where rules for loops do."""
    stage = nest.stages()[0]
    if stage.kind != "scatter" or target.threads == 1:
        return None
    why, note = ordered(nest, target), note_of(stage)
    rows = rows_of(stage)
    made = RowScatter(rows, target, concrete, note) if rows and why else None
    how = "in order, by the block that owns the row" if made else "in order"
    text = f"updates are added {how}, {why}" if why else (
        "updates are added atomically, in any order: TINYC_DETERMINISTIC=0")
    plan.remarks.append(Remark("analysis" if why else "applied", "lower", stage.name, text,
                               stage.node.origin, {"updates": elements(stage.red)}))
    return made if why else AtomicScatter(stage, target, concrete, note)


def chunk_count(plan: Plan, nest: Nest, stages: list[Stage], target: Target) -> int:
    """Chunks depend on shapes and the target alone, so results never depend on threads."""
    root = nest.body[0]
    if stages[0].kind == "scatter":
        axis, width = parts_of_scatter(stages[0], target)
        most = -(-axis.extent // width) if axis is not None else 1
        return max(1, min(most, 2 * stage_work(stages[0]) // target.serial_work))
    if not isinstance(root, Loop):
        return grid_chunks(root.stage, target) if root.stage.kind == "contract" else 1
    work = sum(stage_work(s) for t in nest.body for s in stages_of(t))
    if target.threads > 1:
        return block_count(plan, nest, root, work, target)
    private = sum(elements(s.axes) * s.dtype.itemsize for s in nest.private if not s.blocks)
    limit = target.chunks if not private else max(1, (4 << 20) // private)
    return max(1, min(target.chunks, limit, root.var.extent, 2 * work // target.serial_work))


# Bytes for the sums that the blocks of threads of a kernel keep.
BLOCK_SUMS = 8 << 20


def block_count(plan: Plan, nest: Nest, root: Loop, work: int, target: Target) -> int:
    """Blocks of threads that keep sums of their own: of other kernels recipes choose how many."""
    private = sum(elements(s.axes) * s.dtype.itemsize for s in nest.private)
    most = BLOCK_SUMS // private if private else target.chunks
    points, body = root.var.extent, root.body
    while len(body) == 1 and isinstance(body[0], Loop) and all(
            s.kind != "contract" and (s in nest.private) == sums_along(plan, s, body[0])
            for s in stages_of(root)):
        points, body = points * body[0].var.extent, body[0].body
    return max(1, min(target.chunks, most, points, 16 * work // target.serial_work))


def sums_along(plan: Plan, stage: Stage, loop: Loop) -> bool:
    """True if a stage reduces over a loop."""
    return loop.var in {plan.mapping[stage].get(v, v) for v in stage.red}


# -- trees ---------------------------------------------------------------------------------------


def lower_tree(low: Lowering, tree: Tree, around: tuple[Loop, ...], root: bool) -> list[Stmt]:
    """The statements of a loop tree; `root` marks the loop that chunks divide."""
    if isinstance(tree, Leaf):
        return lower_leaf(low, tree)
    begun = [s for s in stages_of(tree) if begins_here(low, s, tree, around)]
    before: list[Stmt] = []
    after: list[Stmt] = []
    for stage in begun:
        start, end = accumulator(low, stage, around, root)
        before += start
        after += end
    body: list[Stmt] = []
    for child in tree.body:
        body.extend(lower_tree(low, child, (*around, tree), root=False))
    kind = "chunk" if root and low.chunk.extent > 1 else "serial"
    limit = None if tree.limit is None else concrete_index(tree.limit, {})
    return [*before, For(tree.var, tuple(body), kind, limit), *after]


def begins_here(low: Lowering, stage: Stage, loop: Loop, around: tuple[Loop, ...]) -> bool:
    """True if `loop` is the outermost loop over which the stage reduces."""
    if stage.kind == "map" or (stage.kind == "contract" and not stage.runs_on()):
        return False
    mine = {low.plan.mapping[stage].get(v, v) for v in stage.red}
    return loop.var in mine and all(o.var not in mine for o in around)


def accumulator(low: Lowering, stage: Stage, around: tuple[Loop, ...],
                root: bool) -> tuple[list[Stmt], list[Stmt]]:
    """(statements before, statements after) the reduction's outermost loop; picks its storage."""
    done = {loop.var for loop in around}
    names = low.rename(stage)
    own = [low.plan.mapping[stage].get(v, v) for v in stage.axes if v.extent > 1]
    open_axes = [v for v in own if v not in done]
    home = private_buf(low, stage) if root and stage in low.nest.private else stage.buf
    zero, note = identity(stage.kind, stage.dtype), note_of(stage)
    idx = tuple(Affine.of(v).substitute(names) for v in stage.axes)
    if open_axes:
        low.accumulators[stage] = home
        init: Stmt = Store(home.storage, home.address(idx), zero, None, note)
        for v in reversed(open_axes):
            init = For(v, (init,))
        return [init], []
    if home.storage.role == "register":
        low.accumulators[stage] = home
        return [Alloc(home.storage),
                Store(home.storage, Affine.const_of(0), zero, None, note)], []
    register = Storage(f"acc{stage.number}", 1, stage.dtype, "register")
    low.accumulators[stage] = Buf(register, stage.buf.shape, (0,) * len(stage.axes))
    end = Store(home.storage, home.address(idx), Load(register, Affine.const_of(0)), None, note)
    return [Alloc(register), Store(register, Affine.const_of(0), zero, None, note)], [end]


def private_buf(low: Lowering, stage: Stage) -> Buf:
    """Where the running chunk keeps its own sums; the value itself if there is one chunk."""
    if low.chunk.extent == 1:
        return stage.buf
    if stage not in low.partial:
        low.partial[stage] = partials(low, stage)
    return low.partial[stage]


def partials(low: Lowering, stage: Stage) -> PrivateBuf:
    """(chunks, *shape) partial results in the arena; the leading index is the chunk's number."""
    shape = tuple(v.extent for v in stage.axes)
    size = elements(stage.axes)
    storage = Storage(f"{stage.buf.storage.name}_part{stage.number}", size * low.chunk.extent,
                      stage.dtype, "arena")
    low.plan.storages.append(storage)
    return PrivateBuf(storage, shape, row_major(shape), 0, low.chunk, size)


@dataclass(eq=False)
class PrivateBuf(Buf):
    """A buffer with one copy for each chunk."""

    chunk: Var = field(default=Var("chunk", 1))
    size: int = 0

    def address(self, index: tuple[Affine, ...]) -> Affine:
        """The element's address in the copy of the running chunk."""
        return super().address(index) + Affine.of(self.chunk) * self.size


def combine(low: Lowering, stage: Stage) -> list[Stmt]:
    """value = partial[0] (+) partial[1] (+) ...: in order, so the same bits on every run."""
    part = low.partial[stage]
    each = Var(f"c{stage.number}", low.chunk.extent - 1)
    axes = [Var(f"p{stage.number}_{d}", v.extent) for d, v in enumerate(stage.axes)]
    idx = tuple(Affine.of(v) for v in axes)
    flat = Buf.address(part, idx)
    wide = f64 if stage.dtype is f32 and stage.kind != "max" else stage.dtype
    register = Storage(f"sum{stage.number}", 1, wide, "register")
    zero = Affine.const_of(0)
    kind = "max" if stage.kind == "max" else "sum"
    note = note_of(stage)
    first = Load(part.storage, flat)
    rest = Load(part.storage, flat + (Affine.of(each) + 1) * part.size)
    body: list[Stmt] = [
        Alloc(register), Store(register, zero, converted(first, wide), None, note),
        For(each, (Store(register, zero, converted(rest, wide), kind, note),)),
        Store(stage.buf.storage, stage.buf.address(idx),
              converted(Load(register, zero), stage.dtype), None, note),
    ]
    for v in reversed(axes):
        body = [For(v, tuple(body))] if v.extent > 1 else body
    return body


# -- leaves --------------------------------------------------------------------------------------


def lower_leaf(low: Lowering, leaf: Leaf) -> list[Stmt]:
    """The statements of one stage at its place."""
    stage = leaf.stage
    names = low.rename(stage)
    note = note_of(stage)
    if stage.kind == "contract":
        return [contraction(low, leaf)]
    value = concrete(stage.expr, names)
    idx = tuple(Affine.of(v).substitute(names) for v in stage.axes)
    if stage.kind == "map":
        at = stage.buf.address(idx)
        return [*declare(stage), Store(stage.buf.storage, at, value, None, note)]
    home = low.accumulators.get(stage)
    if home is None:
        home = low.accumulators[stage] = stage.buf
        zero = identity(stage.kind, stage.dtype)
        return [*declare(stage), Store(home.storage, home.address(idx), first_term(
            stage, value, zero), None, note)]
    return [Store(home.storage, home.address(idx), value, stage.kind, note)]


def first_term(stage: Stage, value: Expr, zero: Const) -> Expr:
    """A reduction over axes of extent 1 has one term; over an empty axis it has none."""
    return value if elements(stage.red) else zero


def declare(stage: Stage) -> list[Stmt]:
    """The declaration of a stage that lives in a register."""
    return [Alloc(stage.buf.storage)] if stage.buf.storage.role == "register" else []


def note_of(stage: Stage) -> str:
    """What a comment says of a stage: its name and the line that made it."""
    origin = stage.node.origin
    return f"{stage.name}" + (f" {origin[0].rsplit('/', 1)[-1]}:{origin[1]}" if origin else "")


def concrete(expr: Expr, names: dict[Var, Affine]) -> Expr:
    """Reads become loads, loop variables get their shared names."""
    def leaf(e: Expr) -> Expr:
        if isinstance(e, Read):
            return Load(e.buf.storage, e.buf.address(e.index), e.guard)
        return e

    return rewrite(expr, leaf, lambda a: a.substitute(names))


def parts_of_scatter(stage: Stage, target: Target) -> tuple[Var | None, int]:
    """(an axis of the updates that is an axis of the result as well, how much of it a chunk does).

    Chunks of such an axis never add to the same element, so that a scatter needs no atomics, and
    each adds in the order of the updates.
    """
    for d in reversed(range(len(stage.target))):
        v = stage.target[d].as_var()
        others = [i for k, i in enumerate(stage.target) if k != d]
        if v is None or v.extent == 1 or any(v in i.free_vars() for i in others):
            continue
        width = -(-v.extent // target.chunks)
        lanes = target.lanes if stage.buf.strides[d] == 1 else 1
        return v, -(-width // lanes) * lanes
    return None, 1


def scatter(low: Lowering, stage: Stage) -> Stmt:
    """for parts of an axis: zero that part of the result; for updates: result[index] += update."""
    axis, width = parts_of_scatter(stage, low.target)
    n = stage.number
    axis = axis or Var(f"none{n}", 1)
    width = width if low.chunk.extent > 1 else axis.extent
    part, inside = Var(f"part{n}", -(-axis.extent // width)), Var(f"col{n}", width)
    at = Affine.of(part) * width + Affine.of(inside)
    limit = None if axis.extent % width == 0 else axis.extent - Affine.of(part) * width
    updates: Stmt = Store(stage.buf.storage, scatter_address(stage, {axis: at}),
                          concrete(stage.expr, {axis: at}), "sum", note_of(stage))
    zeros = [Var(f"z{n}_{d}", size) for d, size in enumerate(stage.buf.shape)]
    index = [at if i.as_var() is axis else Affine.of(z) for i, z in zip(stage.target, zeros)]
    clear: Stmt = Store(stage.buf.storage, stage.buf.address(tuple(index)),
                        identity("sum", stage.dtype))
    rest = [z for z, i in zip(zeros, stage.target) if i.as_var() is not axis]
    last = axis is stage.red[-1]
    body = (around(clear, rest, inside, limit, last),
            around(updates, [v for v in stage.red if v is not axis], inside, limit, last))
    return For(part, body, "chunk" if low.chunk.extent > 1 else "serial")


def around(stmt: Stmt, others: list[Var], inside: Var, limit: Affine | None, last: bool) -> Stmt:
    """Loops around a statement, that over a part of an axis innermost or outermost."""
    stmt = For(inside, (stmt,), "serial", limit) if last else stmt
    for v in reversed(others):
        stmt = For(v, (stmt,)) if v.extent != 1 else stmt
    return stmt if last else For(inside, (stmt,), "serial", limit)


def scatter_address(stage: Stage, names: dict[Var, Affine]) -> Affine:
    """Where an update is added: the parts of the index that come from data made concrete."""
    return stage.buf.address(tuple(concrete_index(i, names) for i in stage.target))


def concrete_index(index: Affine, names: dict[Var, Affine]) -> Affine:
    """An index with shared loop names, its data-dependent parts made concrete."""
    return index.map_data(lambda e: concrete(e, names)).substitute(names)


def contraction(low: Lowering, leaf: Leaf) -> Contraction:
    """A contraction with its epilogue, rows and columns chosen."""
    stage = leaf.stage
    names = low.rename(stage)
    rows, cols, _, depth = stage.sides()
    first, second = stage.operands()
    if rows_come_second(stage, rows):
        rows, cols, first, second = cols, rows, second, first
    tile = Storage(f"tile{stage.number}", 1, stage.dtype, "tile")
    idx = tuple(Affine.of(v).substitute(names) for v in stage.axes)
    value = Load(tile, Affine.const_of(0))
    body: list[Stmt] = []
    if stage.runs_on():
        home = low.accumulators[stage]
        body.append(Store(home.storage, home.address(idx), value, "sum", note_of(stage)))
    elif stage.buf.storage.role != "register":
        body.append(Store(stage.buf.storage, stage.buf.address(idx), value, None, note_of(stage)))
    for e in leaf.epilogue:
        body.extend(epilogue(low, leaf, e, tile))
    a, b = concrete(first, names), concrete(second, names)
    assert isinstance(a, Load) and isinstance(b, Load)
    limits = {v: concrete_index(limit, names) for v, limit in stage.limits.items()}
    return Contraction(shown(rows), shown(cols), shown(depth), a, b, tile, tuple(body),
                       note_of(stage), limits)


def shown(variables: list[Var]) -> tuple[Var, ...]:
    """The variables that have more than one value."""
    return tuple(v for v in variables if v.extent > 1)


def rows_come_second(stage: Stage, left: list[Var]) -> bool:
    """Columns are vectors: never places of images; else the side of the last output axis."""
    first, second = stage.operands()
    if is_windowed(first) != is_windowed(second):
        return is_windowed(second)
    images = stage.images()
    if images is not None and images[0] in stage.axes:
        return images[1] is second
    last = next((v for v in reversed(stage.axes) if v.extent > 1), None)
    return last in left


def epilogue(low: Lowering, leaf: Leaf, stage: Stage, tile: Storage) -> list[Stmt]:
    """One member of an epilogue, in the variables of the contraction."""
    names = dict(low.rename(stage))
    group = {leaf.stage.buf: leaf.stage, **{e.buf: e for e in leaf.epilogue}}
    for read in stage.reads:
        producer = group.get(read.buf)
        if producer is None or producer is stage:
            continue
        theirs = low.mapping[producer]
        for i, axis in zip(read.index, producer.axes):
            v = i.as_var()
            if v is not None and v not in names:
                names[v] = Affine.of(axis).substitute(theirs)
    low.mapping[stage] = names

    def leaf_value(e: Expr) -> Expr:
        if isinstance(e, Read) and e.buf is leaf.stage.buf:
            return Load(tile, Affine.const_of(0))
        if isinstance(e, Read):
            return Load(e.buf.storage, e.buf.address(e.index), e.guard)
        return e

    value = rewrite(stage.expr, leaf_value, lambda a: a.substitute(names))
    idx = tuple(Affine.of(v).substitute(names) for v in stage.axes)
    return [*declare(stage), Store(stage.buf.storage, stage.buf.address(idx), value, None,
                                   note_of(stage))]
