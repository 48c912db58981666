"""What tensors and captured functions do on an OpenCL device, and what it says when it can't."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

import numpy as np
import pytest

import tinyc
from tinyc import Tensor, compiler, diagnostics, nn
from tinyc.diagnostics import BoundsError, CompileError
from tinyc.runtime import opencl as runtime
from tinyc.runtime.cache import disk_cache
from tinyc.runtime.device import DeviceError, get_device
from tinyc.runtime.launches import BINARY


def test_moving_keeps_values_and_the_wish_for_a_gradient(opencl):
    x = Tensor([1.0, 2.0]).requires_grad_()
    there = x.to(opencl)
    assert there.device == opencl and there.requires_grad
    (there * there).sum().backward()
    np.testing.assert_array_equal(there.grad.numpy(), [2.0, 4.0])


def test_a_device_is_chosen_for_a_block(opencl):
    with tinyc.device("numpy"):
        with tinyc.device(opencl):
            x = tinyc.rand(3)
            assert x.device == opencl
            x.realize()
            tinyc.synchronize()
        assert tinyc.rand(3).device == "numpy"


def test_random_numbers_are_those_of_every_device(opencl):
    tinyc.manual_seed(5)
    here = [tinyc.randn(4, 3).numpy() for _ in range(2)]
    with tinyc.device(opencl):
        tinyc.manual_seed(5)
        there = [tinyc.randn(4, 3).numpy() for _ in range(2)]
    np.testing.assert_allclose(there, here, rtol=1e-5)


def test_a_memory_that_numpy_sees_is_a_copy(opencl):
    x = Tensor([1.0, 2.0], device=opencl)
    values = x.numpy()
    values[0] = 7
    assert x.numpy().tolist() == [1.0, 2.0]
    with pytest.raises(ValueError, match="read-only"):
        x._slot.buffer.array[0] = 7


def test_parts_of_a_data_set_share_a_program(opencl):
    data = Tensor(np.arange(40, dtype=np.float32).reshape(10, 4), device=opencl)
    (data[0:2] * 2).sum().item()
    before = compiler.compilations
    sums = [(data[i : i + 2] * 2).sum().item() for i in range(0, 10, 2)]
    assert compiler.compilations == before
    assert sums == [2 * (sum(range(4 * i, 4 * i + 8))) for i in range(0, 10, 2)]


def step_on(device: str) -> tuple:
    """(losses of three captured steps, the gradient after them)."""
    with tinyc.device(device):
        tinyc.manual_seed(0)
        layer = nn.Linear(5, 3)
        optimizer = tinyc.optim.Adam(layer.parameters(), lr=0.1)

        @tinyc.jit
        def step(x):
            loss = (layer(x) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss

        r = np.random.default_rng(0)
        x = [Tensor(r.standard_normal((4, 5)).astype(np.float32)) for _ in range(3)]
        return [step(batch).item() for batch in x], layer.weight.grad.numpy()


def test_a_captured_step_leaves_losses_state_and_gradients(opencl):
    losses, grad = step_on(opencl)
    wanted, wanted_grad = step_on("cpu")
    np.testing.assert_allclose(losses, wanted, rtol=1e-5)
    np.testing.assert_allclose(grad, wanted_grad, rtol=1e-4, atol=1e-6)


def looked_up(device: str) -> list:
    """What is said and computed when an index of the second of three calls is out of range."""
    with tinyc.device(device):
        table = Tensor(np.arange(15, dtype=np.float32).reshape(3, 5))
        count = Tensor(np.zeros(1, np.float32))

        @tinyc.jit
        def rows(index):
            found = nn.functional.embedding(index, table) @ table.T
            count.assign(count + found.sum())
            return found

        seen = [rows(Tensor([0, 2])).tolist()]
        with pytest.raises(BoundsError, match="index 3 is out of range; 0 <= index < 3") as error:
            rows(Tensor([0, 3]))
        return [*seen, str(error.value), rows(Tensor([1])).tolist()]


def test_a_bad_index_is_the_error_that_it_is_on_the_cpu(opencl):
    assert looked_up(opencl) == looked_up("cpu")


def test_the_times_of_kernels_come_from_the_device(opencl):
    with tinyc.device(opencl):
        x = tinyc.rand(64, 64).realize()
        with compiler.observe() as runs:
            (x @ x).softmax(-1).realize()
    (run,) = runs
    times = np.zeros(len(run.executable.program.kernels) + 1, np.int64)
    run.executable.run(run.buffers, times)
    assert (np.diff(times) > 0).all()


def test_a_binary_is_compiled_once(opencl, tmp_path, monkeypatch):
    monkeypatch.setattr(diagnostics, "_warned", set())
    device, program = get_device(opencl), program_of_a_sum(opencl)
    with tinyc.configure(cache_dir=str(tmp_path)):
        stats = disk_cache().stats
        device.load(program)
        device.load(program)
        assert (stats.compiles, stats.hits) == (1, 1)
        (entry,) = tmp_path.rglob(BINARY)
        entry.write_bytes(b"nonsense")
        with pytest.warns(UserWarning, match="damaged"):
            device.load(program)
        assert stats.compiles == 2


def program_of_a_sum(device: str):
    with tinyc.device(device):
        x = tinyc.rand(16).realize()
        with compiler.observe() as runs:
            (x * 3 + 1).sum().realize()
    return runs[0].executable.program


# -- what is said where it does not work ---------------------------------------------------------


def test_without_pyopencl_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyopencl", None)
    with pytest.raises(DeviceError, match=r"no pyopencl here .*; pip install 'tinyc\[opencl\]'"):
        runtime.open_device("opencl")


class FakeError(Exception):
    """Stands for pyopencl's errors."""


