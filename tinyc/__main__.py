"""The console command ``tinyc``: demo, doctor, compare, cache. Imports what a command needs."""

from __future__ import annotations

import argparse
import importlib.util
import os
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tinyc.version import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    commands = parser()
    options, rest = commands.parse_known_args(argv)
    if options.run is run_demo:
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
    cache = commands.add_parser("cache", help="where compiled programs are kept, and how many")
    cache.add_argument("--clear", action="store_true", help="remove them")
    cache.set_defaults(run=run_cache)
    return p


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


def run_compare(options: argparse.Namespace) -> int:
    """Time one function fused and unfused and print the table."""
    import tinyc

    if options.what == "list":
        print("\n".join(f"{name:15} {make.__doc__}" for name, make in builtins().items()))
        return 0
    found = find_function(options.what)
    if isinstance(found, str):
        print(f"tinyc compare: {found}", file=sys.stderr)
        return 1
    function, *args = found
    if options.explain:
        print(tinyc.explain(function, *args), end="\n\n")
    print(tinyc.compare(function, *args, repeats=options.repeats))
    return 0


def find_function(what: str) -> tuple | str:
    """Return (function, *args) for a built-in or FILE.py:FUNCTION, or what is wrong with it.

    FUNCTION takes no argument and returns that tuple.
    """
    if what in builtins():
        return builtins()[what]()
    path, _, name = what.rpartition(":")
    if not path:
        return f"no built-in {what!r}; there are: {', '.join(builtins())}"
    if not os.path.isfile(path):
        return f"no file {path!r}"
    sys.path.insert(0, os.path.dirname(os.path.abspath(path)))
    spec = importlib.util.spec_from_file_location("compared", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    make = getattr(module, name, None)
    if not callable(make):
        return f"{path} has no function {name!r}"
    made = make()
    if not isinstance(made, tuple) or not made or not callable(made[0]):
        return f"{name}() of {path} must return (function, *args)"
    return made


def builtins() -> dict[str, Callable[[], tuple]]:
    """Return the functions that need no file: name -> a maker of (function, *args)."""
    return {
        "chain": _chain,
        "softmax": _softmax,
        "layernorm": _layer_norm,
        "linear": _linear,
        "lenet": _lenet,
    }


def _chain() -> tuple:
    """element-wise operations on four million numbers"""
    import tinyc

    a, b, c = (tinyc.randn(4 << 20) for _ in range(3))
    return (lambda a, b, c: (a * b + c).tanh() * a.sigmoid() - b.relu() * 0.5), a, b, c


def _softmax() -> tuple:
    """softmax of 2048 rows of 1024"""
    import tinyc

    return (lambda x: x.softmax(-1)), tinyc.randn(2048, 1024)


def _layer_norm() -> tuple:
    """normalised rows, 2048 of 1024"""
    import tinyc

    def layer_norm(x: Any) -> Any:
        centred = x - x.mean(-1, keepdim=True)
        return centred * (centred.square().mean(-1, keepdim=True) + 1e-5).rsqrt()

    return layer_norm, tinyc.randn(2048, 1024)


def _linear() -> tuple:
    """a linear layer with bias and relu, batch 256, 512 to 512"""
    import tinyc

    layer = tinyc.nn.Linear(512, 512)
    return (lambda x: layer(x).relu()), tinyc.randn(256, 512)


def _lenet() -> tuple:
    """one training step of LeNet on 64 images"""
    import tinyc
    from tinyc import nn

    model = nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip
    optimizer = tinyc.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    @tinyc.jit
    def step(x: Any, y: Any) -> Any:
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return step, tinyc.randn(64, 1, 28, 28), tinyc.randint(0, 10, (64,))


if __name__ == "__main__":
    sys.exit(main())
