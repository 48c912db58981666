"""`tinyc.fuse`: what leads from some arguments to some results is to be one kernel, or an error.

A hint is in the graph as TOGETHER nodes, one a result. Before stages are made it is taken out
and kept as the set of its nodes; fusion then places their stages together, as far as that is legal,
and what it could not do is an error that says which rule was in the way.
"""
from __future__ import annotations

from collections.abc import Iterable, Sequence

from tinyc.diagnostics import FusionError, Remark, format_origin
from tinyc.ir.node import Node, node, toposort, with_sources
from tinyc.ir.ops import LEAVES, VIEWS, Op
from tinyc.ir.plan import Group, Hint, Plan, Stage

# These have values of their own whoever reads them.
STORED = (Op.REDUCE, Op.CONTRACT, Op.FOLD, Op.SCATTER_ADD, Op.CAT, Op.MATERIALIZE, Op.BOUNDARY)


# -- from the graph ------------------------------------------------------------------------------


def take_hints(plan: Plan) -> None:
    """Replace TOGETHER by the value itself, stored; fills `plan.hints`, changes the outputs."""
    marks: dict[tuple, Node] = {}
    for n in toposort(plan.outputs):
        if n.op is Op.TOGETHER:
            marks.setdefault((n.src[1:], n.attrs), n)
    if not marks:
        return
    new = without_marks(plan.outputs)
    for n in marks.values():
        results, arguments = n.src[1 : 1 + n.attrs[0]], n.src[1 + n.attrs[0]:]
        found = {new[m] for m in between(arguments, results) if m in new}
        found |= {kept(new[m]) for m in results if m in new}
        plan.hints.append(Hint(frozenset(found), n.origin))
    plan.outputs = tuple(new[n] for n in plan.outputs)


def without_marks(outputs: Sequence[Node]) -> dict[Node, Node]:
    """What each node that is needed for its value becomes."""
    new: dict[Node, Node] = {}
    stack = list(outputs)[::-1]
    while stack:
        n = stack[-1]
        sources = n.src[:1] if n.op is Op.TOGETHER else n.src
        waiting = [s for s in sources if s not in new]
        if n in new or not waiting:
            stack.pop()
            if n not in new:
                together = n.op is Op.TOGETHER
                new[n] = kept(new[n.src[0]]) if together else with_sources(
                    n, tuple(new[s] for s in n.src))
        else:
            stack.extend(reversed(waiting))
    return new


def kept(n: Node) -> Node:
    """A node whose value is stored once: the node itself where it is anyhow."""
    base = n
    while base.op in VIEWS and base.op is not Op.CAT:
        base = base.src[0]
    if base.op in STORED or base.op in LEAVES or base.op is Op.ASSIGN:
        return n
    return node(Op.MATERIALIZE, (n,), like=n)


def between(arguments: Sequence[Node], results: Sequence[Node]) -> set[Node]:
    """The nodes on the paths from arguments to results, arguments left out."""
    given = set(arguments)
    reached: set[Node] = set()
    for n in toposort(results):
        if n not in given and any(s in given or s in reached for s in n.src):
            reached.add(n)
    return reached


# -- for fusion ----------------------------------------------------------------------------------


def groups_of(plan: Plan) -> dict[Stage, Group]:
    """The stages that are to be one kernel: those of a hint; hints that share stages are one."""
    groups: dict[Stage, Group] = {}
    for hint in plan.hints:
        stages = [s for s in plan.stages if s.node in hint.members]
        old = dict.fromkeys(groups[s] for s in stages if s in groups)
        merged = dict.fromkeys([*stages, *(s for group in old for s in group.stages)])
        group = Group([s for s in plan.stages if s in merged])
        groups.update(dict.fromkeys(group.stages, group))
    return {s: group for s, group in groups.items() if len(group.stages) > 1}


def in_turn(plan: Plan, groups: dict[Stage, Group]) -> list[Stage]:
    """The stages in order, all that a group waits for before its first member."""
    if not groups:
        return plan.stages
    order: dict[Stage, None] = {}
    place = {s: i for i, s in enumerate(plan.stages)}
    for stage in plan.stages:
        if stage not in order:
            members = groups[stage].stages if stage in groups else [stage]
            needed = sorted(ancestors(members, order), key=place.__getitem__)
            late: dict[Stage, None] = dict.fromkeys(members)
            for s in needed:
                if any(p in late for p in (*s.producers, *s.after)):
                    late[s] = None
            order.update(dict.fromkeys(s for s in needed if s not in late))
            order.update(dict.fromkeys(s for s in needed if s in late))
    return list(order)


def ancestors(stages: Iterable[Stage], known: dict[Stage, None]) -> set[Stage]:
    """Stages and all that must run before them, but for those known."""
    found: set[Stage] = set()
    stack = [s for s in stages if s not in known]
    while stack:
        s = stack.pop()
        if s not in found:
            found.add(s)
            stack += [p for p in (*s.producers, *s.after) if p not in known]
    return found


# -- afterwards ----------------------------------------------------------------------------------


def require_hints(plan: Plan) -> None:
    """Note the hints that were met; raises FusionError for the first that was not."""
    home = {s: nest.number for nest in plan.nests for s in nest.stages()}
    for hint in plan.hints:
        stages = [s for s in plan.stages if s.node in hint.members]
        kernels = dict.fromkeys(home[s] for s in stages)
        if len(kernels) > 1:
            raise not_together(plan, hint, stages, home)
        for number in kernels:
            plan.remarks.append(Remark(
                "applied", "fuse", f"hint at {format_origin(hint.origin)}",
                f"is kernel {number}: {', '.join(s.name for s in stages)}", hint.origin,
                {"kernel": number}))


def not_together(plan: Plan, hint: Hint, stages: list[Stage],
                 home: dict[Stage, int]) -> FusionError:
    """The error that says which rule kept the members of a hint apart, and what would help."""
    names = {s.name: s for s in stages}
    reasons = [r for r in plan.remarks if r.pass_name == "fuse" and r.kind == "missed" and r.rule
               and r.subject in names and r.about in names
               and home[names[r.subject]] != home[names[r.about]]]
    # much work at the end of a kernel was tried, too
    reasons = [r for r in reasons if "work" not in r.terms] or reasons
    numbers = dict.fromkeys(home[s] for s in stages)
    kernels = [[shown(s) for s in stages if home[s] == number] for number in numbers]
    lines = [f"fuse (at {format_origin(hint.origin)}): {len(stages)} members would take "
             f"{len(kernels)} kernels: " + "; then ".join(", ".join(k) for k in kernels)]
    for r in reasons[:3]:
        lines += [f"{r.subject} is apart from {r.about} [{r.rule}]: {r.message}",
                  f"what would change it: {r.remedy}"]
    if not reasons:
        lines.append("no member reads another's value across these kernels, and they share nothing "
                     "else that would put them in one loop")
    return FusionError("; ".join(lines), tuple(reasons), tuple(map(tuple, kernels)))


def shown(stage: Stage) -> str:
    """A member and its line."""
    return f"{stage.name} ({format_origin(stage.node.origin)})"
