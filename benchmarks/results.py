"""The results file: one JSON object in which a newer measurement of a cell replaces the older."""

from __future__ import annotations

import json
import os
from typing import Any


def load(path: str) -> dict[str, Any]:
    """Return the results, empty where there are none yet."""
    if not os.path.exists(path):
        return {}
    with open(path) as f:
        return json.load(f)


def save(path: str, results: dict[str, Any]) -> None:
    """Write the results in one step."""
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with open(path + ".tmp", "w") as f:
        json.dump(results, f, indent=0)
    os.replace(path + ".tmp", path)
