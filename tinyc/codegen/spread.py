"""What it costs threads to run statements: how far apart their accesses are, and who is idle.

The unit is an access to memory of a warp whose threads read neighbours. Nothing is measured: the
costs only compare ways to divide a kernel.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from tinyc.codegen.parallel import Chain, chain_of, count
from tinyc.codegen.rebase import accesses
from tinyc.ir.index import Affine, Var
from tinyc.ir.loop import Apply, For, If, Stmt, Storage, Store, statements, walk
from tinyc.ir.ops import OPS

# A warp whose threads touch lines of their own moves so many times what it uses.
APART = 8.0
# Arithmetic of one flop beside an access; a barrier or a tree of sums.
FLOP, WAIT = 0.05, 12.0


@dataclass(frozen=True)
class Division:
    """One way to divide statements: how many blocks, of how many threads, and what each runs."""

    cost: float
    blocks: int
    threads: int
    make: Callable[[Affine], tuple[Stmt, ...]]


@dataclass
class Costs:
    """What statements cost; remembers what it has found of loops."""

    known: dict[tuple[For, int], tuple[float, bool]] = field(default_factory=dict)
    chains: dict[For, Chain | None] = field(default_factory=dict)
    each: dict[For, float] = field(default_factory=dict)

    def chain(self, loop: For) -> Chain | None:
        """The loops that may be dealt out as one with a loop, this one first."""
        if loop not in self.chains:
            self.chains[loop] = chain_of(loop) if loop.kind == "serial" else None
        return self.chains[loop]

    def deals(self, loop: For, threads: int) -> bool:
        """True if dealing a loop out is better than running it alike with those below dealt out."""
        return self.loop(loop, threads)[1]

    def together(self, body: tuple[Stmt, ...], threads: int) -> float:
        """What a block of threads takes for statements that it runs together."""
        return sum(self.one(s, threads) for s in body)

    def one(self, stmt: Stmt, threads: int) -> float:
        """One statement of those."""
        if isinstance(stmt, For):
            return self.loop(stmt, threads)[0]
        if isinstance(stmt, If):
            return self.together(stmt.body, threads)
        if not isinstance(stmt, Store):
            return 0.0
        seen = 0.0 if stmt.storage.role == "register" else WAIT / 4
        return seen + store_cost(stmt, None)

    def loop(self, stmt: For, threads: int) -> tuple[float, bool]:
        """(what a loop takes, whether it is dealt out)."""
        key = stmt, threads
        if key not in self.known:
            found = self.chain(stmt)
            alike = stmt.var.extent * (1.0 + self.together(stmt.body, threads))
            self.known[key] = alike, False
            if found is not None:
                loops, shares = found
                rounds = -(-count(loops) // threads)
                if stmt not in self.each:
                    self.each[stmt] = alone(loops[-1].body, loops[-1].var)
                cost = rounds * (1.0 + self.each[stmt]) + WAIT * len(shares.sums)
                if cost <= alike:
                    self.known[key] = cost, True
        return self.known[key]


def alone(body: tuple[Stmt, ...], lane: Var | None) -> float:
    """What a warp takes for statements that each of its threads runs; `lane` is what differs."""
    total = 0.0
    for s in body:
        if isinstance(s, For):
            total += s.var.extent * (0.5 + alone(s.body, lane))
        elif isinstance(s, If):
            total += alone(s.body, lane)
        elif isinstance(s, Store):
            total += store_cost(s, lane)
    return total


def store_cost(s: Store, lane: Var | None) -> float:
    """A store with the loads and the arithmetic before it."""
    flops = sum(OPS[e.op].flops_per_element for e in walk(s.value) if isinstance(e, Apply))
    moved = sum(access_cost(storage, index, lane) for storage, index in accesses(s))
    return moved + FLOP * (1 + flops)


def access_cost(s: Storage, index: Affine, lane: Var | None) -> float:
    """Touching an element in each thread of a warp."""
    if s.role in ("register", "tile"):
        return 0.0
    if lane is None:
        return 1.0
    if not index.is_linear_in(lane):
        return APART
    step = abs(index.coeff(lane)) * s.dtype.itemsize
    near = 0.5 if step == 0 else max(1.0, min(APART, step / 4))
    return near / 4 if s.role == "shared" else near


def has_loops(body: tuple[Stmt, ...]) -> bool:
    """True if statements hold a loop."""
    return any(isinstance(s, For) for s in statements(body))
