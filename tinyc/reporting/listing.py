"""Source on the page: the user's lines with what each costs, and code in colours by Pygments."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from tinyc.diagnostics import TinycError
from tinyc.markup import Safe, element, join, size, time

# Pygments' names of the tokens that report.css has a colour for.
COLOURED = {
    *("k", "kr", "kn", "ow", "kd", "kc", "kt", "nc", "nb", "bp", "nf", "nd"),
    *("mi", "mf", "mh", "mb", "mo", "s", "s1", "s2", "sd", "se", "sa", "si", "sc"),
    *("c", "c1", "cm", "cp", "cpf", "ch"),
}


def highlighted(text: str, language: str) -> list[Safe]:
    """Return the lines of a text as markup, coloured by the language's Pygments lexer.

    Raises TinycError where Pygments is not installed.
    """
    try:
        from pygments import lexers, token
    except ImportError:
        raise TinycError(
            "report: the page needs Pygments, which is not installed; "
            "`pip install 'tinyc[report]'` brings it"
        ) from None
    lexer = lexers.get_lexer_by_name(language, stripnl=False, ensurenl=False)
    lines = [""]
    for kind, value in lexer.get_tokens(text):
        name = token.STANDARD_TYPES.get(kind, "")
        for i, piece in enumerate(value.split("\n")):
            if i:
                lines.append("")
            # most tokens have no colour of their own: a name, a bracket, a space
            lines[-1] += element("b", piece, class_=name) if name in COLOURED else join([piece])
    return [Safe(line) for line in lines]


_ADDRESS = re.compile(r"^([0-9a-f]+):\s+(.*)$")
_TARGET = re.compile(r"\b([0-9a-f]+) <[^>]*>")


def labelled(assembly: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """Return instructions with names for where jumps go in the place of addresses."""
    split = [_ADDRESS.match(text) for text, _ in assembly]
    here = {match[1] for match in split if match}
    goals = {found for text, _ in assembly for found in _TARGET.findall(text) if found in here}
    names = {goal: f".L{i}" for i, goal in enumerate(sorted(goals, key=lambda a: int(a, 16)))}
    found = []
    for match, (text, line) in zip(split, assembly, strict=True):
        if match:
            label = f"{names[match[1]]}:" if match[1] in names else ""
            body = _TARGET.sub(lambda m: names.get(m[1], m[0]), match[2])
            text = f"{label:<6}{body}"
        found.append([text, line])
    return found


def line_costs(program: Mapping[str, Any]) -> dict[tuple[str, int], tuple[float, float, int]]:
    """Return microseconds, bytes and number of kernels for each line of the user's.

    A kernel's cost is shared equally by the lines that it comes from, as in DEBUG=2's summary.
    """
    us: dict[tuple[str, int], float] = defaultdict(float)
    moved: dict[tuple[str, int], float] = defaultdict(float)
    count: dict[tuple[str, int], int] = defaultdict(int)
    for kernel in program["kernels"]:
        for path, number in kernel["lines"]:
            us[path, number] += kernel["median_us"] / len(kernel["lines"])
            moved[path, number] += kernel["bytes"] / len(kernel["lines"])
            count[path, number] += 1
    return {line: (us[line], moved[line], count[line]) for line in us}


def user_lines(program: Mapping[str, Any], files: Mapping[str, Any]) -> Safe:
    """Return the user's files with time and bytes beside each line that the program comes from."""
    costs = line_costs(program)
    most = max((us for us, _, _ in costs.values()), default=1.0) or 1.0
    used = {path for path, _ in costs if files.get(path, {}).get("lines")}
    return join(_file(path, files[path], costs, most) for path in files if path in used)


def _file(
    path: str,
    file: Mapping[str, Any],
    costs: Mapping[tuple[str, int], tuple[float, float, int]],
    most: float,
) -> Safe:
    rows = []
    for i, code in enumerate(highlighted("\n".join(file["lines"]), "python")):
        number = file["first"] + i
        rows.append(_row(path, number, code, costs.get((path, number)), most))
    return element(
        "section",
        element("h4", file["name"], title=path),
        element("ol", *rows, class_="code python", tabindex="0", aria_label=file["name"]),
        class_="file",
    )


def _row(
    path: str, number: int, code: Safe, cost: tuple[float, float, int] | None, most: float
) -> Safe:
    if cost is None:
        spent = element("span", class_="spent")
        return element("li", spent, element("i", number), element("code", code))
    us, moved, kernels = cost
    hint = f"{time(us)} and {size(moved)} moved, in {kernels} kernels that share their cost equally"
    spent = element(
        "span",
        element("span", style=f"width:{us / most * 100:.0f}%", class_="heat"),
        element("b", time(us)),
        element("em", size(moved)),
        class_="spent",
        title=hint,
    )
    return element(
        "li", spent, element("i", number), element("code", code), data_line=f"{path}:{number}"
    )
