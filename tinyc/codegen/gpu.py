"""GPU recipes: how a kernel is divided among blocks of threads, one block for each chunk."""
from __future__ import annotations

from dataclasses import replace

from tinyc.codegen import primitives as p
from tinyc.codegen.products import expand_contractions
from tinyc.ir.index import Var
from tinyc.ir.loop import For, LoopKernel, Stmt
from tinyc.ir.program import Target
from tinyc.ir.verify_loops import verify_threads

Body = tuple[Stmt, ...]


def schedule(kernel: LoopKernel, target: Target) -> LoopKernel:
    """The kernel for blocks of threads."""
    p.number_names()
    body = expand_contractions(kernel.body, kernel.chunks)
    kernel = replace(kernel, body=alone(body), finish=alone(kernel.finish), threads=target.warp)
    verify_threads(kernel, target.shared)
    return kernel


def alone(body: Body) -> Body:
    """Statements that one thread of a block runs."""
    return (For(Var("one", 1), body, "thread"),) if body else ()
