"""Plans and loop kernels as text, for dumps and for people."""
from __future__ import annotations

from collections.abc import Mapping

from tinyc.ir.cost import stage_work
from tinyc.ir.loop import (
    Alloc,
    Apply,
    Await,
    Barrier,
    Check,
    Combine,
    Const,
    Contraction,
    Expr,
    For,
    If,
    Index,
    Load,
    LoopKernel,
    MicroKernel,
    MicroMma,
    MicroPack,
    Prefetch,
    Read,
    Stmt,
    Store,
    Within,
    children,
    walk,
)
from tinyc.ir.plan import Leaf, Nest, Plan, Stage, Tree


def plan_blocks(plan: Plan) -> tuple[str, dict[str, str]]:
    """The most lowered form that a plan has, and its texts: a kernel's under its name."""
    if plan.kernels:
        return "loops", {k.name: kernel_text(k) for k in plan.kernels}
    if plan.nests:
        return "loop trees", {kernel_name(n): nest_text(n) for n in plan.nests}
    return "stages", {"": "\n".join(line for s in plan.stages for line in stage_lines(s))}


def kernel_name(nest: Nest) -> str:
    """k<number>_<what it does>, from the heaviest members."""
    heaviest = sorted(nest.stages(), key=stage_work, reverse=True)
    kinds = dict.fromkeys(s.node.op.name.lower() for s in heaviest)
    return f"k{nest.number}_" + "_".join(list(kinds)[:3])


def stage_lines(stage: Stage) -> list[str]:
    """One stage: the parts of its expression that have names, then where the value is stored."""
    axes = ", ".join(f"{v.name}<{v.extent}" for v in stage.axes)
    red = f" {stage.kind} over " + ", ".join(
        f"{v.name}<{v.extent}" for v in stage.red) if stage.red else ""
    where = f"{stage.buf.storage.role} {stage.buf.storage.name}"
    parts, value = expr_parts(stage.expr)
    return [*(f"  {part}" for part in parts), f"{stage.name}[{axes}]{red} = {value}  -> {where}"]


def nest_text(nest: Nest) -> str:
    """The loop trees of a kernel, its finish last."""
    lines = [f"kernel {kernel_name(nest)}"]
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
        lines = stage_lines(tree.stage)
        for s in tree.epilogue:
            *parts, last = stage_lines(s)
            lines += [*(f"  {part}" for part in parts), f"  epilogue {last}"]
        return [pad + line for line in lines]
    limit = f", {tree.limit}" if tree.limit is not None else ""
    lines = [f"{pad}for {tree.var.name}<{tree.var.extent}{limit}"]
    for child in tree.body:
        lines += tree_lines(child, depth + 1)
    return lines


def kernel_text(kernel: LoopKernel) -> str:
    """Loops of one kernel."""
    head = f"kernel {kernel.name}" + (f" chunks {kernel.chunks}" if kernel.chunks > 1 else "")
    head += f" of {kernel.threads} threads" if kernel.threads > 1 else ""
    lines = [head, *block_lines(kernel.body, 1)]
    if kernel.finish:
        blocks = f" in {kernel.last.extent} blocks" if kernel.last.extent > 1 else ""
        lines += [f"  finish{blocks}", *block_lines(kernel.finish, 2)]
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
        parts, value = expr_parts(stmt.value)
        past = " past the caches" if stmt.streams else " atomically" if stmt.atomic else ""
        past = " on its way" if stmt.asynchronous else past
        return [*(pad + part for part in parts),
                f"{pad}{stmt.storage}[{stmt.index}] {sign} {value}{past}{note}"]
    if isinstance(stmt, For):
        kind = "" if stmt.kind == "serial" else stmt.kind.replace("_", " ") + " "
        limit = f", {stmt.limit}" if stmt.limit is not None else ""
        return [f"{pad}{kind}for {stmt.var.name}<{stmt.var.extent}{limit}",
                *block_lines(stmt.body, depth + 1)]
    if isinstance(stmt, If):
        return [f"{pad}if {expr_text(stmt.cond)}", *block_lines(stmt.body, depth + 1)]
    if isinstance(stmt, Prefetch):
        return [f"{pad}ask for {expr_text(stmt.load)}"]
    if isinstance(stmt, Barrier):
        return [f"{pad}wait"]
    if isinstance(stmt, Await):
        return [f"{pad}await all but {stmt.pending}" if stmt.pending else f"{pad}await all"]
    if isinstance(stmt, Combine):
        return [f"{pad}{stmt.storage} = {stmt.how} of {stmt.width or 'all'} threads"]
    if isinstance(stmt, Alloc):
        return [f"{pad}{stmt.storage.dtype} {stmt.storage}[{stmt.storage.size}]"]
    if isinstance(stmt, Contraction):
        return contraction_lines(stmt, depth)
    return [pad + line for line in tile_lines(stmt)]


