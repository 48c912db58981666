"""C text of the elementwise functions that the C library has no vector form of.

Every function is scalar, inlined and without branches, so that a compiler turns a loop
around it into vector code; at most 4 units in the last place from the exact value for all f32
arguments, zeros, infinities, NaN and denormals included (`tests/codegen/test_accuracy.py`). So are
exp, log and tanh of f64, within 3 units; the other functions of f64 call the C library.

Polynomials are minimax fits of our own (Remez exchange in 40 digits, coefficients rounded to f32
one by one, the later ones fitted again after each; those of f64 Chebyshev fits in 60 digits).
Where a method is known by a name, its source:
- two-step argument reduction: Cody and Waite, Software Manual for the Elementary Functions, 1980;
- rounding by adding 1.5 * 2**23: Hecker, Let's Get to the (Floating) Point, 1996;
- 2/pi by exponent, so that large angles are exact: Payne and Hanek, SIGNUM Newsletter 18, 1983;
- log of a mantissa in [sqrt(1/2), sqrt(2)) as m - m^2/2 + m^3 P(m): Moshier's Cephes library.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tinyc.ir.ops import Op

NOTHING: Mapping[str, str] = {}


@dataclass(frozen=True)
class MathFn:
    """A function of the prelude.

    `name`, tc_<op>_<dtype>, is what C code calls, `source` defines it, `needs` names the helpers
    that `source` calls, `libm` says whether the C library is called.
    """

    name: str
    source: str
    needs: tuple[str, ...]
    libm: bool


def prelude(used: Iterable[tuple[Op, str]], own: Mapping[str, str] = NOTHING) -> str:
    """The C text that the functions `used`, pairs (op, dtype name), need; each piece once.

    `own` has pieces by name that another language says in its own way.
    """
    wanted = set(used)
    pieces: dict[str, str] = {}
    for key, fn in MATH.items():
        if key in wanted:
            pieces.setdefault("", INLINE)
            _add_helpers(fn.needs, pieces)
            pieces[fn.name] = fn.source
    return "\n".join(own.get(name, text) for name, text in pieces.items())


def _add_helpers(names: tuple[str, ...], pieces: dict[str, str]) -> None:
    for name in names:
        source, needs = HELPERS[name]
        _add_helpers(needs, pieces)
        pieces.setdefault(name, source)


# -- helpers -------------------------------------------------------------------------------------

# Out of line, one call would keep its whole loop from becoming vector code.
INLINE = "#define TC_INLINE static inline __attribute__((always_inline, unused))\n"

SYMBOL = """\
#ifdef __APPLE__
#define TC_SYMBOL(name) "_" name
#else
#define TC_SYMBOL(name) name
#endif
"""

BITS_F32 = """\
TC_INLINE unsigned tc_bits_f32(float x) {
  unsigned b;
  __builtin_memcpy(&b, &x, 4);
  return b;
}
TC_INLINE float tc_from_bits_f32(unsigned b) {
  float x;
  __builtin_memcpy(&x, &b, 4);
  return x;
}
"""

BITS_F64 = """\
TC_INLINE unsigned long long tc_bits_f64(double x) {
  unsigned long long b;
  __builtin_memcpy(&b, &x, 8);
  return b;
}
TC_INLINE double tc_from_bits_f64(unsigned long long b) {
  double x;
  __builtin_memcpy(&x, &b, 8);
  return x;
}
"""

# x = n ln2 + r, |r| <= ln2 / 2. The two parts of ln2 make n * hi exact without a fused multiply.
EXP_REDUCE_F32 = """\
TC_INLINE float tc_exp_reduce_f32(float x, int *n) {
  float t = x * 1.44269504f + 12582912.0f;
  float k = t - 12582912.0f;
  *n = (int)(tc_bits_f32(t) - 0x4b400000u);
  float r = x - k * 0.693145752f;
  return r - k * 1.42860677e-6f;
}
"""

# exp(r) for |r| <= ln2 / 2, relative error 2^-28.
EXP_POLY_F32 = """\
TC_INLINE float tc_exp_poly_f32(float r) {
  float p = 0x1.6afe72p-10f;
  p = p * r + 0x1.124496p-7f;
  p = p * r + 0x1.555826p-5f;
  p = p * r + 0x1.555482p-3f;
  p = p * r + 0x1.fffffcp-2f;
  p = p * r + 1.0f;
  return p * r + 1.0f;
}
"""

# As for f32. Whole numbers of 64 bits are only added and shifted up: AVX2 can do no more with them.
EXP_REDUCE_F64 = """\
TC_INLINE double tc_exp_reduce_f64(double x, double *n) {
  double t = x * 1.4426950408889634 + 6755399441055744.0;
  *n = t - 6755399441055744.0;
  double r = x - *n * 0x1.62e42fefa3800p-1;
  return r - *n * 0x1.ef35793c76730p-45;
}
"""

# exp(r) - 1 for |r| <= ln2 / 2, relative error 2^-60.
EXPM1_POLY_F64 = """\
TC_INLINE double tc_expm1_poly_f64(double r) {
  double p = 0x1.1f731ea5352cap-29;
  p = p * r + 0x1.af4e196027428p-26;
  p = p * r + 0x1.27e4db57442fbp-22;
  p = p * r + 0x1.71de021a90822p-19;
  p = p * r + 0x1.a01a01a6dcaffp-16;
  p = p * r + 0x1.a01a01abef415p-13;
  p = p * r + 0x1.6c16c16c162ccp-10;
  p = p * r + 0x1.11111111100cep-7;
  p = p * r + 0x1.5555555555556p-5;
  p = p * r + 0x1.5555555555557p-3;
  p = p * r + 0.5;
  return (r * r) * p + r;
}
"""

# Of a whole number that is given as a double.
POW2_F64 = """\
TC_INLINE double tc_pow2_f64(double n) {
  return tc_from_bits_f64(tc_bits_f64(n + 6755399441056767.0) << 52);
}
"""

POW2_F32 = """\
TC_INLINE float tc_pow2_f32(int n) { return tc_from_bits_f32((unsigned)(n + 127) << 23); }
"""

COPYSIGN_F32 = """\
TC_INLINE float tc_copysign_f32(float size, float sign) {
  return tc_from_bits_f32((tc_bits_f32(size) & 0x7fffffffu) | (tc_bits_f32(sign) & 0x80000000u));
}
"""

# |x| = m 2^k with |m| < 2^24: then |x| 2/pi mod 4 = m * table[k] mod 4. The first part of an entry
# has 29 bits, so that its product with m is exact in a double; the second has all that matter.
TRIG_F32 = """\
TC_INLINE float tc_trig_f32(float x, unsigned shift) {
  unsigned b = tc_bits_f32(x) & 0x7fffffffu;
  int k = (int)(b >> 23) - 150;
  k = k > 0 ? k : 0;
  double m = tc_from_bits_f32(b) * tc_from_bits_f32((unsigned)(127 - k) << 23);
  double hi = m * tc_two_over_pi[2 * k];
  double lo = m * tc_two_over_pi[2 * k + 1];
  double n = ((hi + lo) + 6755399441055744.0) - 6755399441055744.0;
  float r = (float)(((hi - n) + lo) * 1.5707963267948966);
  unsigned q = (unsigned)(int)n + shift;
  float z = r * r;
  float s = -0x1.991c32p-13f;
  s = s * z + 0x1.1106c6p-7f;
  s = s * z - 0x1.555544p-3f;
  s = (s * z) * r + r;
  float c = 0x1.99e42cp-16f;
  c = c * z - 0x1.6c0c20p-10f;
  c = c * z + 0x1.55554ap-5f;
  c = (c * z) * z + (1.0f - 0.5f * z);
  float y = (q & 1u) ? c : s;
  y = tc_from_bits_f32(tc_bits_f32(y) ^ ((q & 2u) << 30));
  return b < 0x7f800000u ? y : x - x;
}
"""

# 2/pi as a fraction of 2^240.
_TWO_OVER_PI = 0xA2F9836E4E441529FC2757D1F534DDC0DB6295993C439041FE5163ABDEBB


def _two_over_pi_table() -> str:
    """For k = 0..105, two parts of 2**k * 2/pi mod 4; the last one is for infinities and NaN."""
    rows = []
    for k in range(106):
        window = (_TWO_OVER_PI << k) % (4 << 240)
        hi = window >> (240 - 27)
        lo = window - (hi << (240 - 27))
        rows.append(f"  {float(hi) * 2.0**-27!r}, {lo / 2**240!r},\n")
    return "static const double tc_two_over_pi[212] = {\n" + "".join(rows) + "};\n"


# Halves are kept as their bits. Both ways between them and f32 without a branch, so that loops
# around them become vector code: what a shift does, what a subtraction of the smallest normal
# number makes normal, and infinities and NaN. Rounded to nearest even; NaN stays NaN, and quiet.
# The method for f16 is known from F. Giesen's "half_to_float" and "float_to_half", 2012.
WIDEN_BF16 = """\
TC_INLINE float tc_widen_bf16(unsigned short h) { return tc_from_bits_f32((unsigned)h << 16); }
"""

NARROW_BF16 = """\
TC_INLINE unsigned short tc_narrow_bf16(float x) {
  unsigned b = tc_bits_f32(x);
  unsigned near = (b + 0x7fffu + ((b >> 16) & 1u)) >> 16;
  return (unsigned short)((b & 0x7fffffffu) > 0x7f800000u ? (b >> 16) | 0x40u : near);
}
"""

# The half next to an f32, as f32.
ROUND_BF16 = """\
TC_INLINE float tc_round_bf16(float x) {
  unsigned b = tc_bits_f32(x);
  unsigned near = (b + 0x7fffu + ((b >> 16) & 1u)) & 0xffff0000u;
  return tc_from_bits_f32((b & 0x7fffffffu) > 0x7f800000u ? b : near);
}
"""

# A choice is made by masks: of conditions compilers make branches that depend on each other, and
# then no vectors.
CHOSEN = """\
TC_INLINE unsigned tc_chosen(unsigned yes, unsigned no, int condition) {
  unsigned mask = -(unsigned)condition;
  return (yes & mask) | (no & ~mask);
}
"""

WIDEN_F16 = """\
TC_INLINE float tc_widen_f16(unsigned short h) {
  unsigned o = ((h & 0x7fffu) << 13) + 0x38000000u, e = h & 0x7c00u;
  unsigned small = tc_bits_f32(tc_from_bits_f32(o + 0x00800000u) - 0x1p-14f);
  o = tc_chosen(small, o + (0x38000000u & -(unsigned)(e == 0x7c00u)), e == 0u);
  return tc_from_bits_f32(o | ((h & 0x8000u) << 16));
}
"""

NARROW_F16 = """\
TC_INLINE unsigned short tc_narrow_f16(float x) {
  unsigned b = tc_bits_f32(x), sign = b & 0x80000000u;
  b ^= sign;
  unsigned small = tc_bits_f32(tc_from_bits_f32(b) + 0.5f) - 0x3f000000u;
  unsigned near = (b + 0xc8000fffu + ((b >> 13) & 1u)) >> 13;
  unsigned large = 0x7c00u | (0x0200u & -(unsigned)(b > 0x7f800000u));
  unsigned o = tc_chosen(large, tc_chosen(small, near, b < 0x38800000u), b >= 0x47800000u);
  return (unsigned short)(o | (sign >> 16));
}
"""

ROUND_F16 = """\
TC_INLINE float tc_round_f16(float x) {
  unsigned b = tc_bits_f32(x), sign = b & 0x80000000u;
  b ^= sign;
  unsigned small = tc_bits_f32(tc_from_bits_f32(b) + 0.5f - 0.5f);
  unsigned near = (b + 0xfffu + ((b >> 13) & 1u)) & 0xffffe000u;
  unsigned o = tc_chosen(small, near, b < 0x38800000u);
  o = tc_chosen(0x7f800000u, o, o >= 0x47800000u);
  return tc_from_bits_f32(sign | tc_chosen(b, o, b > 0x7f800000u));
}
"""

HELPERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "symbol": (SYMBOL, ()),
    "bits_f32": (BITS_F32, ()),
    "bits_f64": (BITS_F64, ()),
    "chosen": (CHOSEN, ()),
    "exp_reduce_f32": (EXP_REDUCE_F32, ("bits_f32",)),
    "exp_poly_f32": (EXP_POLY_F32, ()),
    "pow2_f32": (POW2_F32, ("bits_f32",)),
    "copysign_f32": (COPYSIGN_F32, ("bits_f32",)),
    "exp_reduce_f64": (EXP_REDUCE_F64, ()),
    "expm1_poly_f64": (EXPM1_POLY_F64, ()),
    "pow2_f64": (POW2_F64, ("bits_f64",)),
    "two_over_pi": (_two_over_pi_table(), ()),
    "trig_f32": (TRIG_F32, ("bits_f32", "two_over_pi")),
}

# -- functions of f32 ----------------------------------------------------------------------------

# Scaling in two steps keeps denormal results right. Comparisons are written so that NaN stays.
EXP_F32 = """\
TC_INLINE float tc_exp_f32(float x) {
  x = x < -104.0f ? -104.0f : x;
  x = x > 89.0f ? 89.0f : x;
  int n;
  float r = tc_exp_reduce_f32(x, &n);
  int half = n >> 1;
  return tc_exp_poly_f32(r) * tc_pow2_f32(half) * tc_pow2_f32(n - half);
}
"""

LOG_F32 = """\
TC_INLINE float tc_log_f32(float x) {
  int tiny = x < 1.17549435e-38f;
  float scaled = tiny ? x * 8388608.0f : x;
  unsigned i = tc_bits_f32(scaled) - 0x3f3504f3u;
  float k = (float)(((int)i >> 23) - (tiny ? 23 : 0));
  float m = tc_from_bits_f32((i & 0x007fffffu) + 0x3f3504f3u) - 1.0f;
  float p = -0x1.39969cp-4f;
  p = p * m + 0x1.057720p-3f;
  p = p * m - 0x1.0d7676p-3f;
  p = p * m + 0x1.22d624p-3f;
  p = p * m - 0x1.54723cp-3f;
  p = p * m + 0x1.99a034p-3f;
  p = p * m - 0x1.000228p-2f;
  p = p * m + 0x1.555554p-2f;
  float z = m * m;
  float y = p * m * z + k * -2.12194440e-4f;
  y = (m + (y - 0.5f * z)) + k * 0.693359375f;
  y = x < __builtin_inff() ? y : x;
  y = x == 0.0f ? -__builtin_inff() : y;
  return x < 0.0f ? __builtin_nanf("") : y;
}
"""

SIN_F32 = """\
TC_INLINE float tc_sin_f32(float x) {
  return tc_from_bits_f32(tc_bits_f32(tc_trig_f32(x, 0u)) ^ (tc_bits_f32(x) & 0x80000000u));
}
"""

COS_F32 = """\
TC_INLINE float tc_cos_f32(float x) { return tc_trig_f32(x, 1u); }
"""

# e / (e + 2) with e = exp(2|x|) - 1, whose polynomial has a small relative error near 0.
TANH_F32 = """\
TC_INLINE float tc_tanh_f32(float x) {
  float a = tc_from_bits_f32(tc_bits_f32(x) & 0x7fffffffu);
  a = a > 9.02f ? 9.02f : a;
  int n;
  float r = tc_exp_reduce_f32(a + a, &n);
  float p = 0x1.9c9c5cp-13f;
  p = p * r + 0x1.6d525cp-10f;
  p = p * r + 0x1.111398p-7f;
  p = p * r + 0x1.5554e6p-5f;
  p = p * r + 0x1.555554p-3f;
  p = p * r + 0.5f;
  p = (r * r) * p + r;
  float scale = tc_pow2_f32(n);
  float e = p * scale + (scale - 1.0f);
  return tc_copysign_f32(e / (e + 2.0f), x);
}
"""

# Near 0 an odd polynomial; beyond, 1 - exp(-t Q(t)) with t Q(t) = -log(1 - erf(t)).
ERF_F32 = """\
TC_INLINE float tc_erf_f32(float x) {
  float a = tc_from_bits_f32(tc_bits_f32(x) & 0x7fffffffu);
  float z = x * x;
  float s = -0x1.386bf4p-11f;
  s = s * z + 0x1.46d836p-8f;
  s = s * z - 0x1.b67bcep-6f;
  s = s * z + 0x1.ce1984p-4f;
  s = s * z - 0x1.8126e2p-2f;
  s = s * z + 0x1.06eba6p-3f;
  s = s * x + x;
  float t = a > 3.95f ? 3.95f : a;
  float q = 0x1.78ec06p-17f;
  q = q * t - 0x1.527f10p-12f;
  q = q * t + 0x1.dd6ea2p-9f;
  q = q * t - 0x1.8551e6p-6f;
  q = q * t + 0x1.b3259ep-4f;
  q = q * t + 0x1.45328ap-1f;
  q = q * t + 0x1.20ef1cp+0f;
  int n;
  float r = tc_exp_reduce_f32(-q * t, &n);
  float far = 1.0f - tc_exp_poly_f32(r) * tc_pow2_f32(n);
  return a > 0.925f ? tc_copysign_f32(far, x) : s;
}
"""

# exp2(y log2|x|) in double precision: log2 by s = (m - 1) / (m + 1), error 2^-37; exp2, 2^-28.
POW_F32 = """\
TC_INLINE float tc_pow_f32(float x, float y) {
  float a = tc_from_bits_f32(tc_bits_f32(x) & 0x7fffffffu);
  int tiny = a < 1.17549435e-38f;
  float scaled = tiny ? a * 8388608.0f : a;
  unsigned i = tc_bits_f32(scaled) - 0x3f3504f3u;
  double k = (double)(((int)i >> 23) - (tiny ? 23 : 0));
  double m = tc_from_bits_f32((i & 0x007fffffu) + 0x3f3504f3u);
  double s = (m - 1.0) / (m + 1.0);
  double z = s * s;
  double p = 0x1.5c6246679bbb9p-2;
  p = p * z + 0x1.a5965815cd536p-2;
  p = p * z + 0x1.27776752b3460p-1;
  p = p * z + 0x1.ec709d45117d0p-1;
  p = p * z + 2.8853900817779268;
  double l = p * s + k;
  l = a == 0.0f ? -__builtin_inf() : l;
  l = a < __builtin_inff() ? l : a;
  double w = (double)y * l;
  w = w > 200.0 ? 200.0 : w;
  w = w < -200.0 ? -200.0 : w;
  double t = w + 6755399441055744.0;
  double g = w - (t - 6755399441055744.0);
  double e = 0x1.470b38a5dc804p-13;
  e = e * g + 0x1.5f7275f77fb41p-10;
  e = e * g + 0x1.3b270e6f928bbp-7;
  e = e * g + 0x1.c6ae72e0a73fep-5;
  e = e * g + 0x1.ebfbe2c53d155p-3;
  e = e * g + 0x1.62e4311733c3dp-1;
  e = e * g + 1.0;
  float v = (float)tc_from_bits_f64(tc_bits_f64(e) + (tc_bits_f64(t) << 52));
  float half = 0.5f * y;
  int whole = __builtin_floorf(y) == y;
  int odd = whole & (__builtin_floorf(half) != half);
  v = a == 1.0f ? 1.0f : v;
  v = tc_from_bits_f32(tc_bits_f32(v) | (odd ? tc_bits_f32(x) & 0x80000000u : 0u));
  v = ((x < 0.0f) & (a < __builtin_inff()) & !whole) ? __builtin_nanf("") : v;
  v = y != y ? y : v;
  return ((x == 1.0f) | (y == 0.0f)) ? 1.0f : v;
}
"""

FLOOR_F32 = """\
TC_INLINE float tc_floor_f32(float x) { return __builtin_floorf(x); }
"""

SQRT_F32 = """\
TC_INLINE float tc_sqrt_f32(float x) { return __builtin_sqrtf(x); }
"""


# -- functions of f64 ----------------------------------------------------------------------------


EXP_F64 = """\
TC_INLINE double tc_exp_f64(double x) {
  x = x < -746.0 ? -746.0 : x;
  x = x > 710.0 ? 710.0 : x;
  double n;
  double r = tc_exp_reduce_f64(x, &n);
  double half = (0.5 * n + 6755399441055744.0) - 6755399441055744.0;
  return (tc_expm1_poly_f64(r) + 1.0) * tc_pow2_f64(half) * tc_pow2_f64(n - half);
}
"""

# With s = f / (2 + f), log(1 + f) = f - f^2/2 + s (f^2/2 + R(s^2)), where R has an error of 2^-57.
LOG_F64 = """\
TC_INLINE double tc_log_f64(double x) {
  int tiny = x < 2.2250738585072014e-308;
  double scaled = tiny ? x * 18014398509481984.0 : x;
  unsigned long long i = tc_bits_f64(scaled) + 0x00095f619980c433ull;
  double k = tc_from_bits_f64((i >> 52) | 0x4330000000000000ull) - 4503599627371519.0;
  k = tiny ? k - 54.0 : k;
  double f = tc_from_bits_f64((i & 0xfffffffffffffull) + 0x3fe6a09e667f3bcdull) - 1.0;
  double s = f / (f + 2.0);
  double z = s * s;
  double p = 0x1.2b5f68a50d903p-3;
  p = p * z + 0x1.39fdcceb4bb45p-3;
  p = p * z + 0x1.7462b91b8df65p-3;
  p = p * z + 0x1.c71c62d5e53e0p-3;
  p = p * z + 0x1.2492492dfd86cp-2;
  p = p * z + 0x1.9999999995273p-2;
  p = p * z + 0x1.5555555555558p-1;
  double half = 0.5 * f * f;
  double low = s * (half + p * z) + k * 0x1.ef35793c76730p-45;
  double y = k * 0x1.62e42fefa3800p-1 - ((half - low) - f);
  y = x < __builtin_inf() ? y : x;
  y = x == 0.0 ? -__builtin_inf() : y;
  return x < 0.0 ? __builtin_nan("") : y;
}
"""

TANH_F64 = """\
TC_INLINE double tc_tanh_f64(double x) {
  double a = tc_from_bits_f64(tc_bits_f64(x) & 0x7fffffffffffffffull);
  a = a > 20.0 ? 20.0 : a;
  double n;
  double r = tc_exp_reduce_f64(a + a, &n);
  double scale = tc_pow2_f64(n);
  double e = tc_expm1_poly_f64(r) * scale + (scale - 1.0);
  double y = e / (e + 2.0);
  return tc_from_bits_f64(tc_bits_f64(y) | (tc_bits_f64(x) & 0x8000000000000000ull));
}
"""


def _library(op: Op, arity: int = 1) -> MathFn:
    """tc_<op>_f64, a call of the C library; square roots and floors are instructions."""
    name = f"tc_{op.value}_f64"
    parameters, call = ("double x", "x") if arity == 1 else ("double x, double y", "x, y")
    head = f"TC_INLINE double {name}({parameters}) {{ return "
    if op in (Op.SQRT, Op.FLOOR):
        return MathFn(name, f"{head}__builtin_{op.value}({call}); }}\n", (), False)
    source = f"{external(op.value, 'double', arity)}{head}tc_libm_{op.value}({call}); }}\n"
    return MathFn(name, source, ("symbol",), True)


def external(function: str, ctype: str, arity: int) -> str:
    """A declaration of a function of the C library under a name that compilers don't know.

    Known by its own name, gcc folds it by rules that lose NaN where errno is out of the way:
    sin(atan(x)) becomes x / sqrt(1 + x*x), made so that NaN gives 1.
    """
    parameters = ", ".join([ctype] * arity)
    return (f"extern {ctype} tc_libm_{function}({parameters}) "
            f'__asm__(TC_SYMBOL("{function}")) __attribute__((const));\n')


_BITS = ("bits_f32",)
_HALF = ("bits_f32", "chosen")
_EXP = ("exp_reduce_f32", "exp_poly_f32", "pow2_f32")
_EXP_F64 = ("exp_reduce_f64", "expm1_poly_f64", "pow2_f64")

MATH: dict[tuple[Op, str], MathFn] = {
    (Op.EXP, "f32"): MathFn("tc_exp_f32", EXP_F32, _EXP, False),
    (Op.LOG, "f32"): MathFn("tc_log_f32", LOG_F32, _BITS, False),
    (Op.SIN, "f32"): MathFn("tc_sin_f32", SIN_F32, ("trig_f32",), False),
    (Op.COS, "f32"): MathFn("tc_cos_f32", COS_F32, ("trig_f32",), False),
    (Op.TANH, "f32"): MathFn("tc_tanh_f32", TANH_F32, (*_EXP, "copysign_f32"), False),
    (Op.ERF, "f32"): MathFn("tc_erf_f32", ERF_F32, (*_EXP, "copysign_f32"), False),
    (Op.POW, "f32"): MathFn("tc_pow_f32", POW_F32, ("bits_f32", "bits_f64"), False),
    (Op.FLOOR, "f32"): MathFn("tc_floor_f32", FLOOR_F32, (), False),
    (Op.SQRT, "f32"): MathFn("tc_sqrt_f32", SQRT_F32, (), False),
    (Op.EXP, "f64"): MathFn("tc_exp_f64", EXP_F64, _EXP_F64, False),
    (Op.LOG, "f64"): MathFn("tc_log_f64", LOG_F64, ("bits_f64",), False),
    (Op.SIN, "f64"): _library(Op.SIN),
    (Op.COS, "f64"): _library(Op.COS),
    (Op.TANH, "f64"): MathFn("tc_tanh_f64", TANH_F64, _EXP_F64, False),
    (Op.ERF, "f64"): _library(Op.ERF),
    (Op.POW, "f64"): _library(Op.POW, 2),
    (Op.FLOOR, "f64"): _library(Op.FLOOR),
    (Op.SQRT, "f64"): _library(Op.SQRT),
    (Op.CAST, "widen_bf16"): MathFn("tc_widen_bf16", WIDEN_BF16, _BITS, False),
    (Op.CAST, "narrow_bf16"): MathFn("tc_narrow_bf16", NARROW_BF16, _BITS, False),
    (Op.CAST, "round_bf16"): MathFn("tc_round_bf16", ROUND_BF16, _BITS, False),
    (Op.CAST, "widen_f16"): MathFn("tc_widen_f16", WIDEN_F16, _HALF, False),
    (Op.CAST, "narrow_f16"): MathFn("tc_narrow_f16", NARROW_F16, _HALF, False),
    (Op.CAST, "round_f16"): MathFn("tc_round_f16", ROUND_F16, _HALF, False),
}
