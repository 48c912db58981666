"""Modules that hold modules: in a row, or in a list."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from typing import Any

from tinyc.nn.module import Module


class _Numbered(Module):
    """Children by number, as a Python list has them."""

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._modules.values())

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return self._of(list(self)[index])
        return list(self)[operator.index(index)]

    def __setitem__(self, index: int, module: Module) -> None:
        setattr(self, str(range(len(self))[index]), module)

    def __delitem__(self, index: int | slice) -> None:
        modules = list(self)
        del modules[index]
        for name in list(self._modules):
            delattr(self, name)
        self.extend(modules)

    def _of(self, modules: list[Module]) -> Module:
        raise NotImplementedError

    def append(self, module: Module) -> Any:
        """Add a module at the end; returns self."""
        self.add_module(str(len(self)), module)
        return self

    def extend(self, modules: Iterable[Module]) -> Any:
        """Add modules at the end; returns self."""
        for module in modules:
            self.append(module)
        return self


class Sequential(_Numbered):
    """Modules in a row: each gets what the one before returned.

    Takes the modules, or one dictionary of them by name.
    """

    def __init__(self, *modules: Any) -> None:
        super().__init__()
        if len(modules) == 1 and isinstance(modules[0], dict):
            for name, module in modules[0].items():
                self.add_module(name, module)
        else:
            self.extend(modules)

    def _of(self, modules: list[Module]) -> Sequential:
        return Sequential(*modules)

    def forward(self, input: Any) -> Any:
        """Return the last module's output."""
        for module in self:
            input = module(input)
        return input


class ModuleList(_Numbered):
    """A list whose modules are registered; it has no forward of its own."""

    def __init__(self, modules: Iterable[Module] = ()) -> None:
        super().__init__()
        self.extend(modules)

    def _of(self, modules: list[Module]) -> ModuleList:
        return ModuleList(modules)
