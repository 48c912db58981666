"""The report as one HTML file: everything inside, nothing fetched, readable without JavaScript.

``render`` is a function of the report's data alone (tinyc.reporting.collect makes them): the same
data give the same bytes. What is static says which kernels ran, why they are apart, how near to the
roofline they are and what the memory holds; the script in ``assets`` adds the linked panes.
"""

from __future__ import annotations

import base64
import hashlib
import os
import tempfile
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from tinyc.markup import (
    Safe,
    element,
    join,
    percent,
    plural,
    scaled,
    short,
    size,
    time,
)
from tinyc.reporting import charts, graph, tables
from tinyc.reporting.listing import highlighted, labelled, user_lines
from tinyc.reporting.packing import Lines, compressed, split, to_json

# Programs that are shown in full, those with most time first; the rest is a line each.
SHOWN = 6
# Bytes of a page that should not be exceeded.
LIMIT = 2_000_000

SECTIONS = (
    ("linked", "Lines, graph, code"),
    ("kernels", "Kernels"),
    ("roofline", "Roofline"),
    ("timeline", "Timeline"),
    ("memory", "Memory"),
    ("boundaries", "Why not fused"),
    ("passes", "Passes"),
)


def write(report: Mapping[str, Any], path: str | Path) -> None:
    """Write the page of a report; a file of that name is replaced at once or not at all."""
    path = Path(path)
    text = render(report)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def render(report: Mapping[str, Any]) -> str:
    """Return the page. TinycError if Pygments is not installed.

    Where it would be larger than LIMIT, the programs that took least go without the assembly and
    the diffs of their passes, as many as need be.
    """
    ranked = sorted(report["programs"], key=lambda p: -p["median_us"] * p["calls"])
    shown, rest = ranked[:SHOWN], ranked[SHOWN:]
    programs = [_program(p, report, f"p{i}") for i, p in enumerate(shown)]
    main = element("main", _introduction(report), *programs, _others(rest))
    body = [_top(report, shown), main, _footer(report)]
    text = ""
    for whole in range(len(shown), -1, -1):
        kept = [_cut(_leaner(p)) if i >= whole else _leaner(p) for i, p in enumerate(shown)]
        text = _document(report["title"], [*body, *_data(report, kept)])
        if len(text) < LIMIT:
            break
    return text


def _data(report: Mapping[str, Any], programs: list[dict[str, Any]]) -> list[Safe]:
    """Return the elements that hold the data, for the script and for `read_page`."""
    light, texts = split({**report, "programs": programs})
    lines = Lines()
    for heavy in texts:
        for item in (*heavy["kernels"], *heavy["helpers"]):
            item["coloured"] = lines.fold(highlighted(item["source"], "c"))
            lines.fold_assembly(item)
    drawing = [
        {"operations": graph.operations(p), "box": [graph.WIDTH, graph.HEIGHT, graph.DOWN]}
        for p in programs
    ]
    return [
        _script("data", "application/json", to_json(light)),
        _script("drawing", "application/json", to_json(drawing)),
        _script("texts", "text/plain", compressed({"programs": texts, "lines": [*lines.numbers]})),
    ]


def _cut(program: dict[str, Any]) -> dict[str, Any]:
    """Return a program without what takes most room."""
    passes = [{**step, "before": "", "diff": "", "firings": []} for step in program["passes"]]
    kernels, helpers = (
        [{k: v for k, v in item.items() if k != "asm"} for item in program[part]]
        for part in ("kernels", "helpers")
    )
    return {**program, "passes": passes, "kernels": kernels, "helpers": helpers, "cut": True}


