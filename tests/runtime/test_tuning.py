"""TINYC_TUNE, with a clock that says what each way takes."""
from __future__ import annotations

import gc
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tinyc
from tinyc import compiler, config, diagnostics, program_cache, tuning
from tinyc.diagnostics import TinycWarning
from tinyc.ir.choices import RULES, Choices
from tinyc.runtime import host, sources
from tinyc.runtime.toolchain import without_comments

pytestmark = pytest.mark.cpu("ways to generate C")

TILE, CHUNKS = Choices(tile=(8, 1)), Choices(chunks=4)


class Clock:
    """Runs ways, counts how often, and says how long each took: `times`, else 1000 ns."""

    def __init__(self) -> None:
        self.times: dict[Choices, int] = {}
        self.runs: list[Choices] = []

    def __call__(self, w: tuning.Way, buffers) -> int:
        assert w.run is not None
        w.run(buffers, np.zeros(2, np.int64))
        self.runs.append(w.choices)
        return self.times.get(w.choices, 1000)


@pytest.fixture
def clock(cache, monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(tuning, "run_time", made)
    monkeypatch.setattr(tuning, "SMALL", 0)
    monkeypatch.setattr(tuning, "SECONDS", 0.0)
    monkeypatch.setattr(compiler, "_programs", {})
    monkeypatch.setattr(sources, "_loaded_at", float("inf"))
    sources.source_digest.cache_clear()
    config.configure(tune=True)
    return made


A, B = (np.random.default_rng(i).random((96, 96), np.float32) for i in (1, 2))


def product(scale: float = 1.0) -> np.ndarray:
    return ((tinyc.Tensor(A) @ tinyc.Tensor(B)) * scale).numpy()


def forget() -> None:
    """What a new process would not know."""
    compiler._programs.clear()
    gc.collect()


def remarks(run: Callable[[], object]) -> list[diagnostics.Remark]:
    with diagnostics.collect() as found:
        run()
    return [r for r in found if r.pass_name == "tune"]


def entry(cache) -> Path:
    (path,) = cache.root.glob(f"*/{tuning.FILE}")
    return path


def replace_entry(cache, data: bytes) -> None:
    key = entry(cache).parent.name
    for path in cache.root.glob(f"*/{program_cache.FILE}"):
        cache.discard(path.parent.name)
    cache.discard(key)
    cache.put(key, {tuning.FILE: data})
    forget()


def test_off_by_default(clock: Clock) -> None:
    assert config.Settings().tune is False
    config.configure(tune=False)
    assert not remarks(product) and not clock.runs


def test_a_faster_way_is_taken_and_told(clock: Clock, capsys) -> None:
    clock.times[TILE] = 700
    config.configure(debug=1)
    (remark,) = remarks(lambda: np.testing.assert_allclose(product(), A @ B, rtol=1e-5))
    assert remark.kind == "applied" and remark.terms == {"rules_us": 1.0, "chosen_us": 0.7}
    assert remark.message.startswith("tile 8x1 in place of the rules; tried were the rules 1.0 us;")
    line = next(t for t in capsys.readouterr().err.splitlines() if t.startswith("tuned"))
    assert "tile 8x1 in place of the rules" in line and "1.0 us -> 0.7 us" in line
    (program,) = [e.program for e in compiler._programs.values()]
    assert "tc_tile_f32_8x" in program.source
    assert "tuned: tile 8x1" in str(tinyc.explain(lambda: tinyc.Tensor(A) @ tinyc.Tensor(B) * 1.0))


def test_within_noise_the_rules_are_kept(clock: Clock) -> None:
    clock.times[TILE] = 980
    (remark,) = remarks(product)
    assert remark.kind == "analysis" and remark.message.startswith("the rules are kept")
    assert program_text() == program_text(tune=False)


def program_text(tune: bool = True) -> str:
    with config.configure(tune=tune):
        return without_comments(tinyc.explain(lambda: tinyc.Tensor(A) @ tinyc.Tensor(B)).source())


def test_ways_that_help_are_tried_together(clock: Clock) -> None:
    both = Choices(tile=(8, 1), pack=True)
    clock.times |= {TILE: 700, Choices(pack=True): 800, both: 600}
    (remark,) = remarks(product)
    assert remark.message.startswith("tile 8x1, pack True in place of the rules")
    assert remark.terms["chosen_us"] == 0.6


def test_once_is_not_enough(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A way that was faster by chance is not in the final."""
    def faster_at_first(w: tuning.Way, buffers) -> int:
        time = clock(w, buffers)
        return 700 if w.choices == TILE and clock.runs.count(TILE) <= 2 * tuning.FEWEST else time

    monkeypatch.setattr(tuning, "run_time", faster_at_first)
    (remark,) = remarks(product)
    assert remark.message.startswith("the rules are kept")


def test_a_warm_start_runs_and_compiles_nothing(clock: Clock, cache) -> None:
    clock.times[TILE] = 700
    first = product()
    runs, compiles, passes = len(clock.runs), cache.stats.compiles, compiler.passes_run
    forget()
    np.testing.assert_array_equal(product(), first)
    assert (len(clock.runs), cache.stats.compiles) == (runs, compiles)
    assert compiler.passes_run == passes, "the program with its winners is on disk"


def test_another_program_finds_the_winner(clock: Clock, cache) -> None:
    def two() -> tuple[np.ndarray, np.ndarray]:
        x, y = tinyc.Tensor(A), tinyc.Tensor(B)
        first, second = tinyc.boundary(x @ y), tinyc.Tensor(B)
        return ((first + 1).numpy(), (first @ second).numpy())

    clock.times[TILE] = 700
    product()
    with config.configure(threads=1):
        runs = len(clock.runs)
        forget()
        product()
        assert len(clock.runs) == runs, "threads are no part of the key"
    two()
    found = remarks(lambda: (forget(), two()))
    assert found and len(clock.runs) > runs, "other kernels are tried"


def test_another_compiler_tries_anew(clock: Clock, cache, monkeypatch) -> None:
    clock.times[TILE] = 700
    product()
    runs = len(clock.runs)
    monkeypatch.setattr(tuning, "source_digest", lambda: "another")
    product(2.0)
    assert len(clock.runs) > runs
    monkeypatch.setattr(tuning, "source_digest", lambda: None)
    kept, runs = set(cache.root.glob(f"*/{tuning.FILE}")), len(clock.runs)
    for scale in (3.0, 4.0):
        product(scale)
    assert len(clock.runs) > runs
    assert set(cache.root.glob(f"*/{tuning.FILE}")) == kept, "nothing of edited sources is kept"


def test_equal_kernels_of_a_program_are_tried_once(clock: Clock, cache) -> None:
    def layers() -> np.ndarray:
        x = tinyc.Tensor(A)
        for _ in range(3):
            x = tinyc.boundary(x @ tinyc.Tensor(B))
        return x.numpy()

    found = remarks(layers)
    assert len(found) == 3 and len({r.message for r in found}) == 1
    assert entry(cache), "one entry for the three"


@pytest.mark.parametrize("data", [
    b"", b"{}", b"[1]", b'{"choices": {"tile": [8, 1]}, "trials": 3}',
    json.dumps({"choices": {"tile": [900, 9]}, "trials": []}).encode(),
    json.dumps({"choices": {"speed": 11}, "trials": []}).encode(),
    json.dumps({"choices": {"chunks": True}, "trials": []}).encode(),
    json.dumps({"choices": {}, "trials": []}).encode(),
])  # fmt: skip
def test_an_entry_of_another_form_is_a_miss(clock: Clock, cache, data: bytes) -> None:
    product()
    runs = len(clock.runs)
    replace_entry(cache, data)
    with pytest.warns(TinycWarning, match="damaged"):
        product()
    assert len(clock.runs) > runs
    assert json.loads(entry(cache).read_bytes())["trials"]


def test_a_damaged_entry_is_a_miss(clock: Clock, cache) -> None:
    product()
    runs = len(clock.runs)
    for path in cache.root.glob(f"*/{program_cache.FILE}"):
        cache.discard(path.parent.name)
    entry(cache).write_bytes(b"{")
    forget()
    with pytest.warns(TinycWarning, match="damaged"):
        product()
    assert len(clock.runs) > runs


def spoiled(monkeypatch: pytest.MonkeyPatch, choices: Choices, source: Callable[[str], str]):
    """Let the program of one way have another source."""
    real = tuning.way

    def way(*args) -> tuning.Way | None:
        made = real(*args)
        if made is not None and made.choices == choices:
            program = made.program
            made.program = type(program)(**{**vars(program), "source": source(program.source)})
        return made

    monkeypatch.setattr(tuning, "way", way)


def test_what_does_not_compile_is_left_out(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    clock.times |= {TILE: 500, CHUNKS: 800}
    spoiled(monkeypatch, TILE, lambda text: "#error no\n")
    (remark,) = remarks(product)
    assert "tile 8x1 does not compile" in remark.message and "error" in remark.message
    assert TILE not in clock.runs
    assert not remark.message.startswith("tile 8x1")


def test_what_computes_something_else_is_left_out(
        clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    clock.times[TILE] = 500
    idle = "long tinyc_step(void **b, char *a, const void *rt) { return 0; }\n"
    spoiled(monkeypatch, TILE, lambda text: idle)
    (remark,) = remarks(product)
    assert "tile 8x1 computes something else" in remark.message
    assert remark.message.startswith("the rules are kept")


def test_updates_in_place_and_sums_are_tried_on_fresh_values(clock: Clock) -> None:
    x, y = tinyc.Tensor(A.copy()), tinyc.Tensor(B)
    x.assign(x * 0.5 + y)
    np.testing.assert_allclose(x.numpy(), A * 0.5 + B, rtol=1e-6)
    clock.times[Choices(sums=8)] = 500
    big = tinyc.Tensor(np.ones(1 << 16, np.float32))
    (remark,) = remarks(lambda: big.sum().item())
    assert remark.message.startswith("sums 8 in place of the rules")
    assert RULES in clock.runs


def test_profiles_and_small_kernels_are_left_alone(
        clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    with tinyc.profile() as profile:
        product()
    assert len(profile.runs) == 1, "trials are no runs of the user's"
    runs = len(clock.runs)
    monkeypatch.setattr(tuning, "SMALL", 1 << 40)
    assert not remarks(lambda: product(3.0)) and len(clock.runs) == runs


def test_kernels_are_tried_as_the_program_has_them(clock: Clock, monkeypatch) -> None:
    """Stores past the caches, and rows that are asked for ahead, are in what is tried."""
    sources: list[str] = []
    real = tuning.way

    def way(*args) -> tuning.Way | None:
        made = real(*args)
        if made is not None:
            sources.append(made.program.source)
        return made

    monkeypatch.setattr(tuning, "way", way)
    machine = host.host_target()
    small = replace(machine, l2=1 << 14, l3=1 << 16)
    monkeypatch.setattr(host, "host_target", lambda: small)
    x = tinyc.Tensor(np.random.default_rng(3).random((64, 1024), np.float32))
    streamed = (x * 2.0 + 1.0).numpy()
    np.testing.assert_allclose(streamed, x.numpy() * 2.0 + 1.0, rtol=1e-6)
    (program,) = [e.program for e in compiler._programs.values()]
    assert sources
    if machine.lanes > 1:
        assert all("tc_stream(a" in text for text in (program.source, sources[0]))
    sources.clear()
    rows = x.softmax(-1).numpy()
    np.testing.assert_allclose(rows.sum(1), np.ones(64), rtol=1e-5)
    if machine.lanes > 1:
        assert "prefetch" in sources[0]
