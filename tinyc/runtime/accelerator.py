"""`replay.c` as a module of the running Python: built by our own toolchain, kept in its cache.

It needs Python's headers. Where there are none, or the build fails, there is no such module, and
captured calls go through Python, which costs microseconds and changes nothing else.
"""

from __future__ import annotations

import functools
import importlib.util
import platform
import sys
import sysconfig
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from types import ModuleType

from tinyc.diagnostics import CompileError
from tinyc.runtime.toolchain import Unit, compile_libraries

NAME = "tinyc_replay"


def load() -> ModuleType | None:
    """Return the module, built if it is not in the cache; None where that can't be."""
    return _load()[0]


def problem() -> str:
    """Say why there is no module, or nothing."""
    return _load()[1]


@functools.cache
def _load() -> tuple[ModuleType | None, str]:
    headers = Path(sysconfig.get_path("include"))
    if platform.python_implementation() != "CPython" or sysconfig.get_config_var("Py_GIL_DISABLED"):
        return None, "it is written for CPython with its lock"
    if not (headers / "Python.h").is_file():
        return None, f"there is no Python.h in {headers}"
    try:
        (path,) = compile_libraries([_unit(headers)])
        return _imported(path), ""
    except (CompileError, ImportError) as error:
        return None, str(error).splitlines()[0]


def _unit(headers: Path) -> Unit:
    """Return the source, with flags that are this Python's alone."""
    extra = ["-I", str(headers), f"-DTC_PYTHON={sysconfig.get_config_var('SOABI')}"]
    if sys.platform == "darwin":
        extra += ["-undefined", "dynamic_lookup"]
    return Unit(Path(__file__).with_name("replay.c").read_text(), extra=tuple(extra))


def _imported(path: Path) -> ModuleType:
    loader = ExtensionFileLoader(NAME, str(path))
    spec = importlib.util.spec_from_file_location(NAME, path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module
