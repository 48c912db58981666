"""Which values are stored: by need, or because computing them again costs more.

"Stored" means that a value has an array of its own, which fusion may shrink to a register.
"""
from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from tinyc.ir.halves import as_stored, is_widening
from tinyc.ir.index import Affine, FloorDiv, Mod, Var
from tinyc.ir.node import Node
from tinyc.ir.ops import ELEMENTWISE, LEAVES, Op
from tinyc.ir.plan import row_major
from tinyc.ir.views import source_index

REDUCERS = (Op.REDUCE, Op.CONTRACT, Op.FOLD, Op.SCATTER_ADD)
KEPT = (Op.MATERIALIZE, Op.COPY, Op.BOUNDARY)
ALWAYS_STORED = (*REDUCERS, Op.CAT, *KEPT)
AFFINE_VIEWS = (Op.RESHAPE, Op.PERMUTE, Op.EXPAND, Op.SLICE, Op.WINDOW, Op.DETACH)
VIEWS = (*AFFINE_VIEWS, Op.PAD)
HEAVY = (Op.EXP, Op.LOG, Op.SQRT, Op.SIN, Op.COS, Op.TANH, Op.ERF, Op.POW, Op.DIV, Op.IDIV, Op.MOD)

# Inlined expressions stay below these sizes (operators); beyond, a value is stored.
SHARED_LIMIT = 12
SINGLE_LIMIT = 200
DEPTH_LIMIT = 100


@dataclass
class Inlined:
    """What inlining a node costs where it is used."""

    size: int = 0
    depth: int = 0
    heavy: bool = False
    reduced: bool = False


def choose_stored(outputs: Iterable[Node], order: list[Node], fuse: bool) -> set[Node]:
    """The nodes whose values are stored: in memory or, inside one nest, a register or scratch."""
    stored = {n for n in order if n.op in ALWAYS_STORED}
    stored.update(n for n in outputs if n.op is not Op.ASSIGN)
    for n in order:
        if n.op is Op.CONTRACT:
            a, c, _ = n.attrs
            for s, own, other in zip(n.src, (a, c), (c, a)):
                stored.add(contract_base(as_stored(s), [label in other for label in own]))
    stored = {n for n in stored if n.op not in LEAVES and n.op is not Op.ASSIGN}
    if not fuse:
        return stored | {n for n in order if n.op in ELEMENTWISE}
    store_shared(order, stored)
    costs: dict[Node, Inlined] = {}
    for n in order:
        cost = costs[n] = inlined_cost(n, costs, stored)
        if cost.size > SINGLE_LIMIT or cost.depth > DEPTH_LIMIT:
            stored.add(n)
            costs[n] = Inlined()
        if n.op is Op.EXPAND and widens(n) and cost.heavy and n.src[0].shape:
            stored.add(strip_views(n.src[0]))
            costs[n] = Inlined()
    return stored


def store_shared(order: list[Node], stored: set[Node]) -> None:
    """Store what several stored values are computed from, where computing it again costs more.

    From the last node to the first, so that it is known which values a node reaches.
    """
    costs: dict[Node, Inlined] = {}
    for n in order:
        costs[n] = inlined_cost(n, costs, stored)
    reached = dict.fromkeys(order, 0)
    for i, n in enumerate(reversed(order)):
        if n not in stored and worth_storing(n, costs[n]) and reached[n].bit_count() > 1:
            stored.add(n)
        bit = 1 << i if n in stored or n.op is Op.ASSIGN else reached[n]
        for s in n.src:
            reached[s] |= bit


def strip_views(n: Node) -> Node:
    """The node below a chain of views."""
    while n.op in VIEWS:
        n = n.src[0]
    return n


def inlined_cost(n: Node, costs: dict[Node, Inlined], stored: set[Node]) -> Inlined:
    """What a node costs where it is used, from the costs of its sources."""
    if n in stored or n.op in LEAVES or n.op is Op.ASSIGN:
        return Inlined(reduced=n.op in (Op.REDUCE, Op.CONTRACT))
    below = [costs[s] for s in n.src]
    own = 0 if n.op in VIEWS or is_widening(n) else 1
    return Inlined(
        size=min(own + sum(c.size for c in below), 10_000),
        depth=1 + max((c.depth for c in below), default=0),
        heavy=(n.op in HEAVY and n.dtype.kind == "f") or any(c.heavy for c in below),
        reduced=n.op not in VIEWS and any(c.reduced for c in below),
    )


def worth_storing(n: Node, cost: Inlined) -> bool:
    """True if a value used by several others is better stored than computed by each."""
    if n.op in VIEWS or n.op is Op.ASSIGN or cost.size == 0 or not n.shape or is_widening(n):
        return False
    # What is computed from a reduction is stored in place of the reduction, by the same kernel.
    return cost.heavy or cost.reduced or cost.size > SHARED_LIMIT


def size_of(n: Node) -> int:
    """Number of elements."""
    return math.prod(n.shape)


def widens(n: Node) -> bool:
    """True if an EXPAND repeats elements."""
    return size_of(n) > size_of(n.src[0])


def contract_base(operand: Node, shared: Sequence[bool]) -> Node:
    """The node below an operand's views if it can be addressed through them; else the operand.

    `shared` says of each axis whether the other operand has it, too.
    """
    variables = [Var(f"p{i}", d) for i, d in enumerate(operand.shape)]
    n, flat = base_address(operand, variables)
    if n.op is Op.CONST or n.op is Op.IOTA:
        return operand
    own = [v for v, is_shared in zip(variables, shared) if not is_shared]
    return n if flat.is_linear() or (n.op is Op.BUFFER and in_panels(flat, own)) else operand


def base_address(operand: Node, variables: Sequence[Var]) -> tuple[Node, Affine]:
    """(the node below an operand's affine views, where in it the operand has its elements)."""
    n = operand
    idx = tuple(Affine.of(v) for v in variables)
    while n.op in AFFINE_VIEWS:
        idx, _ = source_index(n, idx)
        n = n.src[0]
    return n, row_major_address(n.shape, idx)


def in_panels(flat: Affine, own: Collection[Var]) -> bool:
    """True if an index is linear but for the digits of one variable among `own`, whose last one
    moves by single elements: memory in panels, each as wide as that digit."""
    digits = [(atom, c) for atom, c in flat.terms if not isinstance(atom, Var)]
    if len(digits) != 2:
        return False
    (high, _), (low, step) = digits
    return (
        isinstance(high, FloorDiv) and isinstance(low, Mod) and step == 1
        and high.n == low.n and high.operand == low.operand and high.operand.as_var() in own
    )


def row_major_address(shape: tuple[int, ...], idx: tuple[Affine, ...]) -> Affine:
    """The flat index into a dense array."""
    flat = Affine.const_of(0)
    for stride, i in zip(row_major(shape), idx):
        flat = flat + i * stride
    return flat
