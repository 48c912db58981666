"""TINYC_DUMP writes what a compilation went through, TINYC_CHECK finds programs that are wrong."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from tinyc import checking, compiler, config, pipeline
from tinyc.diagnostics import VerifyError
from tinyc.ir import build as b
from tinyc.ir.dtype import f32, i64
from tinyc.runtime.buffer import Buffer


def softmax_graph(shape=(8, 16)):
    x = Buffer.from_numpy(np.random.default_rng(0).random(shape, np.float32), "cpu")
    leaf = b.buffer(x.uid, 0, shape, f32, "cpu")
    e = b.exp(b.sub(leaf, b.max_(leaf, 1, keepdims=True)))
    return b.div(e, b.sum_(e, 1, keepdims=True)), {x.uid: x}


class TestDump:
    def test_files_have_stable_names(self, tmp_path):
        node, memory = softmax_graph((8, 17))
        with config.configure(dump=str(tmp_path)):
            compiler.execute([node], memory)
        (folder,) = tmp_path.iterdir()
        assert re.fullmatch(r"\d{3}-test_dumps_and_checks-\d+", folder.name)
        names = sorted(path.name for path in folder.iterdir())
        passes = ["graph", *(p.name for p in (*pipeline.GRAPH, *pipeline.PLAN))]
        expected = [f"{i:02d}-{name}.txt" for i, name in enumerate(passes)]
        assert names == [*expected, "program.c", "remarks.json"]
        assert "tinyc_step" in (folder / "program.c").read_text()
        assert isinstance(json.loads((folder / "remarks.json").read_text()), list)


class TestCheck:
    def test_right_programs_pass(self):
        node, memory = softmax_graph((9, 16))
        with config.configure(check=True):
            (result,) = compiler.execute([node], memory)
        np.testing.assert_allclose(result.array.sum(1), 1, rtol=1e-5)

    def test_a_wrong_program_is_found(self, monkeypatch):
        node, memory = softmax_graph((10, 16))
        executable = compiler.compile_graph([node])
        right = executable.native.run

        class Wrong:
            def run(self, slots, times=None):
                right(slots)
                slots[-1].array[3, 5] += 0.01

        monkeypatch.setattr(executable, "native", Wrong())
        with config.configure(check=True), pytest.raises(VerifyError, match=r"at \[3, 5\]"):
            compiler.execute([node], memory)


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
