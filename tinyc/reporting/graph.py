"""The graph of kernels as SVG: a box for each kernel, a wire for each value that is stored between.

Boxes link to their row of the table and wires to their entry of the list of boundaries, so that
the drawing says as much without JavaScript.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tinyc.markup import Safe, element, join, percent, plural, time
from tinyc.reporting import layout

PHASES = ("forward", "backward", "optimizer")
LETTERS = {"forward": "F", "backward": "B", "optimizer": "O"}
WIDTH, HEIGHT = 172, 40
ACROSS, DOWN, MARGIN = 210, 62, 40

Box = tuple[float, float]  # the left upper corner


def draw(program: Mapping[str, Any], prefix: str) -> Safe:
    """Return the graph of a program's kernels; ``prefix`` begins the ids that it links to."""
    kernels = program["kernels"]
    places = kernel_places(program)
    boxes = {k: corner(place) for k, place in places.items()}
    width = max((x for x, _ in boxes.values()), default=0) + WIDTH + MARGIN
    height = max((y for _, y in boxes.values()), default=0) + HEIGHT + MARGIN
    whole = sum(kernel["median_us"] for kernel in kernels) or 1.0
    most = max((kernel["median_us"] for kernel in kernels), default=0.0) or 1.0
    wires = [
        _wire(number, pair, len(links), kernels, boxes, prefix)
        for number, (pair, links) in enumerate(pairs(program).items())
    ]
    shapes = [_box(kernel, boxes[kernel["index"]], whole, most, prefix) for kernel in kernels]
    return element(
        "svg",
        _arrow(prefix),
        element("g", *wires, class_="wires"),
        element("g", *shapes, class_="boxes"),
        class_="graph",
        viewBox=f"0 0 {width:g} {height:g}",
        width=f"{width:g}",
        height=f"{height:g}",
        role="group",
        aria_label="kernels, and the values stored between them",
    )


def kernel_places(program: Mapping[str, Any]) -> layout.Places:
    """Return column and layer of each kernel: a lane for each phase, the backward one upward."""
    lanes = {k["index"]: PHASES.index(k["phase"]) for k in program["kernels"]}
    return layout.in_lanes(sorted(lanes), pairs(program), lanes)


def operations(program: Mapping[str, Any]) -> dict[str, Any]:
    """Return the graph before fusion, for the script to draw: kernel of each operation, and edges.

    Leaves and views are left out (no loop is theirs); edges lead through the views.
    """
    shown = {n["id"] for n in program["nodes"] if n["kernels"] and n["op"] not in _NO_LOOPS}
    sources: dict[int, list[int]] = {}
    for a, b in program["edges"]:
        sources.setdefault(b, []).append(a)
    behind: dict[int, set[int]] = {}
    for node in sorted(n["id"] for n in program["nodes"]):
        found: set[int] = set()
        for source in sources.get(node, ()):
            found |= {source} if source in shown else behind.get(source, set())
        behind[node] = found
    homes = {n["id"]: n["kernels"][0] for n in program["nodes"] if n["id"] in shown}
    for kernel in program["kernels"]:
        for member in kernel["members"]:
            homes |= {n: kernel["index"] for n in member.get("nodes", ()) if n in shown}
    return {
        "homes": [[n, homes[n]] for n in sorted(homes)],
        "edges": [[a, b] for b in sorted(shown) for a in sorted(behind[b])],
    }


_NO_LOOPS = {
    *("buffer", "const", "iota", "var", "reshape", "permute", "expand", "slice", "pad", "window"),
    *("copy", "materialize", "detach", "boundary", "together"),
}


def pairs(program: Mapping[str, Any]) -> dict[tuple[int, int], list[int]]:
    """Return the numbers of the links between each two kernels."""
    found: dict[tuple[int, int], list[int]] = {}
    for number, link in enumerate(program["links"]):
        found.setdefault((link["from"], link["to"]), []).append(number)
    return found


def corner(place: tuple[float, int]) -> Box:
    """Return where the box of a column and layer is."""
    return MARGIN + place[0] * ACROSS, MARGIN / 2 + place[1] * DOWN


