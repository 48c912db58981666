"""Plots of a program's run as SVG: the roofline, the timeline, and memory over time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tinyc.markup import Safe, element, join, percent, scaled, short, size, time

# What a storage is for, in the order in which the page stacks and lists them.
CATEGORIES = (
    *("parameter", "kept", "optimizer", "state", "gradient", "activation", "input"),
    *("output", "partial", "scratch"),
)
ROOF = (640, 420)  # width and height of the roofline
PLOT = (64, 16, 16, 46)  # margins: left, top, right, bottom
LONG = 1180  # width of what has time or kernels across


def svg(width: float, height: float, *children: object, **attributes: object) -> Safe:
    """Return a drawing that scales with its place."""
    return element("svg", *children, viewBox=f"0 0 {width:g} {height:g}", **attributes)


def _text(x: float, y: float, text: str, anchor: str = "start", class_: str = "label") -> Safe:
    return element("text", text, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor, class_=class_)


def _line(x: float, y: float, u: float, v: float, class_: str) -> Safe:
    return element(
        "line", x1=f"{x:.1f}", y1=f"{y:.1f}", x2=f"{u:.1f}", y2=f"{v:.1f}", class_=class_
    )


# -- roofline ------------------------------------------------------------------------------------


class Scale:
    """A logarithmic axis from ``low`` to ``high`` on the pixels ``start`` to ``end``."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        known = [value for value in values if value > 0] or [1.0]
        self.low = math.floor(math.log10(min(known)))
        self.high = max(math.ceil(math.log10(max(known))), self.low + 1)
        self.start, self.end = start, end

    def __call__(self, value: float) -> float:
        at = math.log10(value) if value > 0 else self.low
        part = (min(max(at, self.low), self.high) - self.low) / (self.high - self.low)
        return self.start + part * (self.end - self.start)

    def decades(self) -> list[float]:
        """Return the powers of ten on the axis."""
        return [10.0**n for n in range(self.low, self.high + 1)]


def intensity(flops: float, moved: float) -> float:
    """Return the arithmetic for each byte moved."""
    return flops / max(moved, 1)


def roofline(program: Mapping[str, Any], machine: Mapping[str, Any]) -> Safe:
    """Return the plot of each kernel's rate over its arithmetic for each byte, under the roof.

    A filled mark is a kernel, a hollow one the same work unfused; its area shows its time.
    """
    peak, bandwidth = machine["peak_gflops"], machine["copy_gbs"]
    cached = max((speed for _, speed in machine.get("levels", ())), default=0.0)
    left, top, right, bottom = PLOT
    width, height = ROOF
    kernels = [kernel for kernel in program["kernels"] if kernel["flops"]]
    marks = [(k, intensity(k["flops"], k["bytes"]), k["flops"] / _at_least(k["median_us"]) / 1e3)
             for k in kernels]  # fmt: skip
    x = Scale([*(m[1] for m in marks), peak / bandwidth, 0.1], left, width - right)
    y = Scale([*(m[2] for m in marks), peak], height - bottom, top)
    order = sorted(marks, key=lambda m: -m[0]["median_us"])
    whole = sum(kernel["median_us"] for kernel in program["kernels"]) or 1.0
    return svg(
        width,
        height,
        _roof_axes(x, y),
        _slope(x, y, peak, cached, "in cache", "roof cached") if cached > bandwidth else None,
        _slope(x, y, peak, bandwidth, "memory", "roof"),
        _text(x.end - 4, y(peak) - 7, f"arithmetic {short(peak)} GFLOP/s", "end"),
        element("g", *(_hollow(k, at, rate, x, y) for k, at, rate in order), class_="unfused"),
        element("g", *(_mark(k, at, rate, x, y, whole) for k, at, rate in order)),
        element("g", *(_name(k, at, rate, x, y) for k, at, rate in order[:4])),
        class_="plot roofline",
        role="img",
        aria_label="roofline: rate of each kernel over its arithmetic intensity",
    )


def _at_least(us: float) -> float:
    return max(us, 1e-3)


def _roof_axes(x: Scale, y: Scale) -> Safe:
    parts = []
    for value in x.decades():
        parts.append(_line(x(value), y.start, x(value), y.end, "grid"))
        parts.append(_text(x(value), y.start + 16, f"{value:g}", "middle"))
    for value in y.decades():
        parts.append(_line(x.start, y(value), x.end, y(value), "grid"))
        parts.append(_text(x.start - 6, y(value) + 4, f"{value:g}", "end"))
    middle = (x.start + x.end) / 2
    parts.append(_text(middle, y.start + 36, "FLOP for each byte moved", "middle", "axis"))
    parts.append(
        element("text", "GFLOP/s", transform=f"translate(16 {(y.start + y.end) / 2:g}) rotate(-90)",
                text_anchor="middle", class_="axis")
    )  # fmt: skip
    return element("g", *parts)


