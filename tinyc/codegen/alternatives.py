"""Which choices are worth a try for a kernel, beside those of the recipes' rules."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tinyc.ir.choices import Choices
from tinyc.ir.loop import Contraction, For, LoopKernel, Store, holds, statements
from tinyc.ir.program import Target

MOST = 8
# Chunks of a parallel loop, and ranges of columns that those of a contraction divide.
CHUNKS, ACROSS = (4, 16, 32), (1, 2, 4, 8)
# Vectors of accumulators of a sum; blocks of the depth of a contraction.
SUMS, DEPTHS = (1, 2, 8), (0, 256, 512)


def alternatives(kernel: LoopKernel, target: Target) -> list[Choices]:
    """Return what may be tried for a kernel that was lowered and is not scheduled yet.

    One thing is changed at a time. A choice that changes nothing of a kernel is harmless.
    """
    found: list[Choices] = []
    contractions = holds(kernel.body, Contraction)
    if contractions:
        found += [Choices(tile=tile) for tile in tiles(target)]
        found += [Choices(pack=pack) for pack in (True, False)]
        found += [Choices(depth=depth) for depth in DEPTHS]
    elif any(isinstance(s, Store) and s.accumulate for s in statements(kernel.body)):
        found += [Choices(sums=vectors) for vectors in SUMS]
    if kernel.chunks > 1:
        found += [Choices(chunks=chunks) for chunks in CHUNKS]
        if contractions and not any(isinstance(s, For) for s in kernel.body):
            found += [Choices(across=across) for across in ACROSS]
    return found


def tiles(target: Target) -> Iterator[tuple[int, int]]:
    """Register tiles of other shapes than the usual: as many accumulators, or a few more."""
    accumulators = 2 * target.tile_rows
    yield accumulators // 3, 3
    yield accumulators // 4, 4
    yield accumulators // 2 + 2, 2
    yield 8, 1


def together(best: list[Choices]) -> Choices:
    """Return all of some choices at once; where two disagree the first counts."""
    all_of_them = Choices()
    for choices in reversed(best):
        changed = {name: value for name, value in vars(choices).items() if value is not None}
        all_of_them = replace(all_of_them, **changed)
    return all_of_them


def offered(choices: Choices, target: Target) -> bool:
    """True if each choice is one of those that are tried."""
    values = {"chunks": CHUNKS, "across": ACROSS, "tile": tuple(tiles(target)),
              "pack": (True, False), "depth": DEPTHS, "sums": SUMS}
    return all(value is None or any(value is v or (value == v and type(value) is type(v))
                                    for v in values[name])
               for name, value in vars(choices).items())
