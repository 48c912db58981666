"""Kernels on a simulated device that reports races and accesses out of bounds.

It can look for uninitialised reads, too, but ends at instructions of integer division, and takes
vectors whose components are assigned one by one for uninitialised.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import simulated

pytestmark = pytest.mark.skipif(
    simulated.library() is None, reason="pip install 'pyopencl[oclgrind]' brings the simulator"
)


def report_of(kind: str, folder: Path) -> str:
    """What is reported of programs of a kind."""
    (folder / "simulator.icd").write_text(f"{simulated.library()}\n")
    log = folder / "log"
    support = Path(simulated.__file__).parent
    env = {
        **os.environ, "OCL_ICD_VENDORS": str(folder), "OCLGRIND_LOG": str(log),
        "TINYC_CACHE_DIR": str(folder / "cache"), "TINYC_DEVICE": "cpu",
        "PYTHONPATH": os.pathsep.join([str(support), *sys.path]),
        "OCLGRIND_DATA_RACES": "1",
    }
    done = subprocess.run([sys.executable, simulated.__file__, kind], env=env, text=True,
                          capture_output=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return log.read_text() if log.exists() else ""


@pytest.mark.parametrize("kind", ["cpu", "blocks"])
def test_threads_keep_to_their_elements(tmp_path, kind):
    assert report_of(kind, tmp_path) == ""


@pytest.mark.parametrize("kind,words", [("outside", "Invalid write"), ("race", "data race")])
def test_what_is_wrong_is_reported(tmp_path, kind, words):
    assert words in report_of(kind, tmp_path)
