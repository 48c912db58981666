"""What is compiled while a program is being made."""

from __future__ import annotations

import os

import pytest

from tinyc.diagnostics import CompileError
from tinyc.runtime import toolchain
from tinyc.runtime.cache import DiskCache, disk_cache
from tinyc.runtime.toolchain import (
    Unit,
    compile_libraries,
    compile_meanwhile,
    find_compiler,
    load_library,
)

SOURCE = "long value(void) { return 5; }\n"

def test_what_was_begun_is_not_compiled_again(cache, monkeypatch):
    compile_meanwhile([Unit(SOURCE)])
    compile_meanwhile([Unit(SOURCE)])
    started = toolchain.Process
    monkeypatch.setattr(toolchain, "Process", None)
    library, _ = load_library(Unit(SOURCE))
    monkeypatch.setattr(toolchain, "Process", started)
    assert library.value() == 5 and cache.stats.compiles == 1
    assert not os.listdir(cache.root / "tmp")


def test_what_is_in_the_cache_is_not_begun(cache, monkeypatch):
    compile_libraries([Unit(SOURCE)])
    monkeypatch.setattr(toolchain, "Process", None)
    compile_meanwhile([Unit(SOURCE)])


def test_an_error_is_told_to_who_needs_the_library(cache):
    bad = Unit("long value(void) { return missing; }\n", origins={"value": [("train.py", 3)]})
    compile_meanwhile([Unit(bad.source)])
    with pytest.raises(CompileError, match="train.py:3"):
        load_library(bad)
    assert load_library(Unit(SOURCE))[0].value() == 5


def test_what_was_begun_for_another_cache_is_left(cache, tmp_path, monkeypatch):
    compile_meanwhile([Unit(SOURCE)])
    monkeypatch.setenv("TINYC_CACHE_DIR", str(tmp_path / "other"))
    other = DiskCache(tmp_path / "other")
    monkeypatch.setattr(toolchain, "disk_cache", lambda: other)
    (path,) = compile_libraries([Unit(SOURCE)])
    assert path.is_relative_to(other.root)
    toolchain._abandon()
    assert not os.listdir(cache.root / "tmp")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_leaves_it_to_its_parent(cache):
    find_compiler()
    compile_meanwhile([Unit(SOURCE)])
    child = os.fork()
    if not child:
        code = 1
        try:
            code = 0 if load_library(Unit(SOURCE))[0].value() == 5 else 2
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert load_library(Unit(SOURCE))[0].value() == 5


def test_there_may_be_more_parts_than_processors(cache, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    parts = [f"#if TC_PART == {i}\nlong f{i}(void) {{ return {i}; }}\n#endif" for i in range(1, 5)]
    text = "\n".join([*parts, ""])
    compile_meanwhile([Unit(text, parts=4)])
    library, _ = load_library(Unit(text, parts=4))
    assert [getattr(library, f"f{i}")() for i in range(1, 5)] == [1, 2, 3, 4]
    assert disk_cache().stats.compiles == 1
