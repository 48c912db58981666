"""Programs for devices that start kernels one by one: their text, and how each is started."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from tinyc.codegen.c import CRenderer, Source, line_members, overwrites
from tinyc.codegen.rebase import Bases, place, rebase
from tinyc.codegen.render import Functions, KernelText
from tinyc.ir.loop import LoopKernel, Storage
from tinyc.ir.program import Launch

# Writes a function: (the kernel, its text, the name and body of the function, whether it does
# nothing once an index was found to be out of range).
Write = Callable[[LoopKernel, KernelText, str, str, bool], str]


def assembled(renderer: CRenderer, kernels: Sequence[LoopKernel], slots: Sequence[Storage],
              write: Write, before: Callable[[], Sequence[str]]) -> tuple[Source,
                                                                          tuple[Launch, ...]]:
    """The text of a program, and its launches in order; `slots` are the arguments in order.

    `before` gives what stands before the kernels' functions, once these are known.
    """
    rebased = [rebase(kernel) for kernel in kernels]
    texts = [renderer.kernel(kernel) for kernel, _ in rebased]
    checks = "check" in renderer.helpers

    def both(kernel: LoopKernel, text: KernelText, name: str) -> str:
        parts = {name: text.body, f"{name}_end": text.finish}
        stops = checks and overwrites(kernel.body + kernel.finish)
        return "\n".join(write(kernel, text, n, body, stops) for n, body in parts.items() if body)

    defined = Functions()
    names = [defined.define(k.name, partial(both, k, t)) for (k, _), t in zip(rebased, texts)]
    pieces = [*before(), *defined.texts.values()]
    source = Source("\n\n".join(p for p in pieces if p) + "\n", False,
                    max((t.scratch_size for t in texts), default=0), tuple(defined.own), 1,
                    tuple(line_members(k, t, own)
                          for (k, _), t, own in zip(rebased, texts, defined.own)))
    return source, launches(rebased, texts, names, slots)


def launches(rebased: Sequence[tuple[LoopKernel, Bases]], texts: Sequence[KernelText],
             names: Sequence[str], slots: Sequence[Storage]) -> tuple[Launch, ...]:
    """The launches of kernels, in order; the end of one, `NAME_end`, is a launch of its own.

    Their functions are called `names`, and take the storages of their texts, then what all take.
    """
    numbers = {s: i for i, s in enumerate(slots)}
    made = []
    for number, ((kernel, bases), text, name) in enumerate(zip(rebased, texts, names)):
        arguments = tuple(place(s, numbers, bases) for s in text.storages)
        ran = number + overwrites(kernel.body)
        ends = [(f"{name}_end", kernel.last.extent)] if text.finish else []
        for function, blocks in [(name, kernel.chunks), *ends]:
            made.append(Launch(number, function, arguments, blocks * kernel.threads, ran,
                               kernel.threads, text.shared_size, text.scratch_size))
    return tuple(made)
