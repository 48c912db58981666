"""Captured functions: when they are captured, what they remember, and what they give back."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import tinyc
from tinyc import Tensor, compiler, config, jit, nn, optim, state
from tinyc.capture import jitted
from tinyc.diagnostics import TracingError, collect


@pytest.fixture(params=["numpy", "cpu", "interpret", "cpu, replay.c"], autouse=True)
def _device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    device, _, replayed = request.param.partition(", ")
    if replayed:  # from the second call on, where the C code takes it
        monkeypatch.setattr(jitted, "PATIENCE", 1)
    with config.configure(device=device):
        yield
    assert state.capturing.trace is None


numpy_only = pytest.mark.parametrize("_device", ["numpy"], indirect=True)


def vector(*numbers: float) -> Tensor:
    return Tensor(np.array(numbers, np.float32))


def reasons(remarks: list) -> list[str]:
    return [remark.message for remark in remarks if remark.pass_name == "jit"]


# What a program depends on


def test_one_capture_and_one_run_for_each_call() -> None:
    calls = []

    @jit
    def f(x: Tensor) -> Tensor:
        calls.append(x)
        return x * 2 + 1

    with compiler.observe() as runs:
        for number in range(5):
            assert f(vector(number, 1)).tolist() == [2 * number + 1, 3]
    assert len(calls) == f.captures == 1
    assert len(runs) == 5


def test_a_changed_length_captures_again() -> None:
    f = jit(lambda x: (x * 2, x.sum()))
    with collect() as remarks:
        for n in (4, 6, 2, 1000, 4):
            x = np.arange(n, dtype=np.float32)
            doubled, total = f(Tensor(x))
            np.testing.assert_array_equal(doubled.numpy(), x * 2)
            assert total.item() == x.sum()
    assert f.captures == 4
    assert "the shape of tensor 0 changed from (4,) to (6,)" in reasons(remarks)[0]


@numpy_only
def test_dtypes_static_values_and_requires_grad_capture_again() -> None:
    f = jit(lambda x, scale=1, how="a": x * scale if how == "a" else x + scale)
    with collect() as remarks:
        assert f(vector(1)).dtype is tinyc.f32
        assert f(Tensor([1])).dtype is tinyc.i64
        assert f(vector(1), 2).tolist() == [2]
        assert f(vector(1), 3).tolist() == [3]
        assert f(vector(1), 3.0).tolist() == [3]
        assert f(vector(1), scale=2, how="b").tolist() == [3]
        assert f(vector(1), 2).tolist() == [2]
        assert f(Tensor([1.0], requires_grad=True), 2).tolist() == [2]
    found = reasons(remarks)
    assert "the dtype of tensor 0 changed from f32 to i64" in found[0]
    assert any("argument 1 changed from 2 to 3" in reason for reason in found)
    assert any("from int to float" in reason for reason in found)
    assert f.captures == 7


SCALE = 2.0


def scaled(x: Tensor) -> Tensor:
    return x * SCALE


@numpy_only
def test_variables_that_the_function_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    factor, weights = 3, vector(1, 2)

    @jit
    def f(x: Tensor) -> Tensor:
        return scaled(x) * factor + weights

    assert f(vector(1, 1)).tolist() == [7, 8]
    with collect() as remarks:
        monkeypatch.setitem(globals(), "SCALE", 10.0)
        assert f(vector(1, 1)).tolist() == [31, 32]
        factor = 1
        assert f(vector(1, 1)).tolist() == [11, 12]
        weights = vector(0, 0)
        assert f(vector(1, 1)).tolist() == [10, 10]
        f(vector(5, 5))
    assert reasons(remarks) == [
        "captured again: the variable SCALE changed from 2.0 to 10.0",
        "captured again: the variable factor changed from 3 to 1",
        "captured again: the variable weights refers to another object",
    ]


@numpy_only
def test_modules_modes_and_switches() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    f = jit(lambda x: model(x))
    x = vector(1, 2).reshape(1, 2)
    f(x)
    f(x)
    assert f.captures == 1
    model.eval()
    np.testing.assert_allclose(f(x).numpy(), model(x).numpy(), rtol=1e-6)
    assert f.captures == 2
    model[0].scale = 3
    f(x)
    assert f.captures == 3
    with config.configure(bounds=False):
        f(x)
    assert f.captures == 4


@numpy_only
def test_branches_on_plain_values_are_not_frozen() -> None:
    @jit
    def f(x: Tensor, flip: bool) -> Tensor:
        return -x if flip else x * 1

    assert [f(vector(1), flip).item() for flip in (False, True, True, False)] == [1, -1, -1, 1]
    assert f.captures == 2


@numpy_only
def test_methods_are_captured_for_each_instance() -> None:
    class Thing:
        def __init__(self, factor: float) -> None:
            self.factor = factor
            self.weight = vector(factor, factor)

        @jit
        def run(self, x: Tensor) -> Tensor:
            return x * self.weight * self.factor

    a, b = Thing(1), Thing(2)
    x = vector(1, 1)
    assert [t.run(x).tolist() for t in (a, b, a, b)] == [[1, 1], [4, 4], [1, 1], [4, 4]]
    assert a.run.captures == b.run.captures == 1
    a.factor = 5
    assert a.run(x).tolist() == [5, 5]


def test_keywords_and_structures() -> None:
    Pair = namedtuple("Pair", "left right")
    f = jit(lambda batch, *, extra: {"sum": batch["a"] + batch["b"][0], "pair": Pair(extra, 7)})
    for number in (1.0, 2.0):
        found = f({"a": vector(number), "b": [vector(2)]}, extra=vector(3))
        assert found["sum"].item() == number + 2
        assert found["pair"].left.item() == 3
        assert found["pair"].right == 7
    assert f.captures == 1
    assert f(extra=vector(4), batch={"a": vector(1), "b": [vector(2)]})["sum"].item() == 3


@numpy_only
def test_numpy_arrays_are_tensors() -> None:
    f = jit(lambda x: x + 1)
    assert f(np.float32([1, 2])).tolist() == [2, 3]
    assert f(np.float32([5, 6])).tolist() == [6, 7]
    assert f.captures == 1


# What comes back


def test_results_are_never_overwritten_by_a_later_call() -> None:
    f = jit(lambda x: x * 2)
    results = [f(vector(number)) for number in range(5)]
    assert [r.item() for r in results] == [0, 2, 4, 6, 8]


def test_one_value_returned_twice_is_two_tensors() -> None:
    def twice(x: Tensor) -> Any:
        y = x * 2
        return y, x * 2, x, x.reshape(2, 1)

    x = vector(1, 2)
    a, b, same, view = jit(twice)(x)
    a.zero_()
    assert b.tolist() == [2, 4]
    assert same is x
    assert view.tolist() == [[1], [2]]


def test_constants_and_nothing() -> None:
    f = jit(lambda: (tinyc.zeros(2), tinyc.arange(3), 5, None))
    for _ in range(2):
        zeros, numbers, five, nothing = f()
        assert (zeros.tolist(), numbers.tolist(), five, nothing) == ([0, 0], [0, 1, 2], 5, None)
    g = jit(lambda x: None)
    assert g(vector(1)) is None
    assert g(vector(1)) is None


def test_lazy_arguments_and_views() -> None:
    f = jit(lambda x: x * 2)
    base = Tensor(np.arange(8, dtype=np.float32))
    assert f(base[2:4] + 1).tolist() == [6, 8]
    assert f(base[4:6]).tolist() == [8, 10]
    assert f(base.reshape(4, 2).T[0, :2]).tolist() == [0, 4]
    assert f.captures == 1


def test_jit_within_jit() -> None:
    inner = jit(lambda x: x + 1)
    outer = jit(lambda x: inner(x) * inner(x * 2))
    with compiler.observe() as runs:
        assert outer(vector(1, 2)).tolist() == [6, 15]
        assert outer(vector(2, 3)).tolist() == [15, 28]
    assert len(runs) == 2
    assert inner(vector(1)).tolist() == [2]


# State


def test_state_is_overwritten_in_place() -> None:
    total, count = tinyc.zeros(2), Tensor(0)

    @jit
    def add(x: Tensor) -> Tensor:
        total.add_(x)
        count.assign(count + 1)
        return total * 10

    memory = total.uid
    for number in range(1, 4):
        assert add(vector(1, 2)).tolist() == [10 * number, 20 * number]
    assert (total.tolist(), count.item()) == ([3, 6], 3)
    total.zero_()
    assert add(vector(1, 1)).tolist() == [10, 10]
    total.load(np.array([5, 5]))
    assert add(vector(1, 1)).tolist() == [60, 60]
    assert total.uid == memory
    assert add.captures == 1


def test_expressions_on_state_that_a_program_overwrites() -> None:
    w = vector(1, 2)

    @jit
    def step() -> None:
        w.mul_(2)

    step()
    before = w + 100
    step()
    after = w + 100
    step()
    assert before.tolist() == [102, 104]
    assert after.tolist() == [104, 108]
    assert w.tolist() == [8, 16]


def test_what_is_made_inside_begins_anew_at_every_call() -> None:
    @jit
    def f(x: Tensor) -> Tensor:
        sums = Tensor(np.zeros(2, np.float32))
        for _ in range(3):
            sums += x
        sums[0] = 9
        return sums

    assert [f(vector(1, 2)).tolist() for _ in range(3)] == [[9, 6]] * 3


def test_arguments_written_in_place() -> None:
    @jit
    def bump(x: Tensor, y: Tensor) -> Tensor:
        x += y
        return x

    x, y = vector(1, 2), vector(10, 10)
    lazy = x * 2
    assert bump(x, y) is x
    assert x.tolist() == [11, 12]
    assert bump(x, y).tolist() == [21, 22]
    assert lazy.tolist() == [2, 4]
    other = vector(0, 0)
    bump(other, y)
    assert (other.tolist(), x.tolist()) == ([10, 10], [21, 22])


def test_aliasing_of_arguments_and_state() -> None:
    w = vector(1, 2)
    reads = jit(lambda x: x + w)
    assert reads(w).tolist() == [2, 4]
    assert reads(vector(10, 10)).tolist() == [11, 12]

    @jit
    def writes(x: Tensor) -> None:
        w.add_(x)

    writes(vector(1, 1))
    with pytest.raises(TracingError, match=r"argument 0, f32.2.*is also state"):
        writes(w)
    with pytest.raises(TracingError, match="is also state"):
        writes(w[:])
    writes(w.clone())
    assert w.tolist() == [4, 6]

    @jit
    def both(x: Tensor, y: Tensor) -> Tensor:
        x.add_(1)
        return x * y

    assert both(vector(1), vector(5)).tolist() == [10]
    v = vector(1)
    with pytest.raises(TracingError, match="under another name"):
        both(v, v)


def test_gradients_are_rebound_at_every_call() -> None:
    w = Tensor([1.0, 2.0], requires_grad=True)

    @jit
    def f(x: Tensor) -> Tensor:
        w.grad = None
        loss = (w * x).sum()
        loss.backward()
        return loss

    grads = []
    for number in (1.0, 2.0, 3.0):
        f(vector(number, 0))
        grads.append(w.grad)
    assert [g.tolist() for g in grads] == [[1, 0], [2, 0], [3, 0]]
    f(vector(4, 0))
    f(vector(5, 0))
    assert w.grad.tolist() == [5, 0]
    assert f.captures == 1


def test_gradients_that_accumulate() -> None:
    w = Tensor([1.0, 2.0], requires_grad=True)

    @jit
    def f(x: Tensor) -> None:
        (w * x).sum().backward()

    for number in (1, 2, 3):
        f(vector(1, 10))
        if number == 2:
            assert w.grad.tolist() == [2, 20]
    assert w.grad.tolist() == [3, 30]
    assert f.captures == 2
    w.grad = None
    f(vector(1, 10))
    assert w.grad.tolist() == [1, 10]
    (w * 2).sum().backward()
    f(vector(1, 10))
    assert w.grad.tolist() == [4, 22]
    assert f.captures == 2


def test_gradients_made_outside_are_used_inside() -> None:
    w = Tensor([1.0, 2.0], requires_grad=True)
    optimizer = optim.SGD([w], lr=1.0)
    step = jit(lambda: optimizer.step())
    for number in range(1, 4):
        optimizer.zero_grad()
        (w * Tensor([1.0, 0.5])).sum().backward()
        step()
        assert w.tolist() == [1 - number, 2 - number / 2]
    assert step.captures == 1


def test_gradients_of_arguments() -> None:
    @jit
    def f(x: Tensor) -> Tensor:
        x.grad = None
        loss = (x * x).sum()
        loss.backward()
        return loss

    for number in (1.0, 2.0):
        x = Tensor([number], requires_grad=True)
        assert f(x).item() == number**2
        assert x.grad.item() == 2 * number


def test_functional_derivatives_inside() -> None:
    f = jit(lambda x: tinyc.grad(lambda t: (t**3).sum())(x))
    assert f(vector(1, 2)).tolist() == [3, 12]
    assert f(vector(3, 4)).tolist() == [27, 48]


def test_a_training_step_is_one_program_and_its_rate_is_state() -> None:
    tinyc.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    optimizer = optim.Adam(model.parameters(), lr=0.1)

    @jit
    def step(x: Tensor, y: Tensor) -> Tensor:
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    rng = np.random.default_rng(0)
    x, y = Tensor(rng.standard_normal((8, 3)).astype(np.float32)), Tensor(np.arange(8) % 2)
    first = step(x, y)
    made = compiler.compilations
    with compiler.observe() as runs:
        losses = [step(x, y) for _ in range(10)]
        optimizer.lr = 0.0
        frozen = [step(x, y).item() for _ in range(2)]
    assert len(runs) == 12
    assert compiler.compilations == made
    assert losses[-1].item() < losses[0].item() < first.item()
    assert frozen[0] == frozen[1]
    assert step.captures == 1


def test_random_state_advances_at_every_call() -> None:
    @jit
    def draw() -> tuple[Tensor, Tensor]:
        return tinyc.rand(3), tinyc.rand(3)

    tinyc.manual_seed(5)
    found = [t.tolist() for _ in range(2) for t in draw()]
    eager = tinyc.rand(3).tolist()
    tinyc.manual_seed(5)
    wanted = [tinyc.rand(3).tolist() for _ in range(5)]
    assert [*found, eager] == wanted
    tinyc.manual_seed(5)
    assert draw()[0].tolist() == wanted[0]
    assert draw.captures == 1


# What is refused


@numpy_only
@pytest.mark.parametrize(
    "look",
    [
        lambda t: t.sum().item(),
        lambda t: t.numpy(),
        lambda t: bool(t.sum() > 0),
        lambda t: float(t[0]),
        lambda t: t.tolist(),
        lambda t: np.asarray(t),
        lambda t: f"{t[0]:.2f}",
    ],
)
def test_looking_at_a_value_names_the_line(look) -> None:
    @jit
    def f(x: Tensor) -> Tensor:
        look(x * 2)
        return x

    with pytest.raises(TracingError, match=r"asked for at .*test_jit.py:\d+ .*while jit captures"):
        f(vector(1))
    assert "lazy: 1 operations pending" in jit(lambda x: repr(x * 2))(vector(1))


def test_an_error_during_a_capture_restores_everything() -> None:
    w = Tensor([1.0], requires_grad=True)
    w.grad = held = vector(7)
    total = vector(1)

    @jit
    def f(x: Tensor) -> Tensor:
        total.add_(x)
        w.grad = None
        (w * x).sum().backward()
        raise ZeroDivisionError

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            f(vector(1))
    assert total.tolist() == [1]
    assert w.grad is held


@numpy_only
def test_tensors_that_escape_have_no_value() -> None:
    kept = []

    @jit
    def f(x: Tensor) -> Tensor:
        kept.append(x * 2)
        return x + 1

    f(vector(1))
    with pytest.raises(TracingError, match="return it from the function"):
        kept[0].item()


@numpy_only
def test_reading_what_was_captured() -> None:
    f = jit(lambda x: x + 1)
    with pytest.raises(Exception, match="call the function once"):
        f.graph()
    f(vector(1))
    assert "add(" in f.graph()
    with pytest.raises(Exception, match="without source"):
        f.source()


def test_source_and_loops_are_shown_where_there_is_source() -> None:
    f = jit(lambda x: (x + 1).sum())
    f(vector(1, 2))
    if config.current().device != "numpy":
        assert "tinyc_step" in f.source()
        assert "for" in f.loops()
        assert f.program is not None
        assert len(f.program.kernels) == 1
    else:
        assert f.program is None


@numpy_only
def test_variables_that_a_module_s_forward_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return scaled(x)

    model = nn.Sequential(Scaled())
    f = jit(lambda x: model(x))
    assert f(vector(1)).item() == 2
    monkeypatch.setitem(globals(), "SCALE", 5.0)
    assert f(vector(1)).item() == 5


@numpy_only
def test_other_threads_compute_while_one_captures() -> None:
    import threading

    data, started, found = vector(1, 2, 3), threading.Event(), []

    def other() -> None:
        started.wait()
        found.append((data[1].item(), (Tensor([1.0]) + 1).item()))

    thread = threading.Thread(target=other)
    thread.start()

    @jit
    def f(x: Tensor) -> Tensor:
        started.set()
        thread.join(0.1)
        return x * 2

    assert f(vector(4)).item() == 8
    thread.join()
    assert found == [(2.0, 2.0)]
