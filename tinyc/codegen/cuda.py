"""Loop IR -> CUDA C++, for blocks of threads: kernels, and how to start them.

A storage is a parameter and the number of the first element of it that the kernel means, as in
OpenCL. What a block has on the chip is one piece whose size the launch gives. The text needs no
header, so that NVRTC and nvcc compile it alike.
"""
from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from tinyc.codegen import mathfn
from tinyc.codegen.blocks import BlockScope, small_indices
from tinyc.codegen.c import CRenderer, Source, helper
from tinyc.codegen.launch import assembled
from tinyc.codegen.mma import SHARED, mma_text
from tinyc.codegen.render import TYPES, KernelText
from tinyc.ir.dtype import DTYPES, DType
from tinyc.ir.index import Affine, Var
from tinyc.ir.loop import (
    Await,
    Combine,
    For,
    Load,
    LoopKernel,
    MicroMma,
    Prefetch,
    Stmt,
    Storage,
    Store,
    stored_in,
)
from tinyc.ir.ops import Op
from tinyc.ir.program import Launch

# Names of GNU C in CUDA's words: helpers are one text for all languages.
DIALECT = """\
#define _Bool bool
#define TC_INLINE static __device__ __forceinline__
#define __builtin_inff() __int_as_float(0x7f800000)
#define __builtin_inf() __longlong_as_double(0x7ff0000000000000ll)
#define __builtin_nanf(text) __int_as_float(0x7fc00000)
#define __builtin_nan(text) __longlong_as_double(0x7ff8000000000000ll)
#define __builtin_floorf floorf
#define __builtin_floor floor
#define __builtin_sqrtf sqrtf
#define __builtin_fmodf fmodf
#define __builtin_fmod fmod
#define __builtin_copysignf copysignf
#define __builtin_copysign copysign
#define __builtin_memcpy memcpy
"""

# The names of types that vectors are made of, where they differ.
VECTORS = {"u8": "uchar", "i8": "char", "u16": "ushort", "u32": "uint", "u64": "ulong",
           "f16": "ushort", "bf16": "ushort"}

# The first thread that finds a bad index says which it was, and how many kernels may have changed
# arguments before. Kernels that overwrite arguments then do nothing.
CHECK = """\
TC_INLINE long tc_checked(long v, long bound, long site, long *status, long ran) {
  if ((unsigned long)v < (unsigned long)bound) return v;
  if (atomicCAS((unsigned long long *)status, 0ull, (unsigned long long)site) == 0) {
    status[1] = v; status[2] = ran;
  }
  return 0;
}
#define tc_check(v, bound, site, status) tc_checked(v, bound, site, status, ran)"""

# Each thread's number replaced by the sum, or maximum, of its group: lanes of a warp exchange
# theirs, in pairs that are farther apart first; of larger groups each warp's is then taken in turn.
COMBINE = """\
template <int WIDTH, int THREADS>
TC_INLINE {t} tc_combine_{name}({t} x, int thread, long *memory) {{
  const unsigned all = THREADS < 32 ? (1u << THREADS % 32) - 1 : 0xffffffffu;
#pragma unroll
  for (int n = (WIDTH < 32 ? WIDTH : 32) / 2; n; n /= 2) {{
    const {t} y = ({t})__shfl_xor_sync(all, {x}, n);
    x = {both};
  }}
  if (WIDTH <= 32) return {agreed};
  {t} *pool = ({t} *)memory;
  const int first = thread / WIDTH * (WIDTH / 32);
  if (thread % 32 == 0) pool[thread / 32] = x;
  __syncthreads();
  x = pool[first];
#pragma unroll
  for (int n = 1; n < WIDTH / 32; n++) {{
    const {t} y = pool[first + n];
    x = {both};
  }}
  __syncthreads();
  return x;
}}"""


