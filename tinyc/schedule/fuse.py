"""Stages -> loop trees: fusion as one operation, the sharing of a loop prefix.

A stage may share a loop of an earlier tree if every value that it reads and that is produced inside
the loop is complete at that iteration, and read exactly there. Each refusal is a Remark. When all
stages have their place, arrays lose the dimensions of the loops that writer and readers share.

A value that crosses from one kernel to another leaves a remark for each of its readers there: the
rule that kept them apart (`refusals.RULES`), the numbers, and what would change it.
"""
from __future__ import annotations

from dataclasses import dataclass, field

from tinyc.diagnostics import Remark
from tinyc.ir.cost import elements, stage_work
from tinyc.ir.index import Affine, Var
from tinyc.ir.loop import substitute_index
from tinyc.ir.ops import Op
from tinyc.ir.plan import Buf, Group, Leaf, Loop, Nest, Plan, Stage, Tree, stages_of
from tinyc.ir.program import Target
from tinyc.schedule import refusals
from tinyc.schedule.hints import groups_of, in_turn
from tinyc.schedule.refusals import Refusal

UNROLLED = 16
# C compilers take more than twice as long for a function of twice the length.
STAGES_LIMIT = 48


@dataclass
class Shared:
    """A stage on its way down a tree: the loops it shares, the variables it still has to open."""

    stage: Stage
    axes: list[Var]
    red: list[Var]
    mapping: dict[Var, Var] = field(default_factory=dict)
    loops: list[Loop] = field(default_factory=list)


@dataclass
class Fuser:
    """What fusion knows: the nest and the shared loops of every stage placed so far."""

    plan: Plan
    target: Target
    home: dict[Stage, Nest] = field(default_factory=dict)
    finished: set[Stage] = field(default_factory=set)
    mapping: dict[Stage, dict[Var, Var]] = field(default_factory=dict)
    remarks: list[Remark] = field(default_factory=list)
    touching: dict[Buf, list[Stage]] = field(default_factory=dict)
    consumers: dict[Stage, list[Stage]] = field(default_factory=dict)
    refused: list[tuple[Nest, Refusal]] = field(default_factory=list)
    groups: dict[Stage, Group] = field(default_factory=dict)

    def must(self, stage: Stage) -> bool:
        """True if a hint asks for the stage's place whether or not it pays."""
        return stage in self.groups and self.groups[stage].effort > 0

    def refuse(self, nest: Nest, refusal: Refusal) -> None:
        """Note why the stage that is being placed does not join a nest, or a loop of it."""
        self.refused.append((nest, refusal))

    def apply(self, stage: Stage, message: str, **terms: int) -> None:
        """Leave the remark that a stage has joined something."""
        self.remarks.append(Remark("applied", "fuse", stage.name, message, stage.node.origin,
                                   dict(terms)))


def fuse(plan: Plan, target: Target, enabled: bool) -> list[Remark]:
    """Place every stage; fills `plan.nests`. Returns why stages were or were not joined.

    Where a hint is not met, all is placed again with more effort for it, as far as there is more.
    """
    groups = groups_of(plan) if enabled else {}
    while True:
        plan.nests = []
        f = place_all(plan, target, enabled, groups)
        apart = [group for group in dict.fromkeys(groups.values())
                 if not group.given_up and len({f.home[s] for s in group.stages}) > 1]
        if not apart:
            plan.mapping = f.mapping
            return f.remarks
        for group in apart:
            group.given_up = group.effort == 3
            group.effort = 1 if group.given_up else group.effort + 1


def place_all(plan: Plan, target: Target, enabled: bool, groups: dict[Stage, Group]) -> Fuser:
    """Place every stage once."""
    f = Fuser(plan, target, groups=groups)
    f.consumers.update((stage, []) for stage in plan.stages)
    for stage in plan.stages:
        for p in stage.producers:
            f.consumers[p].append(stage)
    for stage in in_turn(plan, groups):
        f.refused = []
        if not (enabled and place(f, stage)):
            open_nest(f, stage)
        explain_place(f, stage, enabled)
        for buf in {r.buf for r in stage.reads} | {stage.buf}:
            f.touching.setdefault(buf, []).append(stage)
    return f


# -- choosing a nest -----------------------------------------------------------------------------