def _leaner(program: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out texts that the diffs of passes say already; name targets in the assembly."""
    left_out = ("before", "after")
    passes = [{k: v for k, v in s.items() if k not in left_out} for s in program["passes"]]
    for step in passes:  # what a step of scheduling did to a kernel is in the diff of the pass
        firings = step.get("firings", ())
        step["firings"] = [{**f, "after": ""} if f.get("kernel") else f for f in firings]
    for step, whole in zip(passes[:1], program["passes"], strict=False):
        step["before"] = whole.get("before") or ""
    parts = {
        part: [
            {**item, "asm": labelled(item["asm"])} if "asm" in item else item
            for item in program.get(part, ())
        ]
        for part in ("kernels", "helpers")
    }
    return {**program, **parts, "passes": passes}


def _document(title: str, body: list[Safe]) -> str:
    style, script = _asset("report.css"), _asset("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", f"{title} – tinyc report"),
        Safe(f"<style>{style}</style>"),
    )
    content = element("body", *body, Safe(f"<script>{script}</script>"))
    return f"<!DOCTYPE html>\n{element('html', head, content, lang='en')}\n"


def _asset(name: str) -> str:
    return (files("tinyc.reporting") / "assets" / name).read_text(encoding="utf-8")


def _script(name: str, kind: str, content: str) -> Safe:
    return Safe(f'<script type="{kind}" id="{name}">{content}</script>')


# -- above and below -----------------------------------------------------------------------------


def _top(report: Mapping[str, Any], programs: list[Mapping[str, Any]]) -> Safe:
    choices = [
        element("option", f"{p['title']} – {time(p['median_us'])}", value=f"p{i}")
        for i, p in enumerate(programs)
    ]
    select = element("select", *choices, id="program", aria_label="program")
    links = [
        element("a", title, href=f"#p0-{name}", data_section=name) for name, title in SECTIONS
    ]
    theme = element("button", "light / dark", type="button", id="theme", class_="script")
    return element(
        "header",
        element("strong", "tinyc"),
        element("h1", report["title"]),
        element("span", select, class_="script") if len(programs) > 1 else None,
        element("nav", *links, aria_label="sections"),
        theme,
        class_="top",
    )


_QUESTIONS = (
    ("Which kernels ran, and what is in each?", "kernels",
     "A row each, with the operations that were fused into it."),
    ("From which of my lines?", "linked",
     "Click a line: its kernels light up in every pane. The bars beside the lines are time."),
    ("How near is that to what the machine can do?", "roofline",
     "A mark on the roof is at 100 %; hollow marks are the same work unfused."),
    ("Why is there a boundary here, and what would remove it?", "boundaries",
     "Click a wire of the graph, or filter the list by kernel or by rule."),
    ("What is the memory peak made of?", "memory",
     "By category over time, then value by value with your line."),
    ("What did each pass do?", "passes",
     "Step through them; changes are shown as a diff, rules as they fired."),
)  # fmt: skip


def _introduction(report: Mapping[str, Any]) -> Safe:
    items = [
        element("li", element("a", question, href=f"#p0-{name}", data_section=name), " ", answer)
        for question, name, answer in _QUESTIONS
    ]
    keys = (
        "Hover highlights the same computation everywhere, a click keeps it. Keys: j and k go from "
        "kernel to kernel, arrows move inside a pane, / filters, Esc lets go."
    )
    machine = report["machine"]
    made = (
        f"Recorded {report['created'].replace('T', ' ')} on {machine['cpu']}, "
        f"{plural(machine['threads'], 'thread')}, {machine['compiler']}."
    )
    return element(
        "section",
        element("details", element("summary", "How to read this page"), element("ul", *items),
                element("p", keys, class_="script"), open=""),
        element("p", made, class_="made"),
        class_="introduction",
    )  # fmt: skip


def _others(programs: list[Mapping[str, Any]]) -> Safe | None:
    if not programs:
        return None
    rows = [
        element("tr", element("td", p["title"]), element("td", f"{p['calls']:,}", class_="figure"),
                element("td", str(len(p["kernels"])), class_="figure"),
                element("td", time(p["median_us"]), class_="figure"))
        for p in programs
    ]  # fmt: skip
    head = [element("th", title) for title in ("program", "calls", "kernels", "median")]
    return element(
        "section",
        element("h2", "Programs that took less"),
        element("table", element("thead", element("tr", *head)), element("tbody", *rows)),
        class_="others",
    )


def _footer(report: Mapping[str, Any]) -> Safe:
    machine = report["machine"]
    text = (
        f"tinyc {report['version']}. Peaks were measured on this machine: "
        f"{short(machine['peak_gflops'])} GFLOP/s, {short(machine['read_gbs'])} GB/s read, "
        f"{short(machine['copy_gbs'])} GB/s copied in memory. FLOP and bytes are counted in the "
        "loops; times are medians. The data of this page are in it as JSON."
    )
    return element("footer", text)


# -- a program -----------------------------------------------------------------------------------


def _program(program: Mapping[str, Any], report: Mapping[str, Any], prefix: str) -> Safe:
    script = report.get("script", "")
    return element(
        "section",
        _headline(program, report),
        _linked(program, report, prefix),
        _part(prefix, "kernels", "Kernels",
              "In order of launch; a click on a heading sorts, on a row selects.",
              _filter("kernels"),
              element("div", tables.kernel_table(program, prefix, script),
                      class_="wide")),
        _roofline(program, report, prefix),
        _timeline(program, prefix),
        _memory(program, prefix),
        _part(prefix, "boundaries", "Why not fused",
              "Every value that one kernel stores and another reads: the rule that kept the two "
              "apart, the numbers behind it, and what would change it.",
              _filter("boundaries"), tables.boundaries(program, prefix)),
        _passes(program, prefix),
        class_="program", id=prefix,
    )  # fmt: skip


def _part(prefix: str, name: str, title: str, lead: str, *content: object) -> Safe:
    return element(
        "section",
        element("h2", title),
        element("p", lead, class_="lead"),
        *content,
        id=f"{prefix}-{name}",
        class_=name,
    )


def _filter(what: str) -> Safe:
    return element(
        "div",
        element("input", type="search", placeholder=f"filter {what}", aria_label=f"filter {what}",
                data_filter=what),
        element("output"),
        class_="filter script",
    )  # fmt: skip


def _headline(program: Mapping[str, Any], report: Mapping[str, Any]) -> Safe:
    us, kernels = program["median_us"], len(program["kernels"])
    rate = program["flops"] / max(us, 1e-3) / 1e3
    unfused = program.get("unfused")
    calls = plural(program["calls"], "call")
    spread = f"{time(program['q1_us'])} to {time(program['q3_us'])}, {calls}"
    tiles = [
        _tile(time(us), "one run", spread),
        _tile(plural(kernels, "kernel"), "fused",
              f"{unfused['kernels']} unfused" if unfused else ""),
    ]  # fmt: skip
    if unfused:
        tiles.append(_tile(f"{unfused['us'] / max(us, 1e-3):.2f}×", "faster than unfused",
                           f"which takes {time(unfused['us'])}"))  # fmt: skip
    tiles += [
        _tile(size(program["bytes"]), "moved", f"{size(unfused['bytes'])} unfused" if unfused
              else f"{short(program['bytes'] / max(us, 1e-3) / 1e3)} GB/s"),
        _tile(scaled(program["flops"], "FLOP"), "executed",
              f"{short(rate)} GFLOP/s, {percent(rate / report['machine']['peak_gflops'])} of peak"),
        _tile(size(program["peak"]["bytes"]), "memory at the peak",
              f"arena {size(program['arena_bytes'])}{_measured(program['peak'])}"),
    ]  # fmt: skip
    return element("div", element("h2", program["title"]), element("div", *tiles, class_="tiles"),
                   _shares(program), class_="headline")  # fmt: skip


def _measured(peak: Mapping[str, Any]) -> str:
    """Return what the first run really touched, where that is known."""
    return f", measured {size(peak['measured'])}" if peak.get("measured") else ""


def _tile(figure: str, what: str, more: str) -> Safe:
    return element("div", element("b", figure), element("span", what), element("small", more),
                   class_="tile")  # fmt: skip


def _shares(program: Mapping[str, Any]) -> Safe:
    """Return bars of the time by phase and by what bounds the kernels."""
    whole = sum(kernel["median_us"] for kernel in program["kernels"]) or 1.0
    rows = []
    for title, key, order in (
        ("time by phase", "phase", graph.PHASES),
        ("bound by", "bound", ("compute", "memory", "latency")),
    ):
        parts: list[Safe] = []
        named: list[Safe] = []
        for value in order:
            us = sum(k["median_us"] for k in program["kernels"] if k[key] == value)
            if us:
                letter = element("b", graph.LETTERS[value]) if key == "phase" else element("i")
                parts.append(element("span", style=f"flex-grow:{us / whole * 1000:.0f}",
                                     class_=value, title=f"{value}: {time(us)}"))  # fmt: skip
                text = f" {value} {percent(us / whole)}"
                named.append(element("span", letter, text, class_=f"key {value}"))
        rows += [element("span", title),
                 element("div", element("div", *parts, class_="shares"), *named)]  # fmt: skip
    return element("div", *rows, class_="split")


def _linked(program: Mapping[str, Any], report: Mapping[str, Any], prefix: str) -> Safe:
    phases = [p for p in graph.PHASES if any(k["phase"] == p for k in program["kernels"])]
    lines = element("div", user_lines(program, report["files"]), class_="body")
    drawing = element("div", graph.draw(program, prefix), class_="body canvas")
    panes = [
        _pane("lines", "Your lines", "time and bytes of each", lines),
        _pane("graph", "Graph", join([graph.phase_key(phases)]), drawing, _graph_tools()),
        *(
            _pane(name, title, None, element("div", class_="body code", tabindex="0", role="group",
                                           aria_label=title), class_="script")
            for name, title in (("loops", "Loop tree"), ("source", "C"), ("asm", "Assembly"))
        ),
    ]
    off = "The loop tree, C and assembly of each kernel are shown by a script, which is off."
    none = element("noscript", element("p", off))
    return element(
        "section",
        element("h2", "Lines, graph, code"),
        element("p", "One computation in five forms. In the graph a box is a kernel and a wire a "
                "value that is stored between two; the backward pass runs upward beside the "
                "forward pass. Click a wire to read why it is there.", class_="lead"),
        none,
        element("p", class_="chosen script", aria_live="polite"),
        element("div", *panes, class_="panes"),
        id=f"{prefix}-linked", class_="linked",
    )  # fmt: skip


def _pane(
    name: str, title: str, more: object, body: Safe, tools: Safe | None = None, class_: str = ""
) -> Safe:
    head = element("h3", title, " ", element("small", more), tools)
    return element("div", head, body, class_=f"pane {name} {class_}".rstrip())


def _graph_tools() -> Safe:
    def button(text: str, action: str, hint: str) -> Safe:
        return element("button", text, type="button", data_do=action, title=hint,
                       aria_label=hint)  # fmt: skip

    return element(
        "span",
        element("label", element("input", type="checkbox", data_do="unfused"), " before fusion",
                title="every operation by itself, as if nothing were fused"),
        button("open", "expand", "show what is inside the selected kernel"),
        button("−", "out", "zoom out"),
        button("+", "in", "zoom in"),
        button("fit", "fit", "fit the width"),
        class_="tools script",
    )  # fmt: skip


def _roofline(program: Mapping[str, Any], report: Mapping[str, Any], prefix: str) -> Safe:
    near = sorted(program["kernels"], key=lambda k: -k["median_us"])[:8]
    whole = sum(kernel["median_us"] for kernel in program["kernels"]) or 1.0
    rows = [
        element("tr", element("td", tables.kernel_label(k)),
                element("td", percent(k["median_us"] / whole), class_="figure"),
                element("td", percent(k["share"]), class_="figure"), element("td", k["bound"]),
                data_k=k["index"])
        for k in near
    ]  # fmt: skip
    head = [element("th", t) for t in ("most time", "of step", "of roof", "bound by")]
    table = element("table", element("thead", element("tr", *head)), element("tbody", *rows))
    mean = sum(k["share"] * k["median_us"] for k in program["kernels"]) / whole
    lead = (
        "The roof is what this machine was measured to allow: left of the ridge memory is the "
        "limit (the dashed roof holds for what fits the caches), right of it arithmetic. Larger "
        "marks took more time; hollow marks are the same work unfused. Weighed by time, the "
        f"kernels reach {percent(mean)} of the roof."
    )
    content = element("div", charts.roofline(program, report["machine"]), table, class_="beside")
    return _part(prefix, "roofline", "Roofline", lead, content)


def _timeline(program: Mapping[str, Any], prefix: str) -> Safe:
    if not program["timeline"]:
        return _part(prefix, "timeline", "Timeline", "No run of this program was timed.")
    return _part(prefix, "timeline", "Timeline", "One run, kernel after kernel.",
                 element("div", charts.timeline(program), class_="wide"))  # fmt: skip


def _memory(program: Mapping[str, Any], prefix: str) -> Safe:
    held = {storage["category"] for storage in program["storages"]}
    key = charts.category_key([c for c in charts.CATEGORIES if c in held])
    peak = program["peak"]
    name = program["kernels"][peak["kernel"]]["name"] if program["kernels"] else "nothing"
    lead = f"The peak of {size(peak['bytes'])} is reached while {name} runs."
    return _part(
        prefix, "memory", "Memory", lead,
        element("p", key, class_="keys"),
        element("div", charts.live_memory(program), class_="wide"),
        element("h3", "What the peak is made of"),
        *tables.peak_tables(program),
        element("h3", "The arena"),
        element("p", "Each value's place, from the kernel that writes it to the last reader.",
                class_="lead"),
        element("div", charts.arena_map(program), class_="wide"),
    )  # fmt: skip


def _passes(program: Mapping[str, Any], prefix: str) -> Safe:
    rows = []
    for i, step in enumerate(program["passes"]):
        diff = step.get("diff") or ""
        changed = [line for line in diff.splitlines() if line[:3] not in ("+++", "---")]
        added, removed = (sum(line.startswith(s) for line in changed) for s in "+-")
        change = f"+{added:,} −{removed:,}" if diff else "–"
        if diff and not diff.startswith("---"):  # another form, so there is nothing to compare
            change = f"new form, {plural(len(changed), 'line')}"
        button = element("button", step["name"], type="button", data_pass=i)
        rows.append(element(
            "tr", element("th", button, scope="row"),
            element("td", f"{step['ms']:.1f} ms", class_="figure"),
            element("td", change, class_="figure"),
            element("td", f"{len(step.get('firings', ())):,}", class_="figure"),
        ))  # fmt: skip
    head = [element("th", t) for t in ("pass", "took", "lines", "rules fired")]
    table = element("table", element("thead", element("tr", *head)), element("tbody", *rows))
    shown = element("div", class_="diff script", tabindex="0", aria_live="polite")
    lead = "From the graph as it was built to the kernels, in order. Arrow keys step."
    return _part(prefix, "passes", "Passes", lead,
                 element("div", table, shown, class_="stepper"))  # fmt: skip
