"""Why a stage does not share a loop or a kernel: the closed list of rules, in words and numbers.

Each function states one clause of the legality, or of the cost model, of `tinyc.schedule.fuse`, and
what would change it.
"""
from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from tinyc.diagnostics import format_origin
from tinyc.ir.cost import elements
from tinyc.ir.index import Affine
from tinyc.ir.loop import Read
from tinyc.ir.plan import Loop, Nest, Stage, read_vars
from tinyc.ir.program import Target

# rule -> what it means; reports and the documentation show these words.
RULES: dict[str, str] = {
    "complete-after-loop": "a value is complete only when a loop that both would share has ended",
    "other-iteration": "a value is read at another iteration than the one that makes it",
    "part-of-larger": "a value is read as a part of something larger, which is made elsewhere",
    "no-common-axis": "no axis of the reader runs in step with the loop",
    "contraction-blocks": "a contraction runs in blocks; sharing a loop would cut its blocks",
    "tile-elementwise": "only elementwise work runs on the register tiles of a contraction",
    "tile-index": "a contraction's result is read elsewhere than at the elements of a tile",
    "accumulator-size": "the private sums of the chunks would take too much memory",
    "across-rows": "the loop would run down the columns of a matrix that lies in rows",
    "stays-in-cache": "what is read stays in the first-level cache; a loop of its own is as fast",
    "kernel-end": "a value is complete only at the end of the kernel, which ends once",
    "data-index": "elements are added at indices that depend on data",
    "kernel-full": "the kernel has as many members as the C compiler takes well",
    "still-read": "memory would be overwritten that is still read at other indices",
    "boundary": "the program asks for a boundary between what makes a value and what reads it",
    "later-kernel": "another value that is read is made by a later kernel",
    "fusion-off": "fusion is switched off",
}


@dataclass(frozen=True)
class Refusal:
    """One clause that was not met: the rule, its words with numbers, and what would change it.

    `producer` is the member whose value it is about, where it is about one.
    """

    rule: str
    message: str
    remedy: str
    producer: str = ""
    terms: Mapping[str, int] = field(default_factory=dict, compare=False)


def nbytes(stage: Stage) -> int:
    """Size of the value that a stage stores."""
    return math.prod(stage.buf.shape) * stage.dtype.itemsize


def complete_after_loop(p: Stage, loop: Loop) -> Refusal:
    """The loop reduces what the stage reads, or runs over something that the value lacks."""
    n = loop.var.extent
    reduced = f"a {p.kind} over {n} elements" if p.red else f"not an axis of {p.name}"
    return Refusal(
        "complete-after-loop", f"{p.name} is complete only after loop {loop.var.name}",
        f"loop {loop.var.name} is {reduced}: they could share it if {p.name} had a value for each "
        "iteration, as when it reduces over another axis", p.name, {"iterations": n})


def other_iteration(p: Stage, at: Affine, loop: Loop) -> Refusal:
    """The index at which the value is read is not the loop's variable."""
    return Refusal(
        "other-iteration", f"reads {p.name} at {at}, not at the iteration that makes it",
        f"read {p.name} at the index at which it is made (no transpose, window, flip or gather "
        "between them), or let it be made in that order", p.name,
        {"iterations": loop.var.extent})


def part_of_larger(p: Stage) -> Refusal:
    """The value is one piece of a concatenation, or of a buffer written piece by piece."""
    return Refusal(
        "part-of-larger", f"reads {p.name} as a part of something larger",
        f"use the value of {p.name} before it is put together with the others", p.name)


def no_common_axis(stage: Stage, loop: Loop) -> Refusal:
    """No variable of the stage has the loop's extent and meets what the loop reads or makes."""
    n = loop.var.extent
    return Refusal(
        "no-common-axis", f"no axis of its own runs in step with loop {loop.var.name}",
        f"{stage.name} would need an axis of {n} along which it reads what the loop makes",
        terms={"iterations": n})


def contraction_blocks(stage: Stage, loop: Loop) -> Refusal:
    """Sharing the loop would read the operand that lacks it again on each iteration."""
    n = loop.var.extent
    again = streamed_again(stage, n)
    return Refusal(
        "contraction-blocks",
        "a contraction shares only its batch axes: it runs in blocks over the others",
        f"in loop {loop.var.name} it would read {again} bytes again on each of {n} iterations; a "
        "batch axis, which both operands and the result have, would be shared",
        terms={"iterations": n, "bytes_each": again, "bytes_again": again * (n - 1)})


def streamed_again(stage: Stage, extent: int) -> int:
    """Bytes of the smallest operand that a loop of this extent does not divide."""
    sizes = []
    for read in stage.operands():
        variables = read_vars(read)
        size = elements(variables) * read.dtype.itemsize
        divided = any(v.extent == extent for v in variables)
        sizes.append((divided, size))
    return min(sizes)[1]


