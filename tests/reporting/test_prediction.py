"""What kernels should take, on a machine with figures of our own."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from running import buffers, floats, program_of
from steps import mlp_step

import tinyc
from tinyc import compiler
from tinyc.ir import build as b
from tinyc.ir.program import KernelInfo, Program, StorageInfo, Work
from tinyc.reporting import prediction as p
from tinyc.runtime.isa import isa_in_force
from tinyc.runtime.machine import Machine

MIB = 1 << 20
LEVELS = ((MIB, 400.0), (16 * MIB, 200.0))
PEAKS = Machine("cpu", 2, "cc", 500.0, 50.0, 40.0, 25.0, 10.0, 1.0, LEVELS)
NOTHING = Work()
FAR, NEAR = 100 * MIB, MIB // 2


def kernel(work: Work = NOTHING, chunks: int = 8, **names: int) -> KernelInfo:
    """A kernel that reads storages whose names begin with r, and writes the others."""
    reads = {name: n for name, n in names.items() if name.startswith("r")}
    writes = {name: n for name, n in names.items() if name not in reads}
    return KernelInfo(
        "k", (), (), 0, sum(names.values()), 0, chunks, tuple(reads), tuple(writes), "",
        read_bytes=tuple(reads.values()), written_bytes=tuple(writes.values()), work=work,
    )  # fmt: skip


def reuse(k: KernelInfo, distance: int) -> p.Reuse:
    return p.Reuse((distance,) * len(k.reads), (distance,) * len(k.writes))


def total(k: KernelInfo, distance: int = NEAR, peaks: Machine = PEAKS) -> float:
    return p.predict(k, reuse(k, distance), peaks).total


def test_constants_are_in_bounds() -> None:
    assert 0 < p.CALL_US <= 1 and 0 < p.CHUNK_US <= 1
    assert 1 < p.TAKEN_GBS < 500 and 1 << 18 <= p.NEAR <= 1 << 24


def test_the_longer_of_arithmetic_and_traffic_counts() -> None:
    found = p.Prediction(3.0, 5.0, 0.0, 1.0)
    assert found.total == 6.0 and replace(found, compute=7.0).total == 8.0
    assert replace(found, sharing=2.0).total == 8.0


def test_a_kernel_of_the_peak_takes_as_long_as_the_peak_says() -> None:
    flops = 10**8
    work = Work(tile=flops / (2 * isa_in_force().lanes))
    assert p.compute(kernel(work), PEAKS) == pytest.approx(flops / PEAKS.peak_gflops / 1e3)
    assert p.compute(kernel(work, chunks=1), PEAKS) == pytest.approx(2 * flops / 500.0 / 1e3)
    assert p.compute(kernel(work, chunks=3), PEAKS) == pytest.approx(4 / 3 * flops / 500.0 / 1e3)


def test_the_end_of_a_kernel_is_for_one_thread() -> None:
    alone, shared = kernel(Work(finish=1e6)), kernel(Work(vector=1e6))
    assert p.compute(alone, PEAKS) == pytest.approx(2 * p.compute(shared, PEAKS))


@pytest.mark.parametrize("distance", [NEAR, 4 * MIB, FAR])
def test_more_bytes_and_more_work_take_longer(distance: int) -> None:
    sizes = [total(kernel(r0=n, w0=n), distance) for n in (10**4, 10**6, 10**8)]
    works = [total(kernel(Work(vector=n)), distance) for n in (10**4, 10**6, 10**8)]
    for found in (sizes, works):
        assert found == sorted(set(found)) and all(map(math.isfinite, found))


def test_what_was_used_longer_ago_takes_longer() -> None:
    k = kernel(r0=MIB, w0=MIB)
    found = [total(k, distance) for distance in (NEAR, 4 * MIB, FAR)]
    assert found == sorted(set(found))


def test_traffic_of_memory_is_that_of_the_copy_that_was_measured() -> None:
    k = kernel(r0=MIB, w0=MIB)
    assert p.memory(k, reuse(k, NEAR), PEAKS) == pytest.approx(2 * MIB / 400.0 / 1e3)
    assert p.memory(k, reuse(k, FAR), PEAKS) == pytest.approx(2 * MIB / 40.0 / 1e3)
    one = kernel(chunks=1, r0=MIB, w0=MIB)
    assert p.memory(one, reuse(one, NEAR), PEAKS) == pytest.approx(2 * MIB / 200.0 / 1e3)
    assert p.memory(one, reuse(one, FAR), PEAKS) == pytest.approx(2 * MIB / 25.0 / 1e3)


def test_lines_of_other_cores_take_time() -> None:
    alone, one = kernel(chunks=1, r0=MIB, w0=MIB), replace(PEAKS, threads=1)
    assert p.sharing(alone, reuse(alone, NEAR), PEAKS) == pytest.approx(
        MIB / 2 * (1 / p.TAKEN_GBS + 1 / 10.0) / 1e3)
    assert p.sharing(alone, reuse(alone, FAR), PEAKS) == 0, "it has left the caches of cores"
    assert p.sharing(alone, reuse(alone, NEAR), one) == 0
    parts = kernel(r0=MIB, w0=MIB)
    assert p.sharing(parts, reuse(parts, NEAR), PEAKS) == 0, "threads have what they had before"
    update = replace(parts, writes=("r0",))
    assert p.sharing(update, reuse(update, NEAR), PEAKS) > 0


def test_only_parallel_kernels_pay_for_threads() -> None:
    assert total(kernel(chunks=1)) < PEAKS.launch_us < total(kernel(chunks=2))


def program(*kernels: KernelInfo, arena: int = 0, storages=()) -> Program:
    names = {name: n for k in kernels for name, n in
             zip((*k.reads, *k.writes), (*k.read_bytes, *k.written_bytes))}  # fmt: skip
    placed = {s.name for s in storages}
    given = tuple(
        StorageInfo(name, n, "f32", None, 0, 0, "input", "", None)
        for name, n in names.items() if name not in placed
    )  # fmt: skip
    return Program("", False, len(given), (), arena, 0, kernels, (), storages=(*given, *storages))


def test_distances_are_what_was_touched_in_between() -> None:
    first, second = kernel(r0=100, w0=10), kernel(r1=1000, w1=5)
    one, two = p.reuses(program(first, second))
    assert one == p.Reuse((1115,), (1115,)), "all of the program, its own data included"
    assert two.reads == (1115,)


def test_a_value_that_was_just_made_is_near() -> None:
    made = kernel(r0=10**6, x0=300)
    used = KernelInfo("k", (), (), 0, 310, 0, 1, ("x0",), ("y0",), "", read_bytes=(300,),
                      written_bytes=(10,))  # fmt: skip
    _, two = p.reuses(program(made, used))
    assert two.reads == (310,)
    assert two.writes == (10**6 + 310,)


def test_values_that_share_memory_share_its_nearness() -> None:
    def at(name: str, offset: int) -> StorageInfo:
        return StorageInfo(name, 100, "f32", offset, 0, 0, "activation", "", None)

    kernels = kernel(r0=10**6, x0=100), kernel(r1=10, y0=100)
    apart = list(p.reuses(program(*kernels, arena=200, storages=(at("x0", 0), at("y0", 100)))))
    same = list(p.reuses(program(*kernels, arena=100, storages=(at("x0", 0), at("y0", 50)))))
    assert same[1].writes == (110,) and apart[1].writes[0] > 10**6


def test_a_single_kernel_finds_its_data_where_they_fit() -> None:
    (node,), _ = buffers(floats(1000))
    small = program_of([b.exp(node)])
    (found,) = p.reuses(small)
    assert found.reads == found.writes == (8000,)


def test_every_kernel_of_a_step_has_a_finite_prediction() -> None:
    step, batch = mlp_step(rows=12)
    with compiler.observe() as runs:
        step(*batch)
    (done,) = [run.executable.program for run in runs if run.executable.program is not None]
    for k, used in zip(done.kernels, p.reuses(done), strict=True):
        found = p.predict(k, used, PEAKS)
        assert all(0 <= part < 1e6 for part in vars(found).values()) and found.total > 0
        assert len(k.read_bytes) == len(k.reads) and len(k.written_bytes) == len(k.writes)


def test_profiles_show_it() -> None:
    x = tinyc.Tensor(floats(37, 64))
    with tinyc.profile() as profile:
        (x.exp() + 1).numpy()
    (row,) = profile.to_dict()["kernels"]
    assert row["predicted_us"] > 0
    header, _, line = profile.table().splitlines()
    assert header.split()[header.split().index("predicted") + 1] == "ratio"
    assert f"{row['predicted_us']:.1f}" in line.split()
