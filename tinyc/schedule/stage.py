"""Graph -> stages: where each stored value lives, and its loops over one expression."""
from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from tinyc.ir import dtype as dtypes
from tinyc.ir.halves import as_stored
from tinyc.ir.index import Affine, Data, Var
from tinyc.ir.loop import Apply, Expr, Read, Storage, Within, converted, free_vars
from tinyc.ir.node import Node, toposort
from tinyc.ir.ops import ELEMENTWISE, LEAVES, Op
from tinyc.ir.plan import Buf, Plan, Stage, read_vars, row_major
from tinyc.ir.program import OutputSpec
from tinyc.schedule.expressions import Reader
from tinyc.schedule.stored import KEPT, VIEWS, choose_stored, in_panels, size_of

MIN_CONTRACT_SIDE = 4
MIN_WIDE_SIDE = 16
# Sums that each chunk of images may keep for itself, in bytes.
LARGEST_SUMS = 1 << 19

# (reduction variables, kind, expression)
Body = tuple[tuple[Var, ...], str, Expr]


# -- stages --------------------------------------------------------------------------------------


@dataclass
class Builder:
    """State of one lowering: where values live, the stages so far, the loop variables."""

    plan: Plan
    stored: set[Node]
    place: dict[Node, Buf] = field(default_factory=dict)
    regions: dict[Node, Buf] = field(default_factory=dict)
    copies: list[tuple[Node, Buf]] = field(default_factory=list)
    overwrites: list[tuple[dict[Buf, None], list[Stage]]] = field(default_factory=list)
    in_place: set[Node] = field(default_factory=set)
    parts: dict[Buf, list[Buf]] = field(default_factory=dict)
    writers: dict[Buf, list[Stage]] = field(default_factory=dict)
    slots: dict[int, Storage] = field(default_factory=dict)
    names: int = 0
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def var(self, extent: int, hint: str = "i") -> Var:
        self.names += 1
        return Var(f"{hint}{self.names}", extent)

    def storage(self, node: Node, role: str) -> Storage:
        s = Storage(f"t{len(self.plan.storages)}", size_of(node), node.dtype, role)
        self.plan.storages.append(s)
        return s

    def temporary(self, like: Buf) -> Buf:
        """Memory of its own for what stands in a region."""
        s = Storage(f"t{len(self.plan.storages)}", math.prod(like.shape), like.dtype, "arena")
        self.plan.storages.append(s)
        return dense(s, like.shape)


def build_stages(plan: Plan, fuse: bool) -> None:
    """Lower a graph to stages in program order; fills `Plan.stages` and the program's slots."""
    outputs = plan.outputs
    order = toposort(outputs)
    b = Builder(plan, choose_stored(outputs, order, fuse))
    for i, leaf in enumerate(plan.leaves):
        slot = Storage(f"in{i}", size_of(leaf), leaf.dtype, "slot")
        plan.slots.append(slot)
        b.place[leaf] = dense(b.slots.setdefault(leaf.attrs[0], slot), leaf.shape)
    place_outputs(b, outputs)
    place_assigns(b, order)
    place_pieces(b, order)
    for n in order:
        if n.op is Op.ASSIGN:
            store_assign(b, n)
        elif n.op is Op.CAT and n in b.stored:
            store_cat(b, n)
        elif n in b.stored:
            store_value(b, n)
    copy_remaining_outputs(b)
    add_write_after_read(b)
    plan.stages = without_empty(plan.stages)
    order_stages(b)


def dense(storage: Storage, shape: tuple[int, ...]) -> Buf:
    """A whole storage as a dense array."""
    return Buf(storage, shape, row_major(shape))


def place_outputs(b: Builder, outputs: tuple[Node, ...]) -> None:
    """Fresh outputs get argument slots; a stored output is computed straight into its slot."""
    specs: list[OutputSpec | None] = []
    for i, out in enumerate(outputs):
        if out.op is Op.ASSIGN:
            specs.append(None)
            continue
        slot = Storage(f"out{i}", size_of(out), out.dtype, "slot")
        b.plan.slots.append(slot)
        specs.append(OutputSpec(out.shape, out.dtype.name))
        if out in b.stored and out not in b.place:
            b.place[out] = dense(slot, out.shape)
        else:
            b.copies.append((out, dense(slot, out.shape)))
    b.plan.output_specs = tuple(specs)


