"""The HTML report without a browser: what is static in it, and that it holds together."""

from __future__ import annotations

import copy
import sys

import networkx
import numpy as np
import pytest
from pages import Page, training_report

import tinyc
from tinyc.diagnostics import TinycError
from tinyc.reporting import collect, graph, layout, page
from tinyc.reporting.charts import Scale
from tinyc.reporting.difference import difference
from tinyc.reporting.listing import labelled
from tinyc.reporting.packing import read_page

HOSTILE = """<script>alert(1)</script>"'&--><img src=x onerror=alert(2)>"""


@pytest.fixture(scope="module")
def report():
    return training_report()


@pytest.fixture(scope="module")
def text(report):
    return page.render(report)


@pytest.fixture(scope="module")
def parsed(text):
    return Page(text)


class TestDocument:
    def test_is_well_formed_and_its_links_lead_somewhere(self, parsed):
        ids = [a["id"] for _, a in parsed.elements if "id" in a]
        assert len(set(ids)) == len(ids)
        links = [a["href"] for tag, a in parsed.elements if tag == "a"]
        assert len(links) > 20
        assert {link for link in links if link[1:] not in ids or link[0] != "#"} == set()

    def test_loads_nothing(self, text, parsed):
        assert not [a for _, a in parsed.elements if "src" in a or "srcset" in a]
        assert not [tag for tag, _ in parsed.elements if tag in ("link", "iframe", "object")]
        assert "url(" not in text.replace("url(#", "") and "@import" not in text
        # the name of a namespace is no address
        assert text.count("http") == text.count("http://www.w3.org/2000/svg") + text.count(
            "http-equiv"
        )
        policy = next(a for tag, a in parsed.elements if a.get("http-equiv"))["content"]
        assert policy.startswith("default-src 'none'")

    def test_is_the_same_for_the_same_data(self, report, text):
        assert page.render(copy.deepcopy(report)) == text

    def test_says_what_the_headline_must(self, report, parsed):
        program = report["programs"][0]
        assert f"{len(program['kernels'])} kernels" in parsed.text
        assert f"{program['unfused']['kernels']} unfused" in parsed.text
        assert "faster than unfused" in parsed.text and "How to read this page" in parsed.text

    def test_shows_the_lines_of_the_user_with_what_they_cost(self, report, parsed):
        lines = [a["data-line"] for tag, a in parsed.elements if tag == "li" and "data-line" in a]
        wanted = {f"{p}:{n}" for k in report["programs"][0]["kernels"] for p, n in k["lines"]}
        assert set(lines) == wanted and len(lines) == len(wanted)
        assert "optimizer.step()" in parsed.text


