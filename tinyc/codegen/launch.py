"""How kernels are started on devices that start them one by one."""
from __future__ import annotations

from collections.abc import Sequence

from tinyc.codegen.c import overwrites
from tinyc.codegen.rebase import Bases, place
from tinyc.codegen.render import KernelText
from tinyc.ir.loop import LoopKernel, Storage
from tinyc.ir.program import Launch


def launches(rebased: Sequence[tuple[LoopKernel, Bases]], texts: Sequence[KernelText],
             names: Sequence[str], slots: Sequence[Storage]) -> tuple[Launch, ...]:
    """The launches of kernels, in order; the end of one, `NAME_end`, is a launch of its own.

    Their functions are called `names`, and take the storages of their texts, then what all take.
    """
    numbers = {s: i for i, s in enumerate(slots)}
    made = []
    for number, ((kernel, bases), text, name) in enumerate(zip(rebased, texts, names)):
        arguments = tuple(place(s, numbers, bases) for s in text.storages)
        ran = number + overwrites(kernel)
        ends = [(f"{name}_end", kernel.last.extent)] if text.finish else []
        for function, blocks in [(name, kernel.chunks), *ends]:
            made.append(Launch(number, function, arguments, blocks * kernel.threads, ran,
                               kernel.threads, text.shared_size, text.scratch_size))
    return tuple(made)