def place(f: Fuser, stage: Stage) -> bool:
    """Join an existing nest, or the finish of the last one that it depends on."""
    before = [*stage.producers, *stage.after]
    last = max((f.home[s].number for s in before), default=-1)
    first = max(last, closed(f, stage) + 1)
    group = f.groups.get(stage)
    begins = group is not None and not any(s in f.home for s in group.stages)
    for nest in candidates_together(f, stage, group, first) if group else (
            candidates(f, stage, first)):
        if join(f, nest, stage):
            return True
    if last < 0 or last < first or stage.kind in ("contract", "scatter") or begins:
        return False
    nest, work = f.plan.nests[first], stage_work(stage)
    if work > f.target.serial_work and not (group is not None and group.effort == 3):
        f.refuse(nest, refusals.too_much_work(work, f.target))
        return False
    if len(nest.stages()) >= STAGES_LIMIT and not f.must(stage):
        f.refuse(nest, refusals.kernel_full(nest, STAGES_LIMIT))
        return False
    nest.finish.append(tree_of(f, stage, Shared(stage, list(stage.axes), list(stage.red))))
    settle(f, nest, stage, {})
    f.finished.add(stage)
    f.apply(stage, f"small: runs once, at the end of kernel {nest.number}")
    return True


def closed(f: Fuser, stage: Stage) -> int:
    """The last kernel that a stage stays out of because it reads a boundary made there; or -1."""
    cut = [p for p in stage.producers if p.node.op is Op.BOUNDARY]
    for p in cut:
        f.refuse(f.home[p], refusals.boundary(p))
    return max((f.home[p].number for p in cut), default=-1)


def candidates(f: Fuser, stage: Stage, first: int) -> list[Nest]:
    """Nests that hold a producer of the stage, the nearest first; that read what it reads; or whose
    values are read together with its own."""
    related = dict.fromkeys(f.home[p] for p in sorted(
        stage.producers, key=lambda p: -f.home[p].number))
    for read in stage.reads:
        related.update(dict.fromkeys(f.home[s] for s in f.touching.get(read.buf, ())[-8:]))
    for consumer in f.consumers[stage]:
        related.update(dict.fromkeys(f.home[p] for p in consumer.producers if p in f.home))
    return [n for n in related if n.number >= max(first, 0)]


def candidates_together(f: Fuser, stage: Stage, group: Group, first: int) -> list[Nest]:
    """The nest of the group first; for its first member one that nothing they read comes after."""
    there = dict.fromkeys(f.home[s] for s in group.stages if s in f.home)
    if there:
        return [n for n in there if n.number >= first]
    if group.effort == 2:
        return []
    outside = [p for s in group.stages for p in (*s.producers, *s.after) if p in f.home]
    return candidates(f, stage, max([first, *(f.home[p].number for p in outside)]))


def join(f: Fuser, nest: Nest, stage: Stage) -> bool:
    """Share loops of a nest from its root down, as deep as is legal."""
    late = next((p for p in [*stage.producers, *stage.after]
                 if p in f.finished and f.home[p] is nest), None)
    if late is not None:
        f.refuse(nest, refusals.kernel_end(late, nest))
        return False
    scatter = next((s for s in [stage, *nest.stages()] if s.kind == "scatter"), None)
    if scatter is not None:
        f.refuse(nest, refusals.data_index(scatter))
        return False
    if len(nest.stages()) >= STAGES_LIMIT and not f.must(stage):
        f.refuse(nest, refusals.kernel_full(nest, STAGES_LIMIT))
        return False
    way = Shared(stage, list(stage.axes), list(stage.red))
    where = descend(f, nest, nest.body, way, depth=0)
    if where is None:
        return False
    if isinstance(where, Leaf):
        where.epilogue.append(stage)
    else:
        rest = tree_of(f, stage, way)
        where.body.append(rest)
    if way.loops and any(way.mapping.get(v) is way.loops[0].var for v in stage.red):
        nest.private.append(stage)
    settle(f, nest, stage, way.mapping)
    depth = len(way.loops)
    f.apply(stage, f"shares {depth} loop{'s' * (depth != 1)} of kernel {nest.number}", depth=depth)
    return True