class TestContents:
    def test_a_box_and_a_row_for_each_kernel(self, report, parsed):
        kernels = report["programs"][0]["kernels"]
        assert len(parsed.of_class("box")) == len(kernels)
        rows = [a for tag, a in parsed.elements if tag == "tr" and "data-k" in a and "id" in a]
        assert [int(a["data-k"]) for a in rows] == [k["index"] for k in kernels]
        for kernel in kernels:
            assert kernel["name"] in parsed.text
            assert ", ".join(m["name"] for m in kernel["members"]) in parsed.text
        phases = {k["phase"] for k in kernels}
        assert phases == {"forward", "backward", "optimizer"}

    def test_a_wire_for_each_two_kernels_and_an_entry_for_each_value(self, report, parsed):
        links = report["programs"][0]["links"]
        wires = {(int(a["data-from"]), int(a["data-to"])) for a in parsed.of_class("wire")}
        assert wires == {(link["from"], link["to"]) for link in links}
        assert len(parsed.of_class("boundary")) == len(wires)
        assert len(parsed.of_class("value")) == len(links)

    def test_every_boundary_gives_rule_numbers_and_remedy(self, report, parsed):
        links = report["programs"][0]["links"]
        reasons = [why for link in links for why in link["why"]]
        assert reasons and all(link["why"] for link in links)
        for why in reasons:
            assert " ".join(why["message"].split()) in parsed.text
            assert " ".join(why["remedy"].split()) in parsed.text
        assert parsed.text.count("What would change it:") == len(reasons)

    def test_a_mark_under_the_roof_for_each_kernel_that_computes(self, report, parsed):
        computing = [k for k in report["programs"][0]["kernels"] if k["flops"]]
        assert len(parsed.of_class("mark")) == len(computing)

    def test_the_peak_is_broken_down_completely(self, report, parsed):
        peak = report["programs"][0]["peak"]
        assert sum(c["bytes"] for c in peak["contributors"]) == peak["bytes"]
        assert parsed.text.count("What the peak is made of") == 1
        assert len(parsed.of_class("peak")) >= 4  # two tables and two marks

    def test_a_command_for_each_kernel(self, report, parsed):
        commands = [a["data-copy"] for a in parsed.of_class("copy")]
        names = [k["name"] for k in report["programs"][0]["kernels"]]
        assert commands == [f"tinyc repro {name} SCRIPT.py" for name in names]

    def test_hostile_names_stay_text(self, report):
        hostile = copy.deepcopy(report)
        path = f"/tmp/{HOSTILE}.py"
        hostile["title"] = HOSTILE
        hostile["files"][path] = {"name": HOSTILE, "first": 1, "lines": [HOSTILE]}
        program = hostile["programs"][0]
        program["title"] = HOSTILE
        kernel = program["kernels"][0]
        kernel |= {"name": HOSTILE, "source": HOSTILE, "loops": HOSTILE, "lines": [[path, 1]]}
        kernel["members"][0] |= {"name": HOSTILE, "text": HOSTILE, "line": [path, 1]}
        program["links"][0]["why"][0] |= {"rule": HOSTILE, "message": HOSTILE, "remedy": HOSTILE}
        program["peak"]["contributors"][0]["what"] = HOSTILE
        found = Page(page.render(hostile))
        assert sum(tag == "script" for tag, _ in found.elements) == 4
        assert not [tag for tag, _ in found.elements if tag == "img"]
        assert not [name for _, a in found.elements for name in a if name.startswith("on")]
        assert found.text.count("alert(1)") > 8

    def test_what_is_optional_may_be_missing(self, report):
        lean = copy.deepcopy(report)
        program = lean["programs"][0]
        del program["unfused"]
        program |= {"timeline": [], "links": []}
        lean["machine"].pop("levels", None)
        for kernel in program["kernels"]:
            del kernel["unfused"]
            kernel.pop("asm", None)
        for step in program["passes"]:
            for key in ("before", "after", "diff", "firings", "remarks"):
                step.pop(key, None)
        found = Page(page.render(lean))
        assert len(found.of_class("box")) == len(program["kernels"])

    def test_a_large_page_goes_without_assembly_of_the_programs_that_took_least(
        self, report, tmp_path, monkeypatch
    ):
        two = copy.deepcopy(report)
        two["programs"].append({**copy.deepcopy(report["programs"][0]), "median_us": 0.1})
        whole = len(page.render(two))
        monkeypatch.setattr(page, "LIMIT", whole)
        page.write(two, tmp_path / "r.html")
        assert (tmp_path / "r.html").stat().st_size < whole
        first, second = read_page(tmp_path / "r.html")["programs"]
        assert "cut" not in first and any(step.get("diff") for step in first["passes"])
        assert second["cut"] and not any(step["diff"] for step in second["passes"])
        assert not any("asm" in kernel for kernel in second["kernels"])

    def test_programs_beyond_those_shown_are_listed(self, report):
        many = copy.deepcopy(report)
        many["programs"] = [
            {**copy.deepcopy(report["programs"][0]), "title": f"p{i}.py:1"} for i in range(8)
        ]
        found = Page(page.render(many))
        assert len(found.of_class("program")) == page.SHOWN
        assert "Programs that took less" in found.text and "p7.py:1" in found.text


