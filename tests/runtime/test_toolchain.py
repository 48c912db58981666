from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tinyc import config
from tinyc.codegen import mathfn
from tinyc.diagnostics import CompileError, CompilerNotFound, TinycWarning
from tinyc.runtime import cache as cache_module
from tinyc.runtime import device as device_module
from tinyc.runtime import processes, toolchain
from tinyc.runtime.toolchain import (
    Unit,
    compile_libraries,
    compile_library,
    find_compiler,
    library_key,
    load_library,
)

SOURCE = "long value(void) { return 5; }\n"
REAL_PATH = os.environ["PATH"]


@pytest.fixture
def bin_dir(tmp_path, cache, monkeypatch) -> Path:
    """The only folder on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(toolchain, "zig_command", lambda: None)
    return folder


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\nexport PATH={REAL_PATH}\n{text}\n")
    path.chmod(0o755)
    return path


# What works ------------------------------------------------------------------------------------


def test_a_library_is_compiled_once(cache):
    first = compile_library(SOURCE)
    assert compile_library(SOURCE) == first and first.suffix == ".so"
    assert cache.stats.compiles == 1
    assert load_library(Unit(SOURCE))[0].value() == 5


def test_several_sources_at_once(cache):
    sources = [f"long value(void) {{ return {n}; }}" for n in (1, 2, 3, 2)]
    paths = compile_libraries([Unit(text) for text in sources])
    assert [load_library(Unit(text))[1] for text in sources] == paths
    assert len(set(paths)) == 3


def test_flags_keep_nan_infinity_and_denormals(cache):
    text = """
    long isnan_(double *x) { return x[0] != x[0]; }
    double third(double x) { return x / 3 * 3; }
    int wraps(int x) { return x + 1 < x; }
    """
    library, _ = load_library(Unit(text))
    x = np.array([np.nan])
    assert library.isnan_(x.ctypes) == 1
    assert library.wraps(2**31 - 1) == 1
    assert np.float64(5e-324) * np.ones(8)[0] != 0
    assert not any("fast-math" in flag or "finite" in flag for flag in find_compiler().flags())


def test_libm_keeps_nan_without_errno(cache):
    """gcc folds sin(atan(x)), by these names, to something that gives 1 for NaN."""
    names = mathfn.external("sin", "double", 1) + mathfn.external("atan", "double", 1)
    text = f"{mathfn.SYMBOL}{names}double f(double x) {{ return tc_libm_sin(tc_libm_atan(x)); }}"
    function = load_library(Unit(text, libm=True))[0].f
    import ctypes

    function.argtypes, function.restype = [ctypes.c_double], ctypes.c_double
    assert np.isnan(function(float("nan")))


# Keys ------------------------------------------------------------------------------------------


PARTS = """\
#ifndef TC_PART
#define TC_PART 0
#endif
long half(void);
#if TC_PART == 0 || TC_PART == 2
long half(void) { return 21; }
#endif
#if TC_PART <= 1
long value(void) { return 2 * half(); }
#endif
"""


def test_a_source_in_parts_becomes_one_library(cache):
    for unit in (Unit(PARTS, parts=2), Unit(PARTS + "// whole", parts=1)):
        library, path = load_library(unit)
        assert library.value() == 42
        assert sorted(p.name for p in path.parent.iterdir()) == [
            "meta.json", "program.c", "program.so"]
    assert cache.stats.compiles == 1  # a comment makes no other library


def test_an_error_in_any_part_is_reported(cache):
    text = PARTS.replace("21", "missing")
    with pytest.raises(CompileError, match="missing"):
        load_library(Unit(text, parts=2))


def key_in_force(unit: Unit | None = None) -> str:
    return library_key(unit or Unit(SOURCE), find_compiler())


def changed_keys(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    keys = [key_in_force(Unit(SOURCE + " ")), key_in_force(Unit(SOURCE, libm=True))]
    base = find_compiler()
    for change in ({"version": "13"}, {"command": ("/other/cc",)}, {"native": ()}):
        keys.append(library_key(Unit(SOURCE), toolchain.Compiler(**{**vars(base), **change})))
    for i in range(len(toolchain.FLAGS)):
        with monkeypatch.context() as patch:
            patch.setattr(toolchain, "FLAGS", toolchain.FLAGS[:i] + toolchain.FLAGS[i + 1 :])
            keys.append(library_key(Unit(SOURCE), base))
    with monkeypatch.context() as patch:
        patch.setattr(toolchain, "cpu_features", lambda: "a CPU of 2040")
        keys.append(library_key(Unit(SOURCE), base))
    with monkeypatch.context() as patch:
        patch.setattr(cache_module, "CACHE_VERSION", -1)
        keys.append(library_key(Unit(SOURCE), base))
    return keys


def test_all_that_changes_code_changes_the_key(cache, monkeypatch):
    keys = [key_in_force(), *changed_keys(monkeypatch)]
    assert len(set(keys)) == len(keys) > 15


def test_what_changes_nothing_changes_no_key(cache, tmp_path, monkeypatch):
    before = key_in_force()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LANG", "de_DE.UTF-8")
    assert key_in_force(Unit(SOURCE, origins={"k": [("x.py", 1)]})) == before
    line = (
        "from tinyc.runtime.toolchain import *;"
        f"print(library_key(Unit({SOURCE!r}), find_compiler()))"
    )
    for seed in ("1", "2"):
        package = str(Path(toolchain.__file__).parents[2])
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": package}
        environment["TINYC_CACHE_DIR"] = str(cache.root)
        done = subprocess.run(
            [sys.executable, "-c", line], env=environment, capture_output=True, text=True
        )
        assert done.stdout.strip() == before, done.stderr


def test_code_for_another_cpu_is_not_used(cache, monkeypatch):
    compile_library(SOURCE)
    monkeypatch.setattr(toolchain, "cpu_features", lambda: "a CPU of 2040")
    toolchain._find_compiler.cache_clear()
    compile_library(SOURCE)
    assert cache.stats.compiles == 2


def test_the_cpu_is_described():
    assert os.uname().machine in toolchain.cpu_features()


def test_a_compiler_is_probed_once(cache, bin_dir):
    script(bin_dir / "cc", f'echo run >> {bin_dir}/log\nexec cc "$@"')
    find_compiler()
    runs = (bin_dir / "log").read_text()
    toolchain._find_compiler.cache_clear()
    find_compiler()
    assert (bin_dir / "log").read_text() == runs
    script(bin_dir / "cc", f'echo run >> {bin_dir}/log\nexec cc "$@" # a new one')
    toolchain._find_compiler.cache_clear()
    find_compiler()
    assert len((bin_dir / "log").read_text()) == 2 * len(runs)


# What does not work ---------------------------------------------------------------------------


def diagnosis() -> str:
    with pytest.raises(CompilerNotFound) as caught:
        compile_library(SOURCE)
    text = str(caught.value)
    assert len(text.splitlines()) <= 8
    assert "pip install ziglang" in text and "TINYC_DEVICE=numpy" in text
    return text


def test_no_compiler(bin_dir):
    text = diagnosis()
    for name in ("cc", "gcc", "clang"):
        assert f"  {name}: not found" in text
    assert "ziglang: not installed" in text


def test_a_compiler_that_may_not_be_run(bin_dir):
    script(bin_dir / "gcc", "").chmod(0o644)
    assert "gcc: not executable" in diagnosis()


def test_a_broken_compiler(bin_dir):
    script(bin_dir / "cc", "echo cc: internal error; exit 1")
    script(bin_dir / "gcc", "exit 0")
    script(bin_dir / "clang", "[ $1 = --version ] || { echo '#error no'; exit 3; }")
    text = diagnosis()
    assert "cc: cc: internal error" in text
    assert "gcc: made no usable library" in text
    assert "clang: #error no" in text


def test_a_compiler_that_hangs(bin_dir, monkeypatch):
    monkeypatch.setattr(toolchain, "PROBE_SECONDS", 0.2)
    script(bin_dir / "cc", f"echo $$ > {bin_dir}/pid; sleep 60")
    assert "cc: no answer within 0.2 seconds" in diagnosis()
    assert group_ends(int((bin_dir / "pid").read_text()))


def test_a_compiler_that_chatters(bin_dir):
    script(bin_dir / "cc", 'echo warning: old license >&2; exec cc "$@"')
    assert load_library(Unit(SOURCE))[0].value() == 5


def test_cc_names_the_compiler(bin_dir, monkeypatch):
    mine = script(bin_dir / "mine", 'exec cc "$@"')
    monkeypatch.setenv("CC", f"{mine} -g0")
    assert find_compiler().command == (str(mine), "-g0")


def test_a_wrong_cc_is_named_in_a_warning(bin_dir, monkeypatch):
    script(bin_dir / "cc", 'exec cc "$@"')
    monkeypatch.setenv("CC", "nosuchcc")
    with pytest.warns(TinycWarning, match=r"\$CC=nosuchcc: not found; using"):
        assert find_compiler().command == (str(bin_dir / "cc"),)


@pytest.mark.cpu("the device that has C")
def test_without_a_compiler_the_default_device_is_numpy(bin_dir, monkeypatch):
    monkeypatch.setattr(config, "source", lambda switch: "default")
    device_module._usable_default.cache_clear()
    with pytest.warns(TinycWarning, match="with numpy") as caught:
        assert device_module.default_device() == "numpy"
        config.bump_epoch()
        assert device_module.default_device() == "numpy"
    assert len(caught) == 1
    monkeypatch.setattr(config, "source", lambda switch: "environment")
    assert device_module.default_device() == "cpu"


BAD_SOURCE = """\
void softmax0(void)
{
    int a = 1;
}
void linear1(void)
{
    int a = missing;
}
"""


def test_a_compile_error_says_what_where_and_how_to_repeat_it(cache):
    origins = {"softmax0": [("/x/net.py", 3)], "linear1": [("/x/train.py", 12), ("b.py", 1)]}
    with pytest.raises(CompileError) as caught:
        compile_library(BAD_SOURCE, origins=origins)
    text = str(caught.value)
    lines = text.splitlines()
    assert len(lines) <= 20
    assert "program.c:7" in text and "missing" in text
    assert "linear1: train.py:12, b.py:1" in text and "net.py" not in text
    kept = next(line.split()[-1] for line in lines if line.startswith("source:"))
    assert Path(kept).read_text() == BAD_SOURCE
    command = next(line for line in lines if line.startswith("command:"))[9:]
    again = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert again.returncode != 0 and "missing" in again.stderr
    assert not os.listdir(cache.root / "tmp")


def test_the_others_go_on_after_a_compile_error(cache):
    with pytest.raises(CompileError):
        compile_libraries([Unit(SOURCE), Unit(BAD_SOURCE)])
    assert load_library(Unit(SOURCE))[0].value() == 5


# Ctrl-C ----------------------------------------------------------------------------------------


INTERRUPTED = """
import os, sys, time
from pathlib import Path
from tinyc.runtime.toolchain import *
from tinyc.runtime.cache import disk_cache
folder = Path(sys.argv[1])
find_compiler()
(folder / "slow").touch()
start = time.monotonic()
try:
    compile_library("long value(void) { return 5; }")
    print("not interrupted")