def _reinterpreted(to: str, back: str, real: str, words: str) -> str:
    """The two functions between a number and its bits, which are functions of the language."""
    return (f"TC_INLINE {words} tc_bits_{real}({TYPES[real]} x) {{ return {to}(x); }}\n"
            f"TC_INLINE {TYPES[real]} tc_from_bits_{real}({words} b) {{ return {back}(b); }}\n")


def _library(op: Op, arity: int = 1) -> str:
    """A function of f64, which CUDA has."""
    parameters, call = ("double x", "x") if arity == 1 else ("double x, double y", "x, y")
    return f"TC_INLINE double tc_{op.value}_f64({parameters}) {{ return {op.value}({call}); }}\n"


def _instruction(fn: mathfn.MathFn, parameter: str, result: str, text: str) -> str:
    """A function that GPUs have as an instruction; elsewhere, its text in GNU C."""
    names = {"float": "f", "unsigned short": "h"}
    return (f"#ifdef __CUDA_ARCH__\nTC_INLINE {result} {fn.name}({parameter} x) {{\n"
            f'  {result} y;\n  asm("{text} %0, %1;" : "={names[result]}"(y) : '
            f'"{names[parameter]}"(x));\n  return y;\n}}\n#else\n{fn.source}#endif\n')


# What the vector library has in other words than in GNU C.
OWN = {
    "tc_widen_f16": _instruction(mathfn.MATH[Op.CAST, "widen_f16"], "unsigned short", "float",
                                 "cvt.f32.f16"),
    "tc_narrow_f16": _instruction(mathfn.MATH[Op.CAST, "narrow_f16"], "float", "unsigned short",
                                  "cvt.rn.f16.f32"),
    "": "",
    "symbol": "",
    "bits_f32": _reinterpreted("__float_as_uint", "__uint_as_float", "f32", "unsigned"),
    "bits_f64": _reinterpreted("__double_as_longlong", "__longlong_as_double", "f64",
                               "unsigned long long"),
    "two_over_pi": mathfn.HELPERS["two_over_pi"][0].replace("static const",
                                                            "static __device__ const"),
    **{f"tc_{op.value}_f64": _library(op, 2 if op is Op.POW else 1)
       for op in (Op.SIN, Op.COS, Op.ERF, Op.POW, Op.FLOOR, Op.SQRT)},
}


@dataclass
class CudaRenderer(CRenderer):
    """CUDA C++ for GPUs."""

    def scope(self, kernel: LoopKernel) -> CudaScope:
        """What a kernel's names are given by."""
        return CudaScope(self, kernel, integer="int" if small_indices(kernel) else "long")


# Asynchronous stores of BYTES each, of zeros where nothing is `there`; a thread waits for its own.
COPY = """\
#ifdef __CUDACC__
template <int BYTES>
TC_INLINE void tc_copy(void *to, const void *from, bool there) {
  const unsigned at = (unsigned)__cvta_generic_to_shared(to), count = there ? BYTES : 0;
  if (BYTES == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :: "r"(at), "l"(from), "r"(count) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;"
                 :: "r"(at), "l"(from), "n"(BYTES), "r"(count) : "memory");
}
template <int PENDING>
TC_INLINE void tc_await() {
  asm volatile("cp.async.commit_group;\\n\\tcp.async.wait_group %0;" :: "n"(PENDING) : "memory");
}
#endif"""


