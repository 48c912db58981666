"""Work that a condition of the data makes needless is not done where the condition does not hold.

A cache of keys takes one new row for each token, `where(places == place, new, old)` assigned to all
of it: without this, all of it is written. Attention is masked behind the place, so products of keys
there are made for nobody.
"""
from __future__ import annotations

from dataclasses import replace

from tinyc.codegen.primitives import has_loops
from tinyc.codegen.work import UNITS
from tinyc.ir.loop import (
    Alloc,
    Apply,
    Check,
    Expr,
    For,
    If,
    Load,
    Stmt,
    Storage,
    Store,
    free_vars,
    loads,
    loads_of,
    statements,
    stored_in,
    walk,
)
from tinyc.ir.ops import Op

# A branch that was foreseen wrong costs as much as reading a few lines of the cache.
WORTH_A_BRANCH = 256


def store_changes(loop: Stmt) -> tuple[Stmt, ...]:
    """An innermost loop that stores what is there unless a condition holds begins by asking it.

    for i: x[i] = where(c, f(i), x[i]); s(i)   ->   if c: for i: x[i] = f(i);   for i: s(i)
    """
    if not isinstance(loop, For) or loop.kind != "serial" or loop.limit is not None:
        return (loop,)
    change, *rest = loop.body or (None,)
    if has_loops(loop) or not isinstance(change, Store) or change.accumulate:
        return (loop,)
    parts = chosen(change.value)
    if parts is None or not keeps(change, parts[2]) or not is_long(loop, [change.index]):
        return (loop,)
    condition, value, _ = parts
    changed = replace(loop, body=(replace(change, value=value),))
    stored = written(loop.body)
    elsewhere = [x for s in rest for x in loads_of(s)] + loads(value)
    if loop.var in free_vars(condition) or reads(condition, stored) or (
            reads(value, stored - {change.storage}) or change.storage in written(tuple(rest))
            or any(x.index != change.index for x in elsewhere if x.storage is change.storage)):
        return (loop,)
    asked = If(condition, (changed,))
    return (asked, replace(loop, body=tuple(rest))) if rest else (asked,)


def sum_for_readers(loop: Stmt) -> tuple[Stmt, ...]:
    """A sum that is read only where a condition holds is made only there.

    r = 0; for i: r += f(i); y = where(c, g(r), h)   ->   r = 0; if c: for i: r += f(i);  ...
    """
    if not isinstance(loop, For):
        return (loop,)
    body = list(loop.body)
    for at, s in enumerate(body):
        if isinstance(s, For):
            condition = asked_for(s, loop.body[:at], loop.body[at + 1:])
            body[at] = s if condition is None else If(condition, (s,))
    return (replace(loop, body=tuple(body)),)


def asked_for(loop: For, before: tuple[Stmt, ...], after: tuple[Stmt, ...]) -> Expr | None:
    """What has to hold for anybody to look at the sum that is all a loop makes."""
    total = loop.body[0] if len(loop.body) == 1 else None
    if not isinstance(total, Store) or not total.accumulate or has_checks(total.value) or (
            not is_long(loop, [x.index for x in loads(total.value)])):
        return None
    register = total.storage
    users = [s for s in statements(after) if register in written((s,))
             or any(x.storage is register for x in loads_of(s))]
    if len(users) != 1 or users[0] not in after or (
            not any(isinstance(s, Alloc) and s.storage is register for s in before)):
        return None
    (user,) = users
    parts = chosen(user.value) if isinstance(user, Store) and not any(user.index.data()) else None
    if parts is None or reads(parts[2], {register}):
        return None
    stored = written(after[:after.index(user)]) | {register}
    return None if reads(parts[0], stored) else parts[0]


def chosen(value: Expr) -> tuple[Expr, Expr, Expr] | None:
    """Condition, value and other value of a choice whose condition may be asked twice, and whose
    value need not be made where the condition does not hold."""
    if not isinstance(value, Apply) or value.op is not Op.WHERE:
        return None
    condition, taken, other = value.args
    nodes = walk(condition)
    if has_checks(condition) or has_checks(taken) or not any(isinstance(e, Load) for e in nodes):
        return None
    costly = any(isinstance(e, Apply) and e.op in UNITS for e in nodes)
    return None if costly else (condition, taken, other)


def keeps(store: Store, value: Expr) -> bool:
    """True if a value is what is there already."""
    return isinstance(value, Load) and not value.guard and not any(store.index.data()) and (
        value.storage is store.storage and value.index == store.index)


def has_checks(value: Expr) -> bool:
    """True if an expression looks whether an index is within its bounds."""
    return any(isinstance(e, Check) for e in walk(value))


def is_long(loop: For, places: list) -> bool:
    """True if a loop moves by enough memory to be worth a branch."""
    steps = [abs(index.coeff(loop.var)) for index in places if index.is_linear_in(loop.var)]
    return 4 * loop.var.extent * max(steps, default=0) >= WORTH_A_BRANCH


def written(body: tuple[Stmt, ...]) -> set[Storage]:
    """The storages that statements, and those below them, store to or declare."""
    return {*stored_in(body)} | {s.storage for s in statements(body) if isinstance(s, Alloc)}


def reads(value: Expr, storages: set[Storage]) -> bool:
    """True if an expression reads one of some storages."""
    return any(x.storage in storages for x in loads(value))