def place_assigns(b: Builder, order: list[Node]) -> None:
    """A value that is only assigned is computed in place, unless the old value is needed later."""
    for n in order:
        if n.op is not Op.ASSIGN:
            continue
        buffer = n
        while buffer.op is Op.ASSIGN:
            buffer = buffer.src[0]
        b.regions[n] = region(dense(b.slots[buffer.attrs[0]], n.shape), n.attrs)
    users = users_of(order)
    for n in order:
        if n.op is not Op.ASSIGN or is_inlined_scalar(b, n.src[1]):
            continue
        if can_compute_in_place(b, n, users):
            if try_place(b, n.src[1], b.regions[n]):
                b.in_place.add(n)


def is_inlined_scalar(b: Builder, value: Node) -> bool:
    """A number, such as a step count: others compute it again rather than wait for its store."""
    return not value.shape and value.op in ELEMENTWISE and value not in b.stored


def region(whole: Buf, attrs: tuple) -> Buf:
    """The strided part of a buffer that a slice store writes."""
    starts, sizes, steps = attrs
    offset = whole.offset + sum(s * st for s, st in zip(starts, whole.strides))
    strides = tuple(step * st for step, st in zip(steps, whole.strides))
    return Buf(whole.storage, tuple(sizes), strides, offset)


def users_of(order: list[Node]) -> dict[Node, list[Node]]:
    """The nodes that read each node."""
    users: dict[Node, list[Node]] = {n: [] for n in order}
    for n in order:
        for s in n.src:
            users[s].append(n)
    return users


def can_compute_in_place(b: Builder, assign: Node, users: dict[Node, list[Node]]) -> bool:
    """No node that depends on the new value reads the old one, and its own reads are aligned."""
    target, value = assign.src
    after: set[Node] = {value}
    stack = [value]
    while stack:
        for user in users[stack.pop()]:
            if user not in after and user is not assign:
                after.add(user)
                stack.append(user)
    version = target
    while True:  # what the value is needed for must not see a version that it replaces
        if version in after or any(
                u in after and u is not value for u in readers_through_views(version, users)):
            return False
        if version.op is not Op.ASSIGN:
            break
        version = version.src[0]
    return only_aligned_reads(b, value, target, b.regions[assign])


def readers_through_views(target: Node, users: dict[Node, list[Node]]) -> list[Node]:
    """The nodes that compute with a buffer's value, views looked through; stores left out."""
    out, stack = [], list(users[target])
    while stack:
        n = stack.pop()
        if n.op in VIEWS:
            stack.extend(users[n])
        elif n.op is not Op.ASSIGN or n.src[0] is not target:
            out.append(n)
    return out


def only_aligned_reads(b: Builder, value: Node, target: Node, where: Buf) -> bool:
    """True if `value` reads nothing of the buffer but `target`, and that at its own index."""
    seen: set[tuple[Node, bool]] = set()
    stack = [(value, is_dense(where))]
    while stack:
        n, aligned = stack.pop()
        if (n, aligned) in seen:
            continue
        seen.add((n, aligned))
        aligned = aligned and n.op in ELEMENTWISE and n.shape == target.shape
        for s in n.src:
            if lives_in(b, s, where) and not (s is target and aligned):
                return False
            if s not in b.stored and s is not target:
                stack.append((s, aligned))
    return True


def lives_in(b: Builder, n: Node, where: Buf) -> bool:
    """True if the value of `n` stands, or stood, in the storage of `where`."""
    place = b.regions.get(n) or b.place.get(n)
    return place is not None and place.storage is where.storage


def try_place(b: Builder, value: Node, where: Buf) -> bool:
    """Let `value`, or what it is a reshape or permutation of, be computed straight into `where`."""
    *_, (value, where) = behind(value, where)
    if value.op in LEAVES or value.op in VIEWS or value.op is Op.ASSIGN or value in b.place:
        return False
    if value.shape != where.shape or (value.op is Op.CAT and not is_dense(where)):
        return False
    b.stored.add(value)
    b.place[value] = where
    return True


