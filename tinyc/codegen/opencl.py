"""Loop IR -> OpenCL C, for devices whose cores take whole chunks: kernels, and how to start them.

A chunk is a work-item. A storage is a parameter and the number of the first element of it that the
kernel means, since arguments of OpenCL can't be pointers into the middle of memory. Scratch memory
is a slice for each chunk. The register tile and the transposing copy are in OpenCL's vector types.
"""
from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from tinyc.codegen import mathfn
from tinyc.codegen.blocks import BlockScope, Place, small_indices
from tinyc.codegen.c import CRenderer, Source, helper, overwrites
from tinyc.codegen.depth import DepthPart
from tinyc.codegen.launch import assembled
from tinyc.codegen.render import TYPES, KernelText
from tinyc.codegen.tile import WINDOW
from tinyc.ir.dtype import DType
from tinyc.ir.index import Affine, Var
from tinyc.ir.loop import (
    Barrier,
    Combine,
    For,
    LoopKernel,
    MicroKernel,
    MicroPack,
    Prefetch,
    Storage,
    Store,
    statements,
)
from tinyc.ir.ops import Op
from tinyc.ir.program import Launch

# The name of what says that kernels before have found no index out of range.
LIVE = "live"

# Names of GNU C in OpenCL's words: helpers are one text for both. With TC_CLANG those of
# Clang are taken as they are.
DIALECT = """\
#ifdef cl_khr_fp64
#pragma OPENCL EXTENSION cl_khr_fp64 : enable
#endif
#define _Bool bool
typedef half tc_f16;
#define half tc_half
#define __builtin_inff() as_float(0x7f800000u)
#define __builtin_inf() as_double(0x7ff0000000000000ul)
#define __builtin_nanf(text) as_float(0x7fc00000u)
#define __builtin_nan(text) as_double(0x7ff8000000000000ul)
#define __builtin_fmodf fmod
#define __builtin_fmod fmod
#ifndef TC_CLANG
#define __builtin_floorf floor
#define __builtin_floor floor
#define __builtin_sqrtf sqrt
#define __builtin_sqrt sqrt
#define __builtin_copysignf copysign
#define __builtin_copysign copysign
#endif
"""

# The names of types that vectors are made of, where they differ.
VECTORS = {"bool": "uchar", "u8": "uchar", "i8": "char", "u16": "ushort", "u32": "uint",
           "u64": "ulong", "f16": "ushort", "bf16": "ushort"}

# Each thread's number replaced by the sum, or maximum, of its group: halves are added until there
# is one. All threads of the block come here.
COMBINE = """\
static {t} tc_combine_{name}({t} x, int thread, int width, __local long *memory) {{
  __local {t} *pool = (__local {t} *)memory;
  const int lane = thread % width;
  pool[thread] = x;
  barrier(CLK_LOCAL_MEM_FENCE);
  for (int n = width, half; n > 1; n = half) {{
    half = (n + 1) / 2;
    if (lane + half < n) pool[thread] = {both};
    barrier(CLK_LOCAL_MEM_FENCE);
  }}
  x = pool[thread - lane];
  barrier(CLK_LOCAL_MEM_FENCE);
  return x;
}}"""

# OpenCL adds whole numbers atomically; a float is exchanged until nobody else has changed it.
ATOMIC = """\
static void tc_atomic_f32(volatile __global float *place, float x) {
  volatile __global uint *bits = (volatile __global uint *)place;
  uint before = *bits, found;
  while ((found = atomic_cmpxchg(bits, before, as_uint(as_float(before) + x))) != before)
    before = found;
}"""

CHECK = """\
static inline long tc_check(long v, long bound, long site, __global long *status) {
  if ((unsigned long)v >= (unsigned long)bound) {
    status[0] = site; status[1] = v; return 0;
  }
  return v;
}"""