def _slope(x: Scale, y: Scale, peak: float, bandwidth: float, name: str, class_: str) -> Safe:
    """Return a roof: the slope of a bandwidth, then the level of the arithmetic."""
    ridge = peak / bandwidth
    # where the slope enters the plot: at its left side, or at its floor
    first = max(10.0**x.low, 10.0**y.low / bandwidth)
    points = [(first, first * bandwidth), (ridge, peak), (10.0**x.high, peak)]
    drawn = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in points)
    slope = math.degrees(math.atan2(y(peak) - y(first * bandwidth), x(ridge) - x(first)))
    at = math.sqrt(first * ridge)
    label = element(
        "text", f"{name} {short(bandwidth)} GB/s",
        transform=f"translate({x(at):.1f} {y(at * bandwidth) - 6:.1f}) rotate({slope:.1f})",
        text_anchor="middle", class_="label",
    )  # fmt: skip
    return element("g", element("polyline", points=drawn, class_=class_), label)


def _radius(us: float, whole: float) -> float:
    return 4 + 26 * math.sqrt(us / whole)


def _mark(kernel: Mapping[str, Any], at: float, rate: float, x: Scale, y: Scale,
          whole: float) -> Safe:  # fmt: skip
    hint = (f"{kernel['name']}: {short(rate)} GFLOP/s, {short(at)} FLOP/B, "
            f"{percent(kernel['share'])} of the roof, {time(kernel['median_us'])}")  # fmt: skip
    radius = _radius(kernel["median_us"], whole)
    return element(
        "path",
        element("title", hint),
        d=_shape(kernel["phase"], x(at), y(rate), radius),
        class_=f"mark {kernel['phase']}",
        data_k=kernel["index"],
    )


def _shape(phase: str, x: float, y: float, r: float) -> str:
    """Return a circle, square or triangle: phases differ in more than colour."""
    if phase == "backward":
        r *= 0.88
        return f"M{x - r:.1f} {y - r:.1f}h{2 * r:.1f}v{2 * r:.1f}h{-2 * r:.1f}z"
    if phase == "optimizer":
        r *= 1.15
        return f"M{x:.1f} {y - r:.1f}l{r:.1f} {1.7 * r:.1f}h{-2 * r:.1f}z"
    return f"M{x - r:.1f} {y:.1f}a{r:.1f} {r:.1f} 0 1 0 {2 * r:.1f} 0a{r:.1f} {r:.1f} 0 1 0 " \
           f"{-2 * r:.1f} 0z"  # fmt: skip


def _hollow(kernel: Mapping[str, Any], at: float, rate: float, x: Scale, y: Scale) -> Safe | None:
    unfused = kernel.get("unfused")
    if not unfused or unfused["kernels"] < 2 or not unfused["us"]:
        return None
    before = intensity(kernel["flops"], unfused["bytes"])
    slower = kernel["flops"] / unfused["us"] / 1e3
    hint = f"{kernel['name']} as {unfused['kernels']} kernels: {time(unfused['us'])}"
    return element(
        "g",
        _line(x(before), y(slower), x(at), y(rate), "lead"),
        element("path", element("title", hint), d=_shape(kernel["phase"], x(before), y(slower), 5),
                class_=f"hollow {kernel['phase']}"),
        class_="before", data_k=kernel["index"],
    )  # fmt: skip


def _name(kernel: Mapping[str, Any], at: float, rate: float, x: Scale, y: Scale) -> Safe:
    return _text(x(at), y(rate) + 4, kernel["name"].partition("_")[0], "middle", "tag")


# -- timeline ------------------------------------------------------------------------------------


def timeline(program: Mapping[str, Any]) -> Safe:
    """Return one run as bars over time, a row for each thread."""
    events = program["timeline"]
    kernels = {kernel["index"]: kernel for kernel in program["kernels"]}
    threads = sorted({event["thread"] for event in events})
    last = max(event["end_us"] for event in events) or 1.0
    height = 28 * len(threads) + 26
    bars = []
    for event in events:
        kernel = kernels[event["kernel"]]
        x = 70 + event["start_us"] / last * (LONG - 80)
        width = max((event["end_us"] - event["start_us"]) / last * (LONG - 80), 0.4)
        hint = f"{kernel['name']}: {time(event['end_us'] - event['start_us'])}"
        bars.append(
            element("rect", element("title", hint), x=f"{x:.2f}", y=28 * event["thread"] + 2,
                    width=f"{width:.2f}", height=24, class_=f"span {kernel['phase']}",
                    data_k=kernel["index"])
        )  # fmt: skip
    rows = [_text(62, 28 * i + 18, f"thread {thread}", "end") for i, thread in enumerate(threads)]
    ticks = [
        _text(70 + i / 6 * (LONG - 80), height - 6, time(last * i / 6), "middle" if i else "start")
        for i in range(6)
    ]
    return svg(LONG, height, *rows, *ticks, *bars, class_="plot timeline", role="img",
               aria_label="one run, kernel by kernel")  # fmt: skip


# -- memory --------------------------------------------------------------------------------------


