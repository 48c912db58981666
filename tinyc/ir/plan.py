"""What scheduling decides: stages, and the loop trees that share them.

Plain data. Schedulers fill it, code generators read it, reports show it.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tinyc.diagnostics import Origin, Remark
from tinyc.ir.choices import Choices
from tinyc.ir.dtype import DType
from tinyc.ir.index import Affine, Var
from tinyc.ir.loop import Apply, Expr, LoopKernel, Read, Storage, rewrite, walk
from tinyc.ir.node import Node
from tinyc.ir.program import OutputSpec, Site

# So many places make an image.
MIN_PLACES = 16


@dataclass(eq=False)
class Buf:
    """Where a materialised value lives: a strided region of a storage, in elements."""

    storage: Storage
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0

    @property
    def dtype(self) -> DType:
        return self.storage.dtype

    def address(self, index: tuple[Affine, ...]) -> Affine:
        """The flat index of an element."""
        flat = Affine.const_of(self.offset)
        for stride, i in zip(self.strides, index):
            if stride:
                flat = flat + i * stride
        return flat


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a dense array, in elements."""
    strides, step = [], 1
    for d in reversed(shape):
        strides.append(step)
        step *= d
    return tuple(reversed(strides))


@dataclass(eq=False)
class Stage:
    """One materialised value: for every index of `axes`, over `red`: buf[axes] = expr.

    kind: "map" stores; "sum" and "max" reduce over `red`; "contract" is the sum of a product of two
    reads; "scatter" adds into `target`, an index that depends on data. `producers` store what it
    reads; `after` must run before it for other reasons. `members` are the nodes that `expr`
    computes. Two loops of a contraction stay outside its tiles: over `hoist`, the images of a
    convolution, and over `blocks` that its rows, and columns, are cut into. A loop over a variable
    in `limits` ends there: at an index of the loops around it, which may read values.
    """

    number: int
    node: Node
    buf: Buf
    axes: tuple[Var, ...]
    red: tuple[Var, ...]
    kind: str
    expr: Expr
    reads: list[Read]
    members: tuple[Node, ...]
    target: tuple[Affine, ...] = ()
    # Not in the repr: the stages behind a stage are a graph, and as text a tree without end.
    producers: list[Stage] = field(default_factory=list, repr=False)
    after: list[Stage] = field(default_factory=list, repr=False)
    hoist: Var | None = None
    blocks: tuple[Var, ...] = ()
    limits: dict[Var, Affine] = field(default_factory=dict)

    @property
    def dtype(self) -> DType:
        return self.buf.dtype

    @property
    def name(self) -> str:
        return f"{self.node.op.name.lower()}{self.number}"

    def operands(self) -> tuple[Read, Read]:
        """The two reads that a contraction multiplies."""
        assert isinstance(self.expr, Apply)
        first, second = self.expr.args
        assert isinstance(first, Read) and isinstance(second, Read)
        return first, second

    def sides(self) -> tuple[list[Var], list[Var], list[Var], list[Var]]:
        """A contraction's variables without the hoisted one: (not in the second operand, only in
        the second, in both, contracted)."""
        first, second = (read_vars(r) for r in self.operands())
        apart = (self.hoist, *self.blocks)
        free = [v for v in self.axes if v not in apart]
        left = [v for v in free if v not in second]
        right = [v for v in free if v in second and v not in first]
        both = [v for v in self.axes if v in first and v in second]
        return left, right, both, [v for v in self.red if v not in apart]

    def outer(self) -> list[Var]:
        """The loops outside a contraction's tiles: the hoisted axis, batch axes, blocks of rows."""
        _, _, batch, _ = self.sides()
        apart = (self.hoist, *self.blocks)
        order = [self.hoist, *(v for v in batch if v not in apart), *self.blocks]
        return [v for v in order if v is not None]

    def runs_on(self) -> bool:
        """True for a contraction that adds to its result on each iteration of an outer loop."""
        return any(v is not None and v in self.red for v in (self.hoist, *self.blocks))

    def images(self) -> tuple[Var, Read] | None:
        """(leading axis, read) of the operand of a contraction that is images.

        Images are windowed, or have their places behind the axis that places are not: channels
        that are contracted, or rows of a result that places are contracted for.
        """
        operands = self.operands()
        for read, other in zip(operands, reversed(operands)):
            first = read.index[0].as_var() if read.index else None
            if first is None or first.extent == 1:
                continue
            batch = first in self.axes and first in read_vars(other)
            if is_windowed(read) or (not batch and self.has_places(read, first in self.red)):
                return first, read
        return None

    def has_places(self, read: Read, summed: bool) -> bool:
        """True if the last axes of an operand, many places, are summed over, or are not, as its
        first one, and there are others between."""
        places = 1
        for index in reversed(read.index):
            if any((v in self.red) != summed for v in index.free_vars()):
                return places >= MIN_PLACES
            places *= math.prod(v.extent for v in index.free_vars())
        return False

    def rewrite(self, leaf: Callable[[Expr], Expr],
                index: Callable[[Affine], Affine] = lambda a: a) -> None:
        """Rebuild what the stage computes and where, as `loop.rewrite` does; updates its reads."""
        def fresh(e: Expr) -> Expr:
            return rewrite(e, leaf, index)

        self.expr = fresh(self.expr)
        self.target = tuple(index(i.map_data(fresh)) for i in self.target)
        self.limits = {v: index(i.map_data(fresh)) for v, i in self.limits.items()}
        roots = [self.expr, *(e for i in (*self.target, *self.limits.values()) for e in i.data())]
        self.reads = list(dict.fromkeys(
            e for root in roots for e in walk(root) if isinstance(e, Read)))

    def points(self) -> int:
        """How often the expression runs."""
        return math.prod(v.extent for v in self.axes + self.red)


