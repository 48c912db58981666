"""A digest of the compiler's own sources: a part of the key of all that they decide."""
from __future__ import annotations

import functools
import hashlib
import time
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
# What a program depends on, below the package: what is above the graph is in the graph.
SOURCES = ("ir", "schedule", "codegen", "runtime", "pipeline.py", "program_cache.py",
           "tuning.py")

_loaded_at = time.time()


@functools.cache
def source_digest(package: Path = PACKAGE) -> str | None:
    """Return a digest of the compiler's sources; None if they may not be what this process runs."""
    files = [path for part in SOURCES for path in (package / part, *(package / part).glob("*.*"))]
    digest = hashlib.sha256()
    for path in sorted(path for path in files if path.suffix in (".py", ".c")):
        try:
            if path.stat().st_mtime > _loaded_at:
                return None  # edited since it was loaded
            text = path.read_bytes()
        except OSError:
            return None
        digest.update(f"{path.name} {len(text)} ".encode() + text)
    return digest.hexdigest()