@dataclass
class CudaScope(BlockScope):
    """Names of one kernel in CUDA C++."""

    TABLE = "const long"
    unrolled: set[Var] = field(default_factory=set)
    WAIT = "__syncthreads();"

    def combine(self, stmt: Combine) -> str:
        """The call that makes one number of the registers of neighbouring threads."""
        name, threads = f"{stmt.how}_{stmt.storage.dtype.name}", self.kernel.threads
        width = stmt.width or threads
        assert width % 32 == 0 or (width < 32 and width & (width - 1) == 0), width
        if stmt.how == "max":
            self.maximum("", "", stmt.storage.dtype)
        self.owner.helpers[f"combine_{name}"] = None
        r = self.storage(stmt.storage)
        return f"{r} = tc_combine_{name}<{width}, {threads}>({r}, thread, pool);"

    def vector(self, stmt: For, depth: int) -> list[str]:
        first = stmt.body[0]
        if not isinstance(first, Store) or not first.asynchronous:
            return super().vector(stmt, depth)
        pad = "  " * depth
        (lines,) = [self.copy(s, {stmt.var: Affine.const_of(0)}, stmt.var.extent, pad + "  ")
                    for s in stmt.body if isinstance(s, Store)]
        self.lengths[first] = len(lines)
        return [pad + "{", *lines, pad + "}"]

    def copy(self, stmt: Store, first: dict[Var, Affine], width: int, pad: str) -> list[str]:
        """The asynchronous store of a number or, of all of a vector, at its `first` one."""
        self.owner.helpers["copy"] = None
        lines: list[str] = []
        source = stmt.value
        assert isinstance(source, Load)
        tests = [self.expression(g, lines, pad) for g in source.guard]
        to, origin = (self.address(s, index.substitute(first)) for s, index in (
            (stmt.storage, stmt.index), (source.storage, source.index)))
        nbytes = width * stmt.storage.dtype.itemsize
        return [*lines, f"{pad}tc_copy<{nbytes}>({to}, {origin}, {' && '.join(tests) or 'true'});"]

    def address(self, s: Storage, index: Affine) -> str:
        """Where an element is: what differs between the copies of loops that are written out is
        added last, so that one register serves them all, with constants beside it."""
        apart = Affine.const_of(0)
        for atom, count in index.terms:
            inner = Affine(0, ((atom, 1),))
            apart += inner * count if inner.free_vars() <= self.unrolled else 0
        return " + ".join([self.storage(s), self.index(index - apart),
                           *([self.index(apart)] if apart.terms else [])])

    def loop(self, stmt: For, depth: int) -> list[str]:
        if stmt.kind == "unroll":
            self.unrolled.add(stmt.var)
        return super().loop(stmt, depth)

    def atomic_sum(self, s: Storage, place: str, value: str) -> str:
        """The language's own function, which knows unsigned words only where they are long."""
        t = {"i64": "unsigned long long", "u64": "unsigned long long"}.get(
            s.dtype.name, TYPES[s.dtype.name])
        return f"atomicAdd(({t} *)&{place}, ({t}){value});"

    def vector_type(self, dtype: DType, width: int) -> str:
        """The language's own name of a vector."""
        return f"{VECTORS.get(dtype.name, TYPES[dtype.name])}{width}"

    def statement(self, stmt: Stmt, depth: int) -> list[str]:
        if isinstance(stmt, MicroMma):
            return ["  " * depth + self.mma(stmt)]
        if isinstance(stmt, Await):
            self.owner.helpers["copy"] = None
            return [f"{'  ' * depth}tc_await<{stmt.pending}>();"]
        return super().statement(stmt, depth)

    def mma(self, stmt: MicroMma) -> str:
        """The call of the tile of a warp."""
        if stmt.kind != "tf32":
            self.owner.helpers["matrices"] = None
        self.owner.helpers[f"mma_{stmt.kind}"] = None
        sizes = (stmt.height, stmt.width, stmt.depth, *stmt.a_steps, *stmt.b_steps)
        a, b = (f"{self.storage(x.storage)} + {self.index(x.index)}" for x in (stmt.a, stmt.b))
        return (f"tc_mma_{stmt.kind}<{', '.join(map(str, sizes))}>({self.storage(stmt.sums)}, {a}, "
                f"{b}, {self.index(stmt.lane)});")

    def prefetch(self, stmt: Prefetch) -> str:
        """Nothing: other threads run while one waits for memory."""
        return ""


# -- a program -----------------------------------------------------------------------------------


