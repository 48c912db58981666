"""Which part of a training step each node of a graph belongs to, and where memory has its place."""

from __future__ import annotations

from collections.abc import Sequence

from tinyc.ir.node import BACKWARD, FORWARD, OPTIMIZER, Node, toposort
from tinyc.ir.ops import Op

PHASES = (FORWARD, BACKWARD, OPTIMIZER)


def phases(outputs: Sequence[Node]) -> dict[Node, str]:
    """Return the phase of each node of a graph.

    Autograd and optimizers mark what they build. What is computed from a gradient without a mark,
    such as its norm, is BACKWARD too. Constants, and memory, which many parts of a graph may share,
    belong to the first phase that reads them, whoever made them first.
    """
    order = toposort(outputs)
    found: dict[Node, str] = {}
    for n in order:
        from_gradient = any(found[s] == BACKWARD for s in n.src
                            if s.op is not Op.ASSIGN and s.device is not None)
        found[n] = BACKWARD if n.phase == FORWARD and from_gradient else n.phase
    readers: dict[Node, str] = {}
    for n in reversed(order):
        if n in readers and (n.op is Op.BUFFER or n.device is None):
            found[n] = readers[n]
        for s in n.src:
            readers[s] = min(found[n], readers.get(s, OPTIMIZER), key=PHASES.index)
    return found


def leaf_categories(outputs: Sequence[Node]) -> dict[Node, str]:
    """Return what the memory that a graph reads is, as far as the graph tells.

    An optimizer's step overwrites parameters, which the forward pass reads, and its own state,
    which nothing else does. Memory that is overwritten elsewhere is state of the model. The rest is
    input: a graph does not tell data from parameters that are frozen.
    """
    phase = phases(outputs)
    written: dict[Node, str] = {}
    for n, where in phase.items():
        if n.op is Op.ASSIGN:
            target = n
            while target.op is Op.ASSIGN:
                target = target.src[0]
            written[target] = where
    found: dict[Node, str] = {}
    for n, where in phase.items():
        if n.op is Op.BUFFER:
            if n not in written:
                found[n] = "input"
            elif written[n] != OPTIMIZER:
                found[n] = "state"
            else:
                found[n] = "optimizer" if where == OPTIMIZER else "parameter"
    return found
