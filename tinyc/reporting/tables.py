"""The tables of the page: kernels, boundaries between them, what the memory peak is made of."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
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
from tinyc.reporting.charts import CATEGORIES
from tinyc.reporting.graph import LETTERS, pairs
from tinyc.schedule.refusals import RULES

CONTRIBUTORS = 24


def place(line: Sequence[Any] | None) -> str:
    """Return ``train.py:12``, or a dash for no line."""
    return f"{os.path.basename(line[0])}:{line[1]}" if line else "–"


def kernel_label(kernel: Mapping[str, Any]) -> Safe:
    """Return a kernel's phase letter and name."""
    letter = element("b", LETTERS[kernel["phase"]], class_=f"phase {kernel['phase']}")
    return join([letter, " ", kernel["name"]])


# -- kernels -------------------------------------------------------------------------------------

# title, what it means, is it a figure
COLUMNS = (
    ("kernel", "F forward, B backward, O optimizer; below the name what is fused in it", False),
    ("lines", "the lines of yours that it comes from", False),
    ("calls", "how often it ran while this was recorded", True),
    ("median", "median time of one call; below it the first to the third quartile", True),
    ("of step", "its part of the program's time", True),
    ("FLOP", "arithmetic that it executes, counted in its loops", True),
    ("bytes", "bytes that it reads and writes outside its own scratch", True),
    ("GFLOP/s", "arithmetic rate", True),
    ("GB/s", "memory rate", True),
    ("of roof", "its rate, as a part of what this machine allows at its FLOP for each byte", True),
    ("bound", "what limits it there: memory, compute, or a small kernel's latency", False),
    ("unfused", "what the same work takes one operation a kernel, and how many that are", True),
    ("faster", "that time by its time", True),
    ("", "a stand-alone C file with main, timing and a check", False),
)  # fmt: skip


def kernel_table(program: Mapping[str, Any], prefix: str, script: str) -> Safe:
    """Return the table of kernels with a row of sums below; sorted by the script on click.

    ``script``, with its arguments, is what the commands for single kernels name.
    """
    whole = sum(kernel["median_us"] for kernel in program["kernels"]) or 1.0
    rows = [_kernel_row(kernel, whole, prefix, script) for kernel in program["kernels"]]
    head = [
        element("th", element("button", title, type="button", disabled="") if title else "repro",
                scope="col", title=hint, class_="figure" if figure else None)
        for title, hint, figure in COLUMNS
    ]  # fmt: skip
    return element(
        "table",
        element("thead", element("tr", *head)),
        element("tbody", *rows),
        element("tfoot", _sums(program)),
        class_="kernels",
    )


def _figure(value: float, shown: str, title: str | None = None, *inside: object) -> Safe:
    return element("td", shown, *inside, class_="figure", data_v=f"{value:g}", title=title)


def _bar(part: float, class_: str) -> Safe:
    style = f"width:{min(max(part, 0), 1) * 100:.1f}%"
    return element("span", element("i", style=style), class_=f"meter {class_}")


def _kernel_row(kernel: Mapping[str, Any], whole: float, prefix: str, script: str) -> Safe:
    index = kernel["index"]
    members = ", ".join(member["name"] for member in kernel["members"])
    lines = [place(line) for line in kernel["lines"]]
    shown = ", ".join(lines[:2]) + (f" +{len(lines) - 2}" if len(lines) > 2 else "")
    us, part = kernel["median_us"], kernel["median_us"] / whole
    spread = element("small", f"{short(kernel['q1_us'])}–{short(kernel['q3_us'])}")
    button = element("button", kernel_label(kernel), type="button", class_="pick")
    return element(
        "tr",
        element("th", button, element("small", members), scope="row",
                data_v=kernel["name"]),
        element("td", shown, title=", ".join(lines), data_v=shown, class_="where"),
        _figure(kernel["calls"], f"{kernel['calls']:,}"),
        _figure(us, time(us), None, spread),
        _figure(part, percent(part), None, _bar(part, kernel["phase"])),
        _figure(kernel["flops"], scaled(kernel["flops"], "")),
        _figure(kernel["bytes"], size(kernel["bytes"])),
        _figure(kernel["gflops"], short(kernel["gflops"])),
        _figure(kernel["gbs"], short(kernel["gbs"])),
        _figure(kernel["share"], percent(kernel["share"]), None, _bar(kernel["share"], "roof")),
        element("td", kernel["bound"], data_v=kernel["bound"]),
        *_unfused_cells(kernel),
        element("td", repro(kernel, script)),
        id=f"{prefix}-k{index}", data_k=index, class_=kernel["phase"],
    )  # fmt: skip