def program(kernels: Sequence[LoopKernel], slots: Sequence[Storage]) -> tuple[Source,
                                                                           tuple[Launch, ...]]:
    """The text of a program, and its launches in order; `slots` are the arguments in order."""
    renderer = CudaRenderer()
    return assembled(renderer, kernels, slots, function_text, lambda: (
        DIALECT, mathfn.prelude(list(renderer.functions), OWN),
        *map(helper_text, renderer.helpers)))


def helper_text(name: str) -> str:
    """The text of a helper function, for most that of GNU C."""
    if name == "check":
        return CHECK
    if name == "copy":
        return COPY
    if name == "matrices":
        return SHARED
    if name.startswith("mma_"):
        return mma_text(name.removeprefix("mma_"))
    if not name.startswith("combine_"):
        return helper(name).replace("static inline", "TC_INLINE")
    how, dtype = name.split("_")[1:]
    t, kind = TYPES[dtype], DTYPES[dtype].kind
    both = f"tc_max_{dtype}(x, y)" if how == "max" else f"({t})(x {'|' if kind == 'b' else '+'} y)"
    # Of two numbers that compare equal, 0 and -0, each lane of a pair keeps the other's.
    agreed = "__shfl_sync(all, x, 0, WIDTH)" if how == "max" and kind == "f" else "x"
    x = "(int)x" if DTYPES[dtype].itemsize < 4 else "x"
    return COMBINE.format(t=t, name=f"{how}_{dtype}", both=both, agreed=agreed, x=x)


def function_text(kernel: LoopKernel, text: KernelText, name: str, body: str,
                  stops: bool) -> str:
    """A function of a kernel; where it `stops`, it does nothing after a bad index."""
    written = stored_in(kernel.body + kernel.finish)
    types = [("" if s in written else "const ") + TYPES[s.dtype.name] for s in text.storages]
    parameters = [p for i, t in enumerate(types) for p in (f"{t} *__restrict__ b{i}", f"long f{i}")]
    parameters += ["char *scratch_memory", "long scratch_stride", "long *status", "long ran"]
    bounds = ", ".join(str(n) for n in (text.threads, kernel.resident) if n)
    lines = [
        f"extern \"C\" __global__ void __launch_bounds__({bounds})",
        f"{name}({', '.join(parameters)}) {{",
        "  const int chunk = blockIdx.x, thread = threadIdx.x;",
        *head_lines(text, body, stops),
        *(f"  {t} *__restrict__ a{i} = b{i} + f{i};" for i, t in enumerate(types)),
        *(f"  {TYPES[s.dtype.name]} *s{i} = ({TYPES[s.dtype.name]} *)"
          f"(scratch_memory + chunk * scratch_stride + {at});"
          for i, (s, at) in enumerate(text.scratch)),
        body,
        "}",
    ]
    return "\n".join(lines)


def head_lines(text: KernelText, body: str, stops: bool) -> list[str]:
    """A block's memory on the chip, and the end where an index was out of range.

    Of a block either all threads go on or none, though one may find a bad index meanwhile.
    """
    used, at, lines = set(re.findall(r"\bv\d+\b", body)), 0, []
    for s, name in text.shared:
        if name in used:
            t = TYPES[s.dtype.name]
            lines.append(f"  {t} *{name} = ({t} *)(shared_memory + {at});")
        at += -(-s.nbytes // 16) * 16
    if lines:
        lines.insert(0, "  extern __shared__ __align__(16) unsigned char shared_memory[];")
    if "tc_combine_" in body and text.threads > 32:
        lines.append(f"  __shared__ long pool[{text.threads // 32}];")
    elif "tc_combine_" in body:
        lines.append("  long *pool = 0;")
    if stops:
        test = "__syncthreads_or(status[0] != 0)" if "tc_check(" in body else "status[0]"
        lines.append(f"  if ({test}) return;")
    return lines
