from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tinyc import compiler, config, diagnostics, program_cache
from tinyc.diagnostics import BoundsError, TinycWarning
from tinyc.ir import build as b
from tinyc.ir.dtype import f32, i64
from tinyc.ir.node import canonical_key, node
from tinyc.ir.ops import Op
from tinyc.runtime import sources
from tinyc.runtime.buffer import Buffer

ROOT = Path(__file__).parents[2]
WORDS = [[1, 2, 3], [4, 5, 6]]


class Step:
    """A graph with fresh and updated outputs, a data-dependent index, sums and a contraction."""

    def __init__(self, rows: int = 6) -> None:
        rng = np.random.default_rng(0)
        self.memory: dict[int, Buffer] = {}
        self.table = self.leaf(rng.random((rows, 8), np.float32), f32)
        self.weight = self.leaf(rng.random((8, 5), np.float32), f32)
        self.index = self.leaf(np.array([0, 3, 2]), i64)
        picked = b.gather(self.table, self.index, 0)
        product = b.contract(picked, self.weight, (0, 1), (1, 2), (0, 2))
        loss = b.sum_(b.exp(product), 0)
        self.outputs = [loss, b.assign(self.table, b.mul(self.table, 0.5))]

    def leaf(self, array, dtype):
        buffer = Buffer.from_numpy(array, "cpu")
        self.memory[buffer.uid] = buffer
        return b.buffer(buffer.uid, 0, buffer.shape, dtype, "cpu")

    def run(self) -> list[float]:
        (loss, _) = compiler.execute(self.outputs, self.memory)
        return loss.array.tolist()

    def program(self):
        return compiler.compile_graph(self.outputs).program


@pytest.fixture
def counts(cache, monkeypatch):
    """What this test did: (passes run, programs loaded, compiler runs)."""
    monkeypatch.setattr(compiler, "_programs", {})
    monkeypatch.setattr(sources, "_loaded_at", float("inf"))  # a file may be edited meanwhile
    sources.source_digest.cache_clear()
    before = compiler.passes_run, compiler.programs_loaded

    def difference():
        passes, loaded = compiler.passes_run - before[0], compiler.programs_loaded - before[1]
        return passes, loaded, cache.stats.compiles

    return difference


def forget() -> None:
    """What a new process would not know."""
    compiler._programs.clear()
    gc.collect()  # a node that is alive keeps its line


def stored(cache) -> Path:
    (path,) = cache.root.glob(f"*/{program_cache.FILE}")
    return path


def replace_file(cache, data: bytes) -> None:
    """Put other bytes in the place of the stored program, with their right digest."""
    path = stored(cache)
    key = path.parent.name
    cache.discard(key)
    cache.put(key, {path.name: data})


# Found ------------------------------------------------------------------------------------------


def test_a_stored_program_needs_neither_passes_nor_compiler(counts):
    first = Step().run()
    passes, loaded, compiles = counts()
    assert (passes, loaded) == (1, 0) and compiles >= 1
    forget()
    assert Step().run() == first
    assert counts() == (1, 1, compiles)


def test_what_is_loaded_is_what_was_stored(counts):
    made = Step().program()
    forget()
    loaded = Step().program()
    assert loaded is not made and loaded == made
    assert loaded.sites and loaded.kernels and all(k.source and k.loops for k in loaded.kernels)


def test_remarks_are_emitted_again(counts):
    with diagnostics.collect() as first:
        Step().run()
    forget()
    with diagnostics.collect() as second:
        Step().run()
    assert second == first


def test_lines_are_those_of_the_graph_that_runs(counts):
    made = Step().program()
    here = str(Path(__file__))
    old = {line for k in made.kernels for file, line in k.origins if file == here}
    forget()
    step = moved(1000)
    program = step.program()
    assert counts()[:2] == (1, 1)
    new = {line for k in program.kernels for file, line in k.origins if file == "moved.py"}
    assert {line + 1000 for line in old} == new
    assert all(file == "moved.py" for k in program.kernels for file, line in k.origins)
    assert f"{Path(here).name}:" not in program.source
    assert program.sites[0].origin[0] == "moved.py"
    step.memory[step.index.attrs[0]].array[1] = 77
    with pytest.raises(BoundsError, match=r"moved\.py:1\d\d\d"):
        step.run()


def moved(by: int) -> Step:
    """The same graph, built by a file with other line numbers."""
    code = compile("\n" * by + Path(__file__).read_text(), "moved.py", "exec")
    names: dict[str, object] = {"__name__": "moved", "__file__": __file__}
    exec(code, names)
    return names["Step"]()


def test_moved_lines_compile_nothing(counts):
    Step().run()
    compiles = counts()[2]
    forget()
    moved(500).run()
    assert counts() == (1, 1, compiles)


# Not found --------------------------------------------------------------------------------------


def test_other_graphs_and_switches_have_programs_of_their_own(counts):
    Step().run()
    Step(rows=7).run()
    with config.configure(fuse=False):
        Step().run()
    with config.configure(bounds=False):
        Step().run()
    with config.configure(tune=True):
        Step().run()
    assert counts()[:2] == (5, 0)


def test_a_changed_compiler_misses(counts, monkeypatch):
    Step().run()
    forget()
    monkeypatch.setattr(program_cache, "source_digest", lambda: "another")
    Step().run()
    assert counts()[:2] == (2, 0)


