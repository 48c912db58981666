"""The engine that applies named rewrite rules to a graph, from the leaves up, until none fires.

A rule is a plain function from a node to its replacement, or None where it does not apply. Its
docstring is one line, ``before -> after``. What it builds gets the user's line of the node. There
is no pattern language: rules are read, typed and stepped through as any other function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tinyc.diagnostics import Origin, VerifyError
from tinyc.ir.node import Node, deriving, node, toposort
from tinyc.ir.ops import Op
from tinyc.ir.printer import brief
from tinyc.ir.steps import Fired, watched


@dataclass(frozen=True)
class Rule:
    """A rewrite: the ops at whose nodes it is tried, and the function that does it.

    With ``sole`` it is tried only where the first source has no other user, for rules that
    would compute that source twice.
    """

    name: str
    doc: str
    ops: tuple[Op, ...]
    sole: bool
    apply: Callable[[Node], Node | None]


def rule(*ops: Op, sole: bool = False) -> Callable[[Callable[[Node], Node | None]], Rule]:
    """Make a function the rule for nodes of these ops."""
    return lambda function: Rule(function.__name__, function.__doc__ or "", ops, sole, function)


Rules = Mapping[Op, Sequence[Rule]]


def by_op(rules: Iterable[Rule]) -> Rules:
    """Return the rules of each op, in the order given, which is the order they are tried in."""
    table: dict[Op, list[Rule]] = {}
    for entry in rules:
        for op in entry.ops:
            table.setdefault(op, []).append(entry)
    return table


class Firing(NamedTuple):
    """One application of a rule."""

    rule: str
    before: Node
    after: Node
    origin: Origin


def rewrite(
    outputs: Sequence[Node],
    rules: Rules,
    firings: list[Firing] | None = None,
    fuel: int | None = None,
) -> tuple[Node, ...]:
    """Return the outputs with the rules applied until none fires.

    Each firing is appended to ``firings``. Rules that undo each other, or fire more often than
    ``fuel`` (by default 1000 and 50 times a node), raise VerifyError.
    """
    order = toposort(outputs)
    engine = _Engine(rules, [] if firings is None else firings, fuel or 1000 + 50 * len(order))
    engine.count_users(order, outputs)
    try:
        return tuple(engine.normal_form(out) for out in outputs)
    finally:
        deriving.source = None


class _Engine:
    """What a rewrite knows: normal forms so far, and how many users each node has."""

    def __init__(self, rules: Rules, firings: list[Firing], fuel: int) -> None:
        self.rules = rules
        self.firings = firings
        self.fuel = fuel
        self.done: dict[Node, Node] = {}
        self.became: dict[Node, Node] = {}
        self.users: dict[Node, int] = {}
        self.watched = watched()

    def count_users(self, order: Sequence[Node], outputs: Sequence[Node]) -> None:
        users = self.users
        for n in order:
            for s in n.src:
                users[s] = users.get(s, 0) + 1
        for out in outputs:
            users[out] = users.get(out, 0) + 1

    def normal_form(self, root: Node) -> Node:
        """Return what a node becomes; iterative, since graphs are deeper than Python's stack."""
        done, became = self.done, self.became
        stack = [root]
        while stack:
            n = stack[-1]
            if n in done:
                stack.pop()
                continue
            waiting = [s for s in n.src if s not in done]
            if waiting:
                stack.extend(reversed(waiting))
                continue
            if n in became:
                done[n] = self._settled(n)
                stack.pop()
                continue
            after = self._step(n)
            if after is n:
                done[n] = n
                stack.pop()
            else:
                became[n] = after
                stack.append(after)
        return done[root]

    def _settled(self, n: Node) -> Node:
        after = self.done.get(self.became[n])
        if after is None:
            recent = ", ".join(firing.rule for firing in self.firings[-4:])
            raise VerifyError(f"rewrite: rules go in circles at {brief(n)}; last fired: {recent}")
        return after

    def _step(self, n: Node) -> Node:
        """Put a node on the normal forms of its sources, or, if it is, fire one rule."""
        done = self.done
        deriving.source = n
        if any(done[s] is not s for s in n.src):
            moved = node(n.op, tuple(done[s] for s in n.src), n.attrs)
            self.users[moved] = self.users.get(moved, 0) + self.users.get(n, 1)
            return moved
        for entry in self.rules.get(n.op, ()):
            if entry.sole and self.users.get(n.src[0], 1) > 1:
                continue
            after = entry.apply(n)
            if after is not None and after is not n:
                self._record(entry.name, n, after)
                return after
        return n

    def _record(self, name: str, before: Node, after: Node) -> None:
        if len(self.firings) >= self.fuel:
            raise VerifyError(f"rewrite: out of fuel after {self.fuel} firings; last: {name}")
        self.firings.append(Firing(name, before, after, before.origin))
        users = self.users
        gained = users.get(before, 1) - (after in before.src)
        users[after] = users.get(after, 0) + gained
        if self.watched is not None:
            self.watched.append(Fired(name, brief(before), brief(after), before.origin))
