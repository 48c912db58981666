"""Small builders of HTML and SVG, and how the page writes times, bytes and rates."""

from __future__ import annotations

import html
from collections.abc import Iterable


class Safe(str):
    """Text that is markup already: ``element`` puts it in as it is and escapes any other."""

    __slots__ = ()


def element(name: str, /, *children: object, **attributes: object) -> Safe:
    """Return an element. Attributes of value None are left out; ``class_`` and ``data_k`` are
    written ``class`` and ``data-k``. Children that are not Safe are escaped; None is nothing.
    """
    opening = [name]
    for key, value in attributes.items():
        if value is not None:
            shown = html.escape(str(value))
            opening.append(f'{key.rstrip("_").replace("_", "-")}="{shown}"')
    if name in _VOID:
        return Safe(f"<{' '.join(opening)}>")
    return Safe(f"<{' '.join(opening)}>{join(children)}</{name}>")


# elements that have no end
_VOID = ("input", "meta")


def join(children: Iterable[object]) -> Safe:
    """Return children after one another, escaping those that are not Safe."""
    return Safe("".join(c if isinstance(c, Safe) else html.escape(_text(c)) for c in children))


def _text(value: object) -> str:
    return "" if value is None else str(value)


def short(number: float) -> str:
    """Return a number in three digits: ``1.23``, ``12.3``, ``123``."""
    size = abs(number)
    if size >= 100 or number == int(number):
        return f"{number:,.0f}"
    return f"{number:.1f}" if size >= 10 else f"{number:.2f}"


def time(us: float) -> str:
    """Return microseconds as ``12.3 us``, ``4.56 ms`` or ``1.2 s``."""
    for unit in ("us", "ms"):
        if us < 1000:
            return f"{short(us)} {unit}"
        us /= 1000
    return f"{short(us)} s"


def scaled(number: float, unit: str) -> str:
    """Return a number with a decimal prefix and its unit: ``1.2 MB``, ``34 kFLOP``."""
    for prefix in ("", "k", "M", "G"):
        if abs(number) < 1000:
            return f"{short(number)} {prefix}{unit}"
        number /= 1000
    return f"{short(number)} T{unit}"


def size(number: float) -> str:
    """Return bytes: ``1.2 MB``."""
    return scaled(number, "B")


def percent(fraction: float) -> str:
    """Return a fraction in percent, with a digit more where it is small."""
    return f"{fraction:.0%}" if fraction >= 0.0995 or fraction == 0 else f"{fraction:.1%}"


def plural(number: int, noun: str) -> str:
    """Return ``1 kernel``, ``2 kernels``."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def card(title: str, figures: Iterable[str], *content: object) -> Safe:
    """Return what notebooks show of an object: a title, figures beside it, content below.

    Styles are on the elements and take the notebook's own colours, light or dark.
    """
    said = [element("span", figure, style="margin-left:1em;opacity:.75") for figure in figures]
    return element(
        "div",
        element("div", element("b", title), *said),
        *content,
        style="border:1px solid #8885;border-left:4px solid #0072b2;border-radius:4px;"
        "padding:.4em .8em;font:13px/1.45 system-ui,sans-serif;max-width:70em;overflow-x:auto",
    )


def rows(header: Iterable[str], lines: Iterable[Iterable[object]]) -> Safe:
    """Return a table for a card: text in the first column, figures in the others."""
    head = [element("th", name, style=_CELL + _side(i)) for i, name in enumerate(header)]
    body = [
        element("tr", *(element("td", cell, style=_CELL + _side(i)) for i, cell in enumerate(line)))
        for line in lines
    ]
    return element("table", element("tr", *head), *body,
                   style="border-collapse:collapse;margin-top:.3em")  # fmt: skip


_CELL = "padding:0 .8em 0 0;white-space:nowrap;vertical-align:top;"


def _side(column: int) -> str:
    return "text-align:right" if column else "text-align:left"


def pre(text: str) -> Safe:
    """Return text as it is, for a card."""
    return element("pre", text, style="margin:.3em 0 0;font-size:12px")
