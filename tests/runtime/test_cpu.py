from __future__ import annotations

import contextlib
import os
import signal
import threading
import time

import numpy as np
import pytest

from tinyc import config
from tinyc.diagnostics import BoundsError, CompileError
from tinyc.ir.dtype import f32, f64, i64
from tinyc.ir.program import Site
from tinyc.runtime.cpu import CpuDevice, cgroup_cpus, cpu_count
from tinyc.runtime.device import DeviceError, get_device

DOUBLE = """
static void twice(void *context, long chunk, long worker) {
    void **bufs = context;
    double *x = bufs[0], *y = bufs[1];
    for (long i = chunk * 100; i < chunk * 100 + 100; i++) y[i] = 2 * x[i];
}
"""

# Every worker sums its own chunks into its own slice of the scratch memory.
SUMS = """
typedef struct { const tinyc_rt *rt; long *hits; } shared;
static void add(void *context, long chunk, long worker) {
    shared *s = context;
    long *mine = (long *)(s->rt->scratch + worker * s->rt->scratch_stride);
    mine[0] += chunk;
    s->hits[chunk]++;
}
"""
SUMS_BODY = """
shared s = {rt, bufs[0]};
long *out = bufs[1];
for (long w = 0; w < rt->nthreads; w++) *(long *)(rt->scratch + w * rt->scratch_stride) = 0;
rt->par(add, &s, out[1]);
out[0] = 0;
for (long w = 0; w < rt->nthreads; w++)
    out[0] += *(long *)(rt->scratch + w * rt->scratch_stride);
"""


@pytest.fixture
def device() -> CpuDevice:
    return get_device("cpu")


def sums(make_program):
    return make_program(SUMS_BODY, 2, helpers=SUMS, scratch=8)


def check_sums(device, executable, chunks):
    hits, out = device.alloc(i64, (chunks + 1,)), device.alloc(i64, (2,))
    hits.array[...] = 0
    out.array[:] = -1, chunks
    executable.run([hits, out])
    assert out.array[0] == chunks * (chunks - 1) // 2
    assert (hits.array[:chunks] == 1).all() and hits.array[chunks] == 0


def test_a_program_runs(device, make_program):
    executable = device.load(make_program("rt->par(twice, bufs, 10);", 2, helpers=DOUBLE))
    x, y = (device.alloc(f64, (1000,)) for _ in range(2))
    device.copy_in(x, np.arange(1000))
    executable.run([x, y])
    device.synchronize()
    np.testing.assert_array_equal(device.copy_out(y), 2.0 * np.arange(1000))


def test_the_number_of_buffers_is_checked(device, make_program):
    executable = device.load(make_program("", 2))
    with pytest.raises(ValueError, match="2 buffers"):
        executable.run([device.alloc(f32, ())])


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
@pytest.mark.parametrize("chunks", [0, 1, 2, 3, 7, 64, 1000, 70000])
def test_every_chunk_runs_once(device, make_program, threads, chunks):
    config.configure(threads=threads)
    executable = device.load(sums(make_program))
    for _ in range(20):
        check_sums(device, executable, chunks)
    assert device.runtime.nthreads == threads


def test_the_pool_wakes_after_a_rest(device, make_program):
    config.configure(threads=4)
    executable = device.load(sums(make_program))
    for _ in range(5):
        check_sums(device, executable, 50)
        time.sleep(0.02)


def test_threads_share_the_chunks(device, make_program):
    helpers = """
    static void who(void *context, long chunk, long worker) {
        long *out = context;
        for (int i = 0; i < 2000; i++) __asm__ volatile("" ::: "memory");
        __atomic_add_fetch(&out[worker], 1, __ATOMIC_RELAXED);
    }
    """
    config.configure(threads=2)
    executable = device.load(make_program("rt->par(who, bufs[0], 64);", 1, helpers=helpers))
    out = device.alloc(i64, (2,))
    out.array[...] = 0
    runs = 0
    while runs < 200 or (runs < 200_000 and not out.array.all()):  # the other core may be busy
        executable.run([out])
        runs += 1
    assert out.array.sum() == runs * 64 and (out.array > 0).all()