def settle(f: Fuser, nest: Nest, stage: Stage, mapping: dict[Var, Var]) -> None:
    """Note where a stage is and which loops it shares."""
    f.home[stage] = nest
    f.mapping[stage] = mapping


def open_nest(f: Fuser, stage: Stage) -> None:
    """A nest of its own."""
    nest = Nest(len(f.plan.nests))
    way = Shared(stage, list(stage.axes), list(stage.red))
    tree = tree_of(f, stage, way)
    nest.body.append(tree)
    if isinstance(tree, Loop) and tree.var in stage.red and stage.kind != "scatter":
        nest.private.append(stage)
    f.plan.nests.append(nest)
    settle(f, nest, stage, {})


# -- why not -------------------------------------------------------------------------------------


def explain_place(f: Fuser, stage: Stage, enabled: bool) -> None:
    """Leave remarks on a placed stage: each value that it reads from another kernel, and why; then
    what else kept it from sharing more loops."""
    here = f.home[stage]
    apart = [p for p in stage.producers if f.home[p] is not here]
    for p in apart:
        for refusal in why_apart(f, stage, p, enabled):
            miss(f, stage, f.home[p], refusal, p)
    told = {f.home[p].number for p in apart}
    for nest, refusal in f.refused:
        if nest.number not in told:
            miss(f, stage, nest, refusal)


def why_apart(f: Fuser, stage: Stage, p: Stage, enabled: bool) -> list[Refusal]:
    """Why a stage does not run in the kernel of `p`, whose value it reads: never empty."""
    if not enabled:
        return [refusals.fusion_off()]
    found = [r for nest, r in f.refused if nest is f.home[p]]
    about = [r for r in found if r.producer in ("", p.name)]
    if found:
        return list(dict.fromkeys(about or found))
    last = max([*stage.producers, *stage.after], key=lambda s: f.home[s].number)
    return [refusals.later_kernel(last, f.home[last].number)]


def miss(f: Fuser, stage: Stage, nest: Nest, refusal: Refusal, p: Stage | None = None) -> None:
    """Leave the remark of one refusal; `p` is the producer in the other kernel."""
    terms: dict[str, int] = {"kernel": nest.number, **dict(refusal.terms)}
    if p is not None:
        terms["bytes_through_memory"] = refusals.nbytes(p)
    f.remarks.append(Remark(
        "missed", "fuse", stage.name, refusal.message, stage.node.origin, terms, refusal.rule,
        refusal.remedy, p.name if p is not None else refusal.producer))


# -- sharing loops -------------------------------------------------------------------------------


def descend(f: Fuser, nest: Nest, body: list[Tree], way: Shared, depth: int) -> Loop | Leaf | None:
    """The deepest loop (or contraction leaf) of `body` that the stage can join; None if none."""
    needed = set(way.stage.producers) | set(way.stage.after)
    for tree in reversed(body):
        inside = list(stages_of(tree))
        found = None
        if isinstance(tree, Leaf):
            if can_be_epilogue(tree, way):
                return tree
            if tree.stage.kind == "contract" and not set(inside).isdisjoint(way.stage.producers):
                f.refuse(nest, why_no_epilogue(tree, way))
        else:
            found = share(f, nest, tree, inside, way, depth)
        if found is not None:
            return found
        if needed & set(inside):
            break
    return way.loops[-1] if way.loops else None


def share(f: Fuser, nest: Nest, loop: Loop, inside: list[Stage], way: Shared,
          depth: int) -> Loop | Leaf | None:
    """Take `loop` as one of the stage's own loops, then go on below it."""
    choice, why = match_variable(f, loop, inside, way, depth)
    if choice is None:
        needed = {*way.stage.producers, *way.stage.after}
        if not needed.isdisjoint(inside):
            f.refuse(nest, why or unmatched(f, way.stage, loop, inside))
        return None
    way.mapping[choice] = loop.var
    way.loops.append(loop)
    if choice in way.axes:
        way.axes.remove(choice)
    else:
        way.red.remove(choice)
    return descend(f, nest, loop.body, way, depth + 1)


