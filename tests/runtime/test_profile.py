"""DEBUG=2: a line for each kernel that runs, and the summary."""

from __future__ import annotations

from tinyc import config
from tinyc.ir.program import KernelInfo, Program
from tinyc.runtime import profile
from tinyc.runtime.machine import Machine


def kernel(name: str, *lines: int) -> KernelInfo:
    origins = tuple(("train.py", line) for line in lines)
    return KernelInfo(name, (), origins, 4000, 8000, 0, 1, (), (), "")


def program(*kernels: KernelInfo) -> Program:
    return Program("", False, 0, (), 0, 0, kernels, ())


def fake_run(*microseconds: int):
    def run(times):
        times[0] = 100
        for i, length in enumerate(microseconds):
            times[i + 1] = times[i] + length * 1000

    return run


def test_each_kernel_is_a_line_with_its_rates(capsys, monkeypatch):
    monkeypatch.setattr(profile, "_profile", profile.Profile())
    peaks = Machine("", 1, "", 8.0, 8.0, 8.0, 8.0, 8.0, 0.0, ())
    monkeypatch.setattr(profile, "machine", lambda: peaks)
    with config.debug(2):
        profile.run_shown(program(kernel("k0", 3), kernel("k1", 4, 5)), fake_run(2, 4))
    first, second = capsys.readouterr().err.splitlines()
    expected = "2.0 us 2.00 GFLOP/s 4.00 GB/s 50% of the roof, bound by memory, 1 chunk"
    assert first.split(" | ")[1].split() == expected.split()
    assert first.startswith("run k0 [train.py:3] ")
    assert second.startswith("run k1 [train.py:4, train.py:5] ")


def test_filters_choose_kernels(capsys, monkeypatch):
    monkeypatch.setattr(profile, "_profile", profile.Profile())
    with config.debug("2:k1"):
        profile.run_shown(program(kernel("k0", 3), kernel("k1", 4)), fake_run(2, 4))
    assert [line.split()[1] for line in capsys.readouterr().err.splitlines()] == ["k1"]


def test_the_summary_ranks_kernels_and_lines():
    times = profile.Profile()
    for _ in range(3):
        times.add(kernel("small", 3), 1_000_000)
    times.add(kernel("large", 3, 4), 9_000_000)
    rows = [line.replace("|", "").split() for line in times.summary().splitlines()]
    large = ["large", "[train.py:3,", "train.py:4]", "9.00", "75%", "1"]
    small = ["small", "[train.py:3]", "3.00", "25%", "3"]
    assert rows.index(large) < rows.index(small)
    assert ["train.py:3", "7.50", "62%"] in rows