def _arrow(prefix: str) -> Safe:
    tip = element("path", d="M0 0L8 4L0 8z")
    return element(
        "defs",
        element(
            "marker",
            tip,
            id=f"{prefix}-arrow",
            viewBox="0 0 8 8",
            refX=7,
            refY=4,
            markerWidth=7,
            markerHeight=7,
            orient="auto-start-reverse",
        ),
    )


def _wire(
    number: int,
    pair: tuple[int, int],
    values: int,
    kernels: Sequence[Mapping[str, Any]],
    boxes: Mapping[int, Box],
    prefix: str,
) -> Safe:
    a, b = pair
    same = kernels[a]["phase"] == kernels[b]["phase"]
    line = wire_path(boxes[a], boxes[b], same)
    ends = f"{kernels[a]['name']} to {kernels[b]['name']}"
    what = f"{ends}: {plural(values, 'value')}. Why are they not one kernel?"
    return element(
        "a",
        element("title", what),
        element("path", d=line, class_="line", marker_end=f"url(#{prefix}-arrow)"),
        href=f"#{prefix}-l{number}",
        class_=f"wire {kernels[a]['phase']}",
        data_from=a,
        data_to=b,
        tabindex="-1",
    )


def wire_path(a: Box, b: Box, same_lane: bool) -> str:
    """Return the curve from one box to another; ``wirePath`` of report.js draws the same."""
    (ax, ay), (bx, by) = a, b
    middle_a, middle_b = ay + HEIGHT / 2, by + HEIGHT / 2
    if not same_lane or ay == by:
        x, u = (ax + WIDTH, bx) if bx > ax else (ax, bx + WIDTH)
        bend = (u - x) / 2
        return f"M{x:g} {middle_a:g}C{x + bend:g} {middle_a:g} {u - bend:g} {middle_b:g} " \
               f"{u:g} {middle_b:g}"  # fmt: skip
    if ax == bx and abs(by - ay) > DOWN * 1.5:  # past boxes of its column
        out = ax - 10 - min(26, abs(by - ay) / DOWN * 4)
        return f"M{ax:g} {middle_a:g}C{out:g} {middle_a:g} {out:g} {middle_b:g} {ax:g} {middle_b:g}"
    y, v = (ay + HEIGHT, by) if by > ay else (ay, by + HEIGHT)
    x, u = ax + WIDTH / 2, bx + WIDTH / 2
    half = (y + v) / 2
    return f"M{x:g} {y:g}C{x:g} {half:g} {u:g} {half:g} {u:g} {v:g}"


def _box(
    kernel: Mapping[str, Any], box: Box, whole: float, most: float, prefix: str
) -> Safe:
    index, phase = kernel["index"], kernel["phase"]
    share, long = kernel["median_us"] / whole, kernel["median_us"] / most * (WIDTH - 26)
    name = kernel["name"].replace("_", " ")
    figures = f"{time(kernel['median_us'])} · {percent(kernel['share'])} of roof"
    members = ", ".join(member["name"] for member in kernel["members"])
    hint = f"{kernel['name']} ({phase}): {figures}, {percent(share)} of the time\n{members}"
    return element(
        "a",
        element("title", hint),
        element("rect", width=WIDTH, height=HEIGHT, rx=5, class_="card"),
        element("rect", width=20, height=HEIGHT, rx=5, class_="stripe"),
        element("text", LETTERS[phase], x=10, y=24, class_="letter"),
        element("text", shortened(name, 21), x=27, y=16, class_="name"),
        element("text", figures, x=27, y=30, class_="figures"),
        element("rect", x=22, y=HEIGHT - 4, width=f"{long:.1f}", height=3, class_="bar"),
        href=f"#{prefix}-k{index}",
        class_=f"box {phase}",
        data_k=index,
        transform=f"translate({box[0]:g} {box[1]:g})",
    )  # fmt: skip


def shortened(text: str, most: int) -> str:
    """Return the text, or its beginning and an ellipsis."""
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def phase_key(phases: Sequence[str]) -> Safe:
    """Return the legend of the phases' colours and letters."""
    return join(
        element("span", element("b", LETTERS[p]), f" {p}", class_=f"key {p}") for p in phases
    )