def match_variable(f: Fuser, loop: Loop, inside: list[Stage], way: Shared,
                   depth: int) -> tuple[Var | None, Refusal | None]:
    """The stage's variable that may run as `loop`, or the reason why none may."""
    best, best_score, why = None, 0, None
    for v in open_variables(way):
        if v.extent != loop.var.extent or not same_range(way, v, loop):
            continue
        reason = illegal(f, loop, inside, way, v, depth)
        if reason:
            why = why or reason
            continue
        score = alignment(f, loop, inside, way, v)
        if score > best_score:
            best, best_score = v, score
    return best, why


def same_range(way: Shared, v: Var, loop: Loop) -> bool:
    """True if a variable of a stage ends where a loop does."""
    mine = limit_of(way, v)
    if mine is None or loop.limit is None:
        return mine is loop.limit
    a, b = (x.map_data(lambda read: read.buf) for x in (mine, loop.limit))
    return [(t, c) for t, c in a.terms if isinstance(t, Var)] == [
        (t, c) for t, c in b.terms if isinstance(t, Var)] and set(a.data()) == set(b.data())


def limit_of(way: Shared, v: Var) -> Affine | None:
    """Where the loop over a variable of a stage ends, in the names of the loops that it shares."""
    limit = way.stage.limits.get(v)
    if limit is None:
        return None
    names = {u: Affine.of(w) for u, w in way.mapping.items()}
    return substitute_index(limit, names)


def unmatched(f: Fuser, stage: Stage, loop: Loop, inside: list[Stage]) -> Refusal:
    """Why a stage stays outside a loop like which it has none."""
    for p in stage.producers:
        if p in inside and not dims_along(f, loop, p):
            return refusals.complete_after_loop(p, loop)
    if stage.kind == "contract":
        return refusals.contraction_blocks(stage, loop)
    return refusals.no_common_axis(stage, loop)


def open_variables(way: Shared) -> list[Var]:
    """Variables that may still be shared: of a contraction, only its outer ones."""
    stage = way.stage
    if stage.kind == "contract":
        return [v for v in stage.outer() if v in way.axes or v in way.red]
    return [v for v in way.axes + way.red if v.extent > 1]


def illegal(f: Fuser, loop: Loop, inside: list[Stage], way: Shared, v: Var,
            depth: int) -> Refusal | None:
    """Why the stage's `v` must not run as `loop`; None if it may."""
    stage = way.stage
    members = set(inside)
    for p in stage.producers:
        if p in members:
            reason = incomplete(f, loop, stage, p, v)
            if reason:
                return reason
    for p in stage.after:
        if p in members and not overwrites_same(f, loop, stage, p, v):
            return refusals.still_read(p)
        if p in members and stage.blocks and not dims_along(f, loop, p):
            return refusals.complete_after_loop(p, loop)  # tiles that wait for the loops before
    if v in stage.red and not f.must(stage):
        refusal = cannot_accumulate(f, stage, way, v, depth)
        if refusal is None and v not in stage.blocks:
            refusal = cached(f, members, way, depth)
        return refusal or crosses_rows(f, way, v)
    return None


def crosses_rows(f: Fuser, way: Shared, v: Var) -> Refusal | None:
    """A sum over `v`, outside of loops that step over whole rows, would read columns of them."""
    for read in way.stage.reads:
        flat = read.buf.address(read.index)
        rows = [u for u in way.axes if abs(flat.coeff(u)) >= f.target.lanes]
        if abs(flat.coeff(v)) != 1 or not rows:
            continue
        size = elements([*rows, v]) * read.dtype.itemsize
        if size > f.target.l1 // 2:
            return refusals.across_rows(way.stage, read, size, f.target)
    return None


def cached(f: Fuser, members: set[Stage], way: Shared, depth: int) -> Refusal | None:
    """A reduction reads what stays in the first-level cache anyhow in a loop of its own.

    The loop that made the value then needs no accumulators, and both collapse to long loops.
    """
    for p in way.stage.producers if depth else ():
        if p in members and len(f.consumers[p]) > 1:
            names = f.mapping[p]
            done = {loop.var for loop in way.loops}
            size = elements([a for a in p.axes if names.get(a, a) not in done]) * p.dtype.itemsize
            if size <= f.target.l1 // 2:
                return refusals.stays_in_cache(p, size, f.target)
    return None


