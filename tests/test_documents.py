"""What the documents say is so: their code runs, their commands and files exist."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest

import tinyc

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "docs" / "design.md",
             ROOT / "docs" / "control.md",
             ROOT / "benchmarks" / "README.md"]  # fmt: skip


def blocks(path: Path) -> list[str]:
    """Return the Python blocks of a document, without their indentation."""
    found = re.findall(r"^( *)```python\n(.*?)^ *```", path.read_text(), re.M | re.S)
    return [re.sub(rf"^{indent}", "", code, flags=re.M) for indent, code in found]


def test_the_readme_trains():
    (code,) = blocks(ROOT / "README.md")
    shorter = "DataLoader(data.Subset(train, range(256)), "
    code = code.replace("DataLoader(train, ", shorter)
    assert shorter in code
    names: dict = {}
    exec(code, names)
    assert math.isfinite(names["loss"].item())


def test_the_first_change_of_the_guide_works():
    code = next(block for block in blocks(ROOT / "CONTRIBUTING.md") if "def hardswish" in block)
    import tinyc.composites.activation as activation

    names = {"Node": object, "b": activation.b, "clip": tinyc.composites.elementwise.clip}
    exec(code, names)
    x = np.array([-4, -3, -1, 0, 2, 3, 5], np.float32)
    from tinyc.ir.dtype import f32
    from tinyc.ir.evaluate import evaluate

    leaf = activation.b.buffer(1, 0, x.shape, f32, "numpy")
    (result,) = evaluate([names["hardswish"](leaf)], {1: x})
    np.testing.assert_allclose(result, x * np.clip(x + 3, 0, 6) / 6, rtol=1e-6)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_files_and_commands_exist(path):
    text = path.read_text()
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    for command in re.findall(r"\bmake ([a-z]+)\b(?=[`\s])", text):
        if f"`make {command}" in text or f"    make {command}" in text:
            assert command in targets, f"make {command}"
    names = re.findall(r"`((?:tinyc|examples|tests|docs|benchmarks)/\w[\w./]*)`", text)
    for name in names:
        assert (ROOT / name).exists(), name
    short = re.findall(r"`((?:ir|schedule|codegen|runtime)/\w+\.(?:py|c))`", text)
    for name in short:
        assert (ROOT / "tinyc" / name).exists(), name


def test_the_table_of_switches_names_them_as_the_code_does():
    text = "\n".join(path.read_text() for path in DOCUMENTS)
    known = {tinyc.config.environment_name(name) for name in vars(tinyc.config.Settings())}
    assert set(re.findall(r"TINYC_[A-Z_]+", text)) <= known


CONTROL = ROOT / "docs" / "control.md"


@pytest.mark.parametrize("number", range(len(blocks(CONTROL))))
def test_taking_control(number, capsys):
    code = blocks(CONTROL)[number]
    names: dict = {}
    exec(compile(code, "example.py", "exec"), names)
    shown = capsys.readouterr()
    text = re.sub(r"\s+", " ", shown.out + shown.err)
    # what stands in the text after a block, as what it prints, is what it prints
    after = CONTROL.read_text().split(code)[1].split("```python")[0]
    for promised in re.findall(r"prints[^`]*`([^`]+)`", re.sub(r"\s+", " ", after)):
        assert promised in text
