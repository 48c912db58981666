"""Loop IR -> GNU C: the register tile in vector types, helpers, and one function for a program.

The text needs no header. `tinyc_step(bufs, arena, rt)` runs every kernel in order; a kernel with
several chunks is handed to `rt->par`, which runs them on the worker threads and waits for all.
"""
from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from tinyc.codegen import mathfn
from tinyc.codegen.depth import DepthPart, depth_parts, in_one
from tinyc.codegen.owners import Owners
from tinyc.codegen.primitives import WIDEST_LANES
from tinyc.codegen.rebase import Bases, place, rebase
from tinyc.codegen.render import TYPES, Functions, KernelText, PackKey, Renderer, Scope, TileKey
from tinyc.codegen.tile import MACROS, pack_function, pack_name, tile_function, tile_name
from tinyc.ir.cost import elements
from tinyc.ir.index import Affine, Var
from tinyc.ir.loop import (
    Const,
    For,
    LoopKernel,
    MicroKernel,
    MicroPack,
    Prefetch,
    Stmt,
    Storage,
    Store,
    loads,
    stored_in,
)

RUNTIME = """\
typedef struct {
  void (*par)(void (*)(void *, long, long), void *, long);
  long (*now)(void);
  long nthreads;
  char *scratch;
  long scratch_stride;
  long *status;
  long *times;
} tinyc_rt;
typedef struct { void **p; const tinyc_rt *rt; } tc_task;
"""

# More offsets than these are computed where they are used, fewer are a constant table.
LONGEST_TABLE = 32

HELPERS = {
    "stream": """\
#if defined(__AVX512F__)
#define TC_PAST(to, from) __builtin_ia32_movntps512((float *)(to), from)
typedef float tc_past __attribute__((vector_size(64), may_alias));
#elif defined(__AVX__)
#define TC_PAST(to, from) __builtin_ia32_movntps256((float *)(to), from)
typedef float tc_past __attribute__((vector_size(32), may_alias));
#elif defined(__SSE__) && !defined(__TINYC__)
#define TC_PAST(to, from) __builtin_ia32_movntps((float *)(to), from)
typedef float tc_past __attribute__((vector_size(16), may_alias));
#elif defined(__clang__)
typedef float tc_past __attribute__((vector_size(16), may_alias));
#endif
#if defined(__clang__)
#undef TC_PAST
#define TC_PAST(to, from) __builtin_nontemporal_store(from, to)
#endif
static inline void tc_stream(void *to, const void *from, unsigned long n) {
#ifdef TC_PAST
  if ((unsigned long)to % sizeof(tc_past) == 0 && n % sizeof(tc_past) == 0) {
    for (unsigned long i = 0; i < n / sizeof(tc_past); i++)
      TC_PAST((tc_past *)to + i, ((const tc_past *)from)[i]);
    return;
  }
#endif
  __builtin_memcpy(to, from, n);
}
static inline void tc_fence(void) {
#if defined(__x86_64__) && !defined(__TINYC__)
  __builtin_ia32_sfence();
#endif
}""",
    "prefetch": """\
#ifdef __GNUC__
#define TC_PREFETCH(place) __builtin_prefetch(place)
#else
#define TC_PREFETCH(place) (void)0
#endif""",
    "min": "static inline long tc_min(long a, long b) { return a < b ? a : b; }",
    "check": """\
static inline long tc_check(long v, long bound, long site, long *status) {
  if (__builtin_expect((unsigned long)v >= (unsigned long)bound, 0)) {
    status[0] = site; status[1] = v; return 0;
  }
  return v;
}""",
}


