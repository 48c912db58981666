"""CUDA kernels under the address sanitizer: none leaves the memory that it is given.

Threads run from the last one on here, so that what lacks a barrier computes something else, too.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import emulated_cuda
import pytest

RUN = """
import emulated_cuda
from tinyc.runtime import device_memory
emulated_cuda.EmulatedDriver.flags = (*emulated_cuda.FLAGS, *emulated_cuda.SANITIZE)
# Each array ends where its memory does.
emulated_cuda.Emulated.alignment = 16
device_memory.rounded = lambda nbytes: max(nbytes, 1)
emulated_cuda.install()
"""
GRAPHS = RUN + """
import sys
sys.path.insert(0, sys.argv[1])
from operations import graphs
from running import Compiled
from random_graphs import Graph, grow, outputs_of
import numpy as np
from random_graphs import assert_same, tolerance
from tinyc.ir.evaluate import evaluate
made, memory = graphs()
found = Compiled(tuple(made.values()), device="cuda:9")(memory)
for got, want in zip(found, evaluate(list(made.values()), memory), strict=True):
    np.testing.assert_allclose(got, want, rtol=1e-5)
for seed in range(6):
    r = np.random.default_rng(seed)
    g = Graph(lambda n: int(r.integers(0, n)))
    grow(g, 8 + seed)
    outputs = outputs_of(g, 2)
    want = evaluate(outputs, g.memory)
    near = tolerance(g, outputs, want)
    found = Compiled(outputs, split=seed % 2 == 1, device="cuda:9")(g.memory)
    for mine, theirs in zip(found, want, strict=True):
        assert_same(mine, theirs, near, f"graph {seed}")
print("all ran")
"""
OUTSIDE = RUN + """
import numpy as np
device = emulated_cuda.open_device()
source = '''extern "C" __global__ void __launch_bounds__(32)
k(float *x) {
  x[threadIdx.x] = 1;
}
'''
module = device.driver.load(emulated_cuda.compiled(source, emulated_cuda.EmulatedDriver.flags))
x = device.upload(np.zeros(31, np.float32))
with device.driver.using("test") as calls:
    calls.launch(calls.function(module, "k", 0), 1, 32, 0, emulated_cuda.Arguments([x.ptr]))
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    """Run in a Python with the sanitizer in it; what Python itself leaks is not looked at."""
    if emulated_cuda.problem():
        pytest.skip(emulated_cuda.problem())
    line = [emulated_cuda.compiler(), "-print-file-name=libasan.so"]
    found = subprocess.run(line, capture_output=True, text=True, check=True).stdout.strip()
    if not os.path.isabs(found):
        pytest.skip("there is no address sanitizer")
    support = str(Path(emulated_cuda.__file__).parent)
    environment = {**os.environ, "LD_PRELOAD": found, "ASAN_OPTIONS": "detect_leaks=0",
                   "TC_EMULATE_BACKWARDS": "1",
                   "PYTHONPATH": os.pathsep.join([*sys.path, support])}
    return subprocess.run([sys.executable, "-c", code, support], env=environment,
                          capture_output=True, text=True)


def test_every_operation_and_random_graphs_stay_inside():
    done = run(GRAPHS)
    assert done.stdout.strip() == "all ran", done.stderr[-4000:]


def test_what_leaves_its_memory_is_found():
    done = run(OUTSIDE)
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr and "124-byte region" in done.stderr