def _reinterpreted(bits: str, real: str, words: str) -> str:
    """The two functions between a number and its bits, which are words of the language here."""
    return (f"TC_INLINE {words} tc_bits_{real}({TYPES[real]} x) {{ return as_{bits}(x); }}\n"
            f"TC_INLINE {TYPES[real]} tc_from_bits_{real}({words} b) "
            f"{{ return as_{TYPES[real]}(b); }}\n")


def _library(op: Op, arity: int = 1) -> str:
    """A function of f64, which OpenCL has."""
    parameters, call = ("double x", "x") if arity == 1 else ("double x, double y", "x, y")
    return f"TC_INLINE double tc_{op.value}_f64({parameters}) {{ return {op.value}({call}); }}\n"


# What the vector library has in other words than in GNU C.
OWN = {
    "": "#define TC_INLINE static inline __attribute__((always_inline))\n",
    "symbol": "",
    "bits_f32": _reinterpreted("uint", "f32", "unsigned"),
    "bits_f64": _reinterpreted("ulong", "f64", "unsigned long"),
    "two_over_pi": mathfn.HELPERS["two_over_pi"][0].replace("static const", "__constant"),
    **{f"tc_{op.value}_f64": _library(op, 2 if op is Op.POW else 1)
       for op in (Op.SIN, Op.ERF, Op.POW)},
    # The sign changes nothing, but Intel's compiler crashes on sines and cosines of both the sine
    # and the cosine of a number, where it takes each pair together.
    "tc_cos_f64": "TC_INLINE double tc_cos_f64(double x) { return cos(-x); }\n",
}


@dataclass
class OpenClRenderer(CRenderer):
    """OpenCL C for devices that work through a chunk in each work-item."""

    # The functions that kernels share, by name.
    shared: dict[str, str] = field(default_factory=dict)

    def scope(self, kernel: LoopKernel) -> OpenClScope:
        """What a kernel's names are given by."""
        narrow = kernel.threads > 1 and small_indices(kernel)
        return OpenClScope(self, kernel, integer="int" if narrow else "long")


class OpenClScope(BlockScope):
    """Names of one kernel in OpenCL C."""

    owner: OpenClRenderer

    TABLE = "const long"
    WAIT = "barrier(CLK_LOCAL_MEM_FENCE | CLK_GLOBAL_MEM_FENCE);"

    @cached_property
    def asks(self) -> bool:
        """Whether stores to arguments ask if an index was bad: threads that wait can't leave."""
        body = self.kernel.body + self.kernel.finish
        waits = any(isinstance(s, (Barrier, Combine)) for s in statements(body))
        return waits and overwrites(body)

    def store(self, stmt: Store, pad: str) -> list[str]:
        """A store, which where threads wait for each other asks whether an index was bad."""
        lines = super().store(stmt, pad)
        place = stmt.storage, stmt.index
        if self.asks and stmt.storage.role == "slot" and place not in self.parts:
            lines[-1] = f"{pad}if ({LIVE}) {lines[-1].lstrip()}"
        return lines

    def atomic_sum(self, s: Storage, place: str, value: str) -> str:
        """A function of the language for whole numbers, of ours for floats."""
        if s.dtype.name != "f32":
            return f"atomic_add((volatile __global {TYPES[s.dtype.name]} *)&{place}, {value});"
        self.owner.helpers["atomic_f32"] = None
        return f"tc_atomic_f32(&{place}, {value});"

    def vector_store(self, place: Place, name: str, first: dict[Var, Affine], width: int) -> str:
        """A store of a vector, likewise."""
        text = super().vector_store(place, name, first, width)
        return f"if ({LIVE}) {text}" if self.asks and place[0].role == "slot" else text

    def hints(self, stmt: For) -> list[str]:
        """Where iterations are independent, vectors are asked for."""
        wanted = stmt.kind.endswith("simd")
        return ["#pragma clang loop vectorize(enable)"] if wanted else super().hints(stmt)

    def vector_type(self, dtype: DType, width: int) -> str:
        """The language's own name of a vector."""
        return f"{VECTORS.get(dtype.name, TYPES[dtype.name])}{width}"

    def pointer_to(self, s: Storage, kind: str) -> str:
        """A pointer says which memory it is of."""
        return f"{space(s)} {kind} *"

    def prefetch(self, stmt: Prefetch) -> str:
        """A hint that the language has."""
        return f"prefetch({self.storage(stmt.load.storage)} + {self.index(stmt.load.index)}, 1);"

    def tile_name(self, stmt: MicroKernel, part: DepthPart) -> str:
        """The name of the register tile for the operands' memory, which the program then has."""
        spaces = tuple(space(s) for s in (stmt.a.storage, stmt.b.storage, stmt.tile))
        # one for all kinds of depth, another for calls that add to what is there
        name = f"{super().tile_name(stmt, part).removesuffix(WINDOW)}_{initials(spaces)}"
        several = bool(part.around or part.before) or stmt.more != Affine.const_of(0)
        name += "_block" if several else ""
        self.owner.shared[name] = tile_function(name, stmt, spaces, several)
        return name

    def depth(self, part: DepthPart, sizes: list[str]) -> str:
        """The arguments of the tile: it is told how many steps make one sum."""
        steps = [str(step) for _, step in part.levels]
        return ", ".join([*sizes, *steps, str(part.many)])

    def pack_name(self, stmt: MicroPack) -> str:
        """The name of the copy for the operands' memory, which the program then has."""
        spaces = space(stmt.b.storage), space(stmt.storage)
        name = f"{super().pack_name(stmt)}_{initials(spaces)}"
        self.owner.shared[name] = pack_function(name, stmt, spaces)
        return name


