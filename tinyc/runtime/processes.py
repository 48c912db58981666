"""Compilers as processes: started, waited for, and never left behind."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


class Process:
    """A running compiler in a process group of its own, killed if its block is left early."""

    def __init__(self, line: list[str], work: Path | None) -> None:
        self._line = line
        environment = {**os.environ, "LC_ALL": "C"}
        if work is not None:
            environment["TMPDIR"] = str(work)
        try:
            with _interrupts_held():
                self._process = subprocess.Popen(
                    line,
                    cwd=work,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except KeyboardInterrupt:  # it was put off until the process had started
            self._end()
            raise

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *exception: object) -> None:
        self._end()

    def _end(self) -> None:
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()

    def output(self) -> int:
        """Return the handle of what the process writes, which ends when it does."""
        assert self._process.stdout
        return self._process.stdout.fileno()

    def wait(self, seconds: float) -> tuple[int, str]:
        """Return exit status and output; a process that hangs is ended and says so."""
        try:
            output, _ = self._process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            return -1, f"no answer within {seconds:g} seconds"
        return self._process.returncode, output.decode(errors="replace")


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Put Ctrl-C off, so that a process that was started is known before the block is left.

    A signal mask would not do: another thread would take the signal, and Python raises it here.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield  # nothing is raised in this thread
        return
    held: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: held.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if held:
            before(signal.SIGINT, None)


def run(line: list[str], work: Path | None, seconds: float) -> tuple[int, str]:
    """Run a command line in a folder; return exit status, -1 if there is none, and output."""
    try:
        with Process(line, work) as process:
            return process.wait(seconds)
    except OSError as error:
        return -1, str(error.strerror)


def first_to_end(running: Mapping[T, Process], seconds: float) -> T:
    """Wait until a process says something, as each does when it ends, and return its name; after
    so many seconds the first one's."""
    poll = select.poll()
    names = {process.output(): name for name, process in running.items()}
    for handle in names:
        poll.register(handle, select.POLLIN)
    ready = poll.poll(seconds * 1000)
    return names[ready[0][0]] if ready else next(iter(running))
