"""The module of replay.c: where it comes from, and what is said where there can be none."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tinyc import doctor
from tinyc.runtime import accelerator
from tinyc.runtime.cache import DiskCache


@pytest.fixture(autouse=True)
def _unknown() -> Iterator[None]:
    """Let the module be looked for anew, before and after."""
    accelerator._load.cache_clear()
    yield
    accelerator._load.cache_clear()


def test_it_is_a_module_from_the_cache() -> None:
    if accelerator.problem():
        pytest.skip(accelerator.problem())
    module = accelerator.load()
    assert module is not None and module.Plan.__name__ == "Plan"
    accelerator._load.cache_clear()
    path = module.__file__
    assert accelerator.load().__file__ == path  # type: ignore[union-attr]


def test_without_headers_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator.sysconfig, "get_path", lambda name: str(tmp_path))
    assert accelerator.load() is None
    assert accelerator.problem() == f"there is no Python.h in {tmp_path}"
    found = doctor.replay()
    assert found.state == "absent" and "by Python, since there is no Python.h" in found.text
    assert "python3-dev" in found.fix


def test_headers_that_do_not_compile_are_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: DiskCache
) -> None:
    (tmp_path / "Python.h").write_text("#error of another compiler\n")
    monkeypatch.setattr(accelerator.sysconfig, "get_path", lambda name: str(tmp_path))
    assert accelerator.load() is None
    assert "refused" in accelerator.problem()


def test_a_python_without_the_lock_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator.sysconfig, "get_config_var", lambda name: 1)
    assert accelerator.load() is None
    assert "CPython" in accelerator.problem()


def test_doctor_says_who_calls() -> None:
    if accelerator.problem():
        pytest.skip(accelerator.problem())
    assert doctor.replay().text.startswith("by C")
    assert "jit calls" in {finding.name for finding in doctor.examine()}


def test_import_does_not_load_what_builds_it() -> None:
    code = "import tinyc.capture, sys; print('tinyc.runtime.accelerator' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
