"""How the depth of a product is divided into sums.

Each addition rounds the sum so far, so an error grows with the length of the chain of additions: a
chain of n products in parts and one of m parts err as one of n + m additions, not n * m.
"""
from __future__ import annotations

from dataclasses import dataclass, replace

# A part costs half a step of a tile, so parts are longer than would be best, which is as many
# points as there are parts; less so for tiles of FEW_SUMS, which wait for their sums anyway.
# PARTS_IN_BLOCK of the longest are one call, which adds them to those of the calls before.
SHORTEST_CUT, LONGEST_PART, PARTS_IN_BLOCK, FEW_SUMS = 6, 128, 64, 8


@dataclass(frozen=True)
class DepthPart:
    """The depth, or a part of it, for one call of the tile: (extent, stride) of three loops, outer
    first; how many steps the innermost has in the last step of the first; how many steps of the
    first make one sum; how many points of the depth come before, and loops around the call."""

    levels: tuple[tuple[int, int], ...]
    last: int
    many: int
    before: int = 0
    around: tuple[tuple[int, int], ...] = ()

    @property
    def is_window(self) -> bool:
        """True if more than its last loop makes one sum."""
        return self.many > 1 or self.levels[1][0] > 1

    @property
    def points(self) -> int:
        """How many points of the depth a call goes over."""
        (n2, _), (n1, _), (n0, _) = self.levels
        return ((n2 - 1) * n0 + self.last) * n1


def depth_parts(levels: list[tuple[int, int]], sums: int, adds: bool) -> list[DepthPart]:
    """The depth, of up to three levels, for a tile of so many vectors of sums. A single level is
    cut into parts of about the same length. What a call `adds` to other sums is a part itself."""
    if len(levels) > 1:
        return [in_one(levels)]
    ((n, step),) = levels
    block = LONGEST_PART * PARTS_IN_BLOCK
    least = 1
    if n >= SHORTEST_CUT and not adds:
        best = min(n, block) ** 0.5
        least = max(2, round(best / 4))
        if sums <= FEW_SUMS and n >= 2 * SHORTEST_CUT:
            least = round(best) if sums <= FEW_SUMS // 2 else 2 * least
    if n <= block:
        return [in_parts(n, step, least)]
    rest = n % block
    whole = replace(in_parts(block, step, least), around=((n // block, block * step),))
    return [whole, replace(in_parts(rest, step, 1), before=n - rest)] if rest else [whole]


def in_parts(n: int, step: int, least: int) -> DepthPart:
    """A single level of the depth as at `least` so many parts that are summed one after the other.
    """
    length = -(-n // max(least, -(-n // LONGEST_PART)))
    parts = -(-n // length)
    return DepthPart(((parts, length * step), (1, 0), (length, step)), n - (parts - 1) * length, 1)


def in_one(levels: list[tuple[int, int]]) -> DepthPart:
    """The depth, of up to three levels, as one sum. Several are a window, whose short loops
    compilers unroll."""
    first, *middle, last = [(1, 0)] * (2 - len(levels)) + levels
    return DepthPart((first, middle[0] if middle else (1, 0), last), last[0], first[0])
