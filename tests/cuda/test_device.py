"""What tensors and captured functions do on a CUDA device, and what it says when it can't.

All of the device runs, on the emulator; what can't be made to fail there is made to by hand.
"""

from __future__ import annotations

import gc
import sys
from dataclasses import replace

import emulated_cuda
import numpy as np
import pytest
from emulated_cuda import CARD, Emulated, EmulatedDriver

import tinyc
from tinyc import Tensor, compiler, doctor, nn
from tinyc.diagnostics import BoundsError, CompileError, TinycWarning
from tinyc.ir.dtype import f32
from tinyc.ir.program import Launch, Program
from tinyc.runtime import cuda as runtime
from tinyc.runtime import cuda_compiler
from tinyc.runtime.cache import disk_cache
from tinyc.runtime.cuda_calls import DriverError
from tinyc.runtime.device import DeviceError, get_device
from tinyc.runtime.device_memory import LARGE_PIECE, SMALL_PIECE
from tinyc.runtime.launches import BINARY, LaunchDevice


@pytest.fixture
def device(cuda) -> LaunchDevice:
    """A device of the test's own."""
    return emulated_cuda.open_device()


def calls_of(device: LaunchDevice) -> Emulated:
    return device.driver.calls


def program_of(compute, device: str) -> Program:
    """The last program that runs where the function is given 16 numbers."""
    with tinyc.device(device):
        x = tinyc.rand(16).realize()
        with compiler.observe() as runs:
            compute(x).realize()
    return runs[-1].executable.program


def two_kernels(x: Tensor) -> Tensor:
    return tinyc.boundary((x * 3).sum()) + x


# -- values ----------------------------------------------------------------------------------------


def test_large_arrays_go_in_pieces_through_pinned_memory(device):
    array = np.random.default_rng(0).integers(0, 256, 4 * LARGE_PIECE + 77, np.uint8)
    buffer = device.upload(array)
    np.testing.assert_array_equal(device.copy_out(buffer), array)
    for n in (SMALL_PIECE, SMALL_PIECE + 1):
        np.testing.assert_array_equal(device.copy_out(device.upload(array[:n])), array[:n])
    pieces = calls_of(device).counts["pinned"]
    for n in range(1, 60):
        np.testing.assert_array_equal(device.copy_out(device.upload(array[:n])), array[:n])
    assert calls_of(device).counts["pinned"] <= pieces + 16


