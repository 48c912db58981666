"""The notebook's cells run in order, and the objects at their ends show themselves."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "reading.ipynb"
pytestmark = [
    pytest.mark.skipif(not NOTEBOOK.exists(), reason="not a checkout: no examples"),
    pytest.mark.cpu("reads generated C"),
]


def last_value(code: str, names: dict[str, Any]) -> Any:
    """Run a cell as a notebook does: the value of its last line, if that is an expression."""
    tree = ast.parse(code)
    end = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    if end is None:
        return None
    return eval(compile(ast.Expression(end.value), "cell", "eval"), names)


def test_the_notebook_runs_and_shows_cards(capsys):
    notebook = json.loads(NOTEBOOK.read_text())
    cells = [c for c in notebook["cells"] if c["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in cells), "kept without outputs"
    names: dict[str, Any] = {}
    cards = []
    for cell in cells:
        value = last_value("".join(cell["source"]), names)
        if hasattr(value, "_repr_html_"):
            cards.append((type(value).__name__, value._repr_html_()))
    kinds = [kind for kind, _ in cards]
    assert kinds == ["Jitted", "Explanation", "Comparison", "Jitted", "Explanation"]
    assert all(text.lstrip().startswith("<") for _, text in cards)
    printed = capsys.readouterr().out
    for part in ("v2 = add(v0, v1)", "kernel k0_add", "long tinyc_step(", "GFLOP/s"):
        assert part in printed
