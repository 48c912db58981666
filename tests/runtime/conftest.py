from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tinyc import config, diagnostics
from tinyc.codegen.c import RUNTIME
from tinyc.ir.program import KernelInfo, Program, Site
from tinyc.runtime import cache as cache_module
from tinyc.runtime.cache import DiskCache, disk_cache


@pytest.fixture
def fresh_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what warns once in a process warn again."""
    monkeypatch.setattr(diagnostics, "_warned", set())


@pytest.fixture
def cache(tmp_path: Path, fresh_warnings: None) -> Iterator[DiskCache]:
    """An empty cache folder of the test's own, in force."""
    config.configure(cache_dir=str(tmp_path / "cache"))
    yield disk_cache()
    cache_module._caches.pop(tmp_path / "cache", None)


@pytest.fixture
def make_program() -> Callable[..., Program]:
    """Wrap C statements, which see `bufs`, `arena` and `rt`, into a program."""

    def make(
        body: str,
        buffers: int,
        *,
        helpers: str = "",
        kernels: int = 1,
        sites: tuple[Site, ...] = (),
        arena: int = 0,
        scratch: int = 0,
    ) -> Program:
        source = (
            f"{RUNTIME}{helpers}\n"
            "long tinyc_step(void **bufs, char *arena, const tinyc_rt *rt) {\n"
            f"{body}\nreturn 0;\n}}\n"
        )
        infos = tuple(
            KernelInfo(f"kernel{i}", (), (("train.py", 3),), 0, 0, 0, 1, (), (), "")
            for i in range(kernels)
        )
        return Program(source, False, buffers, (), arena, scratch, infos, sites)

    return make