def space(storage: Storage) -> str:
    """The address space of a storage."""
    if storage.role == "shared":
        return "__local"
    return "__global" if storage.role in ("slot", "arena", "scratch") else "__private"


def initials(spaces: tuple[str, ...]) -> str:
    """Letters that tell address spaces apart."""
    return "".join(s.strip("_")[0] for s in spaces)


def loaded(dtype: str, lanes: int, space: str) -> str:
    """The text that loads a vector of f32 or f64 from {at}; halves are widened."""
    if dtype == "f16":
        return f"vload_half{lanes}(0, ({space} const tc_f16 *)({{at}}))"
    if dtype == "bf16":
        return f"as_float{lanes}(convert_uint{lanes}(vload{lanes}(0, {{at}})) << 16)"
    return f"vload{lanes}(0, {{at}})"


def number(dtype: str, space: str) -> str:
    """The text that loads one number from {at}."""
    if dtype == "f16":
        return f"vload_half(0, ({space} const tc_f16 *)({{at}}))"
    return "tc_widen_bf16(*({at}))" if dtype == "bf16" else "*({at})"


def tile_function(name: str, stmt: MicroKernel, spaces: tuple[str, ...], several: bool) -> str:
    """The register tile: height x (width / lanes) accumulators of `lanes` numbers each, which are
    added to the tile after `many` steps of the outermost loop, whose last one has `last` steps of
    the innermost loop. One of several calls adds them to a sum of its own, and that to the tile."""
    t, lanes = TYPES[stmt.tile.dtype.name], stmt.lanes
    ta, tb = (TYPES[x.dtype.name] for x in (stmt.a, stmt.b))
    one, row = number(stmt.a.dtype.name, spaces[0]), loaded(stmt.b.dtype.name, lanes, spaces[1])
    v, load, store = f"{t}{lanes}", f"vload{lanes}(0, ", f"vstore{lanes}("
    rows, cols = range(stmt.height), range(stmt.width // lanes)
    sums = [(f"c{i}_{j}", f"tile + {i} * apart + {j * lanes}") for i in rows for j in cols]
    before, after, then = (sum_of_parts(sums, v, load, store) if several
                           else ([], into_tile(sums, load, store, "    "), []))
    lines = [
        f"static void {name}(",
        "    long n2, long n1, long n0, long last, long s2, long s1, long s0, long many,",
        f"    {spaces[0]} const {ta} *a, const long *row, {spaces[1]} const {tb} *b, long step,",
        f"    {spaces[2]} {t} *tile, long apart, long more) {{",
        f"  {v} " + ", ".join(c for c, _ in sums) + ";",
        f"  {spaces[0]} const {ta} " + ", ".join(f"*a{i} = a + row[{i}]" for i in rows) + ";",
        *before,
        f"  for (long k2 = 0; k2 < n2;{'' if several else ' more = 1'}) {{",
        "    const long stop = k2 + many < n2 ? k2 + many : n2;",
        "    " + " ".join(f"{c} = ({v})(0);" for c, _ in sums),
        "    for (; k2 < stop; k2++)",
        "      for (long k1 = 0; k1 < n1; k1++) {",
        "        long o = k2 * s2 + k1 * s1;",
        "        const long n = k2 + 1 < n2 ? n0 : last;",
        "        for (long k0 = 0; k0 < n; k0++, o += s0, b += step) {",
        *(f"          const {v} b{j} = {row.format(at=f'b + {j * lanes}')};" for j in cols),
        *(f"          {{ const {v} x = ({v})({one.format(at=f'a{i} + o')}); "
          + " ".join(f"c{i}_{j} = fma(x, b{j}, c{i}_{j});" for j in cols) + " }" for i in rows),
        "        }",
        "      }",
        *after,
        "  }",
        *then,
        "}",
    ]
    return "\n".join(lines)


def into_tile(sums: list[tuple[str, str]], load: str, store: str, pad: str) -> list[str]:
    """Lines that put sums, (name, place), into the tile, or add them to what `more` says is there.
    """
    return [
        f"{pad}if (more) {{",
        *(f"{pad}  {c} += {load}{at});" for c, at in sums),
        f"{pad}}}",
        *(f"{pad}{store}{c}, 0, {at});" for c, at in sums),
    ]


def sum_of_parts(
    sums: list[tuple[str, str]], vector: str, load: str, store: str
) -> tuple[list[str], list[str], list[str]]:
    """Lines before, at the end of and behind a loop that adds sums of parts to one of the call."""
    whole = [(f"whole[{k}]", at) for k, (_, at) in enumerate(sums)]
    clear = " ".join(f"{w} = ({vector})(0);" for w, _ in whole)
    before = [f"  {vector} whole[{len(sums)}];", f"  {clear}"]
    add = "    " + " ".join(f"{w} += {c};" for (w, _), (c, _) in zip(whole, sums))
    return before, [add], into_tile(whole, load, store, "  ")


def pack_function(name: str, stmt: MicroPack, spaces: tuple[str, str]) -> str:
    """to[k*width + j] = b[column[j] + k], in squares of lanes x lanes, a row a load."""
    t, lanes = TYPES[stmt.storage.dtype.name], stmt.lanes
    same = stmt.b.dtype is stmt.storage.dtype
    source = TYPES[stmt.b.dtype.name]
    kind = "" if same else stmt.b.dtype.name
    vector = VECTORS.get(stmt.storage.dtype.name, t)
    row, one = loaded(kind, lanes, spaces[0]), number(kind, spaces[0])
    rows = range(lanes)
    lines = [
        f"static void {name}(long n, long width, {spaces[0]} const {source} *b,",
        "    const long *column,",
        f"    {spaces[1]} {t} *to) {{",
        f"  for (long j = 0; j < width; j += {lanes}, column += {lanes}, to += {lanes}) {{",
        "    long k = 0;",
        f"    for (; k + {lanes} <= n; k += {lanes}) {{",
        *(f"      const {vector}{lanes} r{i} = {row.format(at=f'b + column[{i}] + k')};"
          for i in rows),
        *(f"      vstore{lanes}(({vector}{lanes})(" + ", ".join(f"r{i}.s{k:x}" for i in rows)
          + f"), 0, to + (k + {k}) * width);" for k in rows),
        "    }",
        "    for (; k < n; k++)",
        f"      for (long i = 0; i < {lanes}; i++) "
        f"to[k * width + i] = {one.format(at='b + column[i] + k')};",
        "  }",
        "}",
    ]
    return "\n".join(lines)


# -- a program -----------------------------------------------------------------------------------


def program(kernels: Sequence[LoopKernel], slots: Sequence[Storage]) -> tuple[Source,
                                                                           tuple[Launch, ...]]:
    """The text of a program, and its launches in order; `slots` are the arguments in order."""
    renderer = OpenClRenderer()
    return assembled(renderer, kernels, slots, function_text, lambda: (
        DIALECT, mathfn.prelude(list(renderer.functions), OWN),
        *map(helper_text, renderer.helpers), *renderer.shared.values()))


def helper_text(name: str) -> str:
    """The text of a helper function, for most that of GNU C."""
    if name == "check":
        return CHECK
    if name == "atomic_f32":
        return ATOMIC
    if not name.startswith("combine_"):
        return helper(name)
    how, dtype = name.split("_")[1:]
    pair = "pool[thread + half], pool[thread]"
    both = f"tc_max_{dtype}({pair})" if how == "max" else pair.replace(",", " +")
    return COMBINE.format(t=TYPES[dtype], name=f"{how}_{dtype}", both=both)


def function_text(kernel: LoopKernel, text: KernelText, name: str, body: str,
                  stops: bool) -> str:
    """A function of a kernel; where it `stops`, it does nothing after a bad index."""
    storages = list(enumerate(text.storages))
    types = [TYPES[s.dtype.name] for s in text.storages]
    parameters = [p for i, _ in storages
                  for p in (f"__global {types[i]} *restrict b{i}", f"long f{i}")]
    parameters += ["__global char *scratch_memory", "long scratch_stride", "__global long *status",
                   "long ran"]
    lines = [
        f"__kernel __attribute__((reqd_work_group_size({text.threads}, 1, 1)))",
        f"void {name}({', '.join(parameters)}) {{",
        *head_lines(text, body, stops),
        *(["  status[2] = ran;"] if "tc_check(" in body else []),
        *(f"  __global {types[i]} *a{i} = b{i} + f{i};" for i, _ in storages),
        "  __global char *scratch = scratch_memory + chunk * scratch_stride;",
        *(f"  __global {TYPES[s.dtype.name]} *s{i} = "
          f"(__global {TYPES[s.dtype.name]} *)(scratch + {at});"
          for i, (s, at) in enumerate(text.scratch)),
        body,
        "}",
    ]
    return "\n".join(lines)


def head_lines(text: KernelText, body: str, stops: bool) -> list[str]:
    """Where a work-item is, its block's memory, and the end where an index was out of range.

    Where threads wait for each other all of them have to go on: their stores ask whether it was.
    """
    if text.threads == 1:
        return ["  const long chunk = get_global_id(0);", "  if (status[0]) return;"]
    used = set(re.findall(r"\bv\d+\b", body))
    lines = ["  const int chunk = get_group_id(0), thread = get_local_id(0);",
             *(f"  __local {TYPES[s.dtype.name]} {name}[{s.size}] __attribute__((aligned(16)));"
               for s, name in text.shared if name in used)]
    if "tc_combine_" in body:
        lines.append(f"  __local long pool[{text.threads}];")
    if LIVE in body:
        lines.append(f"  const int {LIVE} = status[0] == 0;")
    elif stops and "barrier(" not in body and "tc_combine_" not in body:
        lines.append("  if (status[0]) return;")
    return lines
