"""The threads of one block work through statements together.

Loops whose iterations are independent, or only add to registers, are dealt out; what the threads
have added up is then combined. All else every thread does alike, but for stores, which the first
one does.
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from tinyc.codegen import primitives as p
from tinyc.codegen.kept import Share, dealt, keep, share_of, uses_of
from tinyc.codegen.parallel import Sharing, count, in_one, limit_of_all, vector_width
from tinyc.codegen.spread import Costs
from tinyc.codegen.waits import Around, Item, Section, touched, with_barriers
from tinyc.ir.index import Affine
from tinyc.ir.loop import Alloc, Combine, For, If, Load, Stmt, Storage, Store, stored_in
from tinyc.ir.verify_loops import SEEN_BY_OTHERS

ZERO = Affine.const_of(0)


@dataclass
class Crew:
    """A block of threads on its way through the statements of a kernel."""

    threads: int
    costs: Costs
    shares: dict[tuple[int, int, bool], Share] = field(default_factory=dict)
    uses: Counter[Storage] = field(default_factory=Counter)
    stored: dict[Storage, None] = field(default_factory=dict)

    def block(self, body: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
        """Statements that all threads run together."""
        self.uses, self.stored = uses_of(body), stored_in(body)
        return with_barriers(self.items(body))

    def items(self, body: Iterable[Stmt]) -> list[Item]:
        """Statements divided among the threads."""
        return keep([item for s in body for item in self.statement(s)], self.uses,
                    self.stored)

    def statement(self, stmt: Stmt) -> list[Item]:
        """One statement, divided among the threads."""
        if isinstance(stmt, For):
            found = self.costs.chain(stmt)
            if found is not None and self.costs.deals(stmt, self.threads):
                return self.dealt(*found)
        if isinstance(stmt, (For, If)):
            return [Around(replace(stmt, body=()), self.items(stmt.body))]
        if isinstance(stmt, Store) and stmt.storage.role in SEEN_BY_OTHERS:
            one = self.share(1, 1, False).lane
            return [Section([For(one, (stmt,), "thread")], touched([stmt], [one]))]
        return [Section([stmt], touched([stmt]))]

    def share(self, n: int, width: int, fixed: bool) -> Share:
        """How n vectors are dealt out: equal numbers alike, so that equal work is seen."""
        if (n, width, fixed) not in self.shares:
            self.shares[n, width, fixed] = share_of(n, width, self.threads, fixed)
        return self.shares[n, width, fixed]

    def dealt(self, loops: tuple[For, ...], shares: Sharing) -> list[Item]:
        """Loops dealt out to the threads as one, and what they have added up combined."""
        width = vector_width(loops, 4 if count(loops) >= 2 * self.threads else 1)
        if loops[0].limit is not None and limit_of_all(loops, width) is None:
            width = 1
        share = self.share(count(loops) // width, width, loops[0].limit is None)
        body = in_one(loops, width, share.at, share.part)
        before: list[Stmt] = []
        after: list[Stmt] = []
        fresh = {}
        for register, how in shares.sums.items():
            own = fresh[register] = Storage(f"{register.name}_t{p.fresh_number()}", 1,
                                            register.dtype, "register")
            before += [Alloc(own), Store(own, ZERO, p.identity(how, own.dtype))]
            after += [Combine(own, how), Store(register, ZERO, Load(own, ZERO), how)]
        body = p.replace_storage(body, fresh)
        return [Section(before), dealt(share, share.loop(body, limit_of_all(loops, width)), after)]