def tile_elementwise(c: Stage, read: Stage, stage: Stage) -> Refusal:
    """A reduction (or another contraction) of `read`, which is made on the tiles of `c`."""
    where = f"reads {c.name}, on whose register tiles" if read is c else (
        f"reads {read.name}, made on the register tiles of {c.name}, where")
    return Refusal(
        "tile-elementwise", f"{where} only elementwise stages run",
        f"a {stage.kind} waits for more than one tile; the two would share a kernel inside a loop "
        f"over a batch axis of {c.name}, as the products of attention do inside that over heads",
        read.name, {"bytes": nbytes(read)})


def tile_index(c: Stage, read: Stage) -> Refusal:
    """The index is not that of the tile's own element."""
    return Refusal(
        "tile-index", f"reads {read.name} elsewhere than at the elements of a register tile",
        f"read {read.name} at its own index: without a transpose, window or repetition between "
        "them", read.name, {"bytes": nbytes(read)})


def accumulator_size(stage: Stage, size: int, target: Target) -> Refusal:
    """The loop that chunks divide would need a copy of all sums for each chunk."""
    limit = target.private_bytes
    return Refusal(
        "accumulator-size", f"every chunk would sum {size} bytes of its own; at most {limit}",
        f"{stage.name} would join if its result had at most {limit} bytes, "
        f"{size / limit:.1f} times less", terms={"bytes": size, "limit": limit})


def across_rows(stage: Stage, read: Read, size: int, target: Target) -> Refusal:
    """A profit rule: a sum over a loop that moves along rows which it all reads, by one element."""
    limit = target.l1 // 2
    return Refusal(
        "across-rows", f"would read {size} bytes of {read.buf.storage.name} column by column",
        f"{stage.name} would join if what it reads lay in the order of the loop, "
        f"or had at most {limit} bytes", terms={"bytes": size, "limit": limit})


def stays_in_cache(p: Stage, size: int, target: Target) -> Refusal:
    """A profit rule: two short loops collapse better than one with accumulators."""
    limit = target.l1 // 2
    return Refusal(
        "stays-in-cache",
        f"{p.name} stays in the cache: {size} bytes; a loop of its own is as fast",
        f"one loop would pay if {p.name} took more than {limit} bytes", p.name,
        {"bytes": size, "limit": limit})


def kernel_end(p: Stage, nest: Nest) -> Refusal:
    """What runs in the finish of a kernel is there for later kernels only."""
    return Refusal(
        "kernel-end", f"reads a value that is complete only at the end of kernel {nest.number}",
        f"{p.name} is the total of all chunks: less work (below the limit of one thread) would "
        "run after it in the same kernel", p.name)


def data_index(stage: Stage) -> Refusal:
    """A scatter may touch any element of its target at any time."""
    return Refusal(
        "data-index", "adds at an index that depends on data: needs the whole target",
        f"{stage.name} starts a kernel of its own, because any index may come at any iteration")


def kernel_full(nest: Nest, limit: int) -> Refusal:
    """A limit of compile time."""
    return Refusal(
        "kernel-full", f"kernel {nest.number} has {limit} stages already",
        "fewer or simpler operations in that kernel; C compilers take more than twice as long for "
        "a function of twice the length", terms={"members": limit, "limit": limit})


def still_read(p: Stage) -> Refusal:
    """An update in place would run before some reader of the old value."""
    return Refusal(
        "still-read", f"overwrites what {p.name} still reads at other indices",
        f"let {p.name} read the elements at the index at which they are overwritten, or read a "
        "`.clone()`", p.name)


def boundary(p: Stage) -> Refusal:
    """What `tinyc.boundary` asks for."""
    where = format_origin(p.node.origin)
    return Refusal("boundary", f"boundary asked for at {where}",
                   f"without the boundary at {where}, the other rules would decide", p.name,
                   {"bytes": nbytes(p)})


def later_kernel(other: Stage, number: int) -> Refusal:
    """Kernels run in order: the stage waits for the last of what it reads."""
    return Refusal(
        "later-kernel", f"also reads {other.name}, which kernel {number} makes",
        f"it would join this kernel if {other.name} were made here or before", other.name)


def too_much_work(work: int, target: Target) -> Refusal:
    """The end of a kernel runs on one thread."""
    limit = target.serial_work
    return Refusal(
        "kernel-end", f"too much work for one thread at the end of the kernel: {work} operations",
        f"with {work / limit:.1f} times less work it would run there",
        terms={"work": work, "limit": limit})


def fusion_off() -> Refusal:
    """TINYC_FUSE=0."""
    return Refusal("fusion-off", "fusion is switched off", "TINYC_FUSE=1, configure(fuse=True)")

