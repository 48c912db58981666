"""The libraries for CUDA, and our own calls of the driver's, on a libcuda.so.1 that is emulated.

So what PyCUDA, cuda-bindings and graphs are given is what they take. In processes of their own.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import emulated_cuda
import numpy as np
import pytest
from emulated_cuda import emulated_library

SUPPORT = Path(emulated_cuda.__file__).parent
STEPS = """
import json, sys
import numpy as np
import emulated_cuda, tinyc
from tinyc import Tensor, compiler
from tinyc.runtime import cuda
from tinyc.runtime.launches import LaunchDevice

def steps(device):
    with tinyc.device(device):
        w = Tensor(np.arange(12, dtype=np.float32).reshape(4, 3) / 10).requires_grad_()
        optimizer = tinyc.optim.SGD([w], lr=0.1)

        @tinyc.jit
        def step(x):
            optimizer.zero_grad()
            loss = tinyc.boundary((x @ w).tanh()).mean()
            loss.backward()
            optimizer.step()
            return loss

        x = np.random.default_rng(0).standard_normal((6, 5, 4)).astype(np.float32)
        return [step(Tensor(batch)).item() for batch in x]

if sys.argv[1] == "pycuda":
    import pycuda.driver
    calls = cuda.PyCuda("cuda", 0)
else:
    sys.modules["pycuda"] = None
    calls = cuda.open_calls("cuda")
device = LaunchDevice("cuda", emulated_cuda.EmulatedDriver("cuda", calls))
cuda.open_device = lambda name: device
there = steps("cuda")
with compiler.observe() as runs, tinyc.device("cuda"):
    tinyc.rand(64).softmax(0).realize()
run = runs[-1]
times = np.zeros(len(run.executable.program.kernels) + 1, np.int64)
fresh = device.alloc(tinyc.f32, (64,))
run.executable.native.run([*run.buffers, fresh], times)
try:
    device.alloc(tinyc.f32, (1 << 28,))
    full = ""
except MemoryError as error:
    full = str(error)
try:
    device.driver.load(b"nonsense")
    refused = ""
except Exception as error:
    refused = str(error)
print(json.dumps([type(calls).__name__, calls.card.arch, calls.card.shared, there, steps("cpu"),
                  bool((np.diff(times) > 0).all()), full, refused]))
"""


def run_steps(which: str, folder: Path, **environment: str) -> list:
    paths = [*sys.path, str(SUPPORT)]
    known = {**os.environ, "LD_LIBRARY_PATH": str(folder), "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run([sys.executable, "-c", STEPS, which], env={**known, **environment},
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [*json.loads(done.stdout), done.stderr]


def needed_by_pycuda() -> tuple[str, ...]:
    """The functions that PyCUDA is linked to, whether it calls them or not."""
    (binary,) = Path(importlib.util.find_spec("pycuda").origin).parent.glob("_driver.*.so")
    text = subprocess.run(["nm", "-D", "--undefined-only", binary], capture_output=True, text=True)
    return tuple(re.findall(r"\b(cu[A-Z]\w*)", text.stdout))


@pytest.mark.parametrize("graphs", [True, False], ids=["graphs", "launches"])
@pytest.mark.parametrize("which", ["pycuda", "bindings"])
def test_training_steps_profile_and_errors(which, graphs, tmp_path):
    package = "pycuda" if which == "pycuda" else "cuda"
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    emulated_library(tmp_path, needed_by_pycuda() if which == "pycuda" else ())
    without = {} if graphs else {"TC_WITHOUT_GRAPHS": "1"}
    name, arch, shared, there, here, timed, full, refused, said = run_steps(
        which, tmp_path, **without)
    assert (name, arch, shared) == ({"pycuda": "PyCuda"}.get(which, "Bindings"), "sm_90", 227 << 10)
    np.testing.assert_allclose(there, here, rtol=1e-5)
    assert timed
    assert "1,073,741,824 bytes asked for" in full and "out of memory" in full
    assert "image is invalid" in refused
    assert ("one by one" in said) != graphs
