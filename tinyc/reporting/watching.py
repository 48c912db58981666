"""Reports of whatever runs: in a block, in a script, or in a whole process."""

from __future__ import annotations

import atexit
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tinyc.diagnostics import TinycError
from tinyc.markup import plural
from tinyc.reporting import listing, page
from tinyc.reporting.collect import collect
from tinyc.reporting.recording import Recording, record

# Programs that are timed and rebuilt, which takes a second or so for each.
MOST = 12


@contextmanager
def report(path: str | os.PathLike[str], *, title: str = "") -> Iterator[None]:
    """Write what ran in the block, and what the compiler did, as one HTML file.

    ``with tinyc.report("r.html"): step(x, y)``. The page opens from the disk without a network.
    When the block ends, also by an exception, each program that ran is timed fused and unfused on
    copies of what it was first given, which changes nothing of the caller's. Raises TinycError if
    ``pip install 'tinyc[report]'`` is missing, if the folder can't be written to, or if nothing
    was compiled in the block.
    """
    path = Path(path).absolute()  # the block may go elsewhere
    check_writable(path)
    listing.highlighted("", "c")
    seen: Recording | None = None
    try:
        with record() as seen:
            yield
    finally:
        if seen is not None:
            _finish(seen, path, title)


def check_writable(path: Path) -> None:
    """Raise TinycError, before hours of training, where the page could not be written."""
    folder = path.absolute().parent
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise TinycError(
            f"report: {str(path)!r} can't be written: a report is a file in a folder that exists "
            "and may be written to; name another"
        )


def script() -> str:
    """Return the running script with its arguments, as a shell takes them; nothing without one."""
    return shlex.join(sys.argv) if sys.argv and sys.argv[0].endswith(".py") else ""


def _finish(seen: Recording, path: Path, title: str) -> None:
    """Write the page; where an exception is on its way, failing to write only warns."""
    pending = sys.exc_info()[1]
    try:
        if not any(found.executable.program.kernels for found in seen.programs):
            raise TinycError("report: no kernel ran, so there is no report")
        data = {**collect(seen.busiest(MOST), title=title), "script": script()}
        page.write(data, path)
    except (TinycError, OSError) as error:
        if pending is None:
            raise
        print(f"no report was written: {error}", file=sys.stderr)
        return
    kernels = sum(len(program["kernels"]) for program in data["programs"])
    size = path.stat().st_size / 1e6
    print(f"report: {path} ({plural(kernels, 'kernel')}, {size:.1f} MB)", file=sys.stderr)


def watch_process(path: str) -> None:
    """Report everything that this process runs, when it ends: the switch TINYC_REPORT."""
    block = report(path, title=os.path.basename(sys.argv[0]) if sys.argv else "")
    try:
        block.__enter__()
    except TinycError as error:
        print(f"TINYC_REPORT is ignored: {error}", file=sys.stderr)
        return
    atexit.register(_leave, block)


def _leave(block: object) -> None:
    try:
        block.__exit__(None, None, None)  # type: ignore[attr-defined]
    except TinycError as error:
        print(str(error), file=sys.stderr)
