"""The threads of one block work through statements together.

Loops whose iterations are independent, or only add to registers, are dealt out; what the threads
have added up is then combined. All else every thread does alike, but for stores, which the first
one does.
"""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from tinyc.codegen import primitives as p
from tinyc.codegen.parallel import (
    Lanes,
    Sharing,
    count,
    in_one,
    limit_of_all,
    vector_width,
)
from tinyc.codegen.spread import Costs
from tinyc.codegen.waits import Around, Item, Section, touched, with_barriers
from tinyc.ir.index import Affine
from tinyc.ir.loop import Alloc, Combine, For, If, Load, Stmt, Storage, Store
from tinyc.ir.verify_loops import SEEN_BY_OTHERS

ZERO = Affine.const_of(0)


@dataclass
class Crew:
    """A block of threads on its way through the statements of a kernel."""

    threads: int
    costs: Costs
    lanes: Lanes = field(default_factory=Lanes)

    def block(self, body: Iterable[Stmt]) -> tuple[Stmt, ...]:
        """Statements that all threads run together."""
        return with_barriers(self.items(body))

    def items(self, body: Iterable[Stmt]) -> list[Item]:
        """Statements divided among the threads."""
        return [item for s in body for item in self.statement(s)]

    def statement(self, stmt: Stmt) -> list[Item]:
        """One statement, divided among the threads."""
        if isinstance(stmt, For):
            found = self.costs.chain(stmt)
            if found is not None and self.costs.deals(stmt, self.threads):
                return self.dealt(*found)
        if isinstance(stmt, (For, If)):
            return [Around(replace(stmt, body=()), self.items(stmt.body))]
        if isinstance(stmt, Store) and stmt.storage.role in SEEN_BY_OTHERS:
            one, _ = self.lanes.of(1, 1)
            return [Section([For(one, (stmt,), "thread")], touched([stmt], [one]))]
        return [Section([stmt], touched([stmt]))]

    def dealt(self, loops: tuple[For, ...], shares: Sharing) -> list[Item]:
        """Loops dealt out to the threads as one, and what they have added up combined."""
        width = vector_width(loops, 4 if count(loops) >= 2 * self.threads else 1)
        if loops[0].limit is not None and limit_of_all(loops, width) is None:
            width = 1
        lane, part = self.lanes.of(count(loops) // width, width)
        body = in_one(loops, width, Affine.of(lane), part)
        before: list[Stmt] = []
        after: list[Stmt] = []
        fresh = {}
        for register, how in shares.sums.items():
            own = fresh[register] = Storage(f"{register.name}_t{p.fresh_number()}", 1,
                                            register.dtype, "register")
            before += [Alloc(own), Store(own, ZERO, p.identity(how, own.dtype))]
            after += [Combine(own, how), Store(register, ZERO, Load(own, ZERO), how)]
        body = p.replace_storage(body, fresh)
        made = For(lane, body, "thread", limit_of_all(loops, width))
        return [Section(before), Section([made, *after], touched([made], (lane, part)))]
