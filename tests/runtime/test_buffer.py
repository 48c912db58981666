from __future__ import annotations

import gc
import mmap
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from tinyc.diagnostics import DTypeError
from tinyc.ir.dtype import DTYPES, f32, f64, numbers, stored
from tinyc.runtime import buffer as buffer_module
from tinyc.runtime.buffer import ALLOCATOR, HUGE_PAGE, Allocator, Buffer, size_class


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (3, 5), (7, 1, 9)], ids=str)
def test_buffers_are_dense_aligned_and_writable(dtype, shape):
    buffer = Buffer("cpu", dtype, shape)
    assert buffer.array.shape == buffer.shape == shape
    assert buffer.array.dtype == dtype.np and buffer.array.flags.c_contiguous
    assert buffer.ptr % 64 == 0 and buffer.nbytes == buffer.array.nbytes
    buffer.array[...] = stored(np.array(1), dtype)
    assert (numbers(buffer.array, dtype) == 1).all()


def test_uids_differ():
    assert Buffer("cpu", f32, ()).uid != Buffer("cpu", f32, ()).uid


def test_ptr_is_where_the_array_lies():
    buffer = Buffer("cpu", f64, (3,))
    assert buffer.ptr == buffer.array.ctypes.data


def test_memory_lives_as_long_as_its_last_view():
    before = ALLOCATOR.live_bytes
    buffer = Buffer("cpu", f32, (10, 100))
    address, view = buffer.ptr, buffer.array[2:].T[1:, ::2]
    assert ALLOCATOR.live_bytes == before + 4000
    del buffer
    assert ALLOCATOR.live_bytes == before + 4000
    view[...] = 7
    del view
    assert ALLOCATOR.live_bytes == before
    assert Buffer("cpu", f32, (1000,)).ptr == address, "the block is reused"


def test_a_loop_of_allocations_takes_memory_once():
    allocator = Allocator()
    for _ in range(100):
        allocator.array(f32, (1 << 21,))
    assert allocator.system_allocations == 1 and allocator.allocations == 100
    assert allocator.held_bytes == 8 << 20 and allocator.peak_bytes == 8 << 20


def test_large_blocks_are_aligned_to_huge_pages():
    assert Buffer("cpu", f32, (1 << 20,)).ptr % HUGE_PAGE == 0


def mapping_of(address: int) -> str:
    """What the system says of the mapping that holds an address."""
    text = Path("/proc/self/smaps").read_text()
    for entry in re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", text, flags=re.MULTILINE):
        found = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", entry)
        if found and int(found[1], 16) <= address < int(found[2], 16):
            return entry
    raise AssertionError(f"no mapping holds {address:#x}")


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps"), reason="reads /proc")
def test_the_system_is_asked_for_huge_pages_for_private_memory():
    buffer = Buffer("cpu", f32, (1 << 21,))
    entry = mapping_of(buffer.ptr)
    assert entry.split()[1] == "rw-p"
    if os.path.exists("/sys/kernel/mm/transparent_hugepage"):
        assert " hg" in next(line for line in entry.splitlines() if line.startswith("VmFlags"))


@pytest.mark.parametrize("shape", [(10,), (1 << 16,), (1 << 21,)], ids=str)
def test_a_forked_child_has_memory_of_its_own(shape):
    buffer = Buffer("cpu", f32, shape)
    buffer.array[...] = 1
    pid = os.fork()
    if pid == 0:
        buffer.array[...] = 2
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert (buffer.array == 1).all()


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps"), reason="reads /proc")
def test_trimmed_memory_goes_back_to_the_system():
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE

    allocator = Allocator()
    arrays = [allocator.array(f32, (1 << 16,))[0] for _ in range(100)]
    for array in arrays:
        array[...] = 1
    before = resident()
    del arrays, array
    allocator.trim()
    assert allocator.held_bytes == 0 and resident() < before - 20 * (1 << 20)


@pytest.mark.parametrize("nbytes", [0, 1, 64, 65, 255, 257, 1000, 4097, 1 << 20, 5_000_000])
def test_a_size_class_wastes_little(nbytes):
    size = size_class(nbytes)
    assert size >= nbytes and size % 64 == 0
    assert size - nbytes <= max(64, nbytes // 4, HUGE_PAGE if nbytes >= 4 << 20 else 0)


def test_freed_memory_is_kept_within_limits(monkeypatch):
    monkeypatch.setattr(buffer_module, "KEEP_FREE", 1 << 20)
    allocator = Allocator()
    arrays = [allocator.array(f32, (1 << k,)) for k in range(10, 20)]
    del arrays
    assert allocator.live_bytes == 0
    assert allocator.held_bytes <= 1 << 20


def test_from_numpy_copies_any_layout():
    for array in (np.arange(6.0).reshape(2, 3).T, np.arange(6)[::-2], np.arange(4, dtype=">f8")):
        buffer = Buffer.from_numpy(array, "cpu")
        assert buffer.array.flags.c_contiguous and buffer.array.dtype.isnative
        np.testing.assert_array_equal(buffer.array, array)
        assert not np.shares_memory(buffer.array, array)


def test_from_numpy_shares_only_what_programs_may_use():
    mine = Buffer("cpu", f32, (4, 4)).array
    assert Buffer.from_numpy(mine, "cpu", copy=False).array is mine
    read_only = mine.view()
    read_only.flags.writeable = False
    for array in (mine[1:], mine.T, read_only):
        copied = Buffer.from_numpy(array, "cpu", copy=False)
        assert not np.shares_memory(copied.array, mine) and copied.ptr % 64 == 0


def test_from_numpy_refuses_what_has_no_dtype():
    with pytest.raises(DTypeError, match="complex128"):
        Buffer.from_numpy(np.zeros(2, complex), "cpu")


def test_threads_may_allocate_at_once():
    def work(seed: int) -> None:
        for i in range(300):
            array, _ = allocator.array(f32, (1 + (i * seed) % 50,))
            array[...] = seed
            if not (array == seed).all():
                wrong.append(seed)

    allocator, wrong = Allocator(), []
    threads = [threading.Thread(target=work, args=(k,)) for k in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gc.collect()
    assert not wrong and allocator.live_bytes == 0 and allocator.allocations == 2400


def test_without_memory_the_error_names_what_was_asked_for():
    script = """
import resource
from tinyc.ir.dtype import f32
from tinyc.runtime.buffer import Buffer
limit = 1 << 31
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for shape in [(1 << 14, 1 << 18)] * 3:
    try:
        Buffer("cpu", f32, shape)
    except MemoryError as error:
        print(error)
assert Buffer("cpu", f32, (100,)).array.shape == (100,)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    line = done.stdout.splitlines()[2]
    assert "f32[16384,262144]" in line and "17,179,869,184 bytes" in line