def test_a_loop_inside_a_chunk_runs_in_place(device, make_program):
    helpers = """
    typedef struct { const tinyc_rt *rt; long *out; long outer; } frame;
    static void inner(void *context, long chunk, long worker) {
        frame *f = context;
        if (worker == f->outer) __atomic_add_fetch(f->out, 1, __ATOMIC_RELAXED);
    }
    static void outer(void *context, long chunk, long worker) {
        frame f = *(frame *)context;
        f.outer = worker;
        f.rt->par(inner, &f, 5);
    }
    """
    config.configure(threads=3)
    body = "frame f = {rt, bufs[0], 0}; rt->par(outer, &f, 40);"
    executable = device.load(make_program(body, 1, helpers=helpers))
    out = device.alloc(i64, ())
    for _ in range(50):
        out.array[...] = 0
        executable.run([out])
        assert out.array == 200


def test_the_arena_and_the_scratch_grow_to_the_largest_program(make_program):
    device = CpuDevice()
    body = (
        "long *out = bufs[0]; arena[{0} - 1] = 7; out[0] = (long)arena; out[1] = (long)rt->scratch;"
    )
    out = device.alloc(i64, (2,))
    for arena, scratch in [(100, 10), (5 << 20, 1000), (50, 10)]:
        program = make_program(body.format(arena), 1, arena=arena, scratch=scratch)
        device.load(program).run([out])
        assert (out.array % 64 == 0).all()
    assert device.arena_bytes >= 5 << 20
    assert device.runtime.scratch_stride % 64 == 0
    assert device.scratch_bytes >= 1000 * device.runtime.nthreads


def test_times_are_taken_on_demand(device, make_program):
    body = """
    if (rt->times) rt->times[0] = rt->now();
    for (volatile int i = 0; i < 10000; i++);
    if (rt->times) rt->times[1] = rt->now();
    if (rt->times) rt->times[2] = rt->now();
    """
    executable = device.load(make_program(body, 0, kernels=2))
    times = np.zeros(3, np.int64)
    before = time.monotonic_ns()
    executable.run([], times)
    assert before <= times[0] < times[1] <= times[2] <= time.monotonic_ns()
    executable.run([])
    with pytest.raises(ValueError, match=r"i64\[3\]"):
        executable.run([], np.zeros(2, np.int64))


def test_an_index_out_of_range_raises_and_the_next_run_does_not(device, make_program):
    sites = (Site("gather", 10, ("/x/train.py", 5)), Site("scatter_add", 4, ("/x/net.py", 7)))
    body = "long *x = bufs[0]; if (x[0] >= 4) { rt->status[0] = 2; rt->status[1] = x[0]; }"
    executable = device.load(make_program(body, 1, sites=sites))
    x = device.alloc(i64, ())
    x.array[...] = 9
    with pytest.raises(BoundsError, match=r"scatter_add \(at net.py:7\): index 9.*< 4"):
        executable.run([x])
    x.array[...] = 3
    executable.run([x])
    assert issubclass(BoundsError, IndexError)


def test_a_program_that_does_not_compile_names_the_user_lines(device, make_program):
    with pytest.raises(CompileError, match=r"train\.py:3"):
        device.load(make_program("kernel0(;", 1))


def test_a_given_library_is_used(device, make_program, tmp_path):
    with pytest.raises(CompileError, match="can't be loaded"):
        device.load(make_program("", 0), tmp_path / "nothing.so")


# Threads and processes around it ----------------------------------------------------------------


