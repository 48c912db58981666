"""The C text of a program that runs one kernel on recorded data, times it and checks results."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tinyc.codegen.render import TYPES
from tinyc.ir.dtype import DType, u16
from tinyc.ir.program_text import quantity
from tinyc.runtime.cpu import pool_unit

# Data of more bytes than this is in a file beside the source.
EMBEDDED = 64 << 10
ALIGN = 64


@dataclass(frozen=True)
class Array:
    """A piece of memory that a kernel uses: an argument by number, or a part of the arena.

    `before` are its elements before the run, None where they do not matter; `after` those after it,
    None where the kernel does not write.
    """

    name: str
    dtype: DType
    size: int
    slot: int | None
    offset: int
    before: np.ndarray | None
    after: np.ndarray | None
    tolerance: float


@dataclass(frozen=True)
class Standalone:
    """A kernel with all that its program is made of."""

    name: str
    heading: Sequence[str]
    compile: str
    source: str
    chunks: int
    scratch: int
    arena: int
    slots: int
    flops: int
    bytes_moved: int
    arrays: Sequence[Array]


def write(alone: Standalone, path: Path) -> str:
    """Write the source and, for more than EMBEDDED bytes, the data beside it; say what to do."""
    pieces = [a for array in alone.arrays for a in (array.before, array.after) if a is not None]
    size = sum(piece.nbytes for piece in pieces)
    data = None if size <= EMBEDDED else path.with_suffix(".bin")
    if data is not None:
        data.write_bytes(b"".join(padded(piece) for piece in pieces))
    path.write_text(text(alone, path, data), encoding="utf-8")
    beside = f" and {data}, {quantity(size)}B" if data else ""
    return f"wrote {path}{beside}\n{build(alone, path)}"


def padded(piece: np.ndarray) -> bytes:
    """Return the bytes of an array, up to a multiple of ALIGN."""
    return piece.tobytes() + bytes(-piece.nbytes % ALIGN)


def build(alone: Standalone, path: Path) -> str:
    """Return the command that compiles and runs the file."""
    program = path.with_suffix("").name
    return f"{alone.compile} {path.name} -o {program} -lm -lpthread && ./{program}"


def text(alone: Standalone, path: Path, data: Path | None) -> str:
    """Return the source."""
    heading = [*alone.heading, "", "as fast as in tinyc:", build(alone, path),
               "an argument is the number of threads"]  # fmt: skip
    if data is not None:
        heading.append(f"data: {data.name}, which must be in the current folder")
    lines = [line.replace("*/", "* /") for line in heading]
    head = "/* " + "\n * ".join(lines).replace(" * \n", " *\n") + "\n */"
    head += "\n" + QUIET + "\n" + PLAIN
    head += unpinned(alone.source)
    pool = pool_unit().source if alone.chunks > 1 else SERIAL
    rows, arrays = tables(alone.arrays, embed=data is None)
    values = {
        "NAME": f'"{alone.name}"',
        "FLOPS": f"{alone.flops}.0",
        "BYTES": f"{alone.bytes_moved}.0",
        "SLOTS": str(max(alone.slots, 1)),
        "ARENA": str(alone.arena + ALIGN),
        "SCRATCH": str(-(-alone.scratch // ALIGN) * ALIGN),
        "DATA": f'"{data.name}"' if data else "0",
    }
    defines = "\n".join(f"#define {name} {value}" for name, value in values.items())
    table = "static struct array arrays[] = {\n" + ",\n".join(rows) + ",\n};"
    pieces = [head, pool, without_lines(alone.source), defines, *arrays, STRUCT, table, MAIN]
    return "\n".join(piece.rstrip("\n") + "\n" for piece in pieces)


def unpinned(source: str) -> str:
    """Return what lets a source with wide vectors compile for a machine that lacks them."""
    widest = max(map(int, re.findall(r"vector_size\((\d+)\)", source)), default=0)
    feature = {64: "__AVX512F__", 32: "__AVX__"}.get(widest)
    lacks = f"#if defined(__x86_64__) && !defined({feature})\n#define TC_PIN(x)\n#endif"
    return f"\n{lacks}" if feature else ""


def without_lines(source: str) -> str:
    """Return a source without #line directives: here lines are those of the file."""
    return "\n".join(line for line in source.splitlines() if not line.startswith("#line "))


