"""Products of tensors: matmul, einsum, linear, all made of two-operand contractions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod

from tinyc.composites.single import in_single
from tinyc.diagnostics import ShapeError
from tinyc.ir import build as b
from tinyc.ir.node import Node
from tinyc.ir.ops import fail

Labels = tuple[int, ...]


def matmul(x: Node, y: Node) -> Node:
    """Return the matrix product, by numpy's rules: 1-D operands are vectors, leading axes batches.

    Batch axes broadcast without repeating an operand: one of them is then read again.
    ShapeError for a 0-d operand or inner dimensions that differ.
    """
    _check_matmul(x, y)
    nx, ny = max(len(x.shape) - 2, 0), max(len(y.shape) - 2, 0)
    batch = max(nx, ny)
    row, column, inner = batch, batch + 1, batch + 2
    lx = (*range(batch - nx, batch), *((row, inner) if len(x.shape) > 1 else (inner,)))
    ly = (*range(batch - ny, batch), *((inner, column) if len(y.shape) > 1 else (inner,)))
    out = tuple(label for label in range(batch + 2) if label in lx or label in ly)
    return contract_pair("matmul", x, lx, y, ly, out)


def _check_matmul(x: Node, y: Node) -> None:
    if not x.shape or not y.shape:
        fail(
            ShapeError,
            "matmul",
            "an operand has no axes",
            (x, y),
            "operands are at least 1-D",
            "multiply by a number with *",
        )
    place = max(len(y.shape) - 2, 0)
    if x.shape[-1] != y.shape[place]:
        what = f"axis {len(x.shape) - 1} is {x.shape[-1]}, axis {place} is {y.shape[place]}"
        fail(ShapeError, "matmul", "inner dimensions differ", (x, y), what)


@in_single
def linear(x: Node, weight: Node, bias: Node | None = None) -> Node:
    """Return x @ weight.T + bias: [..., in] with weight [out, in] and bias [out] to [..., out]."""
    if not x.shape or x.shape[-1] != weight.shape[-1]:
        fail(
            ShapeError,
            "linear",
            "the number of features differs",
            (x, weight),
            "the last axis of the input is the last axis of the weight [out, in]",
        )
    rows = tuple(range(len(x.shape) - 1))
    inner, out = len(rows), len(rows) + 1
    if len(weight.shape) == 1:
        y = b.contract(x, weight, (*rows, inner), (inner,), rows)
    else:
        y = b.contract(x, weight, (*rows, inner), (out, inner), (*rows, out))
    return y if bias is None else b.add(y, bias)


def contract_pair(
    name: str, x: Node, lx: Sequence[int], y: Node, ly: Sequence[int], out: Sequence[int]
) -> Node:
    """Return the einsum of two operands; an axis of size 1 broadcasts against a larger one.

    Labels are distinct within each tuple. One that stands in a single operand and not in `out`
    is summed first. An axis that broadcasts is dropped, never repeated. ShapeError when sizes
    differ otherwise.
    """
    x, lx = _drop_broadcast(name, x, lx, y, ly)
    y, ly = _drop_broadcast(name, y, ly, x, lx)
    x, lx = _sum_lone(x, lx, {*ly, *out})
    y, ly = _sum_lone(y, ly, {*lx, *out})
    return b.contract(x, y, lx, ly, tuple(out))


def _drop_broadcast(
    name: str, x: Node, lx: Sequence[int], y: Node, ly: Sequence[int]
) -> tuple[Node, Labels]:
    """Drop the axes of x that have size 1 where y has more."""
    sizes = dict(zip(ly, y.shape))
    kept = []
    for label, n in zip(lx, x.shape):
        other = sizes.get(label, n)
        if n not in (1, other) and other != 1:
            fail(
                ShapeError,
                name,
                f"an axis has size {n} in one and {other} in the other",
                (x, y),
                "axes that are multiplied have equal sizes, or one has size 1",
            )
        if n == other or n != 1:
            kept.append((label, n))
    x = b.reshape(x, [n for _, n in kept])
    return x, tuple(label for label, _ in kept)


def _sum_lone(x: Node, labels: Labels, wanted: set[int]) -> tuple[Node, Labels]:
    lone = [axis for axis, label in enumerate(labels) if label not in wanted]
    if not lone:
        return x, labels
    return b.cast(b.sum_(x, lone), x.dtype), tuple(label for label in labels if label in wanted)


def einsum(equation: str, operands: Sequence[Node]) -> Node:
    """Return the sum of products that the equation says: "ij,jk->ik", "bii->b", "...d,d->...".

    Any number of operands; they are multiplied in pairs, each time the pair whose product is
    smallest. A letter that one operand has twice takes its diagonal. ShapeError for an equation
    that does not fit.
    """
    terms, out = _parse(equation, operands)
    nodes = [_diagonal(x, labels) for x, labels in zip(operands, terms)]
    while len(nodes) > 1:
        i, j = _cheapest(nodes, out)
        (x, lx), (y, ly) = nodes[i], nodes[j]
        rest = nodes[:i] + nodes[i + 1 : j] + nodes[j + 1 :]
        wanted = set(out).union(*(labels for _, labels in rest))
        joint = out if not rest else tuple(k for k in dict.fromkeys((*lx, *ly)) if k in wanted)
        sizes = _sizes([(x, lx), (y, ly)])
        # A size of 1 that will broadcast in a later product is still an axis of this one.
        joint = tuple(k for k in joint if k in sizes)
        nodes = [*rest, (contract_pair("einsum", x, lx, y, ly, joint), joint)]
    return _finish(*nodes[0], out)


def einsum_of(*operands: Node, equation: str) -> Node:
    """Return the einsum of operands given one by one."""
    return einsum(equation, operands)


def _finish(x: Node, labels: Labels, out: Labels) -> Node:
    """Sum what the output lacks and order the axes."""
    x, labels = _sum_lone(x, labels, set(out))
    return b.permute(x, [labels.index(label) for label in out])


def _sizes(nodes: Iterable[tuple[Node, Labels]]) -> dict[int, int]:
    sizes: dict[int, int] = {}
    for x, labels in nodes:
        for label, n in zip(labels, x.shape):
            sizes[label] = max(sizes.get(label, 1), n) if n else 0
    return sizes


def _cheapest(nodes: list[tuple[Node, Labels]], out: Labels) -> tuple[int, int]:
    """Return the two places whose product has the fewest elements, less what they have now."""
    best, choice = None, (0, 1)
    for i in range(len(nodes)):
        for j in range(i + 1, len(nodes)):
            rest = [labels for k, (_, labels) in enumerate(nodes) if k not in (i, j)]
            wanted = set(out).union(*rest)
            sizes = _sizes((nodes[i], nodes[j]))
            cost = prod(n for label, n in sizes.items() if label in wanted)
            cost -= nodes[i][0].size + nodes[j][0].size
            if best is None or cost < best:
                best, choice = cost, (i, j)
    return choice


def _parse(equation: str, operands: Sequence[Node]) -> tuple[list[Labels], Labels]:
    """Return the labels of each operand and of the output; an ellipsis stands for labels too."""
    text = equation.replace(" ", "")
    left, arrow, right = text.partition("->")
    terms = left.split(",")
    if len(terms) != len(operands):
        fail(
            ShapeError,
            "einsum",
            f"{equation!r} has {len(terms)} terms",
            operands,
            "one term for each operand",
        )
    widths = [len(x.shape) - len(t.replace("...", "")) for x, t in zip(operands, terms)]
    for x, term, width in zip(operands, terms, widths):
        _check_term(x, term, width)
    dots = max([w for w, t in zip(widths, terms) if "..." in t], default=0)
    if not arrow:
        letters = left.replace("...", "").replace(",", "")
        right = ("..." if dots else "") + "".join(
            sorted(c for c in set(letters) if letters.count(c) == 1)
        )
    labels = [_label_term(t, w) for t, w in zip(terms, widths)]
    out = _label_term(right, dots)
    if len(set(out)) < len(out) or not {*out} <= set().union(*labels):
        fail(
            ShapeError,
            "einsum",
            f"the output of {equation!r} does not fit",
            operands,
            "each of its letters stands there once and in some operand",
        )
    return labels, out


def _check_term(x: Node, term: str, dots: int) -> None:
    letters = term.replace("...", "")
    fits = dots >= 0 and (dots == 0 or "..." in term)
    if not fits or (letters and not letters.isalpha()):
        rule = "one letter for each axis; '...' stands for any further ones"
        fail(ShapeError, "einsum", f"the term {term!r} does not fit", (x,), rule)


def _label_term(term: str, dots: int) -> Labels:
    """Return letters as their codes, and the axes of the ellipsis as -dots ... -1."""
    before, ellipsis, after = term.partition("...")
    middle = range(-dots, 0) if ellipsis else ()
    return (*map(ord, before), *middle, *map(ord, after))


def _diagonal(x: Node, labels: Labels) -> tuple[Node, Labels]:
    """Take diagonals until each label stands once."""
    for label in dict.fromkeys(labels):
        while labels.count(label) > 1:
            first = labels.index(label)
            second = labels.index(label, first + 1)
            x = diagonal(x, first, second)
            labels = (*labels[:first], *labels[first + 1 : second], *labels[second + 1 :], label)
    return x, labels


def diagonal(x: Node, axis1: int = 0, axis2: int = 1) -> Node:
    """Return the elements with equal index on both axes, as a last axis in place of the two."""
    n, m = x.shape[axis1], x.shape[axis2]
    if n != m:
        fail(ShapeError, "diagonal", f"axes {axis1} and {axis2} differ", (x,), "sizes are equal")
    rest = [k for k in range(len(x.shape)) if k not in (axis1, axis2)]
    flat = b.permute(x, (*rest, axis1, axis2))
    flat = b.reshape(flat, (*flat.shape[:-2], n * n))
    ends = (*flat.shape[:-1], n)
    return b.slice_(flat, (0,) * len(ends), ends, (1,) * len(rest) + (n + 1,))