class FakeDriver:
    """A pyopencl whose platforms are given."""

    Error = FakeError

    class device_type:
        GPU = 4

    def __init__(self, *platforms) -> None:
        self.platforms = platforms

    def get_platforms(self):
        if not self.platforms:
            raise FakeError("PLATFORM_NOT_FOUND_KHR")
        return list(self.platforms)


class FakePlatform:
    """A driver of a version with devices, each (type, name)."""

    def __init__(self, name: str, version: str, *devices: tuple[int, str]) -> None:
        self.name, self.version = name, version
        self.devices = [FakeDevice(self, kind, called) for kind, called in devices]

    def get_devices(self):
        if not self.devices:
            raise FakeError("DEVICE_NOT_FOUND")
        return self.devices


class FakeDevice:
    """What is asked of a device to put it in order."""

    vendor_id = 1

    def __init__(self, platform: FakePlatform, kind: int, name: str) -> None:
        self.platform, self.type, self.name = platform, kind, name


def test_without_a_driver_the_message_says_what_to_install(monkeypatch):
    for driver in (FakeDriver(), FakeDriver(FakePlatform("empty", "1"))):
        monkeypatch.setitem(sys.modules, "pyopencl", driver)
        with pytest.raises(DeviceError, match=r"pip install 'tinyc\[opencl\]'"):
            runtime.devices()


def test_devices_have_numbers_and_newer_drivers_count(monkeypatch):
    old = FakePlatform("PoCL", "OpenCL 3.0 PoCL 3.0", (2, "pthread-EPYC"))
    new = FakePlatform("PoCL", "OpenCL 3.0 PoCL 3.1", (2, "pthread-avx512-EPYC"))
    card = FakePlatform("Vendor", "OpenCL 3.0", (4, "Card A"), (4, "Card B"))
    simulator = FakePlatform("Oclgrind", "OpenCL 1.2", (15, "Simulator"))
    monkeypatch.setitem(sys.modules, "pyopencl", FakeDriver(simulator, new, old, card))
    names = ["Card A", "Card B", "pthread-avx512-EPYC", "Simulator"]
    assert [d.name for d in runtime.devices()] == names


def fake_driver(*refusing: str) -> type:
    """A class of drivers that can't compile for devices of some names."""

    class Opened:
        def __init__(self, device: FakeDevice) -> None:
            if device.name in refusing:
                raise FakeError("clBuildProgram failed\nerror: unknown target CPU\n\n(options: -w)")
            self.device = device

    return Opened


def test_a_device_that_its_driver_can_not_compile_for_is_passed_over(monkeypatch):
    cards = FakePlatform("Vendor", "OpenCL 3.0", (4, "Card A"), (4, "Card B"), (4, "Card C"))
    monkeypatch.setitem(sys.modules, "pyopencl", FakeDriver(cards))
    monkeypatch.setattr(runtime, "OpenClDriver", fake_driver("Card A"))
    monkeypatch.setattr(runtime, "LaunchDevice", lambda name, driver: (name, driver.device.name))
    assert runtime.open_device("opencl") == ("opencl", "Card B")
    assert runtime.open_device("opencl:1") == ("opencl:1", "Card C")
    wanted = "opencl:7: there is no such device; opencl:0 is Card B, opencl:1 is Card C"
    with pytest.raises(DeviceError, match=wanted):
        runtime.open_device("opencl:7")


