"""TINYC_DUMP writes what a compilation went through, TINYC_CHECK finds programs that are wrong."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tinyc import checking, compiler, config, dumps, pipeline
from tinyc.diagnostics import ShapeError, VerifyError
from tinyc.ir import build as b
from tinyc.ir.dtype import bf16, f32, i64, numbers, stored
from tinyc.ir.node import Node
from tinyc.ir.parser import parse_text
from tinyc.pipeline import Pass
from tinyc.runtime.buffer import Buffer

GRAPH = [p.name for p in pipeline.GRAPH]


def softmax_graph(shape=(8, 16)):
    x = Buffer.from_numpy(np.random.default_rng(0).random(shape, np.float32), "cpu")
    leaf = b.buffer(x.uid, 0, shape, f32, "cpu")
    e = b.exp(b.sub(leaf, b.max_(leaf, 1, keepdims=True)))
    return b.div(e, b.sum_(e, 1, keepdims=True)), {x.uid: x}


def files_of(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


class TestDump:
    def test_files_have_stable_names(self, tmp_path):
        node, memory = softmax_graph((8, 17))
        with config.configure(dump=str(tmp_path)):
            compiler.execute([node], memory)
        (folder,) = tmp_path.iterdir()
        assert re.fullmatch(r"\d{3}-test_dumps_and_checks-\d+", folder.name)
        expected = [f"{i:02d}-{p.name}.txt" for i, p in enumerate(pipeline.PLAN, 1 + len(GRAPH))]
        expected += [f"{i:02d}-{name}.ir" for i, name in enumerate(["graph", *GRAPH])]
        meta = json.loads((folder / "meta.json").read_text())
        expected += [f"kernels/{label.split()[0]}.c" for label in meta["kernels"]]
        expected += ["README.md", "applied.txt", "fusion.txt", "meta.json", "program.c"]
        assert sorted(files_of(folder)) == sorted([*expected, "remarks.json"])
        assert "tinyc_step" in (folder / "program.c").read_text()
        assert isinstance(json.loads((folder / "remarks.json").read_text()), list)
        assert "rule " in (folder / "applied.txt").read_text()
        named = re.findall(r"^\| `([^`]+)` \| ", (folder / "README.md").read_text(), re.M)
        assert {*named, "README.md"} == {*files_of(folder), dumps.INPUTS}

    def test_two_dumps_of_a_program_are_the_same_bytes(self, tmp_path):
        found = []
        for name in ("a", "b"):
            node, memory = softmax_graph((80, 19))
            node = b.cat([node, b.sum_(b.exp(node), (0,), keepdims=True)], 0)
            loads = b.gather(node, b.const(3, i64), 0)
            key = compiler.canonical_key([node, loads])
            with config.configure(dump=str(tmp_path / name), dump_inputs=True):
                compiled = compiler.make_executable(
                    *compiler.anonymous([node, loads], key[1]), "cpu"
                )
                compiled.run([memory[leaf.attrs[0]] for leaf in key[1]])
            (folder,) = (tmp_path / name).iterdir()
            found.append(files_of(folder))
        assert found[0] == found[1]
        assert dumps.INPUTS in found[0]

    @pytest.mark.parametrize("dtype", [f32, bf16], ids=repr)
    def test_inputs_are_kept_on_demand_as_they_were_before_the_run(self, tmp_path, dtype):
        x = Buffer.from_numpy(stored(np.arange(6), dtype), "cpu")
        leaf = b.buffer(x.uid, 0, (6,), dtype, "cpu")
        with config.configure(dump=str(tmp_path), dump_inputs=True):
            compiler.execute([b.assign(leaf, b.mul(leaf, 7.0))], {x.uid: x})
            compiler.execute([b.assign(leaf, b.mul(leaf, 7.0))], {x.uid: x})
        (folder,) = tmp_path.iterdir()
        (kept,) = dumps.read_inputs(folder, [leaf])
        np.testing.assert_array_equal(numbers(kept, dtype), np.arange(6))
        np.testing.assert_array_equal(numbers(x.array, dtype), 49.0 * np.arange(6))

    def test_what_an_earlier_dump_left_is_removed(self, tmp_path, monkeypatch):
        for shape in ((8, 21), (8, 23)):
            monkeypatch.setattr(dumps, "_numbers", itertools.count())
            node, memory = softmax_graph(shape)
            with config.configure(dump=str(tmp_path)):
                compiler.execute([node], memory)
            (folder,) = tmp_path.iterdir()
            (folder / "kernels" / "k9_old.c").write_text("old")
            (folder / "mine.txt").write_text("not ours")
        assert (folder / "mine.txt").exists()
        with config.configure(dump=str(tmp_path)):
            monkeypatch.setattr(dumps, "_numbers", itertools.count())
            node, memory = softmax_graph((8, 25))
            compiler.execute([node], memory)
        assert not (folder / "kernels" / "k9_old.c").exists()
        assert (folder / "mine.txt").exists()

    def test_a_folder_that_cant_be_written_is_survived(self, tmp_path):
        (tmp_path / "file").write_text("in the way")
        node, memory = softmax_graph((8, 27))
        with config.configure(dump=str(tmp_path / "file")), pytest.warns(UserWarning, match="DUMP"):
            (result,) = compiler.execute([node], memory)
        np.testing.assert_allclose(result.array.sum(1), 1, rtol=1e-5)


class TestCrash:
    @pytest.mark.parametrize(
        ("name", "error"), [("lift", KeyError("x")), ("fuse", AssertionError())]
    )
    def test_a_failing_pass_leaves_its_graph(self, tmp_path, monkeypatch, name, error):
        def fails(value, target):
            raise error

        for table in ("GRAPH", "PLAN"):
            passes = [Pass(p.name, fails) if p.name == name else p for p in vars(pipeline)[table]]
            monkeypatch.setattr(pipeline, table, tuple(passes))
        node, memory = softmax_graph((8, 29))
        with config.configure(dump=str(tmp_path)), pytest.raises(VerifyError) as caught:
            compiler.execute([node], memory)
        message = str(caught.value)
        (path,) = tmp_path.glob(f"crash-{name}-*.ir")
        assert f"pass {name} failed: {type(error).__name__}" in message
        assert caught.value.__cause__ is error
        command = re.search(r"repeat it with: tinyc (opt .*)", message)[1].split()
        assert command[1] == str(path)
        assert f"# repeat it: tinyc {' '.join(command)}" in path.read_text()
        line = [sys.executable, "-m", "tinyc", *command]
        done = subprocess.run(line, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr  # there no pass fails
        assert ("max" in done.stdout) and (name == "lift" or "for " in done.stdout)

    def test_a_broken_invariant_is_found_and_kept_without_a_dump(self, monkeypatch):
        def breaks(outputs, target):
            broken = object.__new__(Node)
            n = outputs[0]
            for slot in ("op", "src", "attrs", "device", "dtype", "origin", "phase"):
                setattr(broken, slot, getattr(n, slot))
            broken.shape = (1, *n.shape)
            return (broken,)

        monkeypatch.setattr(pipeline, "GRAPH", (*pipeline.GRAPH, Pass("break", breaks)))
        node, memory = softmax_graph((8, 31))
        with config.configure(check=True), pytest.raises(VerifyError, match="type is") as caught:
            compiler.execute([node], memory)
        path = Path(re.search(r"graph before it is in (\S+);", str(caught.value))[1])
        assert parse_text(path.read_text())[0].shape == (8, 31)
        shutil.rmtree(path.parent)

    def test_what_the_user_asked_for_in_vain_is_no_crash(self, monkeypatch, tmp_path):
        def refuses(plan, target):
            raise ShapeError("can't be met")

        passes = [Pass(p.name, refuses) if p.name == "fuse" else p for p in pipeline.PLAN]
        monkeypatch.setattr(pipeline, "PLAN", tuple(passes))
        node, memory = softmax_graph((8, 33))
        wanted = pytest.raises(ShapeError, match="^can't be met$")
        with config.configure(dump=str(tmp_path)), wanted:
            compiler.execute([node], memory)
        assert list(tmp_path.iterdir()) == []


class TestCheck:
    def test_right_programs_pass(self):
        node, memory = softmax_graph((9, 16))
        with config.configure(check=True):
            (result,) = compiler.execute([node], memory)
        np.testing.assert_allclose(result.array.sum(1), 1, rtol=1e-5)

    def test_a_wrong_program_is_found_and_its_graph_kept(self, monkeypatch, tmp_path):
        node, memory = softmax_graph((10, 16))
        executable = compiler.compile_graph([node])
        right = executable.native.run

        class Wrong:
            def run(self, slots, times=None):
                right(slots)
                slots[-1].array[3, 5] += 0.01

        monkeypatch.setattr(executable, "native", Wrong())
        wanted = pytest.raises(VerifyError, match=r"at \[3, 5\]")
        with config.configure(check=True, dump=str(tmp_path)), wanted as caught:
            compiler.execute([node], memory)
        path = Path(re.search(r"graph before it is in (\S+);", str(caught.value))[1])
        assert path.parent == tmp_path and f"tinyc opt {path} -p all" in path.read_text()
        assert parse_text(path.read_text())[0].shape == (10, 16)


class TestCompare:
    @pytest.mark.parametrize(
        ("wanted", "found", "same"),
        [
            ([1.0, np.nan, np.inf], [1.0, np.nan, np.inf], True),
            ([1.0], [1.0 + 1e-6], True),
            ([1.0], [1.001], False),
            ([np.nan], [1.0], False),
            ([1.0], [np.nan], False),
            ([np.inf], [-np.inf], False),
            ([0.0, 1.0], [1e-7, 1.0], True),
        ],
    )
    def test_floats(self, wanted, found, same):
        assert (checking.difference(np.array(wanted), np.array(found), 1e-5) == "") is same

    def test_integers_are_exact(self):
        problem = checking.difference(np.array([1, 2]), np.array([1, 3]), 0.0)
        assert problem == "2 expected, 3 computed at [1]"

    def test_long_reductions_may_differ_more(self):
        x = b.buffer(1, 0, (64, 100), f32, "cpu")
        assert checking.longest_reduction([b.sum_(x, 1)]) == 100
        product = b.contract(x, b.buffer(2, 0, (100, 3), f32, "cpu"), (0, 1), (1, 2), (0, 2))
        assert checking.longest_reduction([product]) == 100
        assert checking.longest_reduction([b.iota(5, i64)]) == 1
