"""The console command ``tinyc``, with its subcommands. Imports what a command needs."""

from __future__ import annotations

import argparse
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinyc.version import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    commands = parser()
    options, rest = commands.parse_known_args(argv)
    if options.run in (run_demo, run_repro):
        options.arguments = rest
    elif rest:
        commands.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        return options.run(options)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # who read the output (`head`, a pager) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command."""
    p = argparse.ArgumentParser(
        prog="tinyc", description="A small deep-learning compiler: what it does, and how it fares."
    )
    p.add_argument("--version", action="version", version=f"tinyc {__version__}")
    commands = p.add_subparsers(title="commands", required=True, metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        help="train a CNN on MNIST and show what happened",
        description="Run examples/train_cnn.py, which gets all further arguments.",
    )
    demo.set_defaults(run=run_demo)
    doctor = commands.add_parser("doctor", help="what tinyc finds here, and what would fix it")
    doctor.set_defaults(run=run_doctor)
    compare = commands.add_parser("compare", help="time a function fused and unfused")
    compare.add_argument("what", help="a built-in (see `tinyc compare list`) or FILE.py:FUNCTION")
    compare.add_argument("--repeats", type=int, default=15, help="timed runs of each kind")
    compare.add_argument("--explain", action="store_true", help="show kernels and refusals too")
    compare.set_defaults(run=run_compare)
    report = commands.add_parser(
        "report",
        help="run a script and write what the compiler did of it as one HTML file",
        description="Run SCRIPT as python would, with all further arguments, and write the page "
        "when it ends, also by an error or Ctrl-C.",
    )
    report.add_argument("script", nargs="?", help="a Python file that uses tinyc")
    report.add_argument("arguments", nargs=argparse.REMAINDER, help="the script's own")
    report.add_argument("-o", "--output", help="the page to write (report.html)")
    report.add_argument("--diff", nargs=2, metavar=("BEFORE", "AFTER"),
                        help="print how two pages differ instead")  # fmt: skip
    report.set_defaults(run=run_report)
    cache = commands.add_parser("cache", help="where compiled programs are kept, and how many")
    cache.add_argument("--clear", action="store_true", help="remove them")
    cache.set_defaults(run=run_cache)
    add_opt(commands)
    add_repro(commands)
    return p


def add_opt(commands: Any) -> None:
    """Describe the arguments of ``tinyc opt``."""
    p = commands.add_parser(
        "opt",
        help="run passes on a graph in a file of a dump",
        description="Run passes on a graph, as TINYC_DUMP and graph() write it, and print what "
        "they make of it: a graph, stages, loops or, with -p all, C. What -p leaves out is left "
        "out, but for passes without which a later one has nothing to work on.",
    )
    p.add_argument("file", help="graph IR, such as DUMP/000-train-9/00-graph.ir; - is the input")
    p.add_argument("-p", "--passes", required=True, help="all, or names: simplify,lift,fuse")
    shown = p.add_mutually_exclusive_group()
    diffs = "show what each pass changed, as a diff, and what it applied"
    shown.add_argument("--print-after-change", action="store_true", help=diffs)
    whole = "show all of the program after each pass"
    shown.add_argument("--print-after-all", action="store_true", help=whole)
    p.add_argument("-o", "--output", metavar="FILE", help="write the result there")
    target = "compile for a CPU other than this one: lanes=8,tile_rows=6"
    p.add_argument("--target", default="", metavar="NAME=N,...", help=target)
    p.set_defaults(run=run_opt)


def add_repro(commands: Any) -> None:
    """Describe the arguments of ``tinyc repro``."""
    p = commands.add_parser(
        "repro",
        help="write one kernel as a C program of its own",
        description="Write a kernel as one C file with main: what it is given, a check of what it "
        "stores, and a timing loop. The kernel is looked for in a dump, or in the programs of a "
        "script, which is run until it has it.",
    )
    kernel = "its name, or a regular expression for name and lines: 'k2_.*train.py:31'"
    p.add_argument("kernel", help=kernel)
    p.add_argument("script", nargs="?", help="a Python file; what follows are its arguments")
    folder = "a folder of TINYC_DUMP; with TINYC_DUMP_INPUTS=1 it holds inputs"
    p.add_argument("--from", dest="dump", metavar="FOLDER", help=folder)
    p.add_argument("-o", "--output", metavar="FILE.c", help="by default KERNEL.c")
    p.set_defaults(run=run_repro)


def run_demo(options: argparse.Namespace) -> int:
    """Run examples/train_cnn.py of this clone, or of the current folder."""
    here = Path(__file__).resolve().parent.parent
    for root in (here, Path.cwd()):
        script = root / "examples" / "train_cnn.py"
        if script.is_file():
            sys.argv = [str(script), *options.arguments]
            runpy.run_path(str(script), run_name="__main__")
            return 0
    print("tinyc demo: the examples are not part of the wheel; run it in a clone", file=sys.stderr)
    return 1


def run_cache(options: argparse.Namespace) -> int:
    """Print the state of the cache of compiled programs, after clearing it if asked."""
    from tinyc.runtime.cache import disk_cache

    cache = disk_cache()
    if options.clear:
        removed = len(cache.entries())
        cache.clear()
        print(f"removed {removed} entries")
    summary = cache.summary()
    print(f"folder   {summary['root']}")
    print(f"entries  {summary['entries']}")
    print(f"size     {int(summary['bytes']) / 2**20:.1f} MiB of at most "
          f"{cache.cap_bytes / 2**20:.0f} MiB")  # fmt: skip
    if not options.clear:
        print("`tinyc cache --clear` removes them; TINYC_CACHE_DIR names another folder")
    return 0


def run_doctor(options: argparse.Namespace) -> int:
    """Print what was found and what would fix the rest; 1 if programs can't be compiled here."""
    from tinyc import doctor

    findings = doctor.examine()
    print(doctor.render(findings))
    return int(any(f.state == "bad" for f in findings))


def run_opt(options: argparse.Namespace) -> int:
    """Run passes on a graph in a file."""
    from tinyc.commands import opt

    return opt.run(options)


def run_repro(options: argparse.Namespace) -> int:
    """Write one kernel as a program of its own."""
    from tinyc.commands import repro

    return repro.run(options)


def run_compare(options: argparse.Namespace) -> int:
    """Time one function fused and unfused."""
    from tinyc.commands import compare

    return compare.run(options)


def run_report(options: argparse.Namespace) -> int:
    """Run a script and write its report, or compare two reports."""
    from tinyc.commands import report

    return report.run(options)


if __name__ == "__main__":
    sys.exit(main())
