"""The order of stages: a stage that frees more memory than it takes runs as soon as it can.

Gradients of weights are asked for at the end of a graph, and each holds the activations that it is
made of until then. Run when what it multiplies is there, it lets go of them at once. A product of
arguments alone frees nothing: it waits for its first reader, beside whose other values it may stay
in a cache (gradients of attention whose result nobody asks for).
"""
from __future__ import annotations

import heapq
from collections.abc import Mapping

from tinyc.ir.loop import Storage
from tinyc.ir.plan import Plan, Stage


class Waiting:
    """The stages that are not placed yet, and who still reads each storage of the arena."""

    def __init__(self, stages: list[Stage]) -> None:
        self.place = {stage: i for i, stage in enumerate(stages)}
        self.before = {s: len({*s.producers, *s.after}) for s in stages}
        self.users: dict[Stage, list[Stage]] = {s: [] for s in stages}
        self.readers: dict[Storage, dict[Stage, None]] = {}
        self.made: set[Storage] = set()
        for s in stages:
            for p in {*s.producers, *s.after}:
                self.users[p].append(s)
            for storage in arena_read(s):
                self.readers.setdefault(storage, {})[s] = None

    def frees(self, stage: Stage) -> bool:
        """True if a stage ends the life of more bytes than its own value begins."""
        own = stage.buf.storage
        taken = own.nbytes if own.role == "arena" and own not in self.made else 0
        return taken < sum(s.nbytes for s in arena_read(stage)
                           if len(self.readers[s]) == 1 and s is not own)

    def take(self, stage: Stage) -> list[Stage]:
        """Place a stage; returns what may now run, or may now free something."""
        self.made.add(stage.buf.storage)
        found = []
        for user in self.users[stage]:
            self.before[user] -= 1
            if not self.before[user]:
                found.append(user)
        for storage in arena_read(stage):
            left = self.readers[storage]
            del left[stage]
            if len(left) == 1:
                found += [reader for reader in left if not self.before[reader]]
        return found


def arena_read(stage: Stage) -> dict[Storage, None]:
    """The storages of the arena that a stage reads."""
    return dict.fromkeys(r.buf.storage for r in stage.reads if r.buf.storage.role == "arena")


def order_by_memory(plan: Plan) -> None:
    """Reorder `plan.stages`, which are in an order that keeps to what each waits for."""
    waiting = Waiting(plan.stages)
    ready = [(True, waiting.place[s], s) for s in plan.stages if not waiting.before[s]]
    heapq.heapify(ready)
    order: dict[Stage, None] = {}
    while ready:
        stage = heapq.heappop(ready)[2]
        if stage in order:
            continue
        order[stage] = None
        for s in waiting.take(stage):
            late = s.kind != "contract" or not waiting.frees(s)
            heapq.heappush(ready, (late, waiting.place[s], s))
    products = {s for s in order if s.kind == "contract" and not arena_read(s)}
    plan.stages = before_readers(list(order), waiting.users, products)


def before_readers(order: list[Stage], users: Mapping[Stage, list[Stage]],
                   moved: set[Stage]) -> list[Stage]:
    """The order with some stages right before the first that waits for each."""
    place: dict[Stage, tuple[int, int]] = {s: (i, 0) for i, s in enumerate(order)}
    for i, s in enumerate(order):
        if s in moved and users[s]:
            place[s] = min(place[u][0] for u in users[s]), i - len(order)
    return sorted(order, key=place.__getitem__)