except KeyboardInterrupt:
    print("interrupted")
assert time.monotonic() - start < 20
(folder / "slow").unlink()
assert not os.listdir(disk_cache().root / "tmp")
print(load_library(Unit("long value(void) { return 5; }"))[0].value())
"""


def group_ends(group: int) -> bool:
    """Wait until no process of a group is left (but for zombies, which nobody may reap here)."""
    deadline = time.monotonic() + 10
    while group_lives(group) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not group_lives(group)


def group_lives(group: int) -> bool:
    for stat_file in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat_file.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            return True
    return False


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="reads /proc")
def test_an_interrupt_ends_the_compiler_and_leaves_nothing(tmp_path, cache):
    script(
        tmp_path / "slowcc",
        f'[ -e {tmp_path}/slow ] && {{ echo $$ > {tmp_path}/pid; sleep 60; }}\nexec cc "$@"',
    )
    environment = {**os.environ, "CC": str(tmp_path / "slowcc")}
    environment["TINYC_CACHE_DIR"] = str(cache.root)
    child = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(tmp_path)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    pid = tmp_path / "pid"
    deadline = time.monotonic() + 30
    while not (pid.exists() and pid.read_text().strip()) and time.monotonic() < deadline:
        time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    output, error = child.communicate(timeout=30)
    assert output.split() == ["interrupted", "5"], error
    assert group_ends(int(pid.read_text()))


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="reads /proc")
def test_an_interrupt_while_a_compiler_is_started_ends_it(tmp_path, monkeypatch):
    started = []
    popen = subprocess.Popen

    def interrupted(*args, **options):
        started.append(popen(*args, **options))
        signal.raise_signal(signal.SIGINT)
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            processes.run(["sleep", "60"], tmp_path, 70)
    finally:
        signal.signal(signal.SIGINT, before)
    assert group_ends(started[0].pid)
