"""Which member of a kernel each line of its text belongs to, from the statements of its loop IR."""
from __future__ import annotations

from collections.abc import Mapping

from tinyc.ir.loop import (
    Alloc,
    For,
    If,
    LoopKernel,
    MicroKernel,
    Stmt,
    Storage,
    Store,
    loads,
    statements,
)


class Owners:
    """The members behind the statements of one kernel.

    What computes a member names it in its note. Other statements belong to the member whose
    storage they write or read: they set an accumulator up, or store it. A loop belongs to a member
    if all that it holds does.
    """

    def __init__(self, kernel: LoopKernel, lengths: Mapping[Stmt, int]) -> None:
        self.lengths = lengths
        self.members = frozenset(kernel.members)
        self.of_storage: dict[Storage, str] = {}
        for stmt in statements(kernel.body + kernel.finish):
            named = self.named(stmt)
            if named and isinstance(stmt, (Store, MicroKernel)):
                place = stmt.storage if isinstance(stmt, Store) else stmt.tile
                self.of_storage.setdefault(place, named)

    def named(self, stmt: Stmt) -> str:
        """The member that a statement's note names."""
        note = stmt.note if isinstance(stmt, (Store, MicroKernel)) else ""
        return next((word for word in note.split() if word in self.members), "")

    def owner(self, stmt: Stmt) -> str:
        """The member that a statement without others below it belongs to."""
        if isinstance(stmt, Alloc):
            return self.of_storage.get(stmt.storage, "")
        found = self.named(stmt)
        if found or not isinstance(stmt, Store):
            return found
        read = [self.of_storage.get(load.storage, "") for load in loads(stmt.value)]
        return self.of_storage.get(stmt.storage) or next(filter(None, read), "")

    def lines(self, body: tuple[Stmt, ...]) -> list[str]:
        """The owner of each line of the statements' text."""
        found: list[list[str]] = []
        after = ""
        for stmt in reversed(body):
            count = self.lengths[stmt]
            if isinstance(stmt, (For, If)):
                inner = self.lines(stmt.body)
                whose = {name for name in inner if name}
                after = whose.pop() if len(whose) == 1 else ""
                # the head, with what its condition needs, comes before; a brace comes after
                found.append([*[after] * (count - len(inner) - 1), *inner, after])
            else:
                # registers are set up for what comes next
                after = self.owner(stmt) or after
                found.append([after] * count)
        return [name for group in reversed(found) for name in group]
