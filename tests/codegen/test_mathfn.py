"""Accuracy of the C math functions over all f32 exponents, against numpy in f64."""

from __future__ import annotations

import ctypes
import math
import platform
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ulps import SPECIAL, erf, every_exponent, exact, ulps

from tinyc.codegen.mathfn import HELPERS, MATH, prelude
from tinyc.ir.ops import Op

COMPILER = next((c for c in map(shutil.which, ("gcc", "clang", "cc")) if c), None)
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C compiler (gcc, clang, cc)")
FLAGS = ["-O2", "-march=native", "-fopenmp-simd", "-fno-trapping-math", "-fwrapv", "-Wall",
         "-Werror", "-Wno-unknown-pragmas", "-shared", "-fPIC"]
BINARY = {Op.POW}
C_TYPE = {"f32": "float", "f64": "double"}
NUMPY_TYPE = {"f32": np.float32, "f64": np.float64}

REFERENCE: dict[Op, Callable[..., np.ndarray]] = {
    Op.EXP: np.exp, Op.LOG: np.log, Op.SIN: np.sin, Op.COS: np.cos, Op.TANH: np.tanh,
    Op.ERF: erf, Op.POW: np.power, Op.FLOOR: np.floor, Op.SQRT: np.sqrt,
}
LIMIT = {Op.FLOOR: 0.0, Op.SQRT: 0.5, Op.EXP: 1.2, Op.LOG: 1.0, Op.POW: 0.6,
         Op.ERF: 1.3, Op.SIN: 1.7, Op.COS: 1.7, Op.TANH: 2.5}


def source(dtype: str) -> str:
    keys = [key for key in MATH if key[1] == dtype]
    text = prelude(keys)
    for op, _ in keys:
        t, binary = C_TYPE[dtype], op in BINARY
        other, args = (f", const {t} *b", "a[i], b[i]") if binary else ("", "a[i]")
        text += (
            f"void run_{op.value}({t} *restrict o, const {t} *a{other}, long n) {{\n"
            '  _Pragma("omp simd")\n'
            f"  for (long i = 0; i < n; i++) o[i] = {MATH[op, dtype].name}({args});\n}}\n"
        )
    return text


class Functions:
    """The functions of one dtype, compiled."""

    def __init__(self, folder: Path, dtype: str, flags: list[str]) -> None:
        path = folder / f"math_{dtype}.c"
        path.write_text(source(dtype))
        self.dtype = NUMPY_TYPE[dtype]
        self.command = [str(COMPILER), *FLAGS, *flags, "-o", str(path.with_suffix(".so")),
                        str(path), "-lm"]
        subprocess.run(self.command, check=True, capture_output=True)
        self.library = ctypes.CDLL(str(path.with_suffix(".so")))

    def __call__(self, op: Op, *args: np.ndarray) -> np.ndarray:
        args = tuple(np.ascontiguousarray(a, self.dtype) for a in args)
        out = np.empty_like(args[0])
        pointers = [ctypes.c_void_p(a.ctypes.data) for a in (out, *args)]
        getattr(self.library, f"run_{op.value}")(*pointers, ctypes.c_long(out.size))
        return out