def incomplete(f: Fuser, loop: Loop, stage: Stage, p: Stage, v: Var) -> Refusal | None:
    """Why what `p` produces inside `loop` is not there when the stage reads it at `v`."""
    dims = dims_along(f, loop, p)
    if not dims:
        return refusals.complete_after_loop(p, loop)
    for read in stage.reads:
        if read.buf is p.buf and read.index[dims[0]] != Affine.of(v):
            return refusals.other_iteration(p, read.index[dims[0]], loop)
        if read.buf is not p.buf and read.buf.storage is p.buf.storage:
            return refusals.part_of_larger(p)
    return None


def dims_along(f: Fuser, loop: Loop, stage: Stage) -> list[int]:
    """The dimensions of a stage's value that run as `loop`."""
    names = f.mapping[stage]
    return [d for d, axis in enumerate(stage.axes) if names.get(axis, axis) is loop.var]


def overwrites_same(f: Fuser, loop: Loop, stage: Stage, before: Stage, v: Var) -> bool:
    """True if, at each iteration, `before` is done with just what the stage overwrites."""
    if v not in stage.axes:
        return False
    dim, names = stage.axes.index(v), f.mapping[before]
    for read in before.reads:
        if read.buf.storage is stage.buf.storage and not (
                same_region(read.buf, stage.buf) and single(read.index[dim], names) is loop.var):
            return False
    if before.buf.storage is not stage.buf.storage:
        return True
    if before.kind == "scatter" or not same_region(before.buf, stage.buf):
        return False
    return names.get(before.axes[dim], before.axes[dim]) is loop.var


def same_region(a: Buf, b: Buf) -> bool:
    """True if two buffers of one storage have each element at the same place."""
    return (a.shape, a.strides, a.offset) == (b.shape, b.strides, b.offset)


def cannot_accumulate(f: Fuser, stage: Stage, way: Shared, v: Var, depth: int) -> Refusal | None:
    """A reduction over a shared loop keeps its accumulators outside that loop; over blocks of rows
    they take less than the values that are summed, which would leave the kernel else."""
    if depth > 0 and way.loops and any(u in way.mapping for u in stage.red):
        return None
    size = elements(way.axes) * stage.dtype.itemsize
    if depth == 0 and size > f.target.private_bytes and v not in stage.blocks:
        return refusals.accumulator_size(stage, size, f.target)
    return None


def alignment(f: Fuser, loop: Loop, inside: list[Stage], way: Shared, v: Var) -> int:
    """How many of the stage's reads meet, at `v`, what the loop's stages read or write there; that
    both are blocks of rows, or of columns, is worth a read."""
    mine = {(r.buf, d) for r in way.stage.reads for d, i in enumerate(r.index)
            if i == Affine.of(v)}
    mine |= read_together(f, way.stage, v)
    score = 0
    blocks = way.stage.blocks
    for s in inside:
        names = f.mapping.get(s, {})
        if blocks and any(a is v and names.get(u, u) is loop.var for a, u in zip(blocks, s.blocks)):
            score += 1
        if any((s.buf, d) in mine for d, a in enumerate(s.axes) if names.get(a, a) is loop.var):
            score += 2
        for r in s.reads:
            for d, i in enumerate(r.index):
                if (r.buf, d) in mine and single(i, names) is loop.var:
                    score += 1
    return score


def read_together(f: Fuser, stage: Stage, v: Var) -> set[tuple[Buf, int]]:
    """Dimensions of other values that a consumer reads at the variable at which it reads `v`."""
    found: set[tuple[Buf, int]] = set()
    if v not in stage.axes:
        return found
    dim = stage.axes.index(v)
    for consumer in f.consumers[stage]:
        at = {r.index[dim].as_var() for r in consumer.reads if r.buf is stage.buf} - {None}
        found |= {(r.buf, d) for r in consumer.reads if r.buf is not stage.buf
                  for d, i in enumerate(r.index) if i.as_var() in at}
    return found


def single(index: Affine, names: dict[Var, Var]) -> Var | None:
    """The loop variable that an index is, if it is just one."""
    v = index.as_var()
    return None if v is None else names.get(v, v)


