from __future__ import annotations

import emulated_cuda
import pytest


@pytest.fixture
def cuda() -> str:
    """The name of an emulated CUDA device; tests are left out where nothing can be emulated."""
    if emulated_cuda.problem():
        pytest.skip(emulated_cuda.problem())
    emulated_cuda.install()
    return emulated_cuda.NAME