def step_on(device: str, started=lambda: None) -> tuple:
    """(losses of captured steps, the gradient after them); `started` is called after two."""
    with tinyc.device(device):
        tinyc.manual_seed(0)
        layer = nn.Linear(5, 3)
        optimizer = tinyc.optim.Adam(layer.parameters(), lr=0.1)

        @tinyc.jit
        def step(x):
            loss = (tinyc.boundary(layer(x)) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss

        r = np.random.default_rng(0)
        losses = []
        for number in range(6):
            losses.append(step(Tensor(r.standard_normal((4, 5)).astype(np.float32))))
            if number == 1:
                started()
        return losses, layer.weight.grad


def test_a_captured_step_is_one_graph_whose_arguments_follow_the_data(cuda):
    calls = calls_of(get_device(cuda))
    losses, grad = step_on(cuda, calls.counts.clear)
    counts = dict(calls.counts)
    wanted, wanted_grad = step_on("cpu")
    np.testing.assert_allclose([x.item() for x in losses], [x.item() for x in wanted], rtol=1e-5)
    np.testing.assert_allclose(grad.numpy(), wanted_grad.numpy(), rtol=1e-4, atol=1e-6)
    assert counts["launch graph"] == 4 and counts["change"] >= 4
    # no kernel is started by itself, and nothing waited for, since nobody looked
    assert not counts.keys() & {"launch", "begin", "synchronize", "copy_out"}


def test_a_driver_without_graphs_starts_kernels_one_by_one(device):
    calls = calls_of(device)
    calls.failing["begin"] = DriverError("cuStreamBeginCapture: operation not supported")
    program = program_of(two_kernels, emulated_cuda.NAME)
    assert len(program.launches) > 1
    executable = device.load(program)
    x, y = (device.upload(np.ones(16, np.float32)) for _ in range(2))
    executable.run([x, y])
    with pytest.warns(TinycWarning, match="starts kernels one by one: .*not supported"):
        executable.run([x, y])
    executable.run([x, y])
    np.testing.assert_array_equal(device.copy_out(y), np.full(16, 49, np.float32))
    assert "launch graph" not in calls.counts


def looked_up(device: str) -> list:
    """What is said and computed when an index of the second of three calls is out of range."""
    with tinyc.device(device):
        table = Tensor(np.arange(6, dtype=np.float32).reshape(3, 2))
        count = Tensor(np.zeros(1, np.float32))

        @tinyc.jit
        def rows(index):
            found = tinyc.boundary(nn.functional.embedding(index, table) @ table.T)
            count.assign(count + found.sum())
            return found

        seen = [rows(Tensor([0, 2])).tolist(), count.tolist()]
        with pytest.raises(BoundsError, match="index 3 is out of range; 0 <= index < 3") as error:
            rows(Tensor([0, 3]))
        return [*seen, str(error.value), count.tolist(), rows(Tensor([0, 1])).tolist()]


def test_a_bad_index_is_the_error_that_it_is_on_the_cpu(cuda):
    assert looked_up(cuda) == looked_up("cpu")


def test_the_times_of_kernels_come_from_events(device):
    program = program_of(two_kernels, emulated_cuda.NAME)
    x, y = (device.upload(np.ones(16, np.float32)) for _ in range(2))
    times = np.zeros(len(program.kernels) + 1, np.int64)
    device.load(program).run([x, y], times)
    assert (np.diff(times) >= 0).all() and times[0] > 0
    assert calls_of(device).counts["elapsed"] == len(program.kernels)


# -- memory ----------------------------------------------------------------------------------------


def test_memory_is_used_again_and_given_back_when_it_runs_out():
    device = emulated_cuda.open_device(calls=Emulated(replace(CARD, memory=1 << 20)))
    calls = calls_of(device)
    device.alloc(f32, (1000,))
    count = calls.counts["allocate"]
    device.alloc(f32, (1000,))  # the first one has died
    assert calls.counts["allocate"] == count
    held = [device.alloc(f32, (50_000,)) for _ in range(4)]
    del held[0]
    big = device.alloc(f32, (70_000,))  # only fits once what nobody has is given back
    assert calls.counts["free"] >= 1
    with pytest.raises(MemoryError, match=r"for f32\[300,1000\]: 1,200,000 bytes asked for, \d"):
        device.alloc(f32, (300, 1000))
    assert device.driver.held_bytes() == 3 * 200_000 + big.nbytes + device.status.nbytes
    del held, big
    gc.collect()
    assert device.alloc(f32, (60_000,)).nbytes == 240_000


def test_a_program_without_memory_for_its_arena_leaks_nothing(cuda):
    program = program_of(two_kernels, cuda)
    large = replace(program, arena_size=1 << 21)
    device = emulated_cuda.open_device(calls=Emulated(replace(CARD, memory=1 << 20)))
    x, y = (device.upload(np.ones(16, np.float32)) for _ in range(2))
    before = device.driver.held_bytes()
    executable = device.load(large)
    with pytest.raises(MemoryError, match="for a program's intermediate values: 2,097,152 bytes"):
        executable.run([x, y])
    assert device.driver.held_bytes() == before and not device.lock.locked()
    device.load(program).run([x, y])
    np.testing.assert_array_equal(device.copy_out(y), np.full(16, 49, np.float32))


# -- what is said where it does not work -----------------------------------------------------------


def test_without_libraries_or_a_driver_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    monkeypatch.setitem(sys.modules, "pycuda", None)
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(DeviceError, match=r"no driver can be used .*pip install 'tinyc\[cuda\]'"):
        runtime.open_calls("cuda")
    (finding,) = doctor.cuda_devices()
    assert finding.state == "absent" and "no driver" in finding.text
    assert "tinyc[cuda]" in finding.fix


class FakeCard:
    """What PyCUDA knows a GPU by."""

    cards: tuple[str, ...] = ()

    def __init__(self, number: int) -> None:
        self.number = number

    def name(self) -> str:
        return self.cards[self.number]

    @classmethod
    def count(cls) -> int:
        return len(cls.cards)


class FakePyCuda:
    """PyCUDA with a driver that has these cards, or does not start."""

    class Error(Exception):
        pass

    class device_attribute:
        MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, MULTIPROCESSOR_COUNT = "shared", "processors"

    def __init__(self, *cards: str, starts: bool = True) -> None:
        self.starts = starts
        self.Device = type("Device", (FakeCard,), {"cards": cards})

    def init(self) -> None:
        if not self.starts:
            raise self.Error("cuInit failed: no CUDA-capable device is detected")


@pytest.mark.parametrize("driver, name, message", [
    (FakePyCuda(starts=False), "cuda", "the CUDA driver does not start: cuInit failed: no"),
    (FakePyCuda(), "cuda", "the CUDA driver finds no GPU"),
    (FakePyCuda("Card A", "Card B"), "cuda:2", "no such device; cuda:0 is Card A, cuda:1 is"),
])
def test_without_such_a_device_the_message_says_which_there_are(monkeypatch, driver, name, message):
    monkeypatch.setattr(runtime.ctypes, "CDLL", lambda name: None)
    package = type(sys)("pycuda")
    package.driver = driver
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", driver)
    with pytest.raises(DeviceError, match=message):
        runtime.open_calls(name)


def test_more_shared_memory_than_there_is_is_refused_before_anything_runs(device):
    program = program_of(two_kernels, emulated_cuda.NAME)
    launch = replace(program.launches[0], shared=300_000)
    with pytest.raises(CompileError, match=r"needs 300,000 bytes of shared memory .* 232,448"):
        device.load(replace(program, launches=(launch, *program.launches[1:])))
    assert isinstance(launch, Launch)


def test_a_program_that_the_driver_refuses_is_an_error_and_leaves_the_cache(device, tmp_path):
    program = program_of(two_kernels, emulated_cuda.NAME)
    with tinyc.configure(cache_dir=str(tmp_path)):
        device.load(program)
        stats = disk_cache().stats
        before = stats.compiles
        device.load(program)
        assert stats.compiles == before
        (entry,) = tmp_path.rglob(BINARY)
        entry.write_bytes(b"nonsense")
        with pytest.warns(TinycWarning, match="damaged"):
            device.load(program)
        assert stats.compiles == before + 1
        calls_of(device).failing["load"] = DriverError("cuModuleLoadData: no kernel image")
        with pytest.raises(CompileError, match=r"refuses a program:\ncuModuleLoadData: no kernel"):
            device.load(program)
        assert not list(tmp_path.rglob(BINARY))


def test_a_program_that_the_compiler_refuses_shows_the_line(cuda):
    if not emulated_cuda.nvidia_version():
        pytest.skip("there is no compiler for CUDA")
    source = 'extern "C" __global__ void k(float *x) {\n  x[0] = nothing;\n}\n'
    with pytest.raises(CompileError, match=r"(?s)\(2\): error: .*line 2: x\[0\] = nothing;"):
        cuda_compiler.compiled(source, "sm_80")


def test_an_error_that_passes_leaves_a_device_that_works(device):
    program = program_of(two_kernels, emulated_cuda.NAME)
    executable = device.load(program)
    x, y = (device.upload(np.ones(16, np.float32)) for _ in range(2))
    calls_of(device).failing["launch"] = DriverError("cuLaunchKernel: invalid argument")
    with pytest.raises(CompileError, match="fails to run: cuLaunchKernel: invalid argument"):
        executable.run([x, y])
    calls_of(device).failing.clear()
    assert not device.lock.locked()
    executable.run([x, y])
    np.testing.assert_array_equal(device.copy_out(y), np.full(16, 49, np.float32))


def test_a_device_that_is_lost_says_so_from_then_on(device):
    program = program_of(two_kernels, emulated_cuda.NAME)
    executable = device.load(program)
    x, y = (device.upload(np.ones(16, np.float32)) for _ in range(2))
    executable.run([x, y])
    broken = DriverError("an illegal memory access was encountered")
    calls_of(device).failing.update(dict.fromkeys(("copy_out", "synchronize"), broken))
    lost = "lost: .*illegal memory access.*the process must be started again"
    with pytest.raises(DeviceError, match=lost):
        device.copy_out(y)
    calls_of(device).failing.clear()
    for use in (lambda: executable.run([x, y]), device.synchronize, lambda: device.copy_out(y),
                lambda: device.alloc(f32, (1,)), lambda: device.load(program)):
        with pytest.raises(DeviceError, match=lost):
            use()
    assert not device.lock.locked() and calls_of(device).entered == 0


def test_a_divergent_barrier_is_reported(device):
    source = ('extern "C" __global__ void __launch_bounds__(64)\nk(long n) {\n'
              "  if (threadIdx.x < n) __syncthreads();\n  else { __syncwarp(); __syncthreads(); }\n"
              "  if (threadIdx.x % 2 == 0) __syncthreads();\n  else __syncwarp();\n}\n")
    driver = device.driver
    assert isinstance(driver, EmulatedDriver)
    module = driver.load(emulated_cuda.compiled(source))
    with driver.using("test") as calls:
        function = calls.function(module, "k", 0)
        with pytest.raises(DriverError, match=r"k: divergent barrier: \d+ of \d+ threads wait"):
            calls.launch(function, 1, 64, 0, runtime.Arguments([64]))
