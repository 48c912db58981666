"""`tinyc report`: runs a script and writes what the compiler did of it; compares two reports."""

from __future__ import annotations

import argparse
import os
import runpy
import sys
from collections.abc import Sequence

from tinyc.diagnostics import TinycError

USUAL = "report.html"


def run(options: argparse.Namespace) -> int:
    """Run a script and write the page, or print how two pages differ."""
    try:
        arguments, output = take_output(options.arguments, options.output)
        if options.diff:
            return compare_pages(*options.diff)
        if not options.script:
            print("tinyc report: name a script: tinyc report train.py -o report.html",
                  file=sys.stderr)  # fmt: skip
            return 2
        return run_script(options.script, arguments, output)
    except TinycError as error:
        print(f"tinyc {error}", file=sys.stderr)
        return 1


def take_output(arguments: Sequence[str], output: str | None) -> tuple[list[str], str]:
    """Return the script's own arguments and the page's name.

    ``-o FILE`` may stand before the script or among its arguments; what follows ``--`` is the
    script's alone. TinycError where the name is missing.
    """
    kept: list[str] = []
    left = list(arguments)
    while left:
        word = left.pop(0)
        if word == "--":
            return [*kept, *left], output or USUAL
        name, joined, value = word.partition("=")
        if name not in ("-o", "--output"):
            kept.append(word)
        elif joined:
            output = value
        elif left:
            output = left.pop(0)
        else:
            raise TinycError(f"report: {word} needs the name of a file, as in {word} {USUAL}")
    return kept, output or USUAL


def run_script(script: str, arguments: Sequence[str], output: str) -> int:
    """Run a script as ``python script`` would, and write the page even if it fails."""
    from tinyc.reporting.watching import report

    if not os.path.isfile(script):
        raise TinycError(f"report: no file {script!r}")
    sys.argv = [script, *arguments]
    sys.path[0] = os.path.dirname(os.path.abspath(script))
    with report(output, title=" ".join([os.path.basename(script), *arguments])):
        runpy.run_path(script, run_name="__main__")
    return 0


def compare_pages(before: str, after: str) -> int:
    """Print what changed from one page to another, program by program and kernel by kernel."""
    from tinyc.reporting.difference import difference
    from tinyc.reporting.packing import read_page

    print(difference(read_page(before), read_page(after)))
    return 0
