"""`tinyc opt`: passes by name on graphs in files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_graphs import Graph, grow, outputs_of
from running import buffers, floats, interpreted

from tinyc import __main__, pipeline
from tinyc.commands import opt
from tinyc.composites import reductions
from tinyc.ir import build as b
from tinyc.ir.parser import parse_text
from tinyc.ir.printer import to_text


def softmax_of_a_sum():
    (x, y), memory = buffers(floats(6, 10), floats(10))
    return [reductions.softmax(b.neg(b.neg(b.add(x, y))))], memory


@pytest.fixture
def graph(tmp_path):
    path = tmp_path / "graph.ir"
    path.write_text("# a comment\n" + to_text(softmax_of_a_sum()[0]))
    return str(path)


def run(capsys, *arguments):
    status = __main__.main(["opt", *arguments])
    shown = capsys.readouterr()
    return status, shown.out, shown.err


def test_a_graph_pass_gives_a_graph_of_equal_value(graph, capsys):
    status, out, err = run(capsys, graph, "-p", "simplify")
    assert (status, err) == (0, "")
    outputs, memory = softmax_of_a_sum()
    after = parse_text(out)
    assert "neg" in to_text(outputs) and "neg" not in out
    (want,), (got,) = interpreted(outputs, memory), interpreted(after, memory)
    np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize(("passes", "shows"), [
    ("stage", "-> slot out0"), ("simplify,fuse", "kernel k0_"), ("lower", "[0] max= "),
    ("memory", "arena of"), ("all", "long tinyc_step("),
])  # fmt: skip
def test_the_last_pass_decides_what_comes_out(graph, capsys, passes, shows):
    status, out, err = run(capsys, graph, "-p", passes)
    assert status == 0, err
    assert shows in out


def test_all_is_what_the_compiler_does(graph, capsys):
    outputs = parse_text(Path(graph).read_text())
    leaves = opt.canonical_key(outputs)[1]
    program, _ = pipeline.build_program(outputs, leaves, opt.target_of("lanes=8"))
    assert run(capsys, graph, "-p", "all", "--target", "lanes=8") == (0, program.source, "")


def test_changes_are_shown_of_the_passes_that_were_named(graph, capsys):
    status, _, err = run(capsys, graph, "-p", "simplify,lift,fuse", "--print-after-change")
    assert status == 0
    assert [line.split(":")[0] for line in err.splitlines() if line.startswith("pass")] == [
        "pass simplify", "pass lift", "pass fuse"
    ]  # fmt: skip
    assert "rule neg_neg: neg(neg f32[6,10]) -> " in err
    assert "--- before simplify\n+++ after simplify\n@@" in err
    assert "pass lift: unchanged" in err and "stage" not in err.split("pass fuse: ")[0]
    whole = run(capsys, graph, "-p", "simplify,lift", "--print-after-all")[2]
    assert whole.count("outputs = (") == 2 and "@@" not in whole


def test_the_result_goes_to_a_file_that_opt_reads(graph, capsys, tmp_path):
    first = str(tmp_path / "first.ir")
    assert run(capsys, graph, "-p", "simplify", "-o", first) == (0, "", "")
    assert run(capsys, first, "-p", "simplify", "--print-after-change")[2].startswith(
        "pass simplify: unchanged"
    )


@pytest.mark.parametrize(("arguments", "message"), [
    (["-p", "simplifie"], "there is no pass 'simplifie'; did you mean simplify? They are"),
    (["-p", "fuse,stage"], "passes run in the order simplify,"),
    (["-p", "fuse,simplify"], "passes run in the order"),
    (["-p", "lift", "--target", "lanes=x"], "lanes=x: expected a positive integer"),
    (["-p", "lift", "--target", "wings=2"], "for one of lanes, tile_rows"),
    (["-p", "lift", "-o", "/no/such/folder/x"], "No such file"),
])  # fmt: skip
def test_mistakes_are_told_in_one_line(graph, capsys, arguments, message):
    status, out, err = run(capsys, graph, *arguments)
    assert (status, out) == (1, "")
    assert err.startswith("tinyc opt: ") and message in err and len(err.splitlines()) == 1


def test_mistakes_in_the_file_have_their_line(tmp_path, capsys):
    path = tmp_path / "wrong.ir"
    path.write_text('v0 = buffer(0, 0, (3,), f32, "cpu")\nv1 = reshape(v0, (5,))\n')
    status, _, err = run(capsys, str(path), "-p", "all")
    assert status == 1
    assert err.startswith(f"tinyc opt: {path}:2: ") and "number of elements stays 3" in err
    path.write_bytes(b"\xff\xfe\x00")
    assert run(capsys, str(path), "-p", "all")[0] == 1
    assert run(capsys, str(tmp_path / "none.ir"), "-p", "all")[0] == 1


@settings(max_examples=60)
@given(st.data())
def test_dumps_of_any_graph_go_through_all_graph_passes(data):
    g = Graph(lambda n: data.draw(st.integers(0, n - 1)))
    grow(g, data.draw(st.integers(4, 20)))
    outputs = tuple(outputs_of(g, data.draw(st.integers(1, 4))))
    leaves = tuple(opt.canonical_key(outputs)[1])
    done = pipeline.Compilation(outputs, leaves, opt.target_of("lanes=8"), keeps_texts=True)
    for p in pipeline.GRAPH:
        step = pipeline.run_pass(done, p)
        assert parse_text(step.text) == done.graph
