"""What every test gets: a cache folder of the test run's own and its switches restored."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from typing import Any

import pytest

HAS_TORCH = importlib.util.find_spec("torch") is not None


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="write what tests/golden compares with anew"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Keep compiled programs in pytest's cache, so that a second run compiles only what changed."""
    if "TINYC_CACHE_DIR" not in os.environ:
        os.environ["TINYC_CACHE_DIR"] = str(config.cache.mkdir("tinyc"))
    try:
        import hypothesis
    except ImportError:
        return
    hypothesis.settings.register_profile("tinyc", deadline=None, derandomize=True, database=None)
    hypothesis.settings.load_profile("tinyc")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "exhaustive" not in config.option.markexpr:
        items[:] = [item for item in items if not item.get_closest_marker("exhaustive")]
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


@pytest.fixture(autouse=True)
def _restore_switches() -> Iterator[None]:
    from tinyc import config

    before = config.current()
    yield
    if config.current() != before:
        config.configure(**vars(before))
