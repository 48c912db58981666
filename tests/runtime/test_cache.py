from __future__ import annotations

import ast
import json
import multiprocessing
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import tinyc.runtime
from tinyc import config
from tinyc.diagnostics import TinycWarning
from tinyc.runtime import cache as cache_module
from tinyc.runtime.cache import DiskCache, make_key, usable_root
from tinyc.runtime.toolchain import LIBRARY, Unit, compile_library, load_library

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


def source(value: int) -> str:
    return f"long value(void) {{ return {value}; }}\n"


def value_of(number: int) -> int:
    return load_library(Unit(source(number)))[0].value()


def test_put_and_get(cache):
    key = make_key("a")
    assert cache.get(key) is None
    entry = cache.put(key, {"plan.json": b"{}", "x": b"12"})
    assert cache.get(key) == entry and (entry / "plan.json").read_bytes() == b"{}"
    assert (cache.stats.hits, cache.stats.misses) == (1, 1)
    summary = cache.summary()
    assert summary["entries"] == 1 and summary["bytes"] > 4


def test_an_entry_that_is_there_is_kept(cache):
    key = make_key("a")
    cache.put(key, {"x": b"first"})
    assert (cache.put(key, {"x": b"second"}) / "x").read_bytes() == b"first"


def test_keys_tell_lists_of_parts_apart():
    assert (
        len({make_key("ab", "c"), make_key("a", "bc"), make_key("abc"), make_key("abc", "")}) == 4
    )


def test_folders_are_private(cache):
    entry = cache.put(make_key("a"), {"x": b""})
    for path in (cache.root, entry):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_clear(cache):
    cache.put(make_key("a"), {"x": b""})
    (cache.root / "notes.txt").write_text("of somebody else")
    cache.clear()
    assert cache.summary()["entries"] == 0 and (cache.root / "notes.txt").exists()


# Damage -------------------------------------------------------------------------------------