def can_be_epilogue(leaf: Leaf, way: Shared) -> bool:
    """A map that reads a contraction at exactly its own index runs on the register tile."""
    c, stage = leaf.stage, way.stage
    if c.kind != "contract" or stage.kind != "map" or c.runs_on():
        return False
    group = [c, *leaf.epilogue]
    if not any(p in group for p in stage.producers):
        return False
    outer = c.outer()
    mine = sorted(v.extent for v in way.axes if v.extent > 1)
    return mine == sorted(v.extent for v in c.axes if v not in outer and v.extent > 1) and all(
        reads_at_own_index(stage, p, way) for p in stage.producers if p in group) and (
        tile_axes(group, stage) is not None)


def tile_axes(group: list[Stage], stage: Stage) -> dict[Var, Var] | None:
    """The axis of the contraction `group[0]` that each variable of an epilogue stage runs along;
    None if two reads disagree, as those of a value and of its transpose do."""
    makers = {s.buf: s for s in group}
    known = {group[0]: {v: v for v in group[0].axes}}
    for s in (*group[1:], stage):
        names = known[s] = {}
        for read, maker in [(r, makers[r.buf]) for r in s.reads if r.buf in makers]:
            for index, axis in zip(read.index, maker.axes):
                v, along = index.as_var(), known[maker].get(axis)
                if v is not None and along is not None and names.setdefault(v, along) is not along:
                    return None
    return known[stage]


def why_no_epilogue(leaf: Leaf, way: Shared) -> Refusal:
    """Why a stage that reads a contraction does not run on its register tile."""
    c, stage = leaf.stage, way.stage
    read = next(p for p in (*leaf.epilogue, c) if p in stage.producers)
    if stage.kind != "map":
        return refusals.tile_elementwise(c, read, stage)
    for v in (c.hoist, *c.blocks):
        if v is not None and v in c.red:
            return refusals.complete_after_loop(c, Loop(v, []))
    return refusals.tile_index(c, read)


def reads_at_own_index(stage: Stage, producer: Stage, way: Shared) -> bool:
    """Every read of the producer uses each open variable of the stage once, alone."""
    for read in stage.reads:
        if read.buf is producer.buf:
            found = [i.as_var() for i, d in zip(read.index, read.buf.shape) if d > 1]
            wanted = {v for v in way.axes if v.extent > 1}
            if None in found or not wanted <= set(found):
                return False
        elif read.buf.storage is producer.buf.storage:
            return False
    return True


# -- the loops of a stage's own ------------------------------------------------------------------


def tree_of(f: Fuser, stage: Stage, way: Shared) -> Tree:
    """The loops that a stage has not shared, around its leaf."""
    if stage.kind == "contract":
        order = [v for v in stage.outer() if v in way.axes or v in way.red]
    else:
        order = loop_order(stage, way.axes, way.red, f.target)
    tree: Tree = Leaf(stage)
    for v in reversed(order):
        if v.extent != 1:
            tree = Loop(v, [tree], limit_of(way, v))
    return tree


def loop_order(stage: Stage, axes: list[Var], red: list[Var], target: Target) -> list[Var]:
    """Outer to inner: unit stride innermost, short reductions inside, long ones around rows."""
    if not red or not axes:
        return axes + red
    if elements(red) <= UNROLLED:
        return axes + red
    inner = fastest(stage, axes, red)
    if inner not in axes:
        return axes + red
    size = elements(axes) * stage.dtype.itemsize
    if size <= target.private_bytes:
        return [v for v in axes if v is not inner and leads(stage, v)] + red + [
            v for v in axes if v is not inner and not leads(stage, v)] + [inner]
    return axes + red


def leads(stage: Stage, v: Var) -> bool:
    """True if every read that uses `v` steps further with it than with any reduction variable."""
    for read in stage.reads:
        flat = read.buf.address(read.index)
        if any(flat.coeff(r) and abs(flat.coeff(r)) > abs(flat.coeff(v)) for r in stage.red):
            return False
    return True


def fastest(stage: Stage, axes: list[Var], red: list[Var]) -> Var:
    """The variable with which most reads move by one element."""
    votes = dict.fromkeys(axes + red, 0)
    for read in stage.reads:
        flat = read.buf.address(read.index)
        for v in votes:
            if abs(flat.coeff(v)) == 1 and v.extent > 1:
                votes[v] += 1 + (v in red)
    return max(votes, key=lambda v: votes[v])