def _unfused_cells(kernel: Mapping[str, Any]) -> list[Safe]:
    unfused = kernel.get("unfused")
    if not unfused:
        return [_figure(-1, "–") for _ in range(2)]
    ratio = unfused["us"] / kernel["median_us"] if kernel["median_us"] else 1.0
    return [
        _figure(unfused["us"], time(unfused["us"]), size(unfused["bytes"]) + " moved",
                element("small", plural(unfused["kernels"], "kernel"))),
        _figure(ratio, f"{ratio:.2f}×"),
    ]  # fmt: skip


def repro(kernel: Mapping[str, Any], script: str) -> Safe:
    """Return the command that writes the kernel as a program of its own, with a copy button."""
    command = f"tinyc repro {kernel['name']} {script or 'SCRIPT.py'}"
    return element("button", "copy", type="button", class_="copy", data_copy=command,
                   title=command)  # fmt: skip


def _sums(program: Mapping[str, Any]) -> Safe:
    kernels = program["kernels"]
    us = sum(kernel["median_us"] for kernel in kernels)
    flops = sum(kernel["flops"] for kernel in kernels)
    moved = sum(kernel["bytes"] for kernel in kernels)
    unfused = program.get("unfused")
    ratio = f"{unfused['us'] / us:.2f}×" if unfused and us else "–"
    cells = [
        *(plural(len(kernels), "kernel"), "", f"{program['calls']:,}", time(us)),
        *("100%", scaled(flops, ""), size(moved), short(flops / max(us, 1e-3) / 1e3)),
        *(short(moved / max(us, 1e-3) / 1e3), "", ""),
        time(unfused["us"]) if unfused else "–",
        *(ratio, ""),
    ]
    return element("tr", *(element("td", cell, class_="figure" if i else None)
                           for i, cell in enumerate(cells)))  # fmt: skip


# -- boundaries ----------------------------------------------------------------------------------


def boundaries(program: Mapping[str, Any], prefix: str) -> Safe:
    """Return why each value that goes from kernel to kernel does so, and what would change it."""
    rules = Counter(
        rule for link in program["links"] for rule in {why["rule"] for why in link["why"]}
    )
    chips = [
        element("button", f"{rule} ", element("b", count), type="button", class_="chip",
                data_rule=rule, title=RULES.get(rule), aria_pressed="false")
        for rule, count in rules.most_common()
    ]  # fmt: skip
    entries = [
        _boundary(number, [program["links"][i] for i in links], program, prefix)
        for number, links in enumerate(pairs(program).values())
    ]
    return join([element("div", *chips, class_="chips rules"),
                 element("div", *entries, class_="boundaries")])  # fmt: skip


def _boundary(number: int, links: Sequence[Mapping[str, Any]], program: Mapping[str, Any],
              prefix: str) -> Safe:  # fmt: skip
    """Return why two kernels are two: an entry for each value between them."""
    source, reader = (program["kernels"][links[0][end]] for end in ("from", "to"))
    rules = dict.fromkeys(why["rule"] for link in links for why in link["why"])
    return element(
        "article",
        element(
            "h4",
            element("a", kernel_label(source), href=f"#{prefix}-k{source['index']}"), " → ",
            element("a", kernel_label(reader), href=f"#{prefix}-k{reader['index']}"),
        ),
        *(part for link in links for part in _value(link, source, reader)),
        id=f"{prefix}-l{number}", class_="boundary", tabindex="-1", data_from=source["index"],
        data_to=reader["index"], data_rules=" ".join(rules),
    )  # fmt: skip