def tables(arrays: Sequence[Array], embed: bool) -> tuple[list[str], list[str]]:
    """Return the rows of the table of arrays, and the data itself if it is to be in the source."""
    rows, texts, at = [], [], 0
    for i, array in enumerate(arrays):
        places = []
        for kind, piece in (("before", array.before), ("after", array.after)):
            if piece is None:
                places.append("0, -1")
            elif embed:
                places.append(f"{kind}{i}, -1")
                texts.append(initialiser(f"{kind}{i}", array.dtype, piece))
            else:
                places.append(f"0, {at}")
                at += len(padded(piece))
        slot = -1 if array.slot is None else array.slot
        size = f"{array.size}, sizeof({TYPES[array.dtype.name]}), {float_kind(array.dtype)}"
        row = f'{{"{array.name}", {size}, {slot}, {array.offset}, {array.tolerance!r}'
        rows.append(f"  {row}, {places[0]}, {places[1]}, 0}}")
    return rows, texts


def float_kind(dtype: DType) -> int:
    """Return 0 for what is no float, of halves the bits of the mantissa, else 1."""
    return {"f16": 10, "bf16": 7}.get(dtype.name, int(dtype.is_float))


def initialiser(name: str, dtype: DType, piece: np.ndarray) -> str:
    """Return an array of C with the elements of another, to the last bit."""
    piece, dtype = (piece.view(u16.np), u16) if dtype.is_half else (piece, dtype)
    words = [literal(value, dtype) for value in piece.reshape(-1).tolist()] or ["0"]
    lines = [", ".join(words[i : i + 8]) for i in range(0, len(words), 8)]
    kind = TYPES[dtype.name]
    return f"static const {kind} {name}[] = {{\n  " + ",\n  ".join(lines) + ",\n};"


def literal(value: float, dtype: DType) -> str:
    """Return a number as C has it."""
    if not dtype.is_float:
        if dtype.name == "i64" and value == -(1 << 63):
            return "-9223372036854775807L - 1"
        return f"{int(value)}" + {"u64": "UL", "i64": "L", "u32": "U"}.get(dtype.name, "")
    end = "f" if dtype.name == "f32" else ""
    if math.isnan(value):
        return f'__builtin_nan{end}("")'
    if math.isinf(value):
        return ("-" if value < 0 else "") + f"__builtin_inf{end}()"
    return f"{float(value).hex()}{end}"


# `#pragma omp simd` is for those who ask for it; gcc guesses at overflow in loops of any length.
QUIET = """\
#pragma GCC diagnostic ignored "-Wunknown-pragmas"
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Waggressive-loop-optimizations"
#endif"""

# Compilers that know C and no more: they have vectors of one number alone, and a library.
PLAIN = """\
#if !defined(__GNUC__)
#include <math.h>
#include <string.h>
#define TC_PIN(x)
#define __builtin_memcpy memcpy
#define __builtin_expect(value, usual) (value)
#define __builtin_inf() ((double)INFINITY)
#define __builtin_inff() INFINITY
#define __builtin_nan(tag) ((double)NAN)
#define __builtin_nanf(tag) NAN
#define __builtin_sqrt sqrt
#define __builtin_sqrtf sqrtf
#define __builtin_floor floor
#define __builtin_floorf floorf
#define __builtin_fmod fmod
#define __builtin_fmodf fmodf
#define __builtin_copysign copysign
#define __builtin_copysignf copysignf
#endif"""

SERIAL = """\
#define _GNU_SOURCE
#include <time.h>

static void tc_par(void (*fn)(void *, long, long), void *context, long n) {
  for (long chunk = 0; chunk < n; chunk++) fn(context, chunk, 0);
}
static long tc_set_threads(long n) { (void)n; return 1; }
static long tc_now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000L + t.tv_nsec;
}
"""

STRUCT = """\
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A piece of memory that the kernel uses: an argument, or a part of the arena where slot is -1. The
 * data is in the source, or at a place in the file DATA, or nowhere (0, -1). */
struct array {
  const char *name;
  long size, item;
  int is_float; /* of 16 bits: how many of them are the mantissa */
  long slot, offset;
  double tolerance;
  const void *before;
  long before_at;
  const void *after;
  long after_at;
  char *memory;
};
"""

