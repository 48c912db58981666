"""`tinyc opt`: runs named passes on a graph that was dumped, and shows what they make of it."""

from __future__ import annotations

import argparse
import difflib
import sys
from pathlib import Path

from tinyc import config, pipeline
from tinyc.codegen import c
from tinyc.debugging import step_text
from tinyc.diagnostics import TinycError
from tinyc.dumps import target_from
from tinyc.ir.node import canonical_key
from tinyc.ir.parser import parse_text
from tinyc.ir.program import Target
from tinyc.ir.steps import Step, changes
from tinyc.ir.verify import verify
from tinyc.pipeline import Compilation, Pass, run_pass
from tinyc.runtime.device import get_device


def names() -> list[str]:
    """Return the names of the passes in order."""
    return [p.name for p in (*pipeline.GRAPH, *pipeline.PLAN)]


def run(options: argparse.Namespace) -> int:
    """Run the passes; 1, with one message, where that is not possible."""
    try:
        passes = chosen(options.passes)
        done = start(options.file, target_of(options.target))
        with config.configure(check=True):
            run_passes(done, passes, options)
        result = c.program(done.plan.kernels, done.plan.slots).text if (
            options.passes == "all" and done.plan) else done.steps[-1].text
        if options.output:
            Path(options.output).write_text(result, encoding="utf-8")
        else:
            print(result, end="")
    except (TinycError, OSError, UnicodeDecodeError, ValueError) as error:
        print(f"tinyc opt: {error}", file=sys.stderr)
        return 1
    return 0


def start(file: str, target: Target) -> Compilation:
    """Return a compilation of the graph in a file."""
    text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    outputs = parse_text(text, "<stdin>" if file == "-" else file)
    verify(outputs)
    leaves = tuple(canonical_key(outputs)[1])
    return Compilation(outputs, leaves, target, keeps_texts=True)


def run_passes(done: Compilation, passes: list[tuple[Pass, bool]],
               options: argparse.Namespace) -> None:
    """Run passes in order and show what was asked for of those that were named."""
    for p, named in passes:
        before = done.steps[-1]
        after = run_pass(done, p)
        if named and (options.print_after_all or options.print_after_change):
            show(before, after, whole=options.print_after_all)


def show(before: Step, after: Step, whole: bool) -> None:
    """Print a pass's line, what it applied, and the program after it or what it changed there."""
    print(step_text(before, after), file=sys.stderr)
    texts = [fired.text() for fired in after.fired]
    texts += [after.text.rstrip("\n")] if whole else changes(before, after).values()
    print("".join(f"{text}\n" for text in texts), file=sys.stderr)


def chosen(text: str) -> list[tuple[Pass, bool]]:
    """Return the passes of a list, and whether each was named or is only needed by a later one.

    ValueError for names that are none, and for an order that can't be.
    """
    asked = names() if text == "all" else [name.strip() for name in text.split(",")]
    for name in asked:
        if name not in names():
            close = difflib.get_close_matches(name, [*names(), "all"], n=1)
            guess = f"; did you mean {close[0]}?" if close else ""
            raise ValueError(f"-p: there is no pass {name!r}{guess} They are {','.join(names())}")
    graph = [p for name in asked for p in pipeline.GRAPH if p.name == name]
    plan = [i for name in asked for i, p in enumerate(pipeline.PLAN) if p.name == name]
    if [p.name for p in graph] != asked[: len(graph)] or plan != sorted(set(plan)):
        raise ValueError(f"-p: {text}: passes run in the order {','.join(names())}, those from "
                         f"{pipeline.PLAN[0].name} on once")  # fmt: skip
    needed = pipeline.PLAN[: plan[-1] + 1] if plan else ()
    return [(p, True) for p in graph] + [(p, i in plan) for i, p in enumerate(needed)]


def target_of(text: str) -> Target:
    """Return this machine's target, or the usual one with the values that are given."""
    if not text:
        return get_device("cpu").machine()
    values: dict[str, object] = {}
    for word in text.split(","):
        name, _, value = word.partition("=")
        values[name.strip()] = int(value) if value.strip().isdigit() else value
    return target_from(values)