def _value(
    link: Mapping[str, Any], source: Mapping[str, Any], reader: Mapping[str, Any]
) -> list[Safe]:
    lines = [_member_line(source, link["producer"]), _member_line(reader, link["consumer"])]
    where = " → ".join(dict.fromkeys(line for line in lines if line))
    what = " · ".join(x for x in (link["shape"], size(link["bytes"]), where) if x)
    value = element("p", element("b", f"{link['producer']} → {link['consumer']}"), " ", what,
                    class_="value")  # fmt: skip
    none = element("p", "The order of launch alone: no fusion of these two was tried.")
    return [value, *([_reason(why) for why in link["why"]] or [none])]


def _member_line(kernel: Mapping[str, Any], name: str) -> str:
    lines = [member["line"] for member in kernel["members"] if member["name"] == name]
    return place(lines[0]) if lines and lines[0] else ""


def _reason(why: Mapping[str, Any]) -> Safe:
    terms = [
        element("span", f"{name} ", element("b", _term(value)))
        for name, value in why["terms"].items()
        if name not in ("kernel", "bytes_through_memory")  # said above already
    ]
    remedy = element("p", element("b", "What would change it: "), why["remedy"], class_="remedy")
    return element(
        "div",
        element("p", element("span", why["rule"], class_="rule"), " ", why["message"]),
        element("p", *terms, class_="terms") if terms else None,
        remedy if why["remedy"] else None,
        class_="reason",
    )


def _term(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


# -- memory --------------------------------------------------------------------------------------


def peak_tables(program: Mapping[str, Any]) -> list[Safe]:
    """Return what the peak is made of: by category, by line, and value by value."""
    peak = program["peak"]
    whole = max(peak["bytes"], 1)
    contributors = sorted(peak["contributors"], key=lambda c: (-c["bytes"], c["what"]))
    sums: Counter[str] = Counter()
    lines: Counter[tuple[str, str, str]] = Counter()
    for contributor in contributors:
        sums[contributor["category"]] += contributor["bytes"]
        lines[_line_key(contributor), place(contributor["line"]), contributor["category"]] += (
            contributor["bytes"]
        )
    ranked = sorted(lines.items(), key=lambda item: (-item[1], item[0]))
    by_line = [
        _peak_row(shown, category, held, whole, key)
        for (key, shown, category), held in ranked[:CONTRIBUTORS]
    ]
    by_value = [
        _peak_row(f"{c['what']} · {place(c['line'])}", c["category"], c["bytes"], whole,
                  _line_key(c))
        for c in contributors[:CONTRIBUTORS]
    ]  # fmt: skip
    both = [
        _peak_rows("line", by_line, sum(n for _, n in ranked[CONTRIBUTORS:]), whole),
        _peak_rows("value", by_value, sum(c["bytes"] for c in contributors[CONTRIBUTORS:]), whole),
    ]
    return [element("div", *_category_bars(sums, whole), class_="categories"),
            element("div", *both, class_="pair")]  # fmt: skip


def _line_key(contributor: Mapping[str, Any]) -> str:
    line = contributor["line"]
    return f"{line[0]}:{line[1]}" if line else ""


def _peak_rows(title: str, rows: list[Safe], left: int, whole: int) -> Safe:
    if left:
        rows = [*rows, _peak_row("all that is smaller", "", left, whole, "")]
    head = [element("th", name, scope="col") for name in (f"by {title}", "for", "bytes", "")]
    return element("table", element("thead", element("tr", *head)), element("tbody", *rows),
                   class_="peak")  # fmt: skip


def _peak_row(what: str, category: str, held: int, whole: int, line: str) -> Safe:
    return element(
        "tr",
        element("td", what),
        element("td", category),
        element("td", size(held), class_="figure"),
        element("td", _bar(held / whole, category), class_="bar"),
        data_line=line or None,
    )


def _category_bars(sums: Mapping[str, int], whole: int) -> list[Safe]:
    return [
        element("div", element("span", category), element("b", size(sums[category])),
                element("span", percent(sums[category] / whole)),
                _bar(sums[category] / whole, category))
        for category in CATEGORIES if sums.get(category)
    ]  # fmt: skip