class CRenderer(Renderer):
    """GNU C for CPUs."""

    def scope(self, kernel: LoopKernel) -> CScope:
        """What a kernel's names are given by."""
        return CScope(self, kernel)

    def kernel(self, kernel: LoopKernel) -> KernelText:
        """Render one kernel."""
        scope = self.scope(kernel)
        scope.chunks = kernel.chunks
        body = scope.block(kernel.body, 1)
        scope.chunks = kernel.last.extent
        finish = scope.block(kernel.finish, 1)
        scratch = [(s, at) for s, (_, at) in scope.scratch.items()]
        tiles = scope.tile_lines()
        shared = [(s, name) for s, name in scope.locals.items() if s.role == "shared"]
        return KernelText(list(scope.params), scratch, "\n".join([*tiles, *body]),
                          "\n".join(finish), scope.scratch_size, scope.lengths, len(tiles),
                          shared, kernel.threads)


@dataclass
class CScope(Scope):
    """Names of one kernel in C."""

    TABLE: ClassVar[str] = "static const long"

    def tile_lines(self) -> list[str]:
        return [f"  {TYPES[s.dtype.name]} {name}[{s.size}] __attribute__((aligned(64)));"
                for s, name in self.locals.items() if s.role == "tile"]

    def hints(self, stmt: For) -> list[str]:
        """Clang keeps the sums of lanes in registers only where their loops are unrolled; maxima it
        then computes one by one."""
        lines = super().hints(stmt)
        sums = stmt.var.extent <= WIDEST_LANES and all(map(sums_lanes, stmt.body))
        return [*lines, "#pragma clang loop unroll(full)"] if lines and sums else lines

    def stream(self, stmt: Store) -> str:
        """The streaming store of the vector that a loop has made."""
        self.owner.helpers["stream"] = None
        name, v = self.collected[stmt]
        at = self.index(stmt.index.substitute({v: Affine.const_of(0)}))
        nbytes = v.extent * stmt.storage.dtype.itemsize
        return f"tc_stream({self.storage(stmt.storage)} + {at}, {name}, {nbytes});"

    def prefetch(self, stmt: Prefetch) -> str:
        """A hint, without effect where there is none."""
        self.owner.helpers["prefetch"] = None
        x = stmt.load
        return f"TC_PREFETCH({self.storage(x.storage)} + {self.index(x.index)});"

    def micro_kernel(self, stmt: MicroKernel, pad: str) -> list[str]:
        """Offsets of the rows, then a call of the shared register tile."""
        levels = merged_levels(stmt)
        before: list[str] = []
        ends = [str(n) for n, _ in levels]
        if stmt.limit is not None:
            whole = levels[0][0] // stmt.depth[0].extent
            ends[0] = self.index(stmt.limit * whole, before, pad)
        zero = dict.fromkeys(stmt.depth, 0)
        base = stmt.a.index.substitute(zero)
        a, offsets, lines = self.offsets(stmt.a.storage, stmt.height, stmt.row, stmt.first, base,
                                         pad)
        outer, inner = levels[:-3], levels[-3:]
        calls = []
        for part in parts_of(stmt):
            sizes = [*(str(n) for n, _ in part.levels), str(part.last)]
            if stmt.limit is not None and not outer:
                sizes = [ends[0], *sizes[1:]] if len(inner) > 1 else ["1", "1", *ends, *ends]
            calls += self.tile_call(stmt, part, sizes, (a, offsets), list(zip(outer, ends)), pad)
        return [*before, *lines, *calls]

    def tile_call(self, stmt: MicroKernel, part: DepthPart, sizes: list[str], a: tuple[str, str],
                  outer: list[tuple[tuple[int, int], str]], pad: str) -> list[str]:
        """A call of the register tile for a part of the depth, in loops around it if it has some:
        ((extent, stride), end) for each. `a` is the row operand and the offsets of its rows."""
        b, tile = self.storage(stmt.b.storage), self.storage(stmt.tile)
        pointer, offsets = a
        outer = [*outer, *((level, str(level[0])) for level in part.around)]
        more = "1" if part.before else self.index(stmt.more)
        at, bt = "", ""
        if part.before:
            at, bt = (f" + {part.before * n}" for n in (part.levels[-1][1], stmt.b_stride))
        names = [f"d{self.temporaries}_{k}" for k in range(len(outer))]
        if outer:
            count = "0"
            for d, ((n, _), _) in zip(names, outer):
                count = f"(({count}) * {n} + {d})"
            at += "".join(f" + {step} * {d}" for d, ((_, step), _) in zip(names, outer))
            bt += f" + {stmt.b_stride * part.points} * {count}"
            more = f"{count} > 0" if more == "0" else f"{more} + {count} > 0"
        call = (f"{self.tile_name(stmt, part)}({self.depth(part, sizes)}, "
                f"{pointer}{at}, {offsets}, "
                f"{b} + {self.index(stmt.b.index)}{bt}, {stmt.b_stride}, "
                f"{tile} + {self.index(stmt.at)}, {stmt.apart}, {more});")
        if not outer:
            return [pad + call]
        loops = (f"for (long {d} = 0; {d} < {end}; {d}++)" for d, (_, end) in zip(names, outer))
        return [pad + " ".join(loops), f"{pad}  {call}"]

    def tile_name(self, stmt: MicroKernel, part: DepthPart) -> str:
        """The name of the register tile for a part of the depth, which the program then has."""
        key = tile_key(stmt, part)
        if stmt.a.dtype.is_half:
            self.converter("widen", stmt.a.dtype)
        if stmt.b.dtype.is_half and stmt.lanes == 1:
            self.converter("widen", stmt.b.dtype)
        self.owner.tiles[key] = None
        return tile_name(*key)

    def depth(self, part: DepthPart, sizes: list[str]) -> str:
        """The arguments of the register tile that say how its loops over the depth run."""
        steps = [str(step) for _, step in part.levels]
        plain = [sizes[0], *sizes[2:], steps[0], steps[2]]
        return ", ".join([*sizes[:3], *steps] if part.is_window else plain)

    def pack_name(self, stmt: MicroPack) -> str:
        """The name of the transposing copy, which the program then has."""
        key = pack_key(stmt)
        if stmt.b.dtype is not stmt.storage.dtype:
            self.converter("widen", stmt.b.dtype)
        self.owner.packs[key] = None
        return pack_name(*key)

    def micro_pack(self, stmt: MicroPack, pad: str) -> list[str]:
        """Offsets of the columns, then a call of the shared transposing copy."""
        base = stmt.b.index.substitute(dict.fromkeys(stmt.depth, 0))
        b, offsets, lines = self.offsets(stmt.b.storage, stmt.width, stmt.column, stmt.first, base,
                                         pad)
        return [*lines, f"{pad}{self.pack_name(stmt)}({elements(stmt.depth)}, "
                f"{stmt.width}, {b}, {offsets}, "
                f"{self.storage(stmt.storage)} + {self.index(stmt.at)});"]

    def offsets(self, s: Storage, count: int, var: Var, first: Affine, base: Affine,
                pad: str) -> tuple[str, str, list[str]]:
        """(a pointer, the name of an array of what is to be added to it, lines that fill it): where
        `base` is in a storage at `count` values of `var` from `first` on, up to its last one."""
        self.temporaries += 1
        name, pointer = f"o{self.temporaries}", self.storage(s)
        step = base.coeff(var)
        inside = first.bounds()[1] + count <= var.extent or not step
        if inside and base.is_linear_in(var):
            pointer += f" + {self.index(base.substitute({var: first}))}"
            if count > LONGEST_TABLE:
                return pointer, name, [
                    f"{pad}long {name}[{count}];",
                    f"{pad}for (long r = 0; r < {count}; r++) {name}[r] = {step} * r;"]
            table = ", ".join(str(step * r) for r in range(count))
            return pointer, name, [f"{pad}{self.TABLE} {name}[] = {{ {table} }};"]
        v = self.var(var)
        self.owner.helpers["min"] = None
        return pointer, name, [
            f"{pad}long {name}[{count}];",
            f"{pad}for (long r = 0; r < {count}; r++) {{",
            f"{pad}  const long {v} = tc_min({self.index(first)} + r, {var.extent - 1});",
            f"{pad}  {name}[r] = {self.index(base)};",
            f"{pad}}}",
        ]


