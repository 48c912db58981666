"""What every test gets: a cache folder of the test run's own and its switches restored."""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

HAS_TORCH = importlib.util.find_spec("torch") is not None
# Ways to generate code, by the fixtures that give a device for each.
BACKENDS = ("c", "opencl", "blocks", "cuda", pytest.param("gpu", marks=pytest.mark.gpu))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="write what tests/golden compares with anew"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Keep compiled programs in pytest's cache, so that a second run compiles only what changed."""
    if "TINYC_CACHE_DIR" not in os.environ:
        os.environ["TINYC_CACHE_DIR"] = str(config.cache.mkdir("tinyc"))
    if os.environ.get("TINYC_DEVICE") == "cuda:9":
        import emulated_cuda

        emulated_cuda.install()
    try:
        import hypothesis
    except ImportError:
        return
    hypothesis.settings.register_profile("tinyc", deadline=None, derandomize=True, database=None)
    hypothesis.settings.load_profile("tinyc")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "exhaustive" not in config.option.markexpr:
        items[:] = [item for item in items if not item.get_closest_marker("exhaustive")]
    if not has_kernels():
        for item in items:
            if marker := item.get_closest_marker("cpu"):
                item.add_marker(pytest.mark.skip(reason=f"no kernels here: {marker.args[0]}"))
    if not HAS_TORCH:
        for item in items:
            if item.get_closest_marker("oracle"):
                item.add_marker(pytest.mark.skip(reason="oracle: torch is not installed"))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    unseen = [report for report in skipped if "browser:" in str(report.longrepr)]
    if unseen:
        terminalreporter.write_line(
            f"{len(unseen)} browser tests were left out: no Chromium, or playwright, was found "
            "(apt-get install chromium)"
        )
    absent = [report for report in skipped if "torch" in str(report.longrepr)]
    if absent and not HAS_TORCH:
        terminalreporter.write_line(
            f"{len(absent)} oracle tests were left out: torch is not installed "
            "(.venv/bin/python -m pip install -e '.[oracle]' adds them)"
        )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Run tests that are marked `cpu` on the cpu device, whatever the others run on.

    Their fixtures, those of whole modules among them, are made there, too.
    """
    from tinyc import config

    if item.get_closest_marker("cpu") is None:
        return (yield)
    with pytest.MonkeyPatch.context() as patch, config.configure(device="cpu"):
        patch.setenv("TINYC_DEVICE", "cpu")
        return (yield)


def has_kernels() -> bool:
    """Tell whether tests run on a device whose kernels are compiled."""
    from tinyc import config

    return config.current().device not in ("numpy", "interpret")


@functools.cache
def opencl_problem() -> str:
    """Why no OpenCL device can be used, empty where one can."""
    from tinyc.runtime.device import DeviceError, get_device

    try:
        get_device("opencl")
    except DeviceError as error:
        return str(error)
    return ""


@pytest.fixture
def c() -> str:
    """The name of the device that runs generated C; tests are left out where there is none."""
    if not has_kernels():
        pytest.skip("no C compiler")
    return "cpu"


@pytest.fixture
def opencl() -> str:
    """The name of an OpenCL device that is there; tests are left out where there is none."""
    if opencl_problem():
        pytest.skip(opencl_problem())
    return "opencl"


@pytest.fixture
def blocks(opencl: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of an OpenCL device that takes itself for a GPU."""
    from tinyc import config
    from tinyc.ir.program import GPU
    from tinyc.runtime.device import get_device

    device: Any = get_device("opencl:0")
    target = replace(GPU, threads=64, shared=16 << 10, chunks=24)
    monkeypatch.setattr(device.driver, "machine", lambda: replace(
        target, atomics=not config.current().deterministic))
    return device.name


@pytest.fixture
def cuda() -> str:
    """The name of an emulated CUDA device; tests are left out where nothing can be emulated."""
    import emulated_cuda

    if emulated_cuda.problem():
        pytest.skip(emulated_cuda.problem())
    emulated_cuda.install()
    return emulated_cuda.NAME


@functools.cache
def gpu_problem() -> str:
    """Why no NVIDIA GPU can be used, empty where one can."""
    from tinyc.runtime.device import DeviceError, get_device

    try:
        get_device("cuda")
    except DeviceError as error:
        return str(error)
    return ""


@pytest.fixture
def gpu() -> str:
    """The name of a CUDA device that is there; tests are left out where there is none."""
    if gpu_problem():
        pytest.skip(gpu_problem())
    return "cuda"


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """The name of a device for each way to generate code."""
    return request.getfixturevalue(request.param)


@pytest.fixture(autouse=True)
def _restore_switches() -> Iterator[None]:
    from tinyc import config

    before = config.current()
    yield
    if config.current() != before:
        config.configure(**vars(before))
