"""The project's own rules: what importing costs, what names say, what the build contains."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tinyc

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "tinyc"
LONGEST_FUNCTION = 40
LONGEST_FILE = 900

SOURCES = sorted(PACKAGE.rglob("*.py"))
EVERYTHING = [
    path
    for folder in ("tinyc", "tests", "examples", "benchmarks")
    for suffix in ("*.py", "*.c")
    for path in sorted((ROOT / folder).rglob(suffix))
    if ".venvs" not in path.parts and ".work" not in path.parts
    if path.suffix != ".c" or path.parent.name != "golden"  # generated
]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def modules_after(statement: str) -> set[str]:
    """Return the names of the modules that a fresh interpreter has loaded after a statement."""
    code = f"{statement}\nimport sys\nprint(' '.join(sys.modules))"
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


class TestImport:
    def test_loads_numpy_the_standard_library_and_nothing_else(self):
        added = modules_after("import tinyc") - modules_after("import numpy")
        packages = {name.partition(".")[0] for name in added}
        foreign = packages - set(sys.stdlib_module_names) - {"tinyc"}
        # what an editable install puts into every interpreter is not ours
        assert {name for name in foreign if not name.startswith("_")} == set()

    def test_loads_few_modules(self):
        # seconds say little on a shared machine; each module costs some 0.2 ms
        added = modules_after("import tinyc") - modules_after("import numpy")
        standard = {name for name in added if not name.startswith("tinyc")}
        ours = {name for name in added if name.startswith("tinyc")}
        assert len(standard) <= 30, sorted(standard)
        assert len(ours) <= 75, sorted(ours)
        heavy = {"asyncio", "multiprocessing", "unittest", "http", "ssl", "email", "xml", "sqlite3"}
        assert not heavy & {name.partition(".")[0] for name in added}

    def test_every_module_imports_alone(self):
        names = [
            ".".join(path.relative_to(ROOT).with_suffix("").parts)
            for path in SOURCES
            if path.name not in ("__init__.py", "__main__.py")
        ]
        optional = ("tinyc.runtime.opencl", "tinyc.runtime.cuda")
        wanted = [name for name in names if name not in optional]
        code = "\n".join(["import importlib", *(f"importlib.import_module({n!r})" for n in wanted)])
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


class TestSources:
    @pytest.mark.parametrize("path", EVERYTHING, ids=name_of)
    def test_lines_are_short_and_nothing_is_left_to_do(self, path):
        marks = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
        if path == Path(__file__).resolve():
            return
        for number, line in enumerate(path.read_text().splitlines(), 1):
            assert len(line) <= 100, f"{name_of(path)}:{number} has {len(line)} columns"
            assert not marks.search(line), f"{name_of(path)}:{number}: {line.strip()}"

    @pytest.mark.parametrize("path", SOURCES, ids=name_of)
    def test_modules_say_why_they_exist_and_stay_readable(self, path):
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), f"{name_of(path)} has no docstring"
        assert len(path.read_text().splitlines()) <= LONGEST_FILE
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                assert length <= LONGEST_FUNCTION, f"{name_of(path)}: {node.name} is {length} long"

    def test_no_data_is_unpickled_or_evaluated(self):
        banned = {"pickle", "marshal", "shelve", "dill"}
        for path in SOURCES:
            for node in ast.walk(ast.parse(path.read_text())):
                names = []
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                if isinstance(node, ast.ImportFrom):
                    names = [node.module or ""]
                assert not banned & set(names), name_of(path)


def public_names() -> Iterator[tuple[str, object]]:
    """Yield the functions and classes that users see, and their public methods."""
    modules = [tinyc, tinyc.nn, tinyc.nn.functional, tinyc.optim, tinyc.data]
    for module in modules:
        for name in getattr(module, "__all__", dir(module)):
            value = getattr(module, name)
            home = getattr(value, "__module__", "") or ""
            if name.startswith("_") or not home.startswith("tinyc") or inspect.ismodule(value):
                continue
            yield f"{module.__name__}.{name}", value
            if inspect.isclass(value):
                for attribute, member in vars(value).items():
                    function = member.fget if isinstance(member, property) else member
                    if inspect.isfunction(function) and not attribute.startswith("_"):
                        yield f"{module.__name__}.{name}.{attribute}", function


def test_public_names_have_docstrings():
    missing = [name for name, value in public_names() if not inspect.getdoc(value)]
    # a layer's forward is described by its class
    assert [name for name in missing if not name.endswith(".forward")] == []


def test_layers():
    pytest.importorskip("importlinter")
    line = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as f; f()"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    hatchling = pytest.importorskip("hatchling.builders.wheel")
    folder = tmp_path_factory.mktemp("wheel")
    return Path(next(hatchling.WheelBuilder(str(ROOT)).build(directory=str(folder))))


class TestBuild:
    def test_the_wheel_is_pure_python_and_complete(self, wheel):
        import zipfile

        assert wheel.name == f"tinyc-{tinyc.__version__}-py3-none-any.whl"
        names = set(zipfile.ZipFile(wheel).namelist())
        expected = {
            str(path.relative_to(ROOT))
            for path in PACKAGE.rglob("*")
            if path.suffix in (".py", ".c", ".typed", ".css", ".js")
        }
        assert expected <= names
        others = {name.partition("/")[0] for name in names - expected}
        assert all(name.endswith(".dist-info") for name in others), others

    def test_the_wheel_is_small(self, wheel):
        assert wheel.stat().st_size < 1 << 20


def test_the_package_is_typed():
    assert (PACKAGE / "py.typed").exists()
