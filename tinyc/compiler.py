"""From a graph to something that runs: the pass list, the program cache, execution."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tinyc.ir.evaluate import evaluate
from tinyc.ir.node import Node, canonical_key
from tinyc.ir.ops import Op
from tinyc.runtime.buffer import Buffer


class NumpyExecutable:
    """Runs a graph through the numpy evaluator; leaves are bound by position."""

    def __init__(self, outputs: tuple[Node, ...], leaves: tuple[Node, ...]):
        self.outputs = outputs
        self.uids = tuple(leaf.attrs[0] for leaf in leaves)

    def run(self, buffers: Sequence[Buffer]) -> list[Buffer | None]:
        """Compute every output; an ASSIGN stores in place and gives None."""
        memory = {uid: b.array for uid, b in zip(self.uids, buffers)}
        values = evaluate(self.outputs, memory)
        by_uid = dict(zip(self.uids, buffers))
        results: list[Buffer | None] = []
        for out, value in zip(self.outputs, values):
            if out.op is Op.ASSIGN:
                by_uid[assigned_uid(out)].array[...] = value
                results.append(None)
            else:
                results.append(Buffer.from_numpy(np.asarray(value), "numpy", copy=True))
        return results


def assigned_uid(assign: Node) -> int:
    """The uid of the buffer that a chain of ASSIGN nodes stores to."""
    target = assign
    while target.op is Op.ASSIGN:
        target = target.src[0]
    return target.attrs[0]


_programs: dict = {}


def compile_graph(outputs: Sequence[Node]):
    """The executable of a graph; graphs of equal structure share one."""
    key, leaves = canonical_key(outputs)
    found = _programs.get(key)
    if found is None:
        found = _programs[key] = NumpyExecutable(tuple(outputs), tuple(leaves))
    return found


def execute(outputs: Sequence[Node], memory: Mapping[int, Buffer]) -> list[Buffer | None]:
    """Compute `outputs`; leaves are looked up in `memory` by the uid of their buffer."""
    _, leaves = canonical_key(outputs)
    return compile_graph(outputs).run([memory[leaf.attrs[0]] for leaf in leaves])