def test_python_threads_take_turns(device, make_program):
    config.configure(threads=2)
    executables = [device.load(sums(make_program)) for _ in range(2)]
    failures = []

    def work(number: int) -> None:
        try:
            for i in range(100):
                check_sums(device, executables[number % 2], 3 + (number * i) % 40)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_the_interpreter_runs_beside_a_program(device, make_program):
    body = "while (!__atomic_load_n((long *)bufs[0], __ATOMIC_ACQUIRE));"
    executable = device.load(make_program(body, 1))
    flag = device.alloc(i64, ())
    flag.array[...] = 0
    thread = threading.Thread(target=executable.run, args=([flag],))
    thread.start()
    flag.array[...] = 1
    thread.join(timeout=10)
    assert not thread.is_alive()


def forked(work) -> int:
    """Run something in a forked child; return its exit status, -14 if it hangs."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(10)
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_forked_child_starts_threads_of_its_own(device, make_program):
    config.configure(threads=3)
    executable = device.load(sums(make_program))

    def work() -> None:
        for chunks in (5, 100, 2):
            check_sums(device, executable, chunks)

    work()
    for _ in range(5):
        assert forked(work) == 0
    assert forked(lambda: work() if forked(work) == 0 else 1 / 0) == 0, "a child of the child"
    work()


def test_a_fork_while_another_thread_runs_a_program(device, make_program):
    config.configure(threads=2)
    body = "rt->par(wait, bufs, 2);"
    helpers = """
    static void wait(void *context, long chunk, long worker) {
        void **bufs = context;
        while (!__atomic_load_n((long *)bufs[0], __ATOMIC_ACQUIRE));
    }
    """
    waiting = device.load(make_program(body, 1, helpers=helpers))
    executable = device.load(sums(make_program))
    flag = device.alloc(i64, ())
    flag.array[...] = 0
    thread = threading.Thread(target=waiting.run, args=([flag],))
    thread.start()
    while not device.lock.locked():
        time.sleep(0.001)
    try:
        assert forked(lambda: check_sums(device, executable, 20)) == 0
    finally:
        flag.array[...] = 1
        thread.join()
    check_sums(device, executable, 20)


def test_pool_threads_take_no_signals(device, make_program):
    config.configure(threads=3)
    check_sums(device, device.load(sums(make_program)), 30)
    if not os.path.exists("/proc/self/task"):
        pytest.skip("reads /proc")
    blocked = 0
    for task in os.listdir("/proc/self/task"):
        # threads of others, such as of the test runner, may end meanwhile
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            with open(f"/proc/self/task/{task}/status") as file:
                mask = next(line for line in file if line.startswith("SigBlk"))
            blocked += bool(int(mask.split()[1], 16) >> (signal.SIGINT - 1) & 1)
    assert blocked >= 2


# Devices and counts -----------------------------------------------------------------------------


def test_devices_by_name():
    assert get_device("cpu") is get_device("cpu") and get_device("numpy").name == "numpy"
    with pytest.raises(DeviceError, match="'tpu'"):
        get_device("tpu")


def test_a_host_device_holds_arrays_and_runs_no_source(make_program):
    host = get_device("numpy")
    buffer = host.alloc(f32, (2, 2))
    host.copy_in(buffer, np.float32(3))
    host.synchronize()
    assert (host.copy_out(buffer) == 3).all() and host.copy_out(buffer) is not buffer.array
    with pytest.raises(TypeError, match="numpy"):
        host.load(make_program("", 0))


def test_cpus_within_a_quota(tmp_path):
    assert cgroup_cpus(str(tmp_path), "") > 1000
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert cgroup_cpus(str(tmp_path), "") > 1000
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert cgroup_cpus(str(tmp_path), "") == 2
    (tmp_path / "cpu.max").unlink()
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("50000\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert cgroup_cpus(str(tmp_path), "") == 1
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    assert cgroup_cpus(str(tmp_path), "") > 1000
    assert 1 <= cpu_count() <= (os.cpu_count() or 1)


def test_threads_follow_the_switch(device, make_program):
    executable = device.load(sums(make_program))
    for threads in (1, 2, 4):
        with config.configure(threads=threads):
            check_sums(device, executable, 10)
            assert device.runtime.nthreads == threads
    check_sums(device, executable, 10)
    assert device.runtime.nthreads == (config.current().threads or cpu_count())
