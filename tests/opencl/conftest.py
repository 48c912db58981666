from __future__ import annotations

import functools

import pytest

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
