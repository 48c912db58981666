"""Programs on disk, found by their graphs, so that a warm process runs neither passes nor compiler.

A program is kept as JSON under a key of all that decides it: the graph, the target, the switches
that change code, and the compiler's own sources. Its library is found by the source text, as it
is after the passes. Whatever looks wrong is a miss and is made again.
"""
from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tinyc import config
from tinyc.diagnostics import Origin, format_origin, warn_once
from tinyc.ir.node import Node, canonical_key, toposort
from tinyc.ir.ops import Op
from tinyc.ir.program import (
    KernelInfo,
    Launch,
    OutputSpec,
    Program,
    Site,
    StorageInfo,
    Target,
    Work,
)
from tinyc.runtime.cache import disk_cache, make_key
from tinyc.runtime.sources import source_digest
from tinyc.version import __version__

FILE = "program.json"
_PLACE = re.compile(r"[^\s:]+:\d+$", re.MULTILINE)


def program_key(outputs: Sequence[Node], target: Target, device: str) -> str | None:
    """Return the key of a graph's program, None where it must be compiled to be seen or trusted."""
    settings = config.current()
    sources = source_digest()
    if sources is None or settings.check or settings.dump or settings.debug.level >= 5:
        return None
    switches = f"fuse={settings.fuse} bounds={settings.bounds} lines={settings.lines} "
    switches += f"tune={settings.tune}"
    if settings.lines:
        switches += repr([n.origin for n in toposort(outputs)])
    graph = graph_text(outputs)
    return make_key("program", __version__, sources, device, repr(target), switches, graph)


def graph_text(outputs: Sequence[Node]) -> str:
    """Return the canonical key as text, the same in every process."""
    key, _ = canonical_key(outputs)
    return repr([item.value if isinstance(item, Op) else item for item in key])  # type: ignore


def load(key: str, outputs: Sequence[Node], leaves: Sequence[Node]) -> Program | None:
    """Return the program stored under a key, its lines those of this graph; None if there is none.

    A file that is damaged, or is the program of another graph, is removed with one warning.
    """
    cache = disk_cache()
    entry = cache.get(key)
    if entry is None:
        return None
    try:
        data = json.loads((entry / FILE).read_bytes())
        program = program_from(relocated(data["program"], moved_places(data, outputs)))
        if fits(program, outputs, leaves):
            return program
        problem = "the program of another graph"
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        problem = f"{type(error).__name__}: {error}"
    warn_once("cache entry", f"rebuilding a damaged entry of the cache: {entry}: {problem}")
    cache.discard(key)
    return None


def store(key: str, program: Program, outputs: Sequence[Node]) -> None:
    """Keep a program under a key; a disk that refuses is no error."""
    places: dict[Origin, int] = {}
    numbers = [places.setdefault(n.origin, len(places)) for n in toposort(outputs)]
    data = {"program": program, "places": list(places), "nodes": numbers}
    with contextlib.suppress(OSError):
        disk_cache().put(key, {FILE: json.dumps(data, default=vars).encode()})


def fits(program: Program, outputs: Sequence[Node], leaves: Sequence[Node]) -> bool:
    """Tell whether a program takes and gives the buffers that a graph does."""
    specs = [None if n.op is Op.ASSIGN else OutputSpec(n.shape, n.dtype.name) for n in outputs]
    return program.n_leaves == len(leaves) and program.outputs == tuple(specs)


def program_from(data: Mapping[str, Any]) -> Program:
    """Return the program that was written as JSON; raises what wrong data raises."""
    values = frozen(data)
    values["outputs"] = tuple(o and OutputSpec(**o) for o in values["outputs"])
    values["kernels"] = tuple(
        KernelInfo(**{**k, "work": Work(**k["work"])}) for k in values["kernels"])
    values["storages"] = tuple(StorageInfo(**s) for s in values["storages"])
    values["sites"] = tuple(Site(**s) for s in values["sites"])
    values["launches"] = tuple(Launch(**launch) for launch in values["launches"])
    return Program(**values)


def frozen(value: Any) -> Any:
    """Plain data with tuples for lists."""
    if isinstance(value, list):
        return tuple([frozen(item) for item in value])
    if isinstance(value, dict):
        return {name: frozen(item) for name, item in value.items()}
    return value


# The user's lines ------------------------------------------------------------------------------


def moved_places(data: Mapping[str, Any], outputs: Sequence[Node]) -> dict[Origin, Origin]:
    """Return which of the user's lines are now others: graphs are equal wherever they are built."""
    places = [tuple(place) for place in data["places"]]
    now: dict[Any, Origin] = {}
    pairs = list(zip(toposort(outputs), data["nodes"], strict=True))
    # From the outputs on: a constant may be one that another line has built before.
    for n, number in reversed(pairs):
        now.setdefault(places[number], n.origin)
    return {old: new for old, new in now.items() if old != new}


def relocated(value: Any, places: Mapping[Origin, Origin]) -> Any:
    """Plain data with the user's lines replaced, also at the ends of the lines of texts."""
    if not places:
        return value
    names = {format_origin(old): format_origin(new) for old, new in places.items()}

    def moved(value: Any) -> Any:
        if isinstance(value, str):
            return _PLACE.sub(lambda match: names.get(match[0], match[0]), value)
        if isinstance(value, dict):
            return {name: moved(item) for name, item in value.items()}
        if isinstance(value, list):
            if len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int):
                return list(places.get((value[0], value[1]), value))
            return [moved(item) for item in value]
        return value

    return moved(value)
