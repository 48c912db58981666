"""The two inner kernels of contractions as GNU C: the register tile, and a transposing copy.

Both are in vector types, which every compiler that speaks GNU C has, and are functions of their
own, shared by all kernels of a program.
"""
from __future__ import annotations

import re

from tinyc.codegen.render import TYPES

# Empty statements. TC_PIN keeps a vector in a register, where gcc would load it again for each use.
# TC_HOLD keeps an offset as it is, where gcc would walk a pointer for each row: x86 has too few
# registers for many, and takes as long to set them up as for three steps of a 12 x 32 tile.
# It keeps a count as well, which gcc would see to be even, and unroll for too few registers.
# TC_STORED makes gcc store an array, where it would keep it in registers. It does not see that sums
# of parts are written before they are read.
# Who defines TC_PIN before, because the machine has no such vectors, goes without.
MACROS = """\
#if defined(TC_PIN)
#elif defined(__AVX512F__)
#define TC_PIN(x) __asm__("" : "+v"(x))
#elif defined(__x86_64__)
#define TC_PIN(x) __asm__("" : "+x"(x))
#else
#define TC_PIN(x)
#endif
#if defined(__x86_64__)
#define TC_HOLD(x) __asm__("" : "+r"(x))
#else
#define TC_HOLD(x)
#endif
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#define TC_STORED(p) __asm__ __volatile__("" : : "r"(p) : "memory")
#if defined(__clang__) || __GNUC__ >= 12
#define TC_SHUFFLE(m, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define TC_SHUFFLE(m, a, b, ...) __builtin_shuffle(a, b, (m){__VA_ARGS__})
#endif
"""

# One number of f16 by an instruction, where there is one.
NUMBER_F16 = """\
#ifndef TC_NUMBER_F16
#if (defined(__F16C__) || defined(__aarch64__)) && (__GNUC__ >= 12 || __clang_major__ >= 15)
typedef _Float16 tc_f16 __attribute__((may_alias));
#define TC_NUMBER_F16(x) (float)*(const tc_f16 *)&(x)
#else
#define TC_NUMBER_F16(x) tc_widen_f16(x)
#endif
#endif"""