def tile_lines(stmt: MicroKernel | MicroPack | MicroMma) -> list[str]:
    """A register tile, a transposing copy, or a tile of a warp."""
    if isinstance(stmt, MicroMma):
        a, b = (f"{x.storage}[{x.index} + {own}*i + {deep}*k]" for x, (own, deep) in (
            (stmt.a, stmt.a_steps), (stmt.b, stmt.b_steps)))
        return [f"{stmt.sums}[{stmt.height}x{stmt.width}] += sum k<{stmt.depth} in {stmt.kind}: "
                f"{a} * {b}"]
    if isinstance(stmt, MicroKernel):
        depths = ", ".join(f"{v.name}<{v.extent}" for v in stmt.depth)
        depths += f" to {stmt.limit}" if stmt.limit is not None else ""
        more = f" (+= if {stmt.more})" if stmt.more.terms else ""
        shape = f"{stmt.height}x{stmt.width}"
        rows = f" + {stmt.apart}*row" if stmt.apart != stmt.width else ""
        return [f"{stmt.tile}[{stmt.at}{rows}; {shape}] = sum{more} {depths}: "
                f"{expr_text(stmt.a)} * {stmt.b.storage}[{stmt.b.index} + {stmt.b_stride}*k]"]
    depths = ", ".join(f"{v.name}<{v.extent}" for v in stmt.depth)
    return [f"{stmt.storage}[{stmt.at} + {stmt.width}*k; {stmt.width}] = transposed "
            f"{depths}: {expr_text(stmt.b)} from {stmt.column.name} = {stmt.first}"]


def contraction_lines(stmt: Contraction, depth: int) -> list[str]:
    """A contraction that no recipe has scheduled, what it holds below it."""
    pad = "  " * depth
    ends = {v: f" to {limit}" for v, limit in stmt.limits.items()}
    names = [", ".join(f"{v.name}<{v.extent}{ends.get(v, '')}" for v in group)
             for group in (stmt.rows, stmt.cols, stmt.depth)]
    return [f"{pad}contract rows {names[0]}; cols {names[1]}; depth {names[2]}: "
            f"{expr_text(stmt.a)} * {expr_text(stmt.b)}", *block_lines(stmt.body, depth + 1)]


# An expression that nests deeper than this is shown in parts.
DEEPEST = 6


def expr_parts(root: Expr) -> tuple[list[str], str]:
    """The parts of an expression that are used twice or lie deep, each as `name = text`; the rest.

    Nothing is left out, so that whatever differs between two expressions shows.
    """
    uses: dict[int, int] = {}
    for e in walk(root):
        for child in children(e):
            uses[id(child)] = uses.get(id(child), 0) + 1
    texts: dict[int, str] = {}
    depth: dict[int, int] = {}
    parts: list[str] = []
    for e in walk(root):
        texts[id(e)] = _text(e, texts)
        depth[id(e)] = 1 + max((depth[id(c)] for c in children(e)), default=0)
        shared = uses.get(id(e), 0) > 1 and depth[id(e)] > 2
        if isinstance(e, (Apply, Check)) and e is not root and (shared or depth[id(e)] > DEEPEST):
            name = f"e{len(parts)}"
            parts.append(f"{name} = {texts[id(e)]}")
            texts[id(e)], depth[id(e)] = name, 1
    return parts, texts[id(root)]


def expr_text(root: Expr) -> str:
    """An expression on one line."""
    texts: dict[int, str] = {}
    for e in walk(root):
        texts[id(e)] = _text(e, texts)
    return texts[id(root)]


def data_text(expr: object) -> str:
    """What an index takes from data: an expression, or whatever stands for one."""
    return expr_text(expr) if isinstance(expr, Expr) else str(expr)


def _text(e: Expr, texts: Mapping[int, str]) -> str:
    """An expression whose operands have texts."""
    if isinstance(e, Const):
        return f"{e.value:g}" if isinstance(e.value, float) else str(e.value)
    if isinstance(e, Read):
        at = ", ".join(str(i) for i in e.index)
        return f"{e.buf.storage.name}[{at}]" + _guard(e.guard)
    if isinstance(e, Load):
        return f"{e.storage}[{e.index}]" + _guard(e.guard)
    if isinstance(e, Index):
        return str(e.index)
    if isinstance(e, Within):
        return _within(e)
    if isinstance(e, Check):
        return f"check({texts[id(e.value)]} < {e.bound})"
    assert isinstance(e, Apply)
    return f"{e.op.name.lower()}({', '.join(texts[id(a)] for a in e.args)})"


def _within(e: Within) -> str:
    step = f" step {e.step}" if e.step > 1 else ""
    return f"({e.lo} <= {e.index} < {e.hi}{step})"


def _guard(guard: tuple[Within, ...]) -> str:
    return "".join(f" if {_within(g)}" for g in guard)