MAIN = """\
#define COUNT ((long)(sizeof arrays / sizeof *arrays))
#define MOST_RUNS 1000

static void *allocate(size_t size) {
  void *memory = 0;
  if (posix_memalign(&memory, 64, size + 64)) exit(2);
  memset(memory, 0, size + 64);
  return memory;
}

static void read_data(void) {
  if (!DATA) return;
  FILE *file = fopen(DATA, "rb");
  if (!file) { perror(DATA); exit(2); }
  fseek(file, 0, SEEK_END);
  size_t size = (size_t)ftell(file);
  rewind(file);
  char *data = allocate(size);
  if (fread(data, 1, size, file) != size) { perror(DATA); exit(2); }
  fclose(file);
  for (struct array *a = arrays; a < arrays + COUNT; a++) {
    if (a->before_at >= 0) a->before = data + a->before_at;
    if (a->after_at >= 0) a->after = data + a->after_at;
  }
}

/* Gives the arrays that the kernel changes, or all of them, their contents before the run. */
static void restore(int all) {
  for (struct array *a = arrays; a < arrays + COUNT; a++) {
    size_t bytes = (size_t)(a->size * a->item);
    if (!all && !a->after) continue;
    if (a->before) memcpy(a->memory, a->before, bytes);
    else memset(a->memory, 0, bytes);
  }
}

/* A number of 16 bits with so many of them for the mantissa: 10 in f16, 7 in bf16. */
static double half_number(unsigned bits, int mantissa) {
  int top = (1 << (15 - mantissa)) - 1, exponent = (int)(bits >> mantissa) & top;
  double part = bits & ((1u << mantissa) - 1), sign = bits >> 15 ? -1.0 : 1.0;
  if (exponent == top) return part != 0 ? NAN : sign * INFINITY;
  if (exponent) part += 1 << mantissa;
  return sign * ldexp(part, (exponent ? exponent : 1) - top / 2 - mantissa);
}

static double number(const struct array *a, const void *at, long i) {
  if (a->item == 2) return half_number(((const unsigned short *)at)[i], a->is_float);
  return a->item == 4 ? (double)((const float *)at)[i] : ((const double *)at)[i];
}

static int equal(const struct array *a, long i, double largest) {
  if (!a->is_float) {
    return !memcmp((const char *)a->after + i * a->item, a->memory + i * a->item, (size_t)a->item);
  }
  double want = number(a, a->after, i), got = number(a, a->memory, i);
  return want == got || (isnan(want) && isnan(got)) ||
         (isfinite(want) && isfinite(got) && fabs(want - got) <= a->tolerance * largest);
}

/* Compares what was stored with the results on record; returns how many elements differ. */
static long check(void) {
  long wrong = 0;
  for (struct array *a = arrays; a < arrays + COUNT; a++) {
    double largest = 0;
    if (!a->after) continue;
    for (long i = 0; a->is_float && i < a->size; i++) {
      double x = fabs(number(a, a->after, i));
      if (isfinite(x) && x > largest) largest = x;
    }
    for (long i = 0; i < a->size; i++) {
      if (equal(a, i, largest)) continue;
      if (!wrong++) {
        printf("MISMATCH in %s[%ld]", a->name, i);
        if (a->is_float)
          printf(": %.9g expected, %.9g computed", number(a, a->after, i), number(a, a->memory, i));
        printf("\\n");
      }
    }
  }
  return wrong;
}

static int by_size(const void *a, const void *b) {
  long x = *(const long *)a, y = *(const long *)b;
  return (x > y) - (x < y);
}

int main(int count, char **words) {
  static long times[MOST_RUNS];
  void *slots[SLOTS] = {0};
  long status[2] = {0, 0}, runs = 0, spent = 0;
  long threads = tc_set_threads(count > 1 ? atol(words[1]) : sysconf(_SC_NPROCESSORS_ONLN));
  char *arena = allocate(ARENA), *scratch = allocate((size_t)(SCRATCH * threads));
  tinyc_rt rt = {tc_par, tc_now, threads, scratch, SCRATCH, status, 0};
  read_data();
  for (struct array *a = arrays; a < arrays + COUNT; a++) {
    if (a->slot >= 0 && !slots[a->slot]) slots[a->slot] = allocate((size_t)(a->size * a->item));
    a->memory = a->slot >= 0 ? slots[a->slot] : arena + a->offset;
  }
  restore(1);
  tinyc_step(slots, arena, &rt);
  long wrong = check();
  if (status[0]) printf("index %ld is out of range\\n", status[1]);
  while (runs < 5 || (spent < 300000000L && runs < MOST_RUNS)) {
    restore(0);
    long start = tc_now();
    tinyc_step(slots, arena, &rt);
    spent += times[runs++] = tc_now() - start;
  }
  qsort(times, (size_t)runs, sizeof *times, by_size);
  double median = times[runs / 2] > 0 ? (double)times[runs / 2] : 1;
  printf("%s: %s, median of %ld runs %.2f us, %.2f GFLOP/s, %.2f GB/s, %ld threads\\n", NAME,
         wrong || status[0] ? "mismatch" : "ok", runs, median / 1e3, FLOPS / median, BYTES / median,
         threads);
#ifndef __OPTIMIZE__
  printf("(compiled without -O2: tinyc is faster)\\n");
#endif
  return wrong || status[0];
}
"""