def held_during(storage: Mapping[str, Any], count: int) -> range:
    """Return the kernels during which a storage takes memory: arguments are there all the time,
    and what lies in a result takes none of its own."""
    if storage["within"]:
        return range(0)
    if storage["offset"] is None:
        return range(count)
    return range(max(storage["first"], 0), storage["last"] + 1)


def live_memory(program: Mapping[str, Any]) -> Safe:
    """Return what is held while each kernel runs, stacked by category, with the peak marked."""
    count = len(program["kernels"])
    sums = {category: [0] * count for category in CATEGORIES}
    for storage in program["storages"]:
        for kernel in held_during(storage, count):
            sums[storage["category"]][kernel] += storage["bytes"]
    whole = [sum(row[k] for row in sums.values()) for k in range(count)]
    top = max(max(whole, default=0), program["peak"]["bytes"], 1)
    step, height = (LONG - 80) / max(count, 1), 220
    base = [0.0] * count
    areas = []
    for category, row in sums.items():
        if any(row):
            upper = [low + value for low, value in zip(base, row, strict=True)]
            areas.append(_area(category, base, upper, step, height, top, max(row)))
            base = upper
    return svg(LONG, height + 40, *_size_axis(top, height), *areas,
               *_peak_mark(program, step, height), *_kernel_axis(count, step, height),
               class_="plot memory", role="img",
               aria_label="live memory by category, over the kernels")  # fmt: skip


def _area(category: str, low: Sequence[float], high: Sequence[float], step: float, height: float,
          top: float, most: float) -> Safe:  # fmt: skip
    def points(values: Sequence[float]) -> list[str]:
        found = []
        for k, value in enumerate(values):
            y = 10 + height - value / top * height
            found += [f"{70 + k * step:.1f},{y:.1f}", f"{70 + (k + 1) * step:.1f},{y:.1f}"]
        return found

    outline = " ".join([*points(high), *reversed(points(low))])
    return element("polygon", element("title", f"{category}: up to {size(most)}"),
                   points=outline, class_=f"area {category}")  # fmt: skip


def _size_axis(top: float, height: float) -> list[Safe]:
    parts = []
    for i in range(5):
        y = 10 + height - i / 4 * height
        parts += [_line(70, y, LONG - 10, y, "grid"),
                  _text(64, y + 4, scaled(top * i / 4, "B"), "end")]  # fmt: skip
    return parts


def _kernel_axis(count: int, step: float, height: float) -> list[Safe]:
    every = max(1, math.ceil(count / 16))
    parts = [
        _text(70 + (k + 0.5) * step, height + 26, f"k{k}", "middle") for k in range(0, count, every)
    ]
    return parts


def _peak_mark(program: Mapping[str, Any], step: float, height: float) -> list[Safe]:
    kernel = program["peak"]["kernel"]
    x = 70 + (kernel + 0.5) * step
    side, shift = ("end", -6) if x > LONG / 2 else ("start", 6)
    label = f"peak {size(program['peak']['bytes'])} in k{kernel}"
    return [_line(x, 0, x, height + 10, "peak"), _text(x + shift, 9, label, side, "tag peak")]


def arena_map(program: Mapping[str, Any]) -> Safe:
    """Return the arena: each value's place over the kernels that it must live for."""
    placed = [s for s in program["storages"]
              if s["offset"] is not None and not s["within"] and s["first"] >= 0]  # fmt: skip
    count = len(program["kernels"])
    top = max((s["offset"] + s["bytes"] for s in placed), default=1)
    step, height = (LONG - 80) / max(count, 1), 300
    rects = []
    for storage in sorted(placed, key=lambda s: (s["offset"], s["first"])):
        tall = max(storage["bytes"] / top * height, 0.6)
        y = 10 + height - storage["offset"] / top * height - tall
        wide = (storage["last"] - storage["first"] + 1) * step
        rects.append(
            element("rect", element("title", storage_hint(storage)),
                    x=f"{70 + storage['first'] * step:.1f}", y=f"{y:.1f}", width=f"{wide:.1f}",
                    height=f"{tall:.1f}", class_=f"area {storage['category']}",
                    data_span=f"{storage['first']} {storage['last']}")
        )  # fmt: skip
    return svg(LONG, height + 40, *_size_axis(top, height), *rects,
               *_peak_mark(program, step, height), *_kernel_axis(count, step, height),
               class_="plot memory", role="img",
               aria_label="places in the arena, over the kernels")  # fmt: skip


def storage_hint(storage: Mapping[str, Any]) -> str:
    """Return what a storage is, in one line."""
    return (f"{storage['what']}: {size(storage['bytes'])}, {storage['category']}, "
            f"k{storage['first']} to k{storage['last']}")  # fmt: skip


def category_key(categories: Sequence[str]) -> Safe:
    """Return the legend of the categories' colours."""
    return join(
        element("span", element("i"), f" {category}", class_=f"key {category}")
        for category in categories
    )
