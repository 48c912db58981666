"""Calls of short programs by C: the same as by Python in all but time, and what it leaves to it."""

from __future__ import annotations

import gc
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import tinyc
from tinyc import Tensor, compiler, config, jit
from tinyc.capture import jitted, shortcut
from tinyc.diagnostics import BoundsError, TracingError
from tinyc.runtime import accelerator, recorder
from tinyc.runtime.buffer import ALLOCATOR

needs_c = pytest.mark.skipif(
    bool(accelerator.problem()), reason=f"no replay.c: {accelerator.problem()}"
)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(jitted, "PATIENCE", 1)
    with config.configure(device="cpu"):
        yield


def vector(*numbers: float) -> Tensor:
    return Tensor(np.array(numbers, np.float32))


def warm(function: Callable[..., Any], *args: Any) -> jitted.Jitted:
    """Return the captured function after two calls, of which the second made the shortcut."""
    captured = jit(function)
    captured(*args)
    captured(*args)
    return captured


def took(captured: jitted.Jitted, *args: Any) -> Any:
    """Return what the C code says of a call."""
    assert captured._shortcut is not None
    return captured._shortcut(args)


def add(x: Tensor, y: Tensor) -> Tensor:
    return x + y


# In both: with the C code and without it


@pytest.fixture(params=["c", "python"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "python":
        monkeypatch.setattr(accelerator, "load", lambda: None)
    elif accelerator.problem():
        pytest.skip(accelerator.problem())
    return request.param


def test_which_way_is_taken(either: str) -> None:
    f = warm(add, vector(1), vector(2))
    assert (f._shortcut is not None) == (either == "c")


def test_chains_of_calls(either: str) -> None:
    f, y = jit(add), vector(0, 0)
    step = vector(1, 2)
    for _ in range(300):
        y = f(y, step)
    assert y.tolist() == [300, 600]
    assert f.captures == 1


def test_results_that_are_kept_have_memory_of_their_own(either: str) -> None:
    f = jit(lambda x: (x * 2, x + 1))
    results = [f(vector(number)) for number in range(20)]
    arrays = [f(vector(number))[0].__array__(copy=False) for number in range(20)]
    assert [(a.item(), b.item()) for a, b in results] == [(2 * n, n + 1) for n in range(20)]
    assert [array[0] for array in arrays] == [2 * n for n in range(20)]
    uids = {tensor.uid for pair in results for tensor in pair}
    assert len(uids) == 40


def test_a_graph_that_reads_a_dead_result_keeps_its_memory(either: str) -> None:
    f = jit(add)
    waiting = [f(vector(number), vector(1)) * 10 for number in range(10)]
    for _ in range(10):
        f(vector(100), vector(100))
    assert [w.item() for w in waiting] == [10 * (number + 1) for number in range(10)]


def test_results_can_be_written_to_and_differentiated(either: str) -> None:
    f = jit(add)
    for _ in range(5):
        x = f(vector(1), vector(2))
        x += 1
        assert x.tolist() == [4]
        y = f(vector(1), vector(2)).requires_grad_()
        (y * y).sum().backward()
        assert y.grad.tolist() == [6]


def test_an_index_out_of_range_is_an_error_and_the_next_call_is_none(either: str) -> None:
    f = jit(lambda table, index: table[index])
    table = vector(5, 6, 7)
    for _ in range(3):
        assert f(table, Tensor(np.array([2, 0]))).tolist() == [7, 5]
        with pytest.raises(BoundsError, match="index 3 is out of range"):
            f(table, Tensor(np.array([0, 3])))


def test_pending_writes_are_carried_out_first(either: str) -> None:
    f, x = jit(add), vector(1)
    for number in range(5):
        x += 1
        assert f(x, vector(10)).tolist() == [12 + number]


def test_state_is_read_as_it_is_now(either: str) -> None:
    weight = vector(2)
    f = jit(lambda x: x * weight)
    for number in range(5):
        weight.load([number])
        assert f(vector(3)).tolist() == [3 * number]


def test_other_arguments_than_before(either: str) -> None:
    f = warm(add, vector(1), vector(2))
    assert f(vector(1, 2), vector(3, 4)).tolist() == [4, 6]
    assert f(vector(1), vector(2)).tolist() == [3]
    integers = f(Tensor(np.array([1])), Tensor(np.array([2])))
    assert integers.dtype.name == "i64" and integers.tolist() == [3]
    assert f(vector(1) * 2, vector(0, 7)[1:]).tolist() == [9]
    assert f(np.array([1], np.float32), vector(2)).tolist() == [3]
    assert f(vector(1), y=vector(2)).tolist() == [3]
    assert f(vector(1), 5).tolist() == [6]
    with pytest.raises(TypeError):
        f(vector(1))


def test_variables_are_guarded(either: str) -> None:
    factor, table = 2, {"k": 1}

    def scaled(x: Tensor) -> Tensor:
        return x * factor * table["k"] * OUTSIDE

    f = jit(scaled)
    global OUTSIDE
    for factor in (2, 3, 1000, 1001):
        for OUTSIDE in (1.0, 2.5):
            for _ in range(3):
                assert f(vector(1)).tolist() == [factor * OUTSIDE]


OUTSIDE = 1.0


def test_switches_and_recording_are_guarded(either: str) -> None:
    f = warm(add, vector(1), vector(2))
    with config.configure(fuse=False):
        f(vector(1), vector(2))
    assert f.captures == 2
    with tinyc.no_grad():
        f(vector(1), vector(2))
    assert f.captures >= 3
    captures = f.captures
    f(vector(1).requires_grad_(), vector(2))
    assert f.captures > captures


def test_a_call_within_a_capture_is_part_of_it(either: str) -> None:
    f = warm(add, vector(1), vector(2))
    outer = jit(lambda x: f(x, x) * 3)
    for _ in range(4):
        assert outer(vector(2)).tolist() == [12]
    with pytest.raises(TracingError):
        jit(lambda x: f(x, x).item())(vector(1))


def test_watched_runs_are_seen(either: str) -> None:
    f = warm(add, vector(1), vector(2))
    with compiler.observe() as runs:
        f(vector(1), vector(2))
    seen = recorder.Recorder(memory=False)
    with recorder.recording(seen):
        f(vector(1), vector(2))
    assert len(runs) == len(seen.runs) == 1


def test_memory_that_grows_for_another_program(either: str) -> None:
    f = warm(lambda x: (x @ x).sum(0) @ x, Tensor(np.eye(8, dtype=np.float32)))
    big = Tensor(np.ones((700, 700), np.float32))
    jit(lambda x: (x @ x).tanh() @ (x + 1) @ x)(big)
    for _ in range(3):
        assert f(Tensor(2 * np.eye(8, dtype=np.float32))).tolist() == [8.0] * 8


def test_threads(either: str) -> None:
    f, failures = jit(add), []

    def work(start: int) -> None:
        y = vector(start)
        for _ in range(500):
            y = f(y, one)
        if y.tolist() != [start + 500]:
            failures.append(y.tolist())

    one = vector(1)
    f(one, one)
    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert not failures


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_calls_on(either: str) -> None:
    f = warm(add, vector(1), vector(2))
    child = os.fork()
    if child == 0:
        right = [f(vector(1), vector(n)).tolist() == [1 + n] for n in range(5)]
        os._exit(0 if all(right) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert f(vector(1), vector(2)).tolist() == [3]


# The C code alone


@needs_c
def test_a_result_is_what_python_makes() -> None:
    x, y = vector(1), vector(2)
    f = jit(add)
    first = f(x, y)
    f(x, y)
    found = took(f, x, y)
    assert type(found) is Tensor
    assert vars(found).keys() == vars(first).keys() == {"_slot"}
    assert vars(found._slot).keys() == vars(first._slot).keys()
    one, other = found._slot.buffer, first._slot.buffer
    for name in ("shape", "dtype", "device", "nbytes", "category", "origin"):
        assert getattr(one, name) == getattr(other, name)
    assert (found._slot.origin, found._slot.version) == (first._slot.origin, first._slot.version)
    assert one.uid != other.uid and found.tolist() == [3]


@needs_c
def test_what_it_gives_back_to_python() -> None:
    x, y = vector(1), vector(2)
    f = warm(add, x, y)
    assert took(f, x, y).tolist() == [3]
    expression, view = x * 2, vector(0, 7)[1:]
    for other in (vector(1, 2), Tensor(np.array([1])), expression, view, 3, None, "x", x.node):
        assert took(f, x, other) is None
    for count in (0, 1, 3):
        assert took(f, *[x] * count) is None
    assert f._shortcut is not None and f._shortcut([x, y]) is None
    x += 1
    assert took(f, x, y) is None
    x.realize()
    assert took(f, x, y).tolist() == [4]
    with compiler.get_device("cpu").lock:
        assert took(f, x, y) is None


@needs_c
def test_only_short_programs_without_effects_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    state = vector(0)

    def count(x: Tensor) -> Tensor:
        state.assign(state + x)
        return state * 1

    assert warm(count, vector(1))._shortcut is None
    assert warm(lambda x: [x + 1], vector(1))._shortcut is None
    assert warm(lambda x: (x, x + 1), vector(1))._shortcut is None
    assert warm(lambda x: x + 1, Tensor(np.ones(1 << 16, np.float32)))._shortcut is None
    assert warm(lambda x, n: x + n, vector(1), 2)._shortcut is None
    with config.configure(device="numpy"):
        assert warm(add, vector(1), vector(2))._shortcut is None
    assert warm(lambda x: x + 1, vector(1))._shortcut is not None
    monkeypatch.setattr(shortcut, "SHORT", 1)
    assert warm(lambda x: x + 1, vector(1))._shortcut is None


@needs_c
def test_nothing_is_made_before_many_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jitted, "PATIENCE", shortcut.PATIENCE)
    monkeypatch.setattr(accelerator, "load", lambda: pytest.fail("too early"))
    f = jit(add)
    for _ in range(shortcut.PATIENCE - 1):
        f(vector(1), vector(2))
    monkeypatch.undo()
    for _ in range(2 * shortcut.PATIENCE):
        f(vector(1), vector(2))
    assert f._shortcut is not None


@needs_c
def test_a_shortcut_that_is_out_of_date_is_made_anew() -> None:
    f = warm(add, vector(1), vector(2))
    with tinyc.configure(debug=1):
        pass
    assert took(f, vector(1), vector(2)) is None
    assert f(vector(1), vector(2)).tolist() == [3] and f.captures == 1
    assert took(f, vector(1), vector(2)).tolist() == [3]


@needs_c
def test_two_buffers_take_turns_and_looking_at_one_takes_it_away() -> None:
    x, y = vector(1), vector(2)
    f = warm(add, x, y)
    addresses = set()
    z = x
    for _ in range(10):
        z = f(z, y)
        addresses.add(z._slot.buffer.ptr)
    assert len(addresses) == 2
    array = z.__array__(copy=False)
    del z
    before = array.copy()
    for _ in range(10):
        f(x, y)
    np.testing.assert_array_equal(array, before)


@needs_c
def test_many_calls_leave_nothing_behind() -> None:
    x, y, bad = vector(1), vector(2), vector(1, 2)
    f = warm(add, x, y)
    g = warm(lambda x: (x + 1, x * 2), x)
    g(x)

    def work() -> None:
        for _ in range(2000):
            took(f, x, y)
            took(g, x)
            took(f, x, bad)
            took(f, x, 3)

    counted = (x, y, bad, x._slot, x._slot.buffer, x._slot.buffer.shape, Tensor, None)

    def counts() -> list[int]:
        gc.collect()
        live = [sys.getrefcount(thing) for thing in counted[:-2]]
        return [*live, ALLOCATOR.live_bytes, len(gc.get_objects())]

    work()
    before = counts()
    work()
    after = counts()
    assert after[:-1] == before[:-1] and abs(after[-1] - before[-1]) < 100
    gc.collect()
    types = sys.getrefcount(Tensor)
    work()
    gc.collect()
    assert abs(sys.getrefcount(Tensor) - types) < 100


def in_a_cycle() -> jitted.Jitted:
    """Return a function whose closure holds it, with a shortcut."""
    held: list[Any] = [vector(1)]

    def function(x: Tensor) -> Tensor:
        return held[1](x) if x.ndim == 9 else x + held[0]

    f = jit(function)
    held.append(f)
    for _ in range(3):
        f(vector(1))
    return f


@needs_c
def test_a_function_that_is_given_up_gives_up_its_shortcut() -> None:
    f = in_a_cycle()
    assert f._shortcut is not None
    gone, memory = weakref.ref(f), weakref.ref(f._variants[-1].replay)
    del f
    gc.collect()
    assert gone() is None and memory() is None


@needs_c
def test_an_error_while_memory_is_made_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = vector(1), vector(2)
    f = warm(add, x, y)

    def refuse(*args: Any) -> None:
        raise MemoryError("none left")

    with monkeypatch.context() as patch:
        patch.setattr(ALLOCATOR, "lease", refuse)
        with pytest.raises(MemoryError, match="none left"):
            f(x, y)
    assert took(f, x, y).tolist() == [3]


@needs_c
def test_a_finalizer_that_calls_the_function_meanwhile() -> None:
    x, y = vector(1), vector(2)
    f = warm(add, x, y)
    seen = []

    class Nosy:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            seen.append(f(x, y).item())

    before = gc.get_threshold()
    gc.set_threshold(5)
    try:
        for number in range(300):
            Nosy()
            assert f(x, vector(number)).item() == number + 1
    finally:
        gc.set_threshold(*before)
    gc.collect()
    assert seen and set(seen) == {3.0}
