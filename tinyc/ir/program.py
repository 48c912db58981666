"""What compilation gives: a program as plain data, and the machine it is made for.

Apart from the plan that leads to it, so that a process which loads programs loads little else.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tinyc.diagnostics import BoundsError, Origin, format_origin

if TYPE_CHECKING:
    import networkx


LANGUAGES = ("c", "opencl", "cuda")


@dataclass(frozen=True)
class Target:
    """What schedules need to know of a machine.

    `lanes` f32 numbers fit a vector; `tile_rows` rows of accumulators fit the registers; `l1`,
    `l2`, `l3` are bytes of cache. A parallel loop has up to `chunks` chunks, each worth
    `serial_work` / 2 weighted operations or more, and each with up to `private_bytes` of sums of
    its own. Kernels are written in `language`, one of LANGUAGES.

    With more than one of `threads` a chunk is a block of up to so many threads, as on a GPU: `warp`
    of them run in step, a block has up to `shared` bytes of memory on the chip, and `arch` names
    the instructions that there are ("sm_90"); with `tf32` products of f32 may be of numbers rounded
    to that, with `atomics` sums by index may be added up in any order. All else then decides what
    is fused, as on a CPU.
    """

    lanes: int
    tile_rows: int
    l1: int
    l2: int
    l3: int
    chunks: int
    serial_work: int
    private_bytes: int
    language: str = "c"
    threads: int = 1
    shared: int = 0
    warp: int = 32
    arch: str = ""
    tf32: bool = False
    atomics: bool = False


CPU = Target(lanes=8, tile_rows=6, l1=32 << 10, l2=1 << 20, l3=32 << 20, chunks=8,
             serial_work=1 << 15, private_bytes=256 << 10)
# Two blocks for each multiprocessor of a large one.
GPU = replace(CPU, l3=1 << 62, chunks=264, language="opencl", threads=256, shared=32 << 10)


@dataclass(frozen=True)
class Site:
    """Where a data-dependent index is checked: shown when it is out of range."""

    op: str
    bound: int
    origin: Origin | None


@dataclass(frozen=True)
class Work:
    """What a kernel computes, in units of a multiply-add of a vector: see `codegen/work.py`.

    In register tiles, in vectors, number by number, and at its end on one thread.
    """

    tile: float = 0.0
    vector: float = 0.0
    scalar: float = 0.0
    finish: float = 0.0


@dataclass(frozen=True)
class KernelInfo:
    """What reports show of a kernel: its members, the lines they come from, what it executes.

    `computes` are the numbers, in the simplified graph, of the nodes whose work it does, and
    `member_nodes` those of each member, `member_origins` the member's own line. `source_members`
    names the member behind each line of the source, where one is. `phase` is that of the member
    with most work: forward, backward or optimizer. `read_bytes` and `written_bytes` are what it
    touches of each storage that it reads and writes, and `work` what it computes.
    """

    name: str
    members: tuple[str, ...]
    origins: tuple[Origin, ...]
    flops: int
    bytes_moved: int
    scratch_bytes: int
    chunks: int
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    loops: str
    computes: tuple[int, ...] = ()
    source: str = ""
    member_nodes: tuple[tuple[int, ...], ...] = ()
    member_origins: tuple[Origin | None, ...] = ()
    source_members: tuple[str, ...] = ()
    phase: str = "forward"
    read_bytes: tuple[int, ...] = ()
    written_bytes: tuple[int, ...] = ()
    work: Work = Work()


@dataclass(frozen=True)
class StorageInfo:
    """What is known of a piece of a program's memory: an argument, or a stretch of the arena.

    `offset` is where it lies in the arena, None for arguments, or in the memory of the result that
    is called `within`; `first` and `last` are the kernels between which it is needed, -1 where none
    touches it. `category` says what it holds: an
    activation, a gradient, an optimizer's temporary, the partial sums of chunks, an input or an
    output. `what` names the members that write it, or describes the argument; `origin` is the line
    of the first.
    """

    name: str
    nbytes: int
    type: str
    offset: int | None
    first: int
    last: int
    category: str
    what: str
    origin: Origin | None
    within: str = ""

    @property
    def in_arena(self) -> bool:
        """True if it takes bytes of the arena."""
        return self.offset is not None and not self.within


# In place of the number of a buffer: the memory that holds intermediate values.
ARENA = -1


@dataclass(frozen=True)
class Launch:
    """A function to start, on devices that start kernels one by one.

    `arguments` are pairs: the number of a buffer, or ARENA, and the first element of it that is
    meant. There are `items` work-items, in blocks of `threads`, each of which has `shared` bytes of
    memory on the chip. `kernel` is the number of the kernel it belongs to, and `ran` how
    many kernels may have changed arguments when it finds a bad index.
    """

    kernel: int
    function: str
    arguments: tuple[tuple[int, int], ...]
    items: int
    ran: int
    threads: int = 1
    shared: int = 0
    scratch: int = 0


@dataclass(frozen=True)
class OutputSpec:
    """A fresh output of a program; None in `Program.outputs` stands for an in-place update."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Program:
    """A compiled graph as plain data: source text, memory plan, launch list, what was decided.

    Buffers are passed as: one pointer for each leaf, then one for each fresh output. The source is
    compiled in `parts`, which the macro TC_PART selects. Without `launches` it has one entry, that
    runs all kernels.
    """

    source: str
    libm: bool
    n_leaves: int
    outputs: tuple[OutputSpec | None, ...]
    arena_size: int
    scratch_size: int
    kernels: tuple[KernelInfo, ...]
    sites: tuple[Site, ...]
    remarks: tuple[dict, ...] = ()
    parts: int = 1
    storages: tuple[StorageInfo, ...] = ()
    launches: tuple[Launch, ...] = ()

    @property
    def n_buffers(self) -> int:
        return self.n_leaves + sum(o is not None for o in self.outputs)

    @property
    def flops(self) -> int:
        """Arithmetic executed by one run, counted on the loop IR."""
        return sum(k.flops for k in self.kernels)

    @property
    def bytes_moved(self) -> int:
        """Bytes that kernels read and write outside their own scratch."""
        return sum(k.bytes_moved for k in self.kernels)

    def footprint(self, threads: int) -> int:
        """Bytes that a run needs: arguments, the arena, and the scratch memory of its threads."""
        arguments = [s.nbytes for s in self.storages if s.offset is None and s.first >= 0]
        return sum(arguments) + self.arena_size + threads * self.scratch_size

    def live_bytes(self) -> list[int]:
        """Bytes of the arena that are in use during each kernel."""
        live = [0] * len(self.kernels)
        for storage in self.storages:
            if storage.in_arena:
                for kernel in range(storage.first, storage.last + 1):
                    live[kernel] += storage.nbytes
        return live

    def bounds_error(self, number: int, value: int, ran: int,
                     addresses: Sequence[int]) -> BoundsError:
        """The error for an index out of range: check `number`, counted from 1, found `value`.

        The first `ran` kernels may have changed the memory at the `addresses` of their leaves.
        """
        site = self.sites[number - 1]
        error = BoundsError(f"{site.op} (at {format_origin(site.origin)}): index {value} is out of "
                            f"range; 0 <= index < {site.bound}")
        written = {name for kernel in self.kernels[:ran] for name in kernel.writes}
        error.overwritten = frozenset(
            addresses[int(name[2:])] for name in written if name.startswith("in"))
        return error

    def kernel_graph(self) -> networkx.DiGraph:
        """Kernels as nodes, an edge where one reads what another writes."""
        import networkx

        graph = networkx.DiGraph()
        writer: dict[str, str] = {}
        for kernel in self.kernels:
            graph.add_node(kernel.name, members=list(kernel.members), flops=kernel.flops)
            for name in kernel.reads:
                if name in writer and writer[name] != kernel.name:
                    graph.add_edge(writer[name], kernel.name, buffer=name)
            writer.update(dict.fromkeys(kernel.writes, kernel.name))
        return graph