def halve(library: Path, other: Path) -> None:
    library.write_bytes(library.read_bytes()[: library.stat().st_size // 2])


def empty(library: Path, other: Path) -> None:
    library.write_bytes(b"")


def scramble(library: Path, other: Path) -> None:
    library.write_bytes(bytes(i * 37 % 256 for i in range(5000)))


def flip_a_bit(library: Path, other: Path) -> None:
    data = bytearray(library.read_bytes())
    data[len(data) // 3] ^= 4
    library.write_bytes(data)


def swap_file(library: Path, other: Path) -> None:
    shutil.copy(other, library)


def swap_entry(library: Path, other: Path) -> None:
    shutil.rmtree(library.parent)
    shutil.copytree(other.parent, library.parent)


def directory_instead(library: Path, other: Path) -> None:
    library.unlink()
    library.mkdir()


def dangling_link(library: Path, other: Path) -> None:
    library.unlink()
    library.symlink_to("nowhere")


def dangling_entry(library: Path, other: Path) -> None:
    shutil.rmtree(library.parent)
    library.parent.symlink_to("nowhere")


def file_instead(library: Path, other: Path) -> None:
    shutil.rmtree(library.parent)
    library.parent.write_text("")


def wrong_meta(library: Path, other: Path) -> None:
    (library.parent / "meta.json").write_text("[1, 2]")


DAMAGE = [
    *(halve, empty, scramble, flip_a_bit, swap_file, swap_entry, directory_instead),
    *(dangling_link, dangling_entry, file_instead, wrong_meta),
]


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda fn: fn.__name__)
def test_a_damaged_entry_is_rebuilt_with_one_warning(cache, damage):
    # Never loaded before: a library that is mapped must not be overwritten in place.
    library = compile_library(source(5))
    other = compile_library(source(6))
    damage(library, other)
    with pytest.warns(TinycWarning, match="damaged") as caught:
        assert value_of(5) == 5
    assert len(caught) == 1
    assert cache.stats.compiles == 3
    compile_library(source(5))
    assert cache.stats.compiles == 3, "the entry is healed"
    assert not os.listdir(cache.root / "tmp")


# Folders that can't be trusted -----------------------------------------------------------------


def plant(root: Path) -> Path:
    """Put a library that leaves a canary when it is loaded where a cache might look."""
    root.mkdir(parents=True, mode=0o700)
    (root / "planted").write_text("canary")
    return root


def owned_by_another(root: Path) -> None:
    os.chown(plant(root), 12345, 12345)


def group_writable(root: Path) -> None:
    plant(root).chmod(0o770)


def world_writable(root: Path) -> None:
    plant(root).chmod(0o777)


def a_link(root: Path) -> None:
    root.symlink_to(plant(root.with_name("elsewhere")))


def parent_of_another(root: Path) -> None:
    plant(root)
    os.chown(root.parent, 12345, 12345)


def parent_open_to_all(root: Path) -> None:
    plant(root)
    root.parent.chmod(0o777)


def a_file(root: Path) -> None:
    root.parent.mkdir(exist_ok=True)
    root.write_text("")


HIJACKS = [
    pytest.param(owned_by_another, marks=needs_root),
    *(group_writable, world_writable, a_link),
    pytest.param(parent_of_another, marks=needs_root),
    *(parent_open_to_all, a_file),
]


@pytest.mark.parametrize("hijack", HIJACKS, ids=lambda fn: fn.__name__)
def test_a_folder_that_is_not_ours_alone_is_not_used(tmp_path, fresh_warnings, hijack):
    root = tmp_path / "parent" / "cache"
    root.parent.mkdir()
    hijack(root)
    before = sorted(os.listdir(tmp_path)), root.is_dir() and sorted(os.listdir(root))
    with pytest.warns(TinycWarning, match="not kept") as caught:
        cache = DiskCache(root)
        cache.put(make_key("a"), {"x": b"1"})
    assert len(caught) == 1
    assert cache.root not in (root, root.resolve()) and cache.get(make_key("a"))
    assert stat.S_IMODE(cache.root.stat().st_mode) == 0o700
    assert before == (sorted(os.listdir(tmp_path)), root.is_dir() and sorted(os.listdir(root)))


def test_a_folder_that_cannot_be_made(fresh_warnings):
    with pytest.warns(TinycWarning, match="not kept"):
        assert usable_root(Path("/proc/nowhere/tinyc")) != Path("/proc/nowhere/tinyc")


def test_a_full_disk_is_survived(cache, monkeypatch):
    compile_library(source(1))
    rename = os.rename

    def full(src: object, dst: object) -> None:
        if str(dst).startswith(str(first)):
            raise OSError(28, "No space left on device")
        rename(src, dst)

    first = cache.root
    monkeypatch.setattr(os, "rename", full)
    with pytest.warns(TinycWarning, match="not kept") as caught:
        assert value_of(7) == 7
    assert len(caught) == 1 and cache.root != first
    assert value_of(8) == 8


def run_script(script: str, **keywords: object) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, **keywords
    )
    assert done.returncode == 0, done.stderr
    return done


NOBODY = """
import os
from tinyc.runtime.toolchain import Unit, load_library
from tinyc.runtime.cache import disk_cache
if os.geteuid() == 0:
    os.setuid(54321)  # a user that the system does not know
os.environ.pop("HOME", None)
library, _ = load_library(Unit("long value(void) { return 3; }"))
print(library.value(), disk_cache().root)
"""


def test_without_a_home_there_is_a_temporary_cache(tmp_path):
    package = str(Path(tinyc.runtime.__file__).parents[2])
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": package, "TMPDIR": str(tmp_path)}
    if os.geteuid():
        environment["HOME"] = "/proc/nowhere"
    for parent in tmp_path.parents:
        if parent.name.startswith(("pytest-", "popen-")):  # those that pytest has made
            parent.chmod(0o755)
    tmp_path.chmod(0o777)
    done = run_script(NOBODY, env=environment)
    value, root = done.stdout.split()
    assert value == "3" and root.startswith(str(tmp_path))
    assert done.stderr.count("TinycWarning") == 1
    assert not os.listdir(tmp_path), "removed at the end"


def test_the_usual_place(monkeypatch):
    monkeypatch.setattr(config, "_current", config.Settings())
    monkeypatch.setenv("XDG_CACHE_HOME", "/x/cache")
    assert cache_module.configured_root() == Path("/x/cache/tinyc")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", "/h")
    assert cache_module.configured_root() == Path("/h/.cache/tinyc")


# Many processes --------------------------------------------------------------------------------

RACE = """
from tinyc.runtime.toolchain import Unit, load_library
for n in range(4):
    library, _ = load_library(Unit(f"long value(void) {{ return {n}; }}\\n"))
    assert library.value() == n
"""


def test_processes_race_and_are_killed(cache):
    environment = {**os.environ, "TINYC_CACHE_DIR": str(cache.root)}
    for round_ in range(3):
        cache.clear()
        workers = [
            subprocess.Popen(
                [sys.executable, "-W", "error", "-c", RACE],
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            for _ in range(4)
        ]
        for k, worker in enumerate(workers[:2]):
            try:
                worker.wait(0.2 + 0.05 * (2 * round_ + k))
            except subprocess.TimeoutExpired:
                worker.kill()
        for worker in workers:
            _, error = worker.communicate(timeout=30)
            assert worker.returncode == -9 or (worker.returncode == 0 and not error), error
    again = DiskCache(cache.root)
    assert not os.listdir(again.root / "tmp"), "workspaces of the killed are swept"
    assert [value_of(n) for n in range(4)] == [0, 1, 2, 3]
    assert cache.stats.compiles == 0


def fill(root: str, first: int, results: object) -> None:
    try:
        cache = DiskCache(Path(root), cap_bytes=60_000)
        for n in range(first, first + 150):
            entry = cache.put(make_key(str(n)), {"data": bytes(1000)})
            cache.get(entry.name)
        results.put("")
    except BaseException as error:
        results.put(repr(error))


def test_eviction_beside_other_processes_never_fails(tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    root = str(tmp_path / "cache")
    workers = [context.Process(target=fill, args=(root, n, results)) for n in (0, 75)]
    for worker in workers:
        worker.start()
    assert [results.get() for _ in workers] == ["", ""]
    for worker in workers:
        worker.join()
    cache = DiskCache(Path(root), cap_bytes=60_000)
    cache.evict()
    assert 0 < cache.summary()["bytes"] <= 60_000


def test_what_was_used_longest_ago_goes_first(tmp_path):
    cache = DiskCache(tmp_path / "cache", cap_bytes=10_000)
    for n in range(6):
        entry = cache.put(make_key(str(n)), {"data": bytes(1500)})
        os.utime(entry, (1000 + n, 1000 + n))
    cache.get(make_key("0"))
    cache.cap_bytes = 8_000
    cache.evict()
    left = [n for n in range(6) if (cache.root / make_key(str(n))).exists()]
    assert left == [0, 4, 5]


def test_a_workspace_in_use_is_not_swept(cache):
    with cache.workspace() as work:
        DiskCache(cache.root)
        assert work.is_dir()
    assert not work.exists()


def test_a_workspace_left_behind_is_swept(cache):
    orphan = cache.root / "tmp" / "new-orphan"
    orphan.mkdir(parents=True)
    (orphan / "x").write_text("")
    DiskCache(cache.root)
    assert not orphan.exists()


def test_an_entry_that_vanishes_before_it_is_loaded_is_made_again(cache, monkeypatch):
    from tinyc.runtime import toolchain

    compiled, vanish = toolchain.compile_libraries, [True]

    def racing(units: list[Unit]) -> list[Path]:
        (path,) = compiled(units)
        if vanish.pop() if vanish else False:
            cache.discard(path.parent.name)
        return [path]

    monkeypatch.setattr(toolchain, "compile_libraries", racing)
    assert value_of(9) == 9 and cache.stats.compiles == 2


# Nothing on disk is executed but what was compiled here ------------------------------------------


def test_nothing_is_unpickled_or_evaluated():
    banned = {"pickle", "marshal", "shelve", "dill", "eval", "exec"}
    for path in Path(tinyc.runtime.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = {node.id} if isinstance(node, ast.Name) else set()
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", "")}
            assert not names & banned, path


def test_meta_is_plain_json(cache):
    library = compile_library(source(1))
    meta = json.loads((library.parent / "meta.json").read_text())
    assert meta["files"][LIBRARY][1] == library.stat().st_size
