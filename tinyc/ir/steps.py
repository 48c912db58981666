"""What passes did, as plain data: their times, the program's text after each, what they applied."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from tinyc.diagnostics import Origin, format_origin


@dataclass(frozen=True)
class Fired:
    """One application of a rewrite rule to a node, or of a step of scheduling to a kernel.

    Of a rule, ``before`` and ``after`` are nodes on one line, of scheduling a kernel's loops.
    """

    name: str
    before: str
    after: str
    origin: Origin | None = None
    kernel: str | None = None

    def text(self) -> str:
        """Return a rule with the user's line on one line, a step of scheduling with its diff."""
        if self.kernel is None:
            place = format_origin(self.origin)
            return f"rule {self.name}: {self.before} -> {self.after} [{place}]"
        change = difference(self.before, self.after, "", "").split("\n", 2)[2]
        return f"schedule {self.kernel}: {self.name}\n{change}"


@dataclass(frozen=True)
class Step:
    """What one pass did: its time and, where somebody reads them, texts and what it applied.

    ``blocks`` is the program after the pass as text: a kernel's under the kernel's name, and under
    "" what belongs to none, or all of it before there are kernels. ``form`` names what they show.
    """

    name: str
    form: str = ""
    seconds: float = 0.0
    blocks: Mapping[str, str] = field(default_factory=dict)
    fired: tuple[Fired, ...] = ()

    @property
    def text(self) -> str:
        """The whole program after the pass."""
        return "\n".join(block.rstrip("\n") + "\n" for block in self.blocks.values())


def changes(before: Step, after: Step) -> dict[str, str]:
    """Return what the later of two steps changed, for each block that it did.

    It is a unified diff where both have the block in the same form, and the new text elsewhere.
    """
    found: dict[str, str] = {}
    for name, text in after.blocks.items():
        old = before.blocks.get(name) if before.form == after.form else None
        if old is None:
            found[name] = text.rstrip("\n")
        elif old != text:
            found[name] = difference(old, text, f"before {after.name}", f"after {after.name}")
    return found


def difference(before: str, after: str, old: str, new: str) -> str:
    """Return a unified diff of two texts, under the names given."""
    lines = difflib.unified_diff(
        before.splitlines(), after.splitlines(), old, new, "", "", n=1, lineterm=""
    )
    return "\n".join(lines)


# A context variable, so that threads which compile at once do not see each other's steps.
_watched: ContextVar[list[Fired] | None] = ContextVar("watched", default=None)


@contextmanager
def watch() -> Iterator[list[Fired]]:
    """Collect in this thread what is applied during the block into the list it yields."""
    fired: list[Fired] = []
    token = _watched.set(fired)
    try:
        yield fired
    finally:
        _watched.reset(token)


def watched() -> list[Fired] | None:
    """Return the list that collects what is applied; None where nobody looks."""
    return _watched.get()
