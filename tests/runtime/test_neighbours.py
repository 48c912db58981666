"""The pool of threads beside others: forks, workers, other libraries, signals, fewer CPUs."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from running import Compiled, buffers, floats

import tinyc
from tinyc import config
from tinyc.composites import attention, linear, normalization
from tinyc.ir import build as b
from tinyc.ir.autograd import vjp
from tinyc.runtime.cpu import cgroup_cpus

pytestmark = pytest.mark.cpu("threads of the pool")


@tinyc.jit
def product(x: tinyc.Tensor, y: tinyc.Tensor) -> tinyc.Tensor:
    return (x @ y).tanh()


def operands(seed: int) -> tuple[np.ndarray, np.ndarray]:
    return floats(192, 160, seed=seed), floats(160, 192, seed=seed + 1)


def is_right(seed: int) -> bool:
    x, y = operands(seed)
    found = product(tinyc.Tensor(x), tinyc.Tensor(y)).numpy()
    return bool(np.allclose(found, np.tanh(x @ y), 1e-4, 1e-4))


def test_forked_workers_and_their_parent_compute_at_once():
    config.configure(threads=3)
    assert is_right(0)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        waiting = pool.map_async(is_right, range(20))
        mine = [is_right(seed) for seed in range(20)]
        assert all(waiting.get(timeout=60)) and all(mine)


def beside(other) -> None:
    """Compute in one Python thread while another library computes in a second."""
    config.configure(threads=2)
    stop = threading.Event()
    wrong: list[int] = []

    def work() -> None:
        while not stop.is_set():
            other()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        wrong += [seed for seed in range(100) if not is_right(seed)]
    finally:
        stop.set()
        thread.join()
    assert wrong == []


def test_beside_the_threads_of_numpy():
    x = floats(400, 400)
    wanted = x @ x

    def other() -> None:
        assert np.allclose(x @ x, wanted, 1e-4, 1e-4)

    beside(other)


@pytest.mark.oracle
def test_beside_the_threads_of_torch():
    torch = pytest.importorskip("torch")
    x = torch.randn(400, 400)
    beside(lambda: x @ x)


def test_an_interrupt_arrives_when_the_program_has_ended():
    config.configure(threads=2)
    assert is_right(0)
    x, y = (tinyc.Tensor(a) for a in operands(0))
    timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job may ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            timer.start()
            while True:
                product(x, y)
    finally:
        signal.signal(signal.SIGINT, before)
    timer.join()
    assert is_right(1)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="sets the affinity")
def test_a_process_on_one_cpu_uses_one_thread():
    script = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
os.environ.pop("TINYC_THREADS", None)
import tinyc
from tinyc.runtime.device import get_device
print(((tinyc.ones(300, 300) @ tinyc.ones(300, 300)).sum().item(), get_device("cpu").threads))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "(27000000.0, 1)", done.stderr


def group(folder, name: str, **files: str) -> None:
    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        (place / file.replace("__", ".")).write_text(text + "\n")


def test_the_least_quota_on_the_way_to_a_group_counts(tmp_path):
    member = tmp_path / "member"
    member.write_text("0::/outer/inner\n")
    root = tmp_path / "v2"
    group(root, "outer/inner", cpu__max="max 100000")
    assert cgroup_cpus(str(root), str(member)) > 1000
    group(root, "outer", cpu__max="300000 100000")
    assert cgroup_cpus(str(root), str(member)) == 3
    group(root, "outer/inner", cpu__max="120000 100000")
    assert cgroup_cpus(str(root), str(member)) == 2
    group(root, "outer/other", cpu__max="10000 100000")
    assert cgroup_cpus(str(root), str(member)) == 2


def test_the_cpu_controller_of_the_first_version_counts(tmp_path):
    member = tmp_path / "member"
    member.write_text("5:memory:/big\n4:cpu,cpuacct:/small\n1:name=systemd:/x\n")
    group(tmp_path, "cpu/big", cpu__cfs_quota_us="100000", cpu__cfs_period_us="100000")
    group(tmp_path, "cpu/small", cpu__cfs_quota_us="400000", cpu__cfs_period_us="100000")
    assert cgroup_cpus(str(tmp_path), str(member)) == 4
    group(tmp_path, "cpu", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    assert cgroup_cpus(str(tmp_path), str(member)) == 4


def test_the_number_of_threads_changes_no_bit():
    arrays = [floats(4, 32, 24), floats(24, 24, seed=1), floats(4, 32, 24, seed=2)]
    (x, w, g), memory = buffers(*arrays)
    h = normalization.layer_norm(linear.linear(x, w), (24,))
    q = b.permute(b.reshape(h, (4, 32, 3, 8)), (0, 2, 1, 3))
    y = b.permute(attention.attention(q, q, q, causal=True), (0, 2, 1, 3))
    y = b.reshape(y, (4, 32, 24))
    outputs = [y, b.sum_(y), b.sum_(h, (0, 1)), *vjp([y], [g], [x, w])]
    compiled = Compiled(outputs, split=True)
    assert max(k.chunks for k in compiled.program.kernels) > 3
    first = compiled(memory, threads=1)
    for threads in (2, 3, 8, 64):
        for one, other in zip(first, compiled(memory, threads=threads)):
            assert one.tobytes() == other.tobytes(), threads