def test_where_every_driver_refuses_the_message_says_why_and_what_to_install(monkeypatch):
    platform = FakePlatform("PoCL", "OpenCL 3.0 PoCL 3.0", (2, "pthread-EPYC"))
    monkeypatch.setitem(sys.modules, "pyopencl", FakeDriver(platform))
    monkeypatch.setattr(runtime, "OpenClDriver", fake_driver("pthread-EPYC"))
    with pytest.raises(DeviceError, match=r"PoCL 3.0 can't compile for pthread-EPYC: unknown "
                       r"target CPU; another driver may: pip install 'tinyc\[opencl\]'"):
        runtime.open_device("opencl")


def test_a_driver_is_tried_when_it_is_opened(opencl, monkeypatch):
    monkeypatch.setattr(runtime, "PROBE", "this is no kernel")
    with pytest.raises(DeviceError, match="can't compile for"):
        runtime.open_device("opencl")


def test_intels_driver_is_found_where_pip_put_it(tmp_path, monkeypatch):
    library, vendors = tmp_path / "lib" / runtime.INTEL, tmp_path / "vendors"
    vendors.mkdir()
    (vendors / "other.icd").write_text("libother.so\n")

    class Installed:
        name = runtime.INTEL

        def locate(self):
            return tmp_path / "lib" / "python" / ".." / self.name

    monkeypatch.delenv("OCL_ICD_VENDORS", raising=False)
    monkeypatch.setattr(runtime, "REGISTERED", vendors)
    monkeypatch.setattr("importlib.metadata.files", lambda package: [Installed()])
    with runtime._intel_registered():
        folder = Path(os.environ["OCL_ICD_VENDORS"])
        told = {entry.name: entry.read_text() for entry in folder.iterdir()}
    assert told == {"other.icd": "libother.so\n", "intel.icd": f"{library}\n"}
    assert "OCL_ICD_VENDORS" not in os.environ and not folder.exists()


def test_memory_that_is_not_there_is_a_memory_error(opencl, monkeypatch):
    device = get_device(opencl)

    class Full:
        active_bytes = 123

        def allocate(self, nbytes):
            raise device.driver.cl.MemoryError("MEM_OBJECT_ALLOCATION_FAILURE")

    monkeypatch.setattr(device.driver, "memory", Full())
    with pytest.raises(MemoryError, match=r"for f32\[1000,1000\]: 4,000,000 bytes asked for, 123"):
        device.alloc(tinyc.f32, (1000, 1000))


def test_a_program_keeps_no_memory_of_its_last_run(opencl):
    driver = get_device(opencl).driver
    with tinyc.device(opencl):
        (tinyc.ones(1000) * 3).realize()
        gc.collect()
        before = driver.held_bytes()
        x = tinyc.ones(1000).realize()
        y = (x * 3).realize()
        assert driver.held_bytes() == before + 8000
        del x, y
        gc.collect()
    assert driver.held_bytes() == before


def test_a_program_that_the_driver_refuses_shows_its_log(opencl):
    from dataclasses import replace

    program = replace(program_of_a_sum(opencl), source="__kernel void k() { wrong; }")
    with pytest.raises(CompileError, match="refuses a program"):
        get_device(opencl).load(program)


def test_a_device_that_is_lost_is_an_error_and_releases_the_lock(opencl, monkeypatch):
    device = get_device(opencl)
    with tinyc.device(opencl):
        x = tinyc.rand(16).realize()
        with compiler.observe() as runs:
            x.exp().realize()
    run = runs[0]

    def lost():
        raise device.driver.cl.RuntimeError("clEnqueueNDRangeKernel failed: OUT_OF_RESOURCES")

    monkeypatch.setattr(run.executable.native.steps, "start", lost)
    with pytest.raises(CompileError, match="fails to run: .*OUT_OF_RESOURCES"):
        run.executable.run(run.buffers)
    monkeypatch.undo()
    assert not device.lock.locked()
    run.executable.run(run.buffers)
