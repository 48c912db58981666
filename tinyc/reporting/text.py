"""The text of reports: kernels, lines of the user, quantities, tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tinyc.diagnostics import format_origin
from tinyc.ir.program import KernelInfo
from tinyc.ir.program_text import quantity


def describe_kernel(kernel: KernelInfo, refused: Mapping[str, Sequence[str]],
                    tuned: Sequence[str] = ()) -> list[str]:
    """Return the lines that show a kernel: its cost, the user's lines, its members in order.

    Below each member stands why it is apart from loops before it, from ``refused`` by its name;
    ``tuned`` are lines on how it was chosen how the kernel is made.
    """
    cost = f"{quantity(kernel.flops)}FLOP, {quantity(kernel.bytes_moved)}B moved"
    if kernel.scratch_bytes:
        cost += f", {quantity(kernel.scratch_bytes)}B of scratch"
    if kernel.chunks > 1:
        cost += f", {kernel.chunks} chunks"
    lines = [f"{kernel.name}: {cost}"]
    if kernel.origins:
        lines.append(f"  lines {origins_text(kernel.origins)}")
    lines += tuned
    for member in kernel.members:
        lines.append(f"  {member}")
        reasons = dict.fromkeys(refused.get(member.partition(" ")[0], ()))
        lines += [f"    {reason}" for reason in reasons]
    return lines


def origins_text(origins: Sequence[tuple[str, int]], most: int = 4) -> str:
    """Return ``train.py:3, train.py:5 and 2 more``."""
    names = list(dict.fromkeys(format_origin(origin) for origin in origins))
    text = ", ".join(names[:most])
    return text + (f" and {len(names) - most} more" if len(names) > most else "")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return columns of text: the first and last to the left, figures to the right."""
    last = len(header) - 1
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        texts = [
            cell.ljust(width) if i in (0, last) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "  ".join(texts).rstrip()

    return "\n".join([line(header), line(["-" * width for width in widths]), *map(line, rows)])