def parts_of(stmt: MicroKernel) -> list[DepthPart]:
    """The parts of the depth for which the register tile is called."""
    inner = merged_levels(stmt)[-3:]
    if stmt.limit is not None:
        return [in_one(inner)]
    sums = stmt.height * (stmt.width // stmt.lanes)
    return depth_parts(inner, sums, stmt.more != Affine.const_of(0))


def tile_key(stmt: MicroKernel, part: DepthPart) -> TileKey:
    """What decides the text of a register tile."""
    return (stmt.tile.dtype.name, stmt.a.dtype.name, stmt.b.dtype.name, stmt.height, stmt.lanes,
            stmt.width, part.is_window)


def pack_key(stmt: MicroPack) -> PackKey:
    """What decides the text of a transposing copy."""
    return stmt.b.dtype.name, stmt.storage.dtype.name, stmt.lanes


def sums_lanes(stmt: Stmt) -> bool:
    """True if a statement clears lanes of sums, adds to them, or makes them of other lanes."""
    if not isinstance(stmt, Store) or stmt.storage.role != "register":
        return False
    if isinstance(stmt.value, Const):
        return not stmt.value.value
    return stmt.accumulate == "sum" or (stmt.accumulate is None and all(
        x.storage.role == "register" for x in loads(stmt.value)))


def merged_levels(stmt: MicroKernel) -> list[tuple[int, int]]:
    """(extent, stride in `a`) of the depth, neighbours that step evenly made one."""
    levels: list[tuple[int, int]] = []
    for v in stmt.depth:
        step = stmt.a.index.coeff(v)
        if levels and levels[-1][1] == step * v.extent:
            levels[-1] = (levels[-1][0] * v.extent, step)
        else:
            levels.append((v.extent, step))
    return levels or [(1, 0)]


def helper(name: str) -> str:
    """The text of a helper function by its name, `<what>_<dtype>[_<source dtype>]`."""
    if name in HELPERS:
        return HELPERS[name]
    what, *types = name.split("_")
    t = TYPES[types[0]]
    if what == "max":
        test = "(a > b) | (a != a)" if types[0] in ("f32", "f64") else "a > b"
        return f"static inline {t} tc_{name}({t} a, {t} b) {{ return ({test}) ? a : b; }}"
    if what == "to":
        return f"static inline {t} tc_{name}({TYPES[types[1]]} a) {{ return ({t})a; }}"
    if what == "bitcast":
        out = TYPES[types[1]]
        return (f"static inline {out} tc_{name}({t} a) {{ {out} r; "
                "__builtin_memcpy(&r, &a, sizeof r); return r; }")
    return INTEGER[what].format(name=name, t=t, bits=BITS[types[0]]) if types[0][0] in "ibu" \
        else FLOAT[what].format(name=name, t=t, f="f" if types[0] == "f32" else "")


BITS = {"bool": 8, "u8": 8, "i8": 8, "u16": 16, "i16": 16, "u32": 32, "i32": 32, "u64": 64,
        "i64": 64}

INTEGER = {
    "idiv": "static inline {t} tc_{name}({t} a, {t} b) {{ if (b == 0) return 0; "
            "if (b == ({t})-1 && ({t})-1 < 0) return -a; "
            "{t} q = a / b; return q - ((a % b != 0) & ((a < 0) != (b < 0))); }}",
    "mod": "static inline {t} tc_{name}({t} a, {t} b) {{ if (b == 0) return 0; "
           "if (b == ({t})-1 && ({t})-1 < 0) return 0; "
           "{t} r = a % b; return r + (((r != 0) & ((r < 0) != (b < 0))) ? b : 0); }}",
    "pow": "static inline {t} tc_{name}({t} a, {t} b) {{ {t} r = 1; "
           "if (b < 0) return a == 1 ? 1 : a == ({t})-1 ? (b & 1 ? a : 1) : 0; "
           "for (; b; b >>= 1) {{ if (b & 1) r *= a; a *= a; }} return r; }}",
    "shl": "static inline {t} tc_{name}({t} a, {t} b) "
           "{{ return (unsigned long)b < {bits} ? ({t})(a << b) : 0; }}",
    "shr": "static inline {t} tc_{name}({t} a, {t} b) "
           "{{ return (unsigned long)b < {bits} ? ({t})(a >> b) : a < 0 ? ({t})-1 : 0; }}",
    "floor": "static inline {t} tc_{name}({t} a) {{ return a; }}",
}

# As numpy has them: the quotient is the floor of what is left when the remainder is taken away.
FLOAT = {
    "idiv": "static inline {t} tc_{name}({t} a, {t} b) {{ if (b == 0) return a / b; "
            "{t} r = __builtin_fmod{f}(a, b), d = (a - r) / b; "
            "if (r != 0 && (b < 0) != (r < 0)) d -= 1; "
            "if (d == 0) return __builtin_copysign{f}(({t})0, a / b); "
            "{t} q = __builtin_floor{f}(d); return d - q > ({t})0.5 ? q + 1 : q; }}",
    "mod": "static inline {t} tc_{name}({t} a, {t} b) {{ {t} r = __builtin_fmod{f}(a, b); "
           "if (r == 0) return __builtin_copysign{f}(r, b); "
           "return (r < 0) != (b < 0) ? r + b : r; }}",
}
USES_LIBM = ("idiv_f32", "idiv_f64", "mod_f32", "mod_f64")


# -- a program -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """The text of a program and what belongs to it."""

    text: str
    libm: bool
    scratch_size: int
    kernels: tuple[str, ...]
    parts: int
    # for each kernel, for each line of its text, the member that it belongs to, or nothing
    members: tuple[tuple[str, ...], ...]


def program(kernels: Sequence[LoopKernel], slots: Sequence[Storage],
            lines: bool = False) -> Source:
    """One C file that runs `kernels` in order; `slots` are the arguments in order.

    With `lines` the compiler takes each line of a kernel for the user's line that it comes from.
    """
    renderer = CRenderer()
    kernels, bases = zip(*map(rebase, kernels)) if kernels else ((), ())
    texts = [renderer.kernel(k) for k in kernels]
    defined = Functions(lines)
    names = [defined.define(k.name, partial(functions_of, t)) for k, t in zip(kernels, texts)]
    functions = defined.texts
    step = entry(kernels, texts, names, bases, {s: i for i, s in enumerate(slots)})
    used = list(renderer.functions)
    groups = balanced(functions)
    members = tuple(map(line_members, kernels, texts, defined.own))
    if lines:
        texts_by_line = with_lines(kernels, functions, members)
        bodies = divided(groups, texts_by_line, step, SEEN_LINKAGE)
    elif len(groups) > 1:
        bodies = divided(groups, functions, step, LINKAGE)
    else:
        bodies = [*functions.values(), step]
    pieces = [RUNTIME, MACROS if renderer.tiles or renderer.packs else "", mathfn.prelude(used),
             *(helper(h) for h in renderer.helpers), *(tile_function(*k) for k in renderer.tiles),
             *(pack_function(*k) for k in renderer.packs),
             *bodies]
    libm = any(mathfn.MATH[f].libm for f in used) or any(
        h in USES_LIBM for h in renderer.helpers)
    return Source(own_lines("\n\n".join(p for p in pieces if p) + "\n"), libm,
                  max((t.scratch_size for t in texts), default=0),
                  tuple(defined.own), len(groups), members)


# A program with more text than this is compiled in parts, by processes that run side by side.
PART_TEXT = 24_000
MOST_PARTS = 8

LINKAGE = """\
#ifdef TC_PART
#define TC_KERNEL __attribute__((visibility("hidden")))
#else
#define TC_PART 0
#define TC_KERNEL static
#endif"""


# Kernels that debuggers and profilers find by name, each in a frame of its own.
SEEN_LINKAGE = """\
#ifndef TC_PART
#define TC_PART 0
#endif
#define TC_KERNEL __attribute__((noinline, visibility("hidden")))"""
# From here on lines are those of the program's own text.
OWN_LINES = "#line own"


def with_lines(kernels: Sequence[LoopKernel], functions: dict[str, str],
               members: Sequence[Sequence[str]]) -> dict[str, str]:
    """The functions with a directive before each line that says which line of the user it is."""
    out = {}
    for kernel, names in zip(kernels, members):
        text = functions.get(kernel.name)
        places = [kernel.lines.get(name) for name in names]
        place = next(filter(None, places), None)
        if text is None or place is None:
            out.update({kernel.name: text} if text else {})
            continue
        new: list[str] = []
        for line, found in zip(text.splitlines(), places, strict=True):
            place = found or place
            new += [f"#line {place[1]} {file_text(place[0])}", line]
        out[kernel.name] = "\n".join([*new, OWN_LINES])
    return out


def file_text(name: str) -> str:
    """The name of a file in quotes, with its folder where it is one."""
    name = name if name.startswith("<") else os.path.abspath(name)
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'


def own_lines(text: str) -> str:
    """The text with its own line numbers where it goes back to them."""
    if OWN_LINES not in text:
        return text
    lines = text.split("\n")
    return "\n".join(f'#line {number + 1} "program.c"' if line == OWN_LINES else line
                     for number, line in enumerate(lines, 1))


def balanced(functions: dict[str, str]) -> list[list[str]]:
    """The names of the functions, in groups whose texts are about equally long.

    There are one or an even number, as of CPUs: of three groups, the last has two all to itself.
    """
    total = sum(map(len, functions.values()))
    count = min(total // PART_TEXT + 1, MOST_PARTS)
    count -= count > 1 and count % 2
    groups: list[list[str]] = [[] for _ in range(count)]
    sizes = [0] * len(groups)
    for name in sorted(functions, key=lambda n: -len(functions[n])):
        least = sizes.index(min(sizes))
        groups[least].append(name)
        sizes[least] += len(functions[name])
    return [group for group in groups if group] or [[]]


def divided(groups: list[list[str]], functions: dict[str, str], step: str,
            linkage: str) -> list[str]:
    """The functions of a program of which TC_PART, where it is defined, selects one group."""
    heads = [line[:-2] + ";" for text in functions.values() for line in text.splitlines()
             if line.startswith("static void")]
    texts = [linkage, "\n".join(heads)]
    for i, group in enumerate(groups, 1):
        texts += [f"#if TC_PART == 0 || TC_PART == {i}", *(functions[n] for n in group), "#endif"]
    texts = [text.replace("static void", "TC_KERNEL void") for text in texts]
    return [*texts, "#if TC_PART <= 1", step, "#endif"]


def functions_of(text: KernelText, name: str) -> str:
    """A kernel's function, and that of its end if it has one."""
    parts = {name: text.body, f"{name}_end": text.finish}
    return "\n".join(f"static void {called}(void *task, long chunk, long worker) "
                     + function_text(text, body) for called, body in parts.items() if body)


FUNCTION_HEAD = (
    "{",
    "  void **p = ((tc_task *)task)->p;",
    "  const tinyc_rt *rt = ((tc_task *)task)->rt;",
    "  char *scratch = rt->scratch + worker * rt->scratch_stride;",
    "  long *status = rt->status;",
    "  (void)p, (void)scratch, (void)status, (void)chunk;",
)


def function_text(text: KernelText, body: str) -> str:
    """The braces of a kernel function: the pointers that it uses, then its statements."""
    end = "tc_fence(); }" if "tc_stream(" in body else "}"  # what went past the caches is seen
    return "\n".join([*FUNCTION_HEAD, *pointer_lines(text, body), body, end])


def pointer_lines(text: KernelText, body: str) -> list[str]:
    """The declarations of a function's pointers to arguments, arena and scratch memory."""
    used = set(re.findall(r"\b[as]\d+\b", body))
    places = [(f"a{i}", s, f"p[{i}]") for i, s in enumerate(text.storages)]
    places += [(f"s{i}", s, f"(scratch + {at})") for i, (s, at) in enumerate(text.scratch)]
    return [f"  {TYPES[s.dtype.name]} *restrict {name} = ({TYPES[s.dtype.name]} *){place};"
            for name, s, place in places if name in used]


def line_members(kernel: LoopKernel, text: KernelText, function: str) -> tuple[str, ...]:
    """The member that each line of a kernel's function belongs to, empty for what is nobody's."""
    owners = Owners(kernel, text.lengths)
    members: list[str] = []
    begin = 0
    for body, written, declared in ((kernel.body, text.body, text.declared),
                                    (kernel.finish, text.finish, 0)):
        begin = function.index(written, begin)
        before = function.count("\n", 0, begin) + declared
        members += [""] * (before - len(members)) + owners.lines(body)
        begin += len(written)
    return (*members, *[""] * (function.count("\n") + 1 - len(members)))


def overwrites(body: tuple[Stmt, ...]) -> bool:
    """True if statements store into an argument that the program also reads."""
    return any(s.role == "slot" and s.name.startswith("in") for s in stored_in(body))


STEP = """\
typedef struct { long slot, at; } tc_place;
typedef struct {
  void (*run)(void *, long, long), (*end)(void *, long, long);
  long chunks, places, changed;
} tc_kernel;

// What kernels get, in order: an argument, or the arena (-1), and bytes from there on.
static const tc_place tc_places[] = {
%s
};
static const tc_kernel tc_kernels[] = {
%s
};

long tinyc_step(void **bufs, char *arena, const tinyc_rt *rt) {
  const tc_place *place = tc_places;
  if (rt->times) rt->times[0] = rt->now();
  for (long i = 0; i < %d; i++) {
    const tc_kernel *k = tc_kernels + i;
    void *p[%d];
    for (long j = 0; j < k->places; j++, place++)
      p[j] = (place->slot < 0 ? arena : (char *)bufs[place->slot]) + place->at;
    tc_task t = { p, rt };
    if (k->chunks > 1) rt->par(k->run, &t, k->chunks);
    else k->run(&t, 0, 0);
    if (k->end && !rt->status[0]) k->end(&t, 0, 0);
    if (rt->status[0]) return i + k->changed;
    if (rt->times) rt->times[i + 1] = rt->now();
  }
  return 0;
}"""


def place_text(s: Storage, slots: dict[Storage, int], bases: Bases) -> str:
    """Where a storage begins: the argument, or the arena, that it is in, and how many bytes on."""
    slot, first = place(s, slots, bases)
    return f"{{ {slot}, {first * s.dtype.itemsize} }},"


def entry(kernels: Sequence[LoopKernel], texts: Sequence[KernelText],
          names: Sequence[str], bases: Sequence[Bases],
          slots: dict[Storage, int]) -> str:
    """tinyc_step: every kernel with its pointers, in order. They are a table, which compilers read
    in no time. Where an index is bad it ends, so that later kernels, the ones that update
    parameters, change nothing, and returns how many before it may have changed arguments."""
    places, rows = [], []
    for i, (kernel, text, name) in enumerate(zip(kernels, texts, names)):
        end = f"{name}_end" if text.finish else "0"
        note = "" if name == kernel.name else f"  // {kernel.name}"
        places.append("  " + " ".join(place_text(s, slots, bases[i]) for s in text.storages))
        rows.append(f"  {{ {name}, {end}, {kernel.chunks}, {len(text.storages)}, "
                    f"{int(overwrites(kernel.body))} }},{note}")
    most = max((len(text.storages) for text in texts), default=0)
    return STEP % ("\n".join(places) or "  { 0 }", "\n".join(rows) or "  { 0 }",
                   len(rows), max(most, 1))
