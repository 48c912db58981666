"""Every switch of tinyc in one typed table: its name, default, meaning and environment variable.

The table is read from the environment once, at import. ``current()`` is the table in force, and
``configure(...)`` changes it, for good when called and for a block when used with ``with``.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import Field, dataclass, field, fields, replace
from typing import Any

DEVICES = ("cpu", "numpy", "interpret", "opencl", "cuda")
ISAS = ("native", "avx512", "avx2", "sse2", "neon", "scalar")
PRECISIONS = ("highest", "high")
PREFIX = "TINYC_"

_DEBUG_FORM = re.compile(r"(\d+)(?::([^@]*))?(?:@(.*))?")


@dataclass(frozen=True)
class Debug:
    """What ``DEBUG=level[:kernel][@pass]`` asks for; the two filters are regular expressions."""

    level: int = 0
    kernel: str = ""
    pass_name: str = ""

    def shows(self, level: int, kernel: str | None = None, pass_name: str | None = None) -> bool:
        """Tell whether text of this level, about this kernel or pass (None: neither), is wanted.

        With filters it must be about something that they name. Level 1 is always wanted.
        """
        if level > self.level or level <= 1:
            return level <= self.level
        given = [(p, n) for p, n in ((self.kernel, kernel), (self.pass_name, pass_name)) if p]
        about = [(pattern, name) for pattern, name in given if name is not None]
        return bool(about or not given) and all(re.search(p, n) for p, n in about)


def parse_debug(text: str) -> Debug:
    """Return the Debug of ``"4"``, ``"4:softmax"``, ``"5@fuse"`` or ``"5:softmax@fuse"``.

    Many programs use a variable called DEBUG, so a text of any other form means level 0.
    """
    match = _DEBUG_FORM.fullmatch(text.strip())
    if match is None:
        return Debug()
    level, kernel, pass_name = match.groups()
    try:
        re.compile(kernel or "")
        re.compile(pass_name or "")
    except re.error:
        return Debug()
    return Debug(int(level), kernel or "", pass_name or "")


def _switch(default: Any, doc: str, choices: tuple[str, ...] = ()) -> Any:
    return field(default=default, metadata={"doc": doc, "choices": choices})


@dataclass(frozen=True)
class Settings:
    """The switches. ``fuse`` is set by ``TINYC_FUSE``, and so on; ``debug`` alone by ``DEBUG``."""

    debug: Debug = _switch(Debug(), "what is printed, 0 to 7, as level[:kernel][@pass]")
    device: str = _switch("cpu", "where new tensors live and are computed", DEVICES)
    fuse: bool = _switch(True, "put several operations in one kernel; 0 runs one op a kernel")
    float32_matmul_precision: str = _switch(
        "highest", "high lets matrix units of CUDA round f32 to tf32", PRECISIONS)
    deterministic: bool = _switch(
        True, "the same bits on every run; 0 lets GPUs add by index atomically, in any order")
    tune: bool = _switch(False, "time a few ways to make each kernel, and keep the fastest")
    threads: int = _switch(0, "threads of the native pool; 0 means as many as there are cores")
    isa: str = _switch("native", "vector instructions that code is made for", ISAS)
    check: bool = _switch(False, "verify after every pass and compare results with numpy")
    bounds: bool = _switch(True, "check data-dependent indices; a bad one raises IndexError")
    break_at: str = _switch("", "stop in kernels or lines that this finds, on device interpret")
    lines: bool = _switch(False, "tell gdb and perf which line of yours each instruction is from")
    dump: str = _switch("", "folder for the IR after each pass and the generated source")
    dump_inputs: bool = _switch(False, "keep there, too, what each program is given first")
    report: str = _switch("", "HTML file for what ran and why, written when the process ends")
    cache_dir: str = _switch("", "folder of compiled programs; empty means the user's cache folder")


def environment_name(switch: str) -> str:
    """Return the environment variable that sets a switch."""
    return "DEBUG" if switch == "debug" else PREFIX + switch.upper()


def _parse(spec: Field[Any], text: str) -> Any:
    """Return a switch's value from its text; ValueError says what was expected."""
    if spec.name == "debug":
        return parse_debug(text)
    if isinstance(spec.default, bool):
        if text.lower() not in ("0", "1", "false", "true", "no", "yes", "off", "on"):
            raise ValueError("expected 0 or 1")
        return text.lower() in ("1", "true", "yes", "on")
    if isinstance(spec.default, int):
        return int(text)
    choices = spec.metadata["choices"]
    if choices and text.partition(":")[0] not in choices:
        raise ValueError(f"expected one of {', '.join(choices)}")
    if spec.name == "break_at":
        _check_pattern(text)
    return text


