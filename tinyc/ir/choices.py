"""What the recipes of kernels may do in more than one way, all of them right."""
from __future__ import annotations

from dataclasses import dataclass, fields, replace

from tinyc.ir.program import Target


@dataclass(frozen=True)
class Choices:
    """How one kernel is made. None: the rule of the recipe decides, which is the default.

    Parallel loops have up to `chunks` chunks; `across` is how many ranges of columns the chunks of
    a contraction divide, the rest of them dividing its rows. A register tile is `tile` rows x
    vectors; `pack`: its column operand is copied even where it could be read in place, or never
    where it could. A contraction whose row operand lies across the depth goes down the depth in
    blocks of about `depth` points, 0: in one. A sum runs in `sums` vectors of accumulators.
    """

    chunks: int | None = None
    across: int | None = None
    tile: tuple[int, int] | None = None
    pack: bool | None = None
    depth: int | None = None
    sums: int | None = None

    def __str__(self) -> str:
        chosen = [(f.name, getattr(self, f.name)) for f in fields(self)]
        words = [f"{name} {_text(value)}" for name, value in chosen if value is not None]
        return ", ".join(words) or "the rules"

    def on(self, target: Target) -> Target:
        """Return the machine as the kernel is to see it."""
        return target if self.chunks is None else replace(target, chunks=self.chunks)


def _text(value: object) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


RULES = Choices()
