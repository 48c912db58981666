"""Programs as text: a kernel with what was fused into it, and what is measured in a column."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tinyc.diagnostics import Origin, Remark, format_origin
from tinyc.ir.program import KernelInfo, Program


def quantity(number: float) -> str:
    """Return a number with a decimal prefix: ``12.3 M``."""
    for prefix in ("", "k", "M", "G", "T"):
        if abs(number) < 1000 or prefix == "T":
            break
        number /= 1000
    return f"{number:.3g} {prefix}"


def count(number: int, noun: str) -> str:
    """Return a number with its noun: ``1 kernel``, ``2 kernels``."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def places(origins: Iterable[Origin], most: int = 3) -> str:
    """Return ``[train.py:3, train.py:5, ...]``, each line of the user's once."""
    names = list(dict.fromkeys(format_origin(origin) for origin in origins))
    return f"[{', '.join(names[:most])}{', ...' if len(names) > most else ''}]"


def with_figures(text: str, figures: str, width: int = 60) -> str:
    """Return a line on which what was measured stands after a bar, apart from what is constant."""
    return f"{text:<{width}} | {figures}"


def kernel_heading(kernel: KernelInfo) -> str:
    """Return a kernel's name, the lines it comes from, and what it executes."""
    parts = [count(len(kernel.members), "member"), f"{quantity(kernel.flops)}FLOP",
             f"{quantity(kernel.bytes_moved)}B moved"]  # fmt: skip
    if kernel.scratch_bytes:
        parts.append(f"{quantity(kernel.scratch_bytes)}B scratch")
    if kernel.chunks > 1:
        parts.append(f"{kernel.chunks} chunks")
    return f"{kernel.name} {places(kernel.origins)} {', '.join(parts)}"


def fusion_texts(program: Program) -> dict[str, str]:
    """Return for each kernel, by name, what was fused into it and how, and each refusal.

    Members stand in the order in which they run. Below each: where fusion placed it (``+``), and
    what it may not share, by which rule, and what would change that (``-``).
    """
    remarks: dict[str, list[Remark]] = {}
    for remark in map(Remark.from_dict, program.remarks):
        remarks.setdefault(remark.subject, []).append(remark)
    return {kernel.name: _fusion_text(kernel, remarks) for kernel in program.kernels}


def _fusion_text(kernel: KernelInfo, remarks: dict[str, list[Remark]]) -> str:
    lines = [f"fused {kernel_heading(kernel)}", *tuning_lines(remarks.get(kernel.name, ()))]
    for i, member in enumerate(kernel.members):
        about = _remark_lines(remarks.get(member.partition(" ")[0], []))
        first = ["+ opens the kernel"] * (i == 0)
        lines += [f"  {member}", *(f"    {line}" for line in dict.fromkeys([*first, *about]))]
    return "\n".join(lines)


def tuning_lines(remarks: Sequence[Remark]) -> list[str]:
    """Return what was tried for a kernel and what was chosen, of the remarks about it."""
    return [f"  tuned: {r.message}" for r in remarks if r.pass_name == "tune"]


def _remark_lines(remarks: Sequence[Remark]) -> list[str]:
    lines = []
    for remark in remarks:
        if remark.kind == "missed":
            about = f" ({remark.about})" if remark.about else ""
            rule = f"{remark.rule}{about}: " if remark.rule else ""
            lines.append(f"- {rule}{remark.reason()}")
            if "bytes_through_memory" in remark.terms:
                lines.append(f"    to change that: {remark.remedy}")
        else:
            lines.append(f"+ {remark.reason()}")
    return lines