def _check_pattern(text: str) -> None:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"expected a regular expression: {error}") from None


def read_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the switches that an environment sets; bad values and unknown names only warn."""
    values: dict[str, Any] = {}
    known = {environment_name(spec.name): spec for spec in fields(Settings)}
    for name, spec in known.items():
        if environ.get(name):
            try:
                values[spec.name] = _parse(spec, environ[name])
            except ValueError as error:
                message = f"{name}={environ[name]!r} is ignored: {error}"
                warnings.warn(message, stacklevel=2)
    for name in sorted(environ):
        if name.startswith(PREFIX) and name not in known:
            warnings.warn(f"unknown switch {name} is ignored{_guess(name, known)}", stacklevel=2)
    return values


def _guess(name: str, known: Iterable[str]) -> str:
    import difflib  # only on the way to a message

    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


_DEFAULTS = Settings()
_environment = read_environment(os.environ)
_current = Settings(**_environment)
_epoch = 0


def current() -> Settings:
    """Return the settings in force in this process."""
    return _current


def source(switch: str) -> str:
    """Say where a switch's value comes from: ``default``, ``environment`` or ``program``."""
    value = getattr(_current, switch)
    if switch in _environment and value == _environment[switch]:
        return "environment"
    return "default" if value == getattr(_DEFAULTS, switch) else "program"


def epoch() -> int:
    """Return a number that changes whenever captured programs may have become stale.

    A changed switch, module attribute, training mode or ``requires_grad`` moves it.
    """
    return _epoch


def bump_epoch() -> None:
    """Make every captured program check again whether it still fits."""
    global _epoch
    _epoch += 1


class configure:
    """Change switches now; as a context manager, restore them at the end of the block.

    ``configure(fuse=False)`` holds until changed again, ``with configure(fuse=False):`` for a
    block. The switches belong to the process, not to a thread. ``debug`` may be an int, the text
    of a DEBUG variable, or a Debug. Raises TypeError for an unknown switch or a value of another
    type and ValueError for a value out of the allowed ones.
    """

    def __init__(self, **values: Any) -> None:
        checked = {name: _checked(name, value) for name, value in values.items()}
        self._before = {name: getattr(_current, name) for name in checked}
        _replace(checked)

    def __enter__(self) -> Settings:
        return _current

    def __exit__(self, *exception: object) -> None:
        _replace(self._before)


def debug(level: int | str) -> configure:
    """Return ``configure(debug=level)``: ``with tinyc.debug(3): ...`` prints what was fused."""
    return configure(debug=level)


def _replace(values: dict[str, Any]) -> None:
    global _current
    changed = replace(_current, **values)
    stale = replace(changed, debug=_current.debug) != _current
    _current = changed
    if stale:
        bump_epoch()


def _checked(name: str, value: Any) -> Any:
    spec = {spec.name: spec for spec in fields(Settings)}.get(name)
    if spec is None:
        names = [spec.name for spec in fields(Settings)]
        raise TypeError(f"unknown switch {name!r} is not set{_guess(name, names)}")
    if name == "debug" and not isinstance(value, Debug):
        return parse_debug(str(value))
    if type(value) is not type(spec.default):
        expected = type(spec.default).__name__
        raise TypeError(f"{name} is a {expected}, not {type(value).__name__} {value!r}")
    if isinstance(value, str) and value:
        try:
            return _parse(spec, value)
        except ValueError as error:
            raise ValueError(f"{name}={value!r}: {error}") from None
    return value