def test_the_digest_is_of_all_that_compiles(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_loaded_at", float("inf"))
    digests = set()
    for name in ("", "pipeline.py", "ir/simplify.py", "codegen/c.py", "runtime/pool.c"):
        package = tmp_path / f"package-{len(digests)}"
        for folder in ("ir", "schedule", "codegen", "runtime"):
            (package / folder).mkdir(parents=True)
        for file in ("pipeline.py", "program_cache.py", "tuning.py", "ir/simplify.py",
                     "codegen/c.py", "runtime/pool.c"):
            (package / file).write_text("changed" if file == name else "same")
        digests.add(sources.source_digest(package))
    assert len(digests) == 5 and None not in digests


def test_sources_edited_after_they_were_loaded_are_not_trusted(counts, monkeypatch):
    monkeypatch.setattr(sources, "_loaded_at", 0.0)
    Step().run()
    forget()
    Step().run()
    assert counts()[:2] == (2, 0)
    sources.source_digest.cache_clear()


@pytest.mark.parametrize("switches", [{"check": True}, {"debug": "5"}])
def test_what_shows_or_checks_passes_runs_them(counts, switches):
    Step().run()
    forget()
    with config.configure(**switches):
        Step().run()
    assert counts()[:2] == (2, 0)


def test_without_a_writable_disk_programs_are_compiled(counts, cache, monkeypatch):
    def refuse(*args):
        raise OSError("the disk is full")

    monkeypatch.setattr(type(cache), "put", refuse)
    first = Step().run()
    forget()
    assert Step().run() == first
    assert counts()[:2] == (2, 0)


# Damaged ----------------------------------------------------------------------------------------


def truncate(data: bytes) -> bytes:
    return data[: len(data) // 2]


def foreign(data: bytes) -> bytes:
    return b'{"answer": 42}'


def not_a_dictionary(data: bytes) -> bytes:
    return b"[1, 2, 3]"


def of_another_graph(data: bytes) -> bytes:
    values = json.loads(data)
    values["program"]["n_leaves"] += 1
    return json.dumps(values).encode()


def without_a_field(data: bytes) -> bytes:
    values = json.loads(data)
    del values["program"]["kernels"][0]["flops"]
    return json.dumps(values).encode()


def with_fewer_nodes(data: bytes) -> bytes:
    values = json.loads(data)
    values["nodes"].pop()
    return json.dumps(values).encode()


def with_a_strange_place(data: bytes) -> bytes:
    values = json.loads(data)
    values["nodes"][0] = len(values["places"])
    return json.dumps(values).encode()


def nested_too_deeply(data: bytes) -> bytes:
    return b"[" * 100_000


DAMAGE = [truncate, foreign, not_a_dictionary, of_another_graph, without_a_field,
          with_fewer_nodes, with_a_strange_place, nested_too_deeply]


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda f: f.__name__)
def test_a_wrong_program_is_made_again_with_one_warning(counts, cache, damage):
    first = Step().run()
    replace_file(cache, damage(stored(cache).read_bytes()))
    forget()
    with pytest.warns(TinycWarning, match="damaged entry") as warned:
        assert Step().run() == first
        forget()
        assert Step().run() == first
    assert len(warned) == 1
    assert counts()[:2] == (2, 1)


def test_a_file_with_another_digest_is_made_again(counts, cache):
    first = Step().run()
    path = stored(cache)
    path.write_bytes(path.read_bytes().replace(b"gather", b"gatter"))
    forget()
    with pytest.warns(TinycWarning, match="damaged entry"):
        assert Step().run() == first
    assert counts()[:2] == (2, 0)


# Keys -------------------------------------------------------------------------------------------


def test_the_key_is_text_that_every_process_gives():
    step = Step()
    text = program_cache.graph_text(step.outputs)
    assert text == program_cache.graph_text(Step().outputs)
    assert " at 0x" not in text and "<" not in text


def test_the_key_tells_constants_apart():
    x = b.buffer(1, 0, (3,), f32, "cpu")
    values = [0.0, -0.0, 1.0, float("nan"), float("inf")]
    texts = {program_cache.graph_text([b.mul(x, b.const(v, f32))]) for v in values}
    assert len(texts) == len(values)


def test_the_key_is_as_fine_as_the_canonical_one():
    x, y = (b.buffer(uid, 0, (3,), f32, "cpu") for uid in (1, 2))
    graphs = [[b.add(x, y)], [b.add(x, x)], [b.sub(x, y)], [b.add(x, y), x], [b.sum_(x, 0)],
              [node(Op.CAT, (x, y), (0,))]]
    assert len({program_cache.graph_text(g) for g in graphs}) == len(graphs)
    assert len({canonical_key(g)[0] for g in graphs}) == len(graphs)


# Processes --------------------------------------------------------------------------------------

SCRIPT = """
import json, runpy, sys
sys.path.insert(0, {root!r})
loss = runpy.run_path({file!r})["Step"]().run()
from tinyc import compiler
from tinyc.runtime.cache import disk_cache
print(json.dumps([loss, [compiler.passes_run, compiler.programs_loaded,
                         disk_cache().stats.compiles], "tinyc.pipeline" in sys.modules]))
"""


def start(folder: Path) -> subprocess.Popen:
    code = SCRIPT.format(root=str(ROOT), file=str(Path(__file__)))
    line = [sys.executable, "-W", "error::tinyc.diagnostics.TinycWarning", "-c", code]
    environment = {**os.environ, "TINYC_CACHE_DIR": str(folder), "DEBUG": ""}
    return subprocess.Popen(line, stdout=subprocess.PIPE, text=True, env=environment)


def finish(process: subprocess.Popen) -> list:
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return json.loads(output)


def test_processes_share_programs(tmp_path):
    racing = [start(tmp_path), start(tmp_path)]
    first, second = map(finish, racing)
    assert first[0] == second[0] == Step().run()
    third = finish(start(tmp_path))
    assert third == [first[0], [0, 1, 0], False]
