"""Frozen tensors: what depends on them alone is computed once, kept, and computed again in time."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import tinyc
from tinyc import Tensor, compiler, config, jit, nn, optim
from tinyc.capture import jitted
from tinyc.diagnostics import TinycError, TracingError
from tinyc.runtime.buffer import ALLOCATOR

F = nn.functional


@pytest.fixture(params=["numpy", "cpu", "interpret", "cpu, replay.c"], autouse=True)
def _device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    device, _, replayed = request.param.partition(", ")
    if replayed:  # from the second call on, where the C code takes it
        monkeypatch.setattr(jitted, "PATIENCE", 1)
    with config.configure(device=device):
        yield


cpu_only = pytest.mark.parametrize("_device", ["cpu"], indirect=True)


def normal(*shape: int, dtype: Any = np.float32) -> Tensor:
    rng = np.random.default_rng(sum(shape))
    return Tensor(rng.standard_normal(shape).astype(dtype)).realize()


def said(captured: jitted.Jitted, kind: str) -> list[str]:
    return [remark.message for remark in captured.kept if remark.kind == kind]


# What is kept


def test_what_depends_on_frozen_tensors_alone_is_computed_once() -> None:
    w, s, x = normal(6, 5), normal(6, 1), normal(3, 5)

    def f(x: Tensor) -> Tensor:
        return (x @ (w.exp() * s).T).relu() - (w * w).sum()

    plain, frozen = jit(f), jit(f, frozen=[w, s])
    for _ in range(2):
        with compiler.observe() as first:
            found = frozen(x)
        np.testing.assert_allclose(found.numpy(), plain(x).numpy(), rtol=1e-5)
    assert len(first) == 1, "the second call computes nothing that the first has kept"
    assert "exp(" not in frozen.graph()
    assert "exp(" in plain.graph()
    assert len(said(frozen, "applied")) == 2
    assert plain.kept == ()


def test_scales_of_batch_norm_are_folded() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    x = normal(2, 2, 6, 6)
    frozen = jit(model.forward, frozen=model)
    with tinyc.no_grad():
        np.testing.assert_array_equal(frozen(x).numpy(), jit(model.forward)(x).numpy())
    assert "sqrt(" not in frozen.graph()


def test_what_is_larger_than_its_sources_and_cheap_is_not_kept() -> None:
    w = normal(50)
    f = jit(lambda x: x * (w.reshape(50, 1) + w), frozen=w)
    f(normal(50, 50))
    assert f.kept == ()


def test_results_are_memory_of_their_own() -> None:
    w = normal(4)
    f = jit(lambda: (w * 2, w * 1, (w * 2).reshape(2, 2)), frozen=w)
    for _ in range(3):
        a, b, c = f()
        a.zero_()
        b.zero_()
        np.testing.assert_array_equal(c.numpy(), (w.numpy() * 2).reshape(2, 2))


def test_what_may_be_frozen() -> None:
    w, x = normal(3), normal(3)
    module = nn.Module()
    module.register_buffer("w", w)
    for what in (w, [w], {"w": w}, (t for t in [w]), module, module.state_dict()):
        f = jit(lambda x: x * w.exp(), frozen=what)
        np.testing.assert_allclose(f(x).numpy(), x.numpy() * np.exp(w.numpy()), rtol=1e-6)
        assert len(f.kept) == 1
    with pytest.raises(TypeError, match="frozen holds float"):
        jit(lambda x: x, frozen=[1.0])


def test_a_decorator_and_methods() -> None:
    w = normal(3)

    class Thing:
        @jit(frozen=w)
        def run(self, x: Tensor) -> Tensor:
            return x * w.exp()

    thing = Thing()
    np.testing.assert_allclose(thing.run(w).numpy(), w.numpy() * np.exp(w.numpy()), rtol=1e-6)
    assert len(thing.run.kept) == 1


# Packed weights

PRODUCTS = {
    "linear": (lambda x, w: F.linear(x, w), (70, 24), (24,)),
    "linear, gelu": (lambda x, w: F.gelu(F.linear(x, w) + 1), (64, 24), (24,)),
    "matmul": (lambda x, w: x @ w, (24, 70), (24,)),
    "two axes contracted": (lambda x, w: tinyc.einsum("ahd,hde->ae", x, w), (3, 8, 40), (3, 8)),
    "gradient": (lambda x, w: tinyc.grad(lambda t: (t @ w.T).tanh().sum())(x), (48, 32), (32,)),
}


@pytest.mark.parametrize("_device", ["cpu", "interpret"], indirect=True)
@pytest.mark.parametrize("rows", [1, 2, 5, 50])
@pytest.mark.parametrize("name", PRODUCTS)
def test_packed_products_are_what_they_were(name: str, rows: int) -> None:
    function, weight, rest = PRODUCTS[name]
    for dtype in (np.float32, np.float64):
        w, x = normal(*weight, dtype=dtype), normal(rows, *rest, dtype=dtype)
        frozen = jit(lambda x: function(x, w), frozen=w)  # noqa: B023
        wanted = function(Tensor(x.numpy(), device="numpy"), Tensor(w.numpy(), device="numpy"))
        for _ in range(2):
            found = frozen(x).numpy()
        tolerance = 1e-5 if dtype is np.float32 else 1e-12
        np.testing.assert_allclose(found, wanted.numpy(), rtol=tolerance, atol=10 * tolerance)


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_halves_are_packed_as_halves(dtype: str) -> None:
    w, x = normal(64, 24).cast(dtype).realize(), normal(5, 24).cast(dtype).realize()
    f = jit(lambda x: F.linear(x, w), frozen=w)
    found, wanted = f(x), jit(lambda x: F.linear(x, w))(x)
    np.testing.assert_allclose(found.float().numpy(), wanted.float().numpy(), rtol=1e-2)
    assert all(remark.terms["bytes"] == 64 * 24 * 2 for remark in f.kept if remark.terms)


@cpu_only
@pytest.mark.parametrize("rows", [2, 5, 16, 100])
def test_a_call_packs_nothing(rows: int) -> None:
    w, b, x = normal(256, 96), normal(256), normal(rows, 96)
    plain = jit(lambda x: F.relu(F.linear(x, w, b)))
    frozen = jit(lambda x: F.relu(F.linear(x, w, b)), frozen=[w, b])
    np.testing.assert_allclose(frozen(x).numpy(), plain(x).numpy(), rtol=1e-5, atol=1e-5)
    (kernel,) = frozen.program.kernels
    assert kernel.scratch_bytes == 0
    assert "pack" not in kernel.loops
    assert "tile" in kernel.loops
    if rows > 4:
        assert "pack" in plain.program.kernels[0].loops
    assert "is packed once and kept" in said(frozen, "applied")[0]
    assert frozen.kept[0].terms["bytes"] == w.numel() * 4


@cpu_only
def test_where_packing_does_not_pay_weights_stay_as_they_are() -> None:
    w, few = normal(256, 96), normal(4, 96)
    reasons = {
        (1, 96): "for one row it lies right, along the depth",
        (4000, 96): "packing it is little beside the work of 4000 rows",
    }
    for shape, reason in reasons.items():
        f = jit(lambda x: F.linear(x, w), frozen=w)
        f(normal(*shape))
        assert reason in said(f, "missed")[0]
        assert said(f, "applied") == []
    f = jit(lambda x: F.linear(x, few), frozen=few)
    f(normal(8, 96))
    assert "16 or more columns" in said(f, "missed")[0]
    f = jit(lambda x: w @ x, frozen=w)
    f(normal(96, 40))
    assert "not the last axis" in said(f, "missed")[0]


@cpu_only
def test_one_row_reads_a_matrix_that_lies_across_the_depth_from_a_transposed_copy() -> None:
    w, x = normal(96, 256), normal(1, 96)
    f = jit(lambda x: x @ w, frozen=w)
    np.testing.assert_allclose(f(x).numpy(), x.numpy() @ w.numpy(), rtol=1e-5, atol=1e-5)
    assert "panels of 1 for 1 rows" in said(f, "applied")[0]


def test_packed_products_on_each_backend(backend: str) -> None:
    with config.configure(device=backend):
        w, x = normal(70, 24), normal(6, 24)
        f = jit(lambda x: F.relu(F.linear(x, w * 2)), frozen=w)
        for scale in (1, 3):
            if scale > 1:
                w.mul_(scale)
            wanted = np.maximum(x.numpy() @ (w.numpy() * 2).T, 0)
            np.testing.assert_allclose(f(x).numpy(), wanted, rtol=1e-5, atol=1e-5)


# Shapes and memory


@cpu_only
def test_programs_of_several_shapes_share_what_is_kept() -> None:
    w = normal(256, 128)
    f = jit(lambda x: F.linear(x, w), frozen=w)
    held = ALLOCATOR.categories.get("kept", 0)
    for rows in (2, 8, 50):
        f(normal(rows, 128))
    w.mul_(2).realize()
    for rows in (2, 8, 50):
        with compiler.observe() as runs:
            found = f(normal(rows, 128))
        assert len(runs) == (2 if rows == 2 else 1), "packed once for all shapes"
        np.testing.assert_allclose(found.numpy(), normal(rows, 128).numpy() @ w.numpy().T,
                                   rtol=1e-4, atol=1e-4)  # fmt: skip
    assert f.captures == 3
    del runs  # which has copies
    assert ALLOCATOR.categories["kept"] - held == w.numel() * 4
    del f
    gc.collect()
    assert ALLOCATOR.categories.get("kept", 0) == held


# Computed again


def test_after_every_way_in_which_tinyc_overwrites() -> None:
    model = nn.Linear(24, 32)
    model.requires_grad_(False)
    x = normal(5, 24)
    f = jit(lambda x: model(x) + model.weight.exp().sum(), frozen=model)
    plain = jit(lambda x: model(x) + model.weight.exp().sum())

    def again(runs_wanted: int) -> None:
        for wanted in (runs_wanted, 1):
            plain(x)
            with compiler.observe() as runs:
                found = f(x)
            np.testing.assert_allclose(found.numpy(), plain(x).numpy(), rtol=1e-5, atol=1e-5)
            assert len(runs) == wanted

    again(2)
    again(1)
    model.weight.mul_(0.5)
    again(2)
    model.weight[3] = 7
    again(2)
    model.weight.load(normal(32, 24).numpy())
    again(2)
    model.load_state_dict({"weight": normal(32, 24).numpy() * 2, "bias": np.zeros(32, np.float32)})
    again(2)
    model.bias.add_(1)  # from which nothing is kept
    again(1)
    scale = jit(lambda: model.weight.mul_(2))
    scale()
    again(2)


def test_training_outside() -> None:
    tinyc.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 16))
    x, y = normal(6, 20), normal(6, 16)
    with tinyc.no_grad():
        use = jit(model.forward, frozen=model)
        use(x)

    @jit
    def step() -> Tensor:
        optimizer.zero_grad()
        loss = ((model(x) - y) ** 2).mean()
        loss.backward()
        optimizer.step()
        return loss

    optimizer = optim.Adam(model.parameters(), lr=0.1)  # which moves the parameters
    for _ in range(3):
        step()
        with tinyc.no_grad():
            np.testing.assert_allclose(use(x).numpy(), model(x).numpy(), rtol=1e-5, atol=1e-5)
    assert use.captures == 2


def test_writes_by_way_of_numpy_are_told() -> None:
    shared, x = np.from_dlpack(normal(3)), normal(3)
    w = tinyc.from_numpy(shared)
    f = jit(lambda x: x * w.exp(), frozen=w)
    before = f(x).tolist()
    f(x)
    shared[...] = 0
    assert f(x).tolist() == before
    f.refresh()
    np.testing.assert_array_equal(f(x).numpy(), x.numpy())
    with pytest.raises(TinycError, match="nothing is frozen"):
        jit(lambda x: x).refresh()


def test_a_tensor_of_its_own_in_place_of_a_frozen_one() -> None:
    model = nn.Linear(24, 32)
    f = jit(model.forward, frozen=model)
    with tinyc.no_grad():
        f(normal(5, 24))
        model.weight = nn.Parameter(normal(32, 24) * 3)
        found, wanted = f(normal(5, 24)), model(normal(5, 24))
    np.testing.assert_allclose(found.numpy(), wanted.numpy(), rtol=1e-5, atol=1e-5)


# Refused


def test_a_frozen_tensor_that_the_function_overwrites() -> None:
    w, v, x = normal(3), normal(3), normal(3)

    def f(x: Tensor) -> Tensor:
        w.add_(x)
        return w * v

    message = r"f.*f32\[3\] .*is frozen, and the function overwrites it at .*test_frozen.py:\d+"
    with pytest.raises(TracingError, match=message):
        jit(f, frozen=[v, w])(x)
    jit(f, frozen=v)(x)
    np.testing.assert_allclose(w.numpy(), normal(3).numpy() + x.numpy())


def test_an_argument_that_is_frozen_memory() -> None:
    w = normal(3)

    @jit(frozen=w)
    def f(x: Tensor) -> Tensor:
        x.add_(1)
        return x * w.exp()

    with pytest.raises(TracingError, match="under another name"):
        f(w)


# Processes and threads


@cpu_only
def test_threads_that_begin_together() -> None:
    w, x = normal(256, 128), normal(8, 128)
    f = jit(lambda x: F.linear(x, w), frozen=w)
    wanted, found = x.numpy() @ w.numpy().T, []
    f(x)
    w.mul_(2)

    def work() -> None:
        for _ in range(20):
            found.append(f(x).numpy())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 80
    for result in found:
        np.testing.assert_allclose(result, 2 * wanted, rtol=1e-4, atol=1e-4)


@cpu_only
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_has_copies_of_its_own() -> None:
    w, x = normal(256, 128), normal(8, 128)
    f = jit(lambda x: F.linear(x, w), frozen=w)
    before = f(x).numpy()
    child = os.fork()
    if child == 0:
        w.mul_(2)
        os._exit(0 if np.allclose(f(x).numpy(), 2 * before, rtol=1e-4) else 1)
    assert os.waitpid(child, 0)[1] == 0
    np.testing.assert_array_equal(f(x).numpy(), before)


SCRIPT = """\
import json
import numpy as np
import tinyc
from tinyc import Tensor, compiler, jit, nn
w = Tensor(np.arange(256 * 64, dtype=np.float32).reshape(256, 64) / 1e4)
f = jit(lambda x: nn.functional.linear(x, w.exp()), frozen=w)
y = f(Tensor(np.ones((8, 64), np.float32)))
print(json.dumps([float(y.sum().item()), compiler.passes_run, compiler.programs_loaded]))
"""


@cpu_only
def test_a_warm_process_runs_no_pass(tmp_path: Any) -> None:
    environment = {**os.environ, "TINYC_CACHE_DIR": str(tmp_path), "TINYC_DEVICE": "cpu"}
    (tmp_path / "script.py").write_text(SCRIPT)
    found = []
    for _ in range(2):
        run = subprocess.run([sys.executable, str(tmp_path / "script.py")], env=environment,
                             capture_output=True, text=True, check=True)  # fmt: skip
        found.append(json.loads(run.stdout))
    (cold, passes, _), (warm, none, loaded) = found
    assert cold == warm
    assert (passes, none, loaded) == (3, 0, 3), "what is kept, the call, the sum"


# Reports


@cpu_only
def test_what_is_kept_is_shown_and_counted() -> None:
    w = normal(256, 128)
    f = jit(lambda x: F.linear(x, w), frozen=w)
    x = normal(8, 128)
    f(x)
    shown = tinyc.explain(f, x)
    assert "is packed once and kept, in panels of" in str(shown)
    assert shown.remarks[0] is f.kept[0]
    before = ALLOCATOR.categories["kept"] - w.numel() * 4
    with tinyc.profile() as profile:
        f(x)
    assert profile.memory().live["kept"] - before == w.numel() * 4
    from tinyc import reporting

    (program,) = reporting.collect(f, x, repeats=1, unfused=False, assembly=False)["programs"]
    kept = [storage for storage in program["storages"] if storage["category"] == "kept"]
    assert [storage["bytes"] for storage in kept] == [w.numel() * 4]
    assert kept[0]["line"][0].endswith("test_frozen.py")