def is_windowed(read: Read) -> bool:
    """True if some elements are read at several values of the loop variables: a sliding window."""
    return any(overlaps(i) for i in read.index)


def overlaps(index: Affine) -> bool:
    """True if a dimension's index is a sum in which steps of one variable reach another's."""
    reach = 0
    for atom, coeff in sorted(index.terms, key=lambda term: abs(term[1])):
        if not isinstance(atom, Var):
            return False
        if reach >= abs(coeff):
            return True
        reach += abs(coeff) * (atom.extent - 1)
    return False


def read_vars(read: Read) -> set[Var]:
    """The loop variables that the index of a read depends on."""
    return {v for i in read.index for v in i.free_vars()}


@dataclass(eq=False)
class Leaf:
    """A stage at its place in a loop tree; epilogue stages run on each tile of a contraction."""

    stage: Stage
    epilogue: list[Stage] = field(default_factory=list)


@dataclass(eq=False)
class Loop:
    """A loop that the stages below share; `limit`, of stages that have one, is in shared names."""

    var: Var
    body: list[Tree]
    limit: Affine | None = None


Tree = Loop | Leaf


@dataclass(eq=False)
class Nest:
    """A kernel before code generation: loop trees run in order, then `finish`, once, at the end.

    `private` are reductions over the outermost loop: every chunk sums its own, finish combines.
    """

    number: int
    body: list[Tree] = field(default_factory=list)
    finish: list[Tree] = field(default_factory=list)
    private: list[Stage] = field(default_factory=list)

    def stages(self) -> list[Stage]:
        """The stages of the nest in program order."""
        return [s for t in self.body + self.finish for s in stages_of(t)]


def stages_of(tree: Tree) -> Iterator[Stage]:
    """The stages below a tree in program order."""
    stack: list[Tree] = [tree]
    while stack:
        t = stack.pop()
        if isinstance(t, Leaf):
            yield t.stage
            yield from t.epilogue
        else:
            stack.extend(reversed(t.body))


@dataclass(frozen=True)
class Hint:
    """What is to be one kernel: the nodes that lead from arguments to results, and who asked."""

    members: frozenset[Node]
    origin: Origin


@dataclass(eq=False)
class Group:
    """Stages that are to be one kernel. `effort`: 0 as others are fused, 1 whatever pays, 2 also in
    a kernel that they begin, 3 also with much work on one thread at the kernel's end."""

    stages: list[Stage]
    effort: int = 0
    given_up: bool = False


@dataclass(eq=False)
class Plan:
    """Everything between the graph and the source text of one program."""

    outputs: tuple[Node, ...]
    leaves: tuple[Node, ...]
    stages: list[Stage]
    hints: list[Hint] = field(default_factory=list)
    nests: list[Nest] = field(default_factory=list)
    mapping: dict[Stage, dict[Var, Var]] = field(default_factory=dict)
    slots: list[Storage] = field(default_factory=list)
    storages: list[Storage] = field(default_factory=list)
    remarks: list[Remark] = field(default_factory=list)
    kernels: list[LoopKernel] = field(default_factory=list)
    sites: list[Site] = field(default_factory=list)
    # How kernels are made, where that is not by the rules.
    choices: dict[Nest, Choices] = field(default_factory=dict)
    output_specs: tuple[OutputSpec | None, ...] = ()
    arena_size: int = 0
    # The storage whose place another one has taken over in the arena.
    taken: dict[Storage, Storage] = field(default_factory=dict)