# Bytes of an element, and the whole numbers of as many.
WIDTHS = {dtype: int(re.sub(r"\D", "", dtype) or 8) // 8 for dtype in TYPES}
WHOLE = {1: "char", 2: "short", 4: "int", 8: "long"}


# From how many rows on the pointers to them do not fit x86's registers beside the counters.
MANY_ROWS = 11
# Vector registers, by the bytes of one; 16 where nothing else is known.
REGISTERS = {64: 32}


def vector_types(dtype: str, lanes: int) -> list[str]:
    """tc_v<lanes><dtype>, its twin with a u for any address, and one with an m of whole numbers.

    A vector of one lane is a number, which any C has.
    """
    t, itemsize = TYPES[dtype], WIDTHS[dtype]
    size = lanes * itemsize
    v = f"tc_v{lanes}{dtype}"
    if lanes == 1:
        return [f"typedef {t} {v}, {v}u;"]
    return [f"typedef {t} {v} __attribute__((vector_size({size})));",
            f"typedef {t} {v}u __attribute__((vector_size({size}), aligned({size // lanes}), "
            "may_alias));",
            f"typedef {WHOLE[itemsize]} {v}m "
            f"__attribute__((vector_size({size})));"]


def loaded(source: str, dtype: str, lanes: int) -> tuple[list[str], str]:
    """(what must be defined, the text that loads a vector of `dtype` from {at}); halves are
    widened."""
    v = f"tc_v{lanes}{dtype}"
    if source == dtype:
        return [], f"*(const {v}u *)({{at}})"
    if lanes == 1:
        return [], f"tc_widen_{source}(*({{at}}))"
    name = f"tc_load_{source}_{lanes}"
    u = f"tc_v{lanes}u32"
    lines = [f"#ifndef {name.upper()}", f"#define {name.upper()}",
             *vector_types("u16", lanes), *vector_types("u32", lanes),
             f"static inline __attribute__((always_inline)) {v} {name}(const unsigned short *at)",
             "{",
             f"  {u} h = __builtin_convertvector(*(const tc_v{lanes}u16u *)at, {u});",
             *instruction(source, lanes, v), *WIDENED[source].format(u=u, v=v).splitlines(), "}",
             "#endif"]
    return lines, f"{name}({{at}})"


def instruction(source: str, lanes: int, v: str) -> list[str]:
    """Lines that return the vector by one instruction, where gcc has a word for it."""
    call = {8: "__builtin_ia32_vcvtph2ps256(x)",
            16: "__builtin_ia32_vcvtph2ps512_mask(x, (f){0}, -1, 4)"}.get(lanes)
    if source != "f16" or call is None:
        return []
    needs = "__F16C__" if lanes == 8 else "__AVX512F__"
    return [f"#if defined({needs}) && !defined(__clang__)",
            f"  typedef short s __attribute__((vector_size({2 * lanes})));",
            f"  typedef float f __attribute__((vector_size({4 * lanes})));",
            f"  const s x = (s)*(const tc_v{lanes}u16u *)at;",
            f"  return ({v}){call};", "#endif"]


# As `mathfn` has it for one number, on vectors: comparisons there are masks.
WIDENED = {
    "bf16": "  return ({v})(h << 16);",
    "f16": """\
  {u} o = (h & 0x7fff) << 13, e = o & 0x0f800000;
  o += 0x38000000;
  o += ({u})(e == 0x0f800000) & 0x38000000;
  const {u} small = ({u})(({v})(o + 0x00800000) - 0x1p-14f), none = ({u})(e == 0);
  return ({v})((o & ~none) | (small & none) | ((h & 0x8000) << 16));""",
}


WINDOW = "_window"


def tile_name(dtype: str, a: str, b: str, height: int, lanes: int, width: int,
              window: bool) -> str:
    """The name of a register tile."""
    halves = "" if a == b == dtype else f"_{a}_{b}"
    return f"tc_tile_{dtype}{halves}_{height}x{width}_{lanes}{WINDOW if window else ''}"


def tile_function(dtype: str, a: str, b: str, height: int, lanes: int, width: int,
                  window: bool) -> str:
    """The register tile: height x (width / lanes) vector accumulators kept in registers.

    `a` and `b` are the dtypes of the operands: that of the sums, or halves, which are widened.
    There are two kinds, since compilers find fewer registers and more to do for one that does all.
    That for a `window` makes one sum of three loops. That for a plain depth makes one of each step
    of its outermost loop, whose last step has `last` steps of the innermost one; they are added up
    in the first cache, beside the multiply-adds of the next one, which do not wait for it.
    """
    name = tile_name(dtype, a, b, height, lanes, width, window)
    t, ta, tb = (TYPES[kind] for kind in (dtype, a, b))
    v = f"tc_v{lanes}{dtype}"
    needs, load = loaded(b, dtype, lanes)
    number = {dtype: "{at}", "f16": "TC_NUMBER_F16({at})", "bf16": "tc_widen_bf16({at})"}[a]
    rows, cols = range(height), range(width // lanes)
    place = f"*({v}u *)(tile + {{}} * apart + {{}})"
    sums = {f"c{i}_{j}": place.format(i, j * lanes) for i in rows for j in cols}
    parts, ends = ("", ["  }"]) if window else (f", part[{len(sums)}]", parts_added(
        v, list(sums), 2 * len(sums) <= REGISTERS.get(lanes * WIDTHS[dtype], 16)))
    lines = [
        *vector_types(dtype, lanes), *needs, *([NUMBER_F16] if a == "f16" else []),
        f"static __attribute__((noinline)) void {name}(",
        f"    {WINDOW_DEPTH if window else PLAIN_DEPTH}",
        f"    const {ta} *a, const long *row, const {tb} *b, long step, {t} *restrict tile,",
        "    long apart, long more) {",
        "  " + v + " " + ", ".join(f"{c} = {{0}}" for c in sums) + f"{parts};",
        "  const " + ta + " " + ", ".join(f"*a{i} = a + row[{i}]" for i in rows) + ";",
        *(["  " + " ".join(f"TC_HOLD(a{i});" for i in rows)] if height >= MANY_ROWS else []),
        *(WINDOW_LOOPS if window else PLAIN_LOOPS),
        "        " + " ".join(f"{v} b{j} = {load.format(at=f'b + {j * lanes}')}; TC_PIN(b{j});"
                              for j in cols),
        *(["        TC_HOLD(o);"] if height >= MANY_ROWS else []),
        *(f"        {{ const {t} x = {number.format(at=f'a{i}[o]')}; "
          + " ".join(f"c{i}_{j} += x * b{j};" for j in cols) + " }" for i in rows),
    ]
    return "\n".join([*lines, "      }", "    }", *ends, *stored(sums), "}"])


WINDOW_DEPTH = "long n2, long n1, long n0, long s2, long s1, long s0,"
PLAIN_DEPTH = "long n2, long n0, long last, long s2, long s0,"
WINDOW_LOOPS = (
    "  for (long k2 = 0; k2 < n2; k2++) {",
    "    for (long k1 = 0; k1 < n1; k1++) {",
    "      long o = k2 * s2 + k1 * s1;",
    "      for (long k0 = 0; k0 < n0; k0++, o += s0, b += step) {",
)
PLAIN_LOOPS = (
    "  for (long k2 = 0; k2 < n2; k2++) {",
    "    {",
    "      long o = k2 * s2;",
    "      long n = k2 + 1 < n2 ? n0 : last; TC_HOLD(n);",
    "      for (long k0 = 0; k0 < n; k0++, o += s0, b += step) {",
)


def stored(sums: dict[str, str]) -> list[str]:
    """Sums added to what their places hold, if they are to be, and stored there."""
    return ["  if (more) {", *(f"    {c} += {place};" for c, place in sums.items()), "  }",
            *(f"  {place} = {c};" for c, place in sums.items())]


def parts_added(v: str, sums: list[str], spare: bool) -> list[str]:
    """The end of the outermost loop, where a part of the sums ends, and all parts added up.

    With registers to `spare` gcc would keep all parts in them, and move them twice each time.
    """
    added = " ".join(f"{c} += part[{i}];" for i, c in enumerate(sums))
    return [
        "    if (k2 + 1 < n2) {",
        f"      if (k2) {{ {added} }}",
        "      " + " ".join(f"part[{i}] = {c};" for i, c in enumerate(sums)),
        *(["      TC_STORED(part);"] if spare else []),
        f"      {v} none = ({v}){{0}}; TC_PIN(none);",
        "      " + " = ".join(sums) + " = none;",
        "    }",
        "  }",
        f"  if (n2 > 1) {{ {added} }}",
    ]


def pack_name(source: str, dtype: str, lanes: int) -> str:
    """The name of a transposing copy."""
    return f"tc_pack_{source}_{lanes}" if source == dtype else f"tc_pack_{source}_{dtype}_{lanes}"


def pack_function(source: str, dtype: str, lanes: int) -> str:
    """to[k*width + j] = b[column[j] + k], in squares of lanes x lanes that registers transpose."""
    t, v = TYPES[dtype], f"tc_v{lanes}{dtype}"
    needs, load = loaded(source, dtype, lanes)
    one = "b[column[i] + k]" if source == dtype else f"tc_widen_{source}(b[column[i] + k])"
    rows = range(lanes)
    shuffles, last = transposing(v, lanes)
    lines = [
        *vector_types(dtype, lanes), *needs,
        f"static __attribute__((noinline)) void {pack_name(source, dtype, lanes)}(",
        f"    long n, long width, const {TYPES[source]} *b, const long *column, "
        f"{t} *restrict to) {{",
        f"  for (long j = 0; j < width; j += {lanes}, column += {lanes}, to += {lanes}) {{",
        "    long k = 0;",
        f"    for (; k + {lanes} <= n; k += {lanes}) {{",
        *(f"      const {v} r{i} = {load.format(at=f'b + column[{i}] + k')};" for i in rows),
        *(f"      {line}" for line in shuffles),
        *(f"      *({v}u *)(to + (k + {i}) * width) = {last[i]};" for i in rows),
        "    }",
        "    for (; k < n; k++)",
        f"      for (long i = 0; i < {lanes}; i++) to[k * width + i] = {one};",
        "  }",
        "}",
    ]
    return "\n".join(lines)


def transposing(v: str, lanes: int) -> tuple[list[str], list[str]]:
    """(statements that transpose a square of vectors r0, r1, .., names of what they become).

    Blocks that lie across the diagonal change places, first of 1 x 1, then of 2 x 2, and so on.
    """
    names = [f"r{i}" for i in range(lanes)]
    lines = []
    size = 1
    while size < lanes:
        fresh = [f"x{size}_{i}" for i in range(lanes)]
        for i in range(lanes):
            if i & size:
                continue
            upper = [q if not q & size else lanes + (q ^ size) for q in range(lanes)]
            lower = [q | size if not q & size else lanes + q for q in range(lanes)]
            for name, order in ((fresh[i], upper), (fresh[i | size], lower)):
                lines.append(f"const {v} {name} = TC_SHUFFLE({v}m, {names[i]}, {names[i | size]}, "
                             f"{', '.join(map(str, order))});")
        names, size = fresh, 2 * size
    return lines, names
