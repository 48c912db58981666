"""Plans and loop kernels as text, for dumps and for people."""
from __future__ import annotations

from tinyc.ir.loop import (
    Alloc,
    Apply,
    Check,
    Const,
    Contraction,
    Expr,
    For,
    If,
    Index,
    Load,
    LoopKernel,
    MicroKernel,
    MicroPack,
    Read,
    Stmt,
    Store,
    Within,
)
from tinyc.ir.plan import Leaf, Nest, Plan, Stage, Tree


def plan_text(plan: Plan) -> str:
    """The most lowered form that a plan has: kernels, else loop trees, else stages."""
    if plan.kernels:
        return "\n".join(kernel_text(k) for k in plan.kernels)
    if plan.nests:
        return "\n".join(nest_text(n) for n in plan.nests)
    return "\n".join(stage_text(s) for s in plan.stages)


def stage_text(stage: Stage) -> str:
    """One stage on one line."""
    axes = ", ".join(f"{v.name}<{v.extent}" for v in stage.axes)
    red = f" {stage.kind} over " + ", ".join(
        f"{v.name}<{v.extent}" for v in stage.red) if stage.red else ""
    where = f"{stage.buf.storage.role} {stage.buf.storage.name}"
    return f"{stage.name}[{axes}]{red} = {expr_text(stage.expr)}  -> {where}"


def nest_text(nest: Nest) -> str:
    """The loop trees of a kernel, its finish last."""
    lines = [f"kernel {nest.number}"]
    for tree in nest.body:
        lines += tree_lines(tree, 1)
    if nest.finish:
        lines.append("  finish")
        for tree in nest.finish:
            lines += tree_lines(tree, 2)
    return "\n".join(lines)


def tree_lines(tree: Tree, depth: int) -> list[str]:
    """A loop tree, one line for each loop and stage."""
    pad = "  " * depth
    if isinstance(tree, Leaf):
        return [pad + stage_text(tree.stage),
                *(f"{pad}  epilogue {stage_text(s)}" for s in tree.epilogue)]
    lines = [f"{pad}for {tree.var.name}<{tree.var.extent}"]
    for child in tree.body:
        lines += tree_lines(child, depth + 1)
    return lines


def kernel_text(kernel: LoopKernel) -> str:
    """Loops of one kernel."""
    head = f"kernel {kernel.name}" + (f" chunks {kernel.chunks}" if kernel.chunks > 1 else "")
    lines = [head, *block_lines(kernel.body, 1)]
    if kernel.finish:
        lines += ["  finish", *block_lines(kernel.finish, 2)]
    return "\n".join(lines)


def block_lines(body: tuple[Stmt, ...], depth: int) -> list[str]:
    """Statements, indented."""
    return [line for stmt in body for line in statement_lines(stmt, depth)]


def statement_lines(stmt: Stmt, depth: int) -> list[str]:
    """One statement, what it holds below it."""
    pad = "  " * depth
    if isinstance(stmt, Store):
        sign = {None: "=", "sum": "+=", "max": "max="}[stmt.accumulate]
        note = f"  # {stmt.note}" if stmt.note else ""
        return [f"{pad}{stmt.storage}[{stmt.index}] {sign} {expr_text(stmt.value)}{note}"]
    if isinstance(stmt, For):
        kind = "" if stmt.kind == "serial" else stmt.kind.replace("_", " ") + " "
        limit = f", {stmt.limit}" if stmt.limit is not None else ""
        return [f"{pad}{kind}for {stmt.var.name}<{stmt.var.extent}{limit}",
                *block_lines(stmt.body, depth + 1)]
    if isinstance(stmt, If):
        return [f"{pad}if {expr_text(stmt.cond)}", *block_lines(stmt.body, depth + 1)]
    if isinstance(stmt, Alloc):
        return [f"{pad}{stmt.storage.dtype} {stmt.storage}[{stmt.storage.size}]"]
    if isinstance(stmt, MicroKernel):
        depths = ", ".join(f"{v.name}<{v.extent}" for v in stmt.depth)
        return [f"{pad}{stmt.tile}[{stmt.at}; {stmt.height}x{stmt.width}] = sum {depths}: "
                f"{expr_text(stmt.a)} * {stmt.b.storage}[{stmt.b.index} + {stmt.b_stride}*k]"]
    if isinstance(stmt, MicroPack):
        depths = ", ".join(f"{v.name}<{v.extent}" for v in stmt.depth)
        return [f"{pad}{stmt.storage}[{stmt.at} + {stmt.width}*k; {stmt.width}] = transposed "
                f"{depths}: {expr_text(stmt.b)} from {stmt.column.name} = {stmt.first}"]
    assert isinstance(stmt, Contraction)
    names = [", ".join(f"{v.name}<{v.extent}" for v in group)
             for group in (stmt.rows, stmt.cols, stmt.depth)]
    return [f"{pad}contract rows {names[0]}; cols {names[1]}; depth {names[2]}: "
            f"{expr_text(stmt.a)} * {expr_text(stmt.b)}", *block_lines(stmt.body, depth + 1)]


def expr_text(e: Expr) -> str:
    """An expression; nesting is cut where it would fill pages."""
    return _text(e, 12)


def _text(e: Expr, levels: int) -> str:
    if isinstance(e, Const):
        return f"{e.value:g}" if isinstance(e.value, float) else str(e.value)
    if isinstance(e, Read):
        at = ", ".join(map(str, e.index))
        return f"{e.buf.storage.name}[{at}]" + _guard(e.guard)
    if isinstance(e, Load):
        return f"{e.storage}[{e.index}]" + _guard(e.guard)
    if isinstance(e, Index):
        return str(e.index)
    if isinstance(e, Within):
        step = f" step {e.step}" if e.step > 1 else ""
        return f"({e.lo} <= {e.index} < {e.hi}{step})"
    if isinstance(e, Check):
        return f"check({_text(e.value, levels - 1)} < {e.bound})" if levels else "..."
    assert isinstance(e, Apply)
    if not levels:
        return "..."
    return f"{e.op.name.lower()}({', '.join(_text(a, levels - 1) for a in e.args)})"


def _guard(guard: tuple[Within, ...]) -> str:
    return "".join(f" if {_text(g, 1)}" for g in guard)
