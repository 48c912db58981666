"""Reports for tests: the data of a small training step, and what reads pages."""

from __future__ import annotations

import functools
import json
import shutil
from html.parser import HTMLParser
from typing import Any

VOID = {"meta", "input", "br", "hr", "img", "link", "col", "wbr"}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def training_report() -> dict[str, Any]:
    """Return the data of one training step of a small network: a fresh copy."""
    return json.loads(_collected())


@functools.cache
def _collected() -> str:
    import tinyc
    from tinyc import nn, optim
    from tinyc.reporting import collect

    tinyc.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.LayerNorm(64), nn.GELU(), nn.Linear(64, 10))
    optimizer = optim.AdamW(model.parameters(), lr=1e-3)

    @tinyc.jit
    def step(x: tinyc.Tensor, y: tinyc.Tensor) -> tinyc.Tensor:
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    x, y = tinyc.randn(64, 32), tinyc.randint(0, 10, (64,))
    step(x, y)
    return json.dumps(collect(step, x, y, repeats=3))


def browser() -> str | None:
    """Return the path of a Chromium, or None."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


class Page(HTMLParser):
    """A page taken apart; AssertionError where elements are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names), f"<{tag}> has an attribute twice: {names}"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        """What can be read on the page."""
        return " ".join("".join(self.texts).split())

    def of_class(self, name: str) -> list[dict[str, str | None]]:
        """Return the attributes of the elements of a class."""
        return [a for _, a in self.elements if name in (a.get("class") or "").split()]
