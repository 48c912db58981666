from __future__ import annotations

import functools
from dataclasses import replace

import pytest

from tinyc.ir.program import GPU
from tinyc.runtime.device import DeviceError, get_device


@functools.cache
def problem() -> str:
    """Why no OpenCL device can be used, empty where one can."""
    try:
        get_device("opencl")
    except DeviceError as error:
        return str(error)
    return ""


@pytest.fixture
def opencl() -> str:
    """The name of an OpenCL device that is there; tests are left out where there is none."""
    if problem():
        pytest.skip(problem())
    return "opencl"


@pytest.fixture
def blocks(opencl, monkeypatch) -> str:
    """The name of an OpenCL device that takes itself for a GPU."""
    device = get_device("opencl:0")
    target = replace(GPU, threads=64, shared=16 << 10, chunks=24)
    monkeypatch.setattr(device.driver, "machine", lambda: target)
    return device.name
