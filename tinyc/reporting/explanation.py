"""What one call of a function compiled to, as an object and as text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tinyc import compiler
from tinyc.compiler import NativeExecutable
from tinyc.diagnostics import Remark
from tinyc.ir.program import KernelInfo, Program
from tinyc.ir.program_text import count, quantity, tuning_lines
from tinyc.reporting.text import describe_kernel, origins_text
from tinyc.runtime.buffer import Buffer
from tinyc.tensor import Tensor


@dataclass(frozen=True)
class Explanation:
    """What one call of a function compiled to: its programs, kernels and refusals.

    ``print`` shows all of it. Figures are sums over the programs: ``flops`` is the arithmetic that
    one run executes, ``bytes_moved`` what kernels read and write outside their own scratch.
    ``kept`` says what of frozen tensors is computed once (see `jit`), and what not.
    """

    programs: tuple[Program, ...]
    kept: tuple[Remark, ...] = ()

    @property
    def kernels(self) -> tuple[KernelInfo, ...]:
        """The kernels in the order in which they run."""
        return tuple(kernel for program in self.programs for kernel in program.kernels)

    @property
    def remarks(self) -> tuple[Remark, ...]:
        """Every decision that was noted."""
        noted = [Remark.from_dict(r) for program in self.programs for r in program.remarks]
        return (*self.kept, *noted)

    @property
    def missed(self) -> tuple[Remark, ...]:
        """What was not done, and why."""
        return tuple(remark for remark in self.remarks if remark.kind == "missed")

    @property
    def flops(self) -> int:
        """Arithmetic operations that one run executes."""
        return sum(program.flops for program in self.programs)

    @property
    def bytes_moved(self) -> int:
        """Bytes that the kernels of one run read and write."""
        return sum(program.bytes_moved for program in self.programs)

    @property
    def arena_bytes(self) -> int:
        """Memory for values between kernels, of the program that needs most."""
        return max((program.arena_size for program in self.programs), default=0)

    def source(self) -> str:
        """Return the generated source of all programs."""
        return "\n".join(program.source for program in self.programs)

    def to_dict(self) -> dict[str, Any]:
        """Return the explanation as plain values, such as JSON holds."""
        return {
            "kernels": [asdict(kernel) for kernel in self.kernels],
            "remarks": [remark.to_dict() for remark in self.remarks],
            "flops": self.flops,
            "bytes_moved": self.bytes_moved,
            "arena_bytes": self.arena_bytes,
        }

    def __str__(self) -> str:
        if not self.programs:
            return "nothing was compiled"
        counts = f"{count(len(self.kernels), 'kernel')} in {count(len(self.programs), 'program')}"
        lines = [
            f"{counts}: {quantity(self.flops)}FLOP, {quantity(self.bytes_moved)}B moved, "
            f"arena {quantity(self.arena_bytes)}B"
        ]
        lines += [f"{remark.pass_name}: {remark.reason()}" for remark in self.kept]
        for program in self.programs:
            remarks = [Remark.from_dict(remark) for remark in program.remarks]
            for kernel in program.kernels:
                tuned = tuning_lines([r for r in remarks if r.subject == kernel.name])
                lines += ["", *describe_kernel(kernel, refusals(program), tuned)]
        return "\n".join(lines)


    def _repr_html_(self) -> str:
        from tinyc import markup

        if not self.programs:
            return markup.card("nothing was compiled", ())
        figures = [
            f"{quantity(self.flops)}FLOP",
            f"{quantity(self.bytes_moved)}B moved",
            f"arena {quantity(self.arena_bytes)}B",
        ]
        table = markup.rows(
            ("kernel", "FLOP", "bytes", "members", "lines"),
            (
                (k.name, quantity(k.flops), quantity(k.bytes_moved), len(k.members),
                 origins_text(k.origins))
                for k in self.kernels
            ),
        )  # fmt: skip
        text = markup.pre(str(self))
        why = markup.element("details", markup.element("summary", "members, and why apart"), text)
        title = f"{count(len(self.kernels), 'kernel')} in {count(len(self.programs), 'program')}"
        return markup.card(title, figures, table, why)


def refusals(program: Program) -> dict[str, list[str]]:
    """Return why members of kernels do not share more loops, by the member's name.

    Where that costs a trip through memory, between two kernels, a line says what would change it.
    """
    found: dict[str, list[str]] = {}
    for remark in map(Remark.from_dict, program.remarks):
        if remark.kind == "missed":
            lines = found.setdefault(remark.subject, [])
            lines.append(f"apart: {remark.reason()}")
            if "bytes_through_memory" in remark.terms:
                lines.append(f"  to change that: {remark.remedy}")
    return found


def explain(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Explanation:
    """Call a function, compute what it returns, and return what that compiled to.

    The function is called once, so its effects (an optimizer's step, say) happen once. It may be
    jitted or not; without jit, each value that it looks at is a program of its own.
    """
    runs = native_runs(fn, args, kwargs)
    programs = {id(program): program for program in (e.program for e, _ in runs)}
    return Explanation(tuple(programs.values()), getattr(fn, "kept", ()))


def native_runs(
    fn: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]
) -> list[tuple[NativeExecutable, Sequence[Buffer]]]:
    """Call a function, compute the tensors it returns, and return which programs ran on what.

    Arguments that are not computed yet are computed before: they are not the function's work.
    """
    realize([*args, *kwargs.values()])
    with compiler.observe() as runs:
        realize(fn(*args, **kwargs))
    found: list[tuple[NativeExecutable, Sequence[Buffer]]] = []
    for run in runs:
        if isinstance(run.executable, NativeExecutable):
            found.append((run.executable, run.buffers))
    return found


def realize(value: Any) -> None:
    """Compute all tensors in nested containers, in one program."""
    tensors = _tensors(value)
    if tensors:
        Tensor.commit(tensors)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in _tensors(item)]
    return []