class TestAssembly:
    def test_targets_of_jumps_are_named_and_addresses_left_out(self):
        code = [
            ["10: xor    %eax,%eax", 1],
            ["12: inc    %eax", 2],
            ["14: jne    12 <f+0x2>", 2],
            ["16: call   99 <g>", None],
        ]
        assert labelled(code) == [
            ["      xor    %eax,%eax", 1],
            [".L0:  inc    %eax", 2],
            ["      jne    .L0", 2],
            ["      call   99 <g>", None],
        ]

    def test_without_a_disassembler_there_is_none(self):
        assert labelled([]) == []


@pytest.mark.slow
def test_the_page_of_a_small_gpts_training_step_is_small(tmp_path):
    from tinyc.models import GPT, GPTConfig

    tinyc.manual_seed(0)
    model = GPT(GPTConfig(64, 65, n_layer=4, n_head=4, n_embd=128, bias=False))
    optimizer = tinyc.optim.AdamW(model.parameters(), lr=1e-3)

    @tinyc.jit
    def step(x, y):
        _, loss = model(x, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    x, y = (tinyc.randint(0, 65, (12, 64)) for _ in range(2))
    step(x, y)
    page.write(collect(step, x, y, repeats=1), tmp_path / "r.html")
    assert (tmp_path / "r.html").stat().st_size < 2_000_000
    found = Page((tmp_path / "r.html").read_text())
    assert len(found.of_class("box")) == len(step.program.kernels)


class TestPacking:
    def test_reads_back_what_was_written(self, report, tmp_path):
        page.write(report, tmp_path / "r.html")
        back = read_page(tmp_path / "r.html")
        wanted = copy.deepcopy(report)
        for program in (*back["programs"], *wanted["programs"]):
            for step in program["passes"]:  # the diffs say the same
                step.pop("before", None)
                step.pop("after", None)
                for firing in step["firings"]:
                    firing["after"] = "" if firing.get("kernel") else firing["after"]
            for item in (*program["kernels"], *program["helpers"]):
                item["asm"] = [line for _, line in item["asm"]]
        assert back == wanted
        assert [p.name for p in tmp_path.iterdir()] == ["r.html"]

    @pytest.mark.parametrize("damage", [
        lambda text: "<html></html>",
        lambda text: text.replace('id="texts">', 'id="texts">AAAA'),
        lambda text: text.replace('id="data">{', 'id="data">{{'),
    ])  # fmt: skip
    def test_other_files_are_refused(self, text, tmp_path, damage):
        (tmp_path / "r.html").write_text(damage(text))
        with pytest.raises(TinycError, match="report: "):
            read_page(tmp_path / "r.html")

    def test_a_page_is_replaced_at_once_or_not_at_all(self, report, tmp_path, monkeypatch):
        (tmp_path / "r.html").write_text("before")
        monkeypatch.setattr(page.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
        with pytest.raises(OSError, match="full"):
            page.write(report, tmp_path / "r.html")
        assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("r.html", "before")]


class TestDifference:
    def test_names_kernels_that_are_new_gone_or_slower(self, report):
        after = copy.deepcopy(report)
        kernels = after["programs"][0]["kernels"]
        kernels[0]["median_us"] *= 3
        kernels[1]["members"][0]["text"] = "f32[999]"
        text = difference(report, after)
        row = next(line for line in text.splitlines() if line.startswith(kernels[0]["name"]))
        assert "3.00x" in row
        assert sum(" new " in line for line in text.splitlines()) == 1
        assert sum(" gone " in line for line in text.splitlines()) == 1

    def test_equal_reports_differ_in_nothing(self, report):
        text = difference(report, copy.deepcopy(report))
        assert "1.00x" in text and "new" not in text and "gone" not in text


class TestLayout:
    EDGES = ((0, 1), (1, 2), (0, 3), (3, 4), (2, 5), (4, 5), (1, 4))

    @pytest.mark.parametrize("library", [True, False])
    def test_edges_lead_down(self, library, monkeypatch):
        if library:
            pytest.importorskip("fast_sugiyama")
        else:
            monkeypatch.setitem(sys.modules, "fast_sugiyama", None)
        places = layout.layered(range(7), self.EDGES)
        assert sorted(places) == list(range(7))
        assert len(set(places.values())) == 7
        assert all(places[a][1] < places[b][1] for a, b in self.EDGES)

    def test_large_numbers_are_not_taken_for_the_librarys_own(self):
        edges = [(10 * i, 10 * (i + 1)) for i in range(20)] + [(0, 200)]
        places = layout.layered(range(0, 201, 10), edges)
        assert sorted(places) == list(range(0, 201, 10))
        assert all(places[a][1] < places[b][1] for a, b in edges)

    def test_the_backward_lane_runs_upward_beside_what_it_undoes(self):
        # forward 0 1 2, backward 3 4 5 of 2 1 0, optimizer 6
        edges = [(0, 1), (1, 2), (2, 3), (1, 4), (0, 5), (3, 4), (4, 5), (5, 6)]
        lanes = {0: 0, 1: 0, 2: 0, 3: 1, 4: 1, 5: 1, 6: 2}
        places = layout.in_lanes(range(7), edges, lanes)
        rows = {node: row for node, (_, row) in places.items()}
        assert [rows[n] for n in (0, 1, 2)] == [rows[n] for n in (5, 4, 3)]
        columns = {node: column for node, (column, _) in places.items()}
        assert columns[0] < columns[5] < columns[6]
        assert len(set(places.values())) == 7

    def test_boxes_of_a_real_step_do_not_overlap(self, report):
        program = report["programs"][0]
        corners = [graph.corner(p) for p in graph.kernel_places(program).values()]
        for i, (x, y) in enumerate(corners):
            for u, v in corners[i + 1 :]:
                assert abs(x - u) >= graph.WIDTH or abs(y - v) >= graph.HEIGHT

    def test_operations_are_those_that_loops_compute(self, report):
        program = report["programs"][0]
        found = graph.operations(program)
        shown = {n for n, _ in found["homes"]}
        by_id = {n["id"]: n for n in program["nodes"]}
        assert all(by_id[n]["op"] not in ("buffer", "const", "reshape", "permute") for n in shown)
        assert {a for edge in found["edges"] for a in edge} <= shown
        assert networkx.is_directed_acyclic_graph(networkx.DiGraph(map(tuple, found["edges"])))


def test_scales_are_logarithmic():
    scale = Scale([0.5, 80], 0, 300)
    assert scale.decades() == [0.1, 1, 10, 100]
    assert np.allclose([scale(0.1), scale(1), scale(100), scale(1e9)], [0, 100, 300, 300])


def test_without_pygments_the_extra_is_named(report, monkeypatch):
    monkeypatch.setitem(sys.modules, "pygments", None)
    with pytest.raises(TinycError, match=r"pip install 'tinyc\[report\]'"):
        page.render(report)


class TestCards:
    def test_of_tensors(self):
        card = tinyc.arange(6).reshape(2, 3)._repr_html_()
        found = Page(card)
        assert "i64[2, 3]" in found.text and "[3, 4, 5]" in found.text

    def test_of_large_tensors_are_short(self):
        assert len(tinyc.zeros(1000, 1000)._repr_html_()) < 2000

    def test_inside_a_capture_nothing_is_computed(self):
        cards = []

        @tinyc.jit
        def f(x):
            y = x + 1
            cards.append(y._repr_html_())
            return y

        f(tinyc.zeros(3))
        assert "lazy" in Page(cards[0]).text

    def test_of_functions_explanations_and_comparisons(self):
        @tinyc.jit
        def f(x):
            return x.softmax(-1)

        assert "captured 0 times" in Page(f._repr_html_()).text
        x = tinyc.randn(8, 8)
        explanation, comparison = tinyc.explain(f, x), tinyc.compare(f, x, repeats=1)
        for thing in (f, explanation, comparison):
            assert explanation.kernels[0].name in Page(thing._repr_html_()).text
        assert "1 kernel" in Page(f._repr_html_()).text
        assert "of kernels" in Page(comparison._repr_html_()).text
        assert "nothing was compiled" in Page(type(explanation)(())._repr_html_()).text
