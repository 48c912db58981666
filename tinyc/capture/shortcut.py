"""The quick way into a captured program: C code that checks, calls and wraps (runtime/replay.c).

A program that takes microseconds is called in less than one. The C code takes calls that change
nothing but their results, on tensors in memory, while everything that was true when the shortcut
was made still is; it gives other calls back, and Python does what it always does.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tinyc import compiler, config, state
from tinyc.capture.replay import ORIGIN, Replay, Spec, Value, is_watched
from tinyc.runtime import buffer, recorder
from tinyc.tensor import Tensor
from tinyc.tensor.modes import recording

if TYPE_CHECKING:
    from types import ModuleType

    from tinyc.capture.guards import Guards

Shortcut = Callable[[tuple], Any]

# Every so many runs through Python a shortcut is made, or made anew if it keeps giving calls back.
PATIENCE = 64
# Programs of more work, FLOP and bytes together, run for so long that they release Python's lock.
SHORT = 1 << 18


def shortcut(replay: Replay, specs: list[Spec], records: bool, guards: Guards) -> Shortcut | None:
    """Return a function of a call's arguments: its result, or None if the program may not fit.

    None where there is no such way for this program, or not now.
    """
    results = _results(replay)
    if results is None or is_watched() or recorder.active is not None:
        return None
    module = _module()
    if module is None:
        return None
    native = replay.native
    device = native.device
    position = {number: place for place, number in replay.inputs}
    inputs = [(*spec, position.get(number, -1)) for number, spec in enumerate(specs)]
    plan = module.Plan(
        guards=(*_circumstances(device, records), *_writes(replay), *guards.places()),
        inputs=tuple(inputs),
        results=results,
        pointers=tuple([address or 0 for address in replay.pointers]),
        step=ctypes.cast(native.step, ctypes.c_void_p).value,
        arena=device.arena.value or 0,
        runtime=ctypes.addressof(device.runtime),
        status=ctypes.addressof(device.status),
        pending=state.pending,
        locked=device.lock.locked,
        single=type(replay.result) is Value,
        alive=replay,
    )
    return plan.run


def _results(replay: Replay) -> tuple | None:
    """Return (shape, dtype, device, pointer) of each result; None for what only Python can run."""
    program = replay.program
    if replay.native is None or program is None or not replay.is_pure():
        return None
    if program.flops + program.bytes_moved > SHORT:
        return None
    shown = replay.result
    values = shown if type(shown) is tuple else (shown,)
    if not all(type(value) is Value and not value.copy for value in values):
        return None
    fresh = {number: (*spec, place) for number, (place, *spec) in enumerate(replay.returned_at)}
    return tuple([fresh[value.number] for value in values]) if len(values) == len(fresh) else None


def _circumstances(device: Any, records: bool) -> list[tuple[Any, str, Any]]:
    """Return (holder, name, value) of what besides the user's variables must not have changed."""
    return [
        (state.capturing, "trace", None),
        (recording, "on", records),
        (recording, "cast", recording.cast),
        (vars(config), "_epoch", config.epoch()),
        (vars(config), "_current", config.current()),
        (vars(compiler), "_observer", None),
        (vars(recorder), "active", None),
        (vars(device), "lock", device.lock),
        (vars(device), "arena", device.arena),
    ]


def _writes(replay: Replay) -> list[tuple[Any, str, Any]]:
    """Return what tells that frozen tensors may have been overwritten."""
    if replay.folded is None or not replay.folded.kept:
        return []
    return [(state.clock, "writes", state.clock.writes)]


_ready = False


def _module() -> ModuleType | None:
    """Return the C code, told of our classes."""
    from tinyc.runtime import accelerator  # few processes come here

    global _ready
    module = accelerator.load()
    if module is not None and not _ready:
        module.setup(Tensor, state.Slot, buffer.Buffer, buffer.Lease, buffer.uids, ORIGIN)
        _ready = True
    return module