@pytest.fixture(scope="module", params=["fast", "off"])
def f32(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Functions:
    """Functions of f32, with and without fused multiplication and addition."""
    folder = tmp_path_factory.mktemp(request.param)
    return Functions(folder, "f32", [f"-ffp-contract={request.param}", "-fno-math-errno"])


def check(f32: Functions, op: Op, *args: np.ndarray) -> None:
    got, want = f32(op, *args), exact(REFERENCE[op], *args)
    distance = ulps(got, want)
    worst = int(np.argmax(distance))
    at = [a[worst] for a in args]
    assert distance[worst] <= LIMIT[op], f"{op.value}{at}: {got[worst]!r}, {want[worst]!r}"
    zero = want == 0
    assert (np.signbit(got) == np.signbit(want))[zero].all(), "the sign of zero"


@needs_compiler
@pytest.mark.parametrize("op", [op for op in REFERENCE if op not in BINARY])
def test_unary_functions_over_all_exponents(f32: Functions, op: Op) -> None:
    check(f32, op, every_exponent(64 if op is Op.ERF else 400, seed=1))
    check(f32, op, SPECIAL)
    rng = np.random.default_rng(2)
    check(f32, op, rng.uniform(-110, 110, 50_000).astype(np.float32))
    check(f32, op, rng.normal(0, 1, 50_000).astype(np.float32))
    check(f32, op, (1 + rng.normal(0, 1e-3, 50_000)).astype(np.float32))


@needs_compiler
def test_powers(f32: Functions) -> None:
    op = Op.POW
    a, b = (v.ravel() for v in np.meshgrid(SPECIAL, SPECIAL))
    check(f32, op, a, b)
    rng = np.random.default_rng(3)
    check(f32, op, every_exponent(400, seed=4), rng.permutation(every_exponent(400, seed=5)))
    base = np.exp(rng.normal(0, 3, 200_000)).astype(np.float32)
    check(f32, op, base, rng.uniform(-40, 40, 200_000).astype(np.float32))
    check(f32, op, -base, rng.integers(-20, 20, 200_000).astype(np.float32))


@needs_compiler
@pytest.mark.parametrize("op", [Op.SIN, Op.COS])
def test_angles_near_multiples_of_a_quarter_turn(f32: Functions, op: Op) -> None:
    turns = (np.arange(1, 200_000) * (math.pi / 2)).astype(np.float32)
    check(f32, op, turns)
    hardest = np.ldexp(np.array([16367173.0, -16367173.0]), 72).astype(np.float32)
    check(f32, op, hardest)


@needs_compiler
def test_functions_of_f64(tmp_path: Path) -> None:
    f64 = Functions(tmp_path, "f64", [])
    x = np.concatenate([np.linspace(-20, 20, 501), SPECIAL.astype(np.float64)])
    for op, _ in [key for key in MATH if key[1] == "f64"]:
        args = (x, x[::-1].copy()) if op in BINARY else (x,)
        np.testing.assert_allclose(f64(op, *args), exact(REFERENCE[op], *args), rtol=1e-14)


@needs_compiler
@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_gcc_turns_the_loops_into_vector_code(tmp_path: Path, dtype: str) -> None:
    version = subprocess.run([str(COMPILER), "--version"], capture_output=True, text=True).stdout
    if "Free Software Foundation" not in version or platform.machine() != "x86_64":
        pytest.skip("reads the remarks of gcc on x86-64")
    flags = ["-ffp-contract=fast", "-fno-math-errno", "-mavx2", "-mfma"]
    command = Functions(tmp_path, dtype, flags).command
    done = subprocess.run([*command, "-fopt-info-vec"], capture_output=True, text=True, check=True)
    lines = (tmp_path / f"math_{dtype}.c").read_text().splitlines()
    calls = {fn.name for fn in MATH.values() if fn.libm}
    loops = {k for k, line in enumerate(lines, 1) if "for (long" in line
             and not any(f"{name}(" in line for name in calls)}
    vectorized = {int(r.split(":")[1]) for r in done.stderr.splitlines() if "vectorized" in r}
    missing = [lines[k - 1] for k in sorted(loops - vectorized)]
    assert loops and not missing


def test_a_prelude_has_what_is_used_and_nothing_else() -> None:
    assert prelude([]) == ""
    assert prelude([(Op.ADD, "f32")]) == ""
    text = prelude([(Op.EXP, "f32"), (Op.EXP, "f32")])
    assert text.count("float tc_exp_f32(float x) {") == 1
    assert "tc_log_f32" not in text and "tc_two_over_pi" not in text
    assert text.index("tc_exp_reduce_f32") < text.index("float tc_exp_f32")


def test_a_prelude_does_not_depend_on_the_order_of_use() -> None:
    keys = list(MATH)
    assert prelude(keys) == prelude(keys[::-1]) == prelude(set(keys))


def test_every_function_names_helpers_that_exist() -> None:
    assert all(name in HELPERS for fn in MATH.values() for name in fn.needs)
    assert {op for op, dtype in MATH if dtype == "f32"} == {op for op, dtype in MATH
                                                            if dtype == "f64"} == set(REFERENCE)
    assert all(fn.name == (f"tc_{kind}" if op is Op.CAST else f"tc_{op.value}_{kind}")
               for (op, kind), fn in MATH.items())
    assert not any(fn.libm for (_, dtype), fn in MATH.items() if dtype == "f32")