def behind(value: Node, where: Buf) -> Iterator[tuple[Node, Buf]]:
    """A node with its region; then, while it is a mere order of another's elements, that one with
    the same region in its own order, if strides can say it."""
    yield value, where
    while value.op in (Op.RESHAPE, Op.PERMUTE):
        source = value.src[0]
        if value.op is Op.PERMUTE:
            axis = {p: k for k, p in enumerate(value.attrs[0])}
            strides = tuple(where.strides[axis[p]] for p in range(len(axis)))
            where = Buf(where.storage, source.shape, strides, where.offset)
        else:
            split = reshaped_strides(where, source.shape)
            if split is None:
                return
            where = Buf(where.storage, source.shape, split, where.offset)
        value = source
        yield value, where


def reshaped_strides(buf: Buf, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The strides with which the elements of a buffer have another shape, if there are any."""
    if is_dense(buf) or 0 in shape:
        return row_major(shape)
    runs: list[tuple[int, int]] = []
    for n, stride in zip(buf.shape, buf.strides):
        if runs and runs[-1][1] == n * stride:
            runs[-1] = (runs[-1][0] * n, stride)
        elif n != 1:
            runs.append((n, stride))
    strides = []
    left, step = 1, 1
    for n in reversed(shape):
        if left == 1 and n != 1:
            left, step = runs.pop()
        if left % n:
            return None
        strides.append(step)
        left, step = left // n, step * n
    return tuple(reversed(strides))


def is_dense(buf: Buf) -> bool:
    """True if a region is contiguous, in row-major order."""
    return buf.strides == row_major(buf.shape)


def place_pieces(b: Builder, order: list[Node]) -> None:
    """The pieces of a concatenation are computed into their parts of it."""
    for n in reversed(order):
        if n.op is not Op.CAT or n not in b.stored:
            continue
        if n not in b.place:
            b.place[n] = dense(b.storage(n, "arena"), n.shape)
        for piece, where in pieces(b.place[n], n):
            try_place(b, piece, where)


def pieces(whole: Buf, cat: Node) -> list[tuple[Node, Buf]]:
    """Each source of a CAT with its part of the whole."""
    (axis,) = cat.attrs
    out, start = [], 0
    for s in cat.src:
        out.append((s, Buf(whole.storage, s.shape, whole.strides,
                           whole.offset + start * whole.strides[axis])))
        start += s.shape[axis]
    return out


def store_value(b: Builder, n: Node) -> None:
    """A stage for a stored node, in its place or in the arena."""
    if n not in b.place:
        b.place[n] = dense(b.storage(n, "arena"), n.shape)
    add_stage(b, n, b.place[n])


def store_cat(b: Builder, n: Node) -> None:
    """Stages for the pieces of a concatenation that are not computed in their places."""
    whole = b.place[n]
    for piece, where in pieces(whole, n):
        add_writers(b, whole, write_into(b, piece, where))


def write_into(b: Builder, value: Node, where: Buf) -> list[Stage]:
    """Make sure that `value` stands in `where`; returns the stages that put it there."""
    for base, region_of_base in behind(value, where):
        placed = b.place.get(base)
        if placed is not None:
            if same_place(placed, region_of_base):
                return b.writers[placed]
            break
    return [add_copy(b, value, where)]


def same_place(a: Buf, b: Buf) -> bool:
    """True if two buffers are the same elements in the same order."""
    return a.storage is b.storage and a.offset == b.offset and (
        a.strides == b.strides or (is_dense(a) and is_dense(b)))


def store_assign(b: Builder, n: Node) -> None:
    """Store an assigned value in its region, and make the node's place the buffer after that."""
    target = n.src[0]
    where = b.regions[n]
    old = b.place[target]
    full = where.shape == n.shape and is_dense(where)
    written = overwrite(b, n, where)
    if not written:
        b.place[n] = old
        return
    before = b.writers.get(old, [])
    for w in written:
        w.after.extend(s for s in before if s is not w)
    if full and written[0].buf.shape == n.shape and is_dense(written[0].buf):
        whole = written[0].buf
    else:
        whole = dense(where.storage, n.shape)
        add_writers(b, whole, before)
        add_writers(b, whole, written)
    b.place[n] = whole
    b.overwrites.append((dict.fromkeys([old, *b.parts.get(old, ())]), written))
    b.parts[whole] = [old, *b.parts.get(old, ()), *(w.buf for w in written)]


def overwrite(b: Builder, assign: Node, where: Buf) -> list[Stage]:
    """The stages that store an ASSIGN's value; by way of a copy if it reads other old elements."""
    target, value = assign.src
    if assign in b.in_place:
        while value not in b.place:
            value = value.src[0]
        return b.writers[b.place[value]]
    if value is target and same_place(b.place[target], where):
        return []
    reader = Reader(b)
    axes = tuple(b.var(d) for d in value.shape)
    idx = tuple(Affine.of(v) for v in axes)
    expr = reader.value(value, idx, ())
    if any(r.buf.storage is where.storage and
           (r.buf is not b.place[target] or r.buf.address(r.index) != where.address(idx))
           for r in reader.reads):
        kept = b.temporary(where)
        finish_stage(b, value, kept, axes, (), "map", expr, reader)
        return [add_transfer(b, value, kept, where)]
    return [finish_stage(b, value, where, axes, (), "map", expr, reader)]


def add_writers(b: Builder, buf: Buf, stages: list[Stage]) -> None:
    """Note the stages that write a buffer."""
    b.writers.setdefault(buf, []).extend(s for s in stages if s not in b.writers.get(buf, ()))


def copy_remaining_outputs(b: Builder) -> None:
    """Copy the outputs that were not computed into their slots."""
    for out, where in b.copies:
        add_copy(b, out, where)


def add_copy(b: Builder, value: Node, where: Buf) -> Stage:
    """A stage that stores `value` (computed here, or read from where it is kept) into `where`."""
    axes = tuple(b.var(d) for d in value.shape)
    reader = Reader(b)
    expr = reader.value(value, tuple(Affine.of(v) for v in axes), ())
    return finish_stage(b, value, where, axes, (), "map", expr, reader)


def add_transfer(b: Builder, n: Node, source: Buf, where: Buf) -> Stage:
    """A stage that moves what stands in one place to another; `n` names it."""
    axes = tuple(b.var(d) for d in where.shape)
    reader = Reader(b)
    expr = reader.read(source, tuple(Affine.of(v) for v in axes), ())
    return finish_stage(b, n, where, axes, (), "map", expr, reader)


def add_stage(b: Builder, n: Node, where: Buf) -> Stage:
    """A stage that computes a stored node."""
    axes = tuple(b.var(d) for d in n.shape)
    idx = tuple(Affine.of(v) for v in axes)
    reader = Reader(b)
    if n.op is Op.SCATTER_ADD:
        return scatter_stage(b, n, where, reader)
    red, kind, expr = body_of(b, reader, n, idx)
    return finish_stage(b, n, where, axes, red, kind, expr, reader)


def body_of(b: Builder, reader: Reader, n: Node, idx: tuple[Affine, ...]) -> Body:
    """(reduction variables, kind, expression) of a stored node at an index."""
    if n.op is Op.REDUCE:
        kind, axes = n.attrs
        src = n.src[0]
        red = {a: b.var(src.shape[a], "r") for a in axes}
        rest = iter(idx)
        full = tuple(Affine.of(red[a]) if a in red else next(rest) for a in range(len(src.shape)))
        return tuple(red.values()), kind, reader.value(src, full, ())
    if n.op is Op.FOLD:
        return fold_body(b, reader, n, idx)
    if n.op is Op.CONTRACT:
        return contract_body(b, reader, n, idx)
    if n.op in KEPT:
        return (), "map", reader.value(n.src[0], idx, ())
    return (), "map", reader.computed(n, idx, ())


def fold_body(b: Builder, reader: Reader, n: Node, idx: tuple[Affine, ...]) -> Body:
    """out[p] = sum over k of src[(p - k*dilation) / stride, k] where that is a whole index."""
    axis, _, stride, dilation = n.attrs
    src = n.src[0]
    k = b.var(src.shape[-1], "r")
    t = idx[axis] - Affine.of(k) * dilation
    guard: tuple[Within, ...] = ()
    lo, hi = t.bounds()
    span = src.shape[axis] * stride
    if lo < 0 or hi >= span or stride > 1:
        guard = (Within(t, 0, span, stride, dtypes.bool_),)
    at = (*idx[:axis], t // stride, *idx[axis + 1:], Affine.of(k))
    return (k,), "sum", reader.guarded(src, at, guard)


def contract_body(b: Builder, reader: Reader, n: Node, idx: tuple[Affine, ...]) -> Body:
    """A contraction as a sum of products; in blocks if that pays. Blocks read halves as they are,
    which their recipe widens."""
    la, lb, lo = n.attrs
    env = dict(zip(lo, idx))
    red: list[Var] = []
    sizes = {**dict(zip(la, n.src[0].shape)), **dict(zip(lb, n.src[1].shape))}
    for label in la:
        if label not in env:
            v = b.var(sizes[label], "r")
            red.append(v)
            env[label] = Affine.of(v)
    a = reader.value(as_stored(n.src[0]), tuple(env[x] for x in la), ())
    c = reader.value(as_stored(n.src[1]), tuple(env[x] for x in lb), ())
    if is_blockable(n, a, c, red):
        return tuple(red), "contract", Apply(Op.MUL, (a, c), n.dtype)
    return tuple(red), "sum", Apply(Op.MUL, (converted(a, n.dtype), converted(c, n.dtype)), n.dtype)


def is_blockable(n: Node, a: Expr, c: Expr, depth: Sequence[Var]) -> bool:
    """True if register tiles pay: floats, bare reads, both sides wide enough.

    A few vectors times a matrix are dot products with its rows where these lie along the depth;
    where they lie across it, dot products would read its columns in strides, and tiles its rows.
    """
    la, lb, lo = n.attrs
    if n.dtype.kind != "f" or not isinstance(a, Read) or not isinstance(c, Read):
        return False
    if 0 in n.src[0].shape:
        return False
    if a.guard or c.guard or not (addressable(a, c) and addressable(c, a)):
        return False
    sizes = dict(zip(lo, n.shape))
    left = right = 1
    for label, size in sizes.items():
        left *= size if label not in lb else 1
        right *= size if label not in la else 1
    if min(left, right) >= MIN_CONTRACT_SIDE:
        return True
    wide = c if left <= right else a
    address = wide.buf.address(wide.index)
    return max(left, right) >= MIN_WIDE_SIDE and all(abs(address.coeff(v)) != 1 for v in depth)


def addressable(read: Read, other: Read) -> bool:
    """True if a read moves linearly through memory, or through panels of what is its own."""
    flat = read.buf.address(read.index)
    return flat.is_linear() or in_panels(flat, read_vars(read) - read_vars(other))


def scatter_stage(b: Builder, n: Node, where: Buf, reader: Reader) -> Stage:
    """Loops over the updates; each is added at an index that is read from memory."""
    axis, size = n.attrs
    updates, index = n.src
    axes = tuple(b.var(d, "r") for d in updates.shape)
    idx = tuple(Affine.of(v) for v in axes)
    rank = len(index.shape)
    at = reader.checked(index, idx[axis:axis + rank], size, n, ())
    target = (*idx[:axis], Affine.of(Data(at, size, free_vars(at))), *idx[axis + rank:])
    expr = reader.value(updates, idx, ())
    stage = finish_stage(b, n, where, (), axes, "scatter", expr, reader)
    stage.target = target
    return stage


def finish_stage(b: Builder, n: Node, where: Buf, axes: tuple[Var, ...], red: tuple[Var, ...],
                 kind: str, expr: Expr, reader: Reader) -> Stage:
    """Register a stage: its reads, members and producers."""
    stage = Stage(next(b.numbers), n, where, axes, red, kind, expr, reader.reads,
                  tuple(reader.members))
    stage.producers = list(dict.fromkeys(
        w for r in reader.reads for w in b.writers.get(r.buf, ())))
    b.plan.stages.append(stage)
    add_writers(b, where, [stage])
    if kind == "contract":
        stage.hoist = hoisted_axis(stage)
    return stage


def hoisted_axis(stage: Stage) -> Var | None:
    """The axis of images, whose loop stays outside; None where chunks had better not divide it:
    each would copy weights that are larger than all images, or keep sums that no cache holds."""
    images = stage.images()
    if images is None:
        return None
    first, read = images
    if first in stage.red:
        size = math.prod(stage.buf.shape) * stage.dtype.itemsize
        return first if size <= LARGEST_SUMS else None
    other = next(r for r in stage.operands() if r is not read)
    return first if math.prod(other.buf.shape) <= math.prod(read.buf.shape) else None


# -- order ---------------------------------------------------------------------------------------


def add_write_after_read(b: Builder) -> None:
    """A stage that overwrites a buffer comes after every stage that reads the old value."""
    readers = readers_of(b.plan.stages)
    for old, writers in b.overwrites:
        first = min(w.number for w in writers)
        # Stages are made after what they read: only later ones can need the new value, too.
        if any(s.number > first and s not in writers for buf in old for s in readers.get(buf, ())):
            save_old_value(b, old, writers)
            readers = readers_of(b.plan.stages)
    for old, writers in b.overwrites:
        for reader in dict.fromkeys(s for buf in old for s in readers.get(buf, ())):
            for w in writers:
                if reader not in writers:
                    w.after.append(reader)


def readers_of(stages: list[Stage]) -> dict[Buf, list[Stage]]:
    """The stages that read each buffer."""
    found: dict[Buf, list[Stage]] = {}
    for stage in stages:
        for buf in dict.fromkeys(r.buf for r in stage.reads):
            found.setdefault(buf, []).append(stage)
    return found


def save_old_value(b: Builder, old: dict[Buf, None], writers: list[Stage]) -> None:
    """Stages that need a new value and the one that it replaces read a copy of the old one."""
    later = set(writers)
    saved: dict[Buf, Buf] = {}
    for stage in list(b.plan.stages):
        if stage in later or later.isdisjoint(stage.producers):
            continue
        later.add(stage)
        for buf in dict.fromkeys(r.buf for r in stage.reads if r.buf in old):
            if buf not in saved:
                saved[buf] = b.temporary(buf)
                add_transfer(b, stage.node, buf, saved[buf])
            read_instead(b, stage, buf, saved[buf])


def read_instead(b: Builder, stage: Stage, old: Buf, new: Buf) -> None:
    """Let a stage read one buffer in place of another."""
    def leaf(e: Expr) -> Expr:
        return replace(e, buf=new) if isinstance(e, Read) and e.buf is old else e

    stage.rewrite(leaf)
    stage.producers = list(dict.fromkeys(
        w for r in stage.reads for w in b.writers.get(r.buf, ())))


def without_empty(stages: list[Stage]) -> list[Stage]:
    """The stages that store at least one element."""
    kept = [s for s in stages if 0 not in s.buf.shape]
    if len(kept) < len(stages):
        there = set(kept)
        for s in kept:
            s.producers = [p for p in s.producers if p in there]
            s.after = [p for p in s.after if p in there]
    return kept


def order_stages(b: Builder) -> None:
    """Put the stages in an order; buffers that swap their values take a detour by a copy."""
    copies: set[Stage] = set()
    order, stuck = ordered(b.plan.stages)
    while stuck:
        waiting = set(stuck)
        found = next((s for s in stuck if s.buf.storage.role == "slot" and s not in copies
                      and waiting & set(s.after)), None)
        if found is None:
            raise AssertionError("stages depend on each other in a cycle")
        copies.add(postpone_store(b, found))
        order, stuck = ordered(b.plan.stages)
    b.plan.stages = order


def postpone_store(b: Builder, stage: Stage) -> Stage:
    """Let a stage compute into memory of its own, and a new one store that where it belongs."""
    where = stage.buf
    kept = stage.buf = b.temporary(where)
    b.writers[kept] = [stage]
    copy = add_transfer(b, stage.node, kept, where)
    copy.after, stage.after = stage.after, []
    for s in b.plan.stages:
        if s is not copy:
            s.producers = [copy if p is stage else p for p in s.producers]
            if s.buf.storage is where.storage:
                s.after = [copy if p is stage else p for p in s.after]
    return copy


def ordered(stages: list[Stage]) -> tuple[list[Stage], list[Stage]]:
    """(topological order that keeps the order of creation where it may, what is in a cycle)."""
    waiting = {s: len(set(s.producers) | set(s.after)) for s in stages}
    users: dict[Stage, list[Stage]] = {s: [] for s in stages}
    for s in stages:
        for p in set(s.producers) | set(s.after):
            users[p].append(s)
    ready = [(s.number, s) for s in stages if waiting[s] == 0]
    heapq.heapify(ready)
    out: list[Stage] = []
    while ready:
        _, s = heapq.heappop(ready)
        out.append(s)
        for u in users[s]:
            waiting[u] -= 1
            if waiting[u] == 0:
                heapq.heappush(ready, (u.number, u))
    return out, [s for s in stages if waiting[s]]
