"""Matrix instructions of NVIDIA's GPUs as CUDA C++: the tile of a warp, operands in shared memory.

Each function is `MicroMma` (`ir/loop.py`), with sizes and steps as constants of a template. Halves
come by `ldmatrix`, which turns them where rows (of `a`) or columns (of `b`) lie side by side, and
are multiplied 16 x 8 x 16 at a time; tf32 goes number by number, 16 x 8 x 8 at a time. While one
step of the depth is multiplied, the operands of the next one are on their way to registers.
"""
from __future__ import annotations

# What a text of these takes: sm_80 is the first with them all.
LEAST_ARCH = 80

# The operands of a step of the depth, as matrix instructions want them.
HALVES = """\
template <int HEIGHT, int WIDTH, int A_ROW, int A_DEEP, int B_COLUMN, int B_DEEP>
TC_INLINE void tc_operands_{kind}(unsigned (*x)[4], unsigned (*y)[2], const unsigned short *a,
                                  const unsigned short *b, int lane) {{
  const int line = lane % 8, second = lane / 8 % 2, far = lane / 16;
#pragma unroll
  for (int i = 0; i < HEIGHT / 16; i++)
    tc_matrices<A_DEEP != 1>(x[i][0], x[i][1], x[i][2], x[i][3],
        a + (16 * i + 8 * second + (A_DEEP == 1) * line) * A_ROW
          + (8 * far + (A_DEEP != 1) * line) * A_DEEP);
#pragma unroll
  for (int j = 0; j < WIDTH / 8; j += 2)
    tc_matrices<B_DEEP != 1>(y[j][0], y[j][1], y[j + 1][0], y[j + 1][1],
        b + (8 * j + 8 * far + (B_DEEP == 1) * line) * B_COLUMN
          + (8 * second + (B_DEEP != 1) * line) * B_DEEP);
}}
"""
SINGLE = """\
template <int HEIGHT, int WIDTH, int A_ROW, int A_DEEP, int B_COLUMN, int B_DEEP>
TC_INLINE void tc_operands_{kind}(unsigned (*x)[4], unsigned (*y)[2], const float *a,
                                  const float *b, int lane) {{
#pragma unroll
  for (int i = 0; i < HEIGHT / 16; i++) {{
    const float *p = a + (16 * i + lane / 4) * A_ROW + lane % 4 * A_DEEP;
    x[i][0] = tc_tf32(p[0]); x[i][1] = tc_tf32(p[8 * A_ROW]);
    x[i][2] = tc_tf32(p[4 * A_DEEP]); x[i][3] = tc_tf32(p[8 * A_ROW + 4 * A_DEEP]);
  }}
#pragma unroll
  for (int j = 0; j < WIDTH / 8; j++) {{
    const float *p = b + (8 * j + lane / 4) * B_COLUMN + lane % 4 * B_DEEP;
    y[j][0] = tc_tf32(p[0]); y[j][1] = tc_tf32(p[4 * B_DEEP]);
  }}
}}
"""
TILE = """\
template <int HEIGHT, int WIDTH, int DEPTH, int A_ROW, int A_DEEP, int B_COLUMN, int B_DEEP>
TC_INLINE void tc_mma_{kind}(float *sums, const {t} *a, const {t} *b, int lane) {{
  unsigned x[2][HEIGHT / 16][4], y[2][WIDTH / 8][2];
  tc_operands_{kind}<HEIGHT, WIDTH, A_ROW, A_DEEP, B_COLUMN, B_DEEP>(x[0], y[0], a, b, lane);
#pragma unroll
  for (int k = 0; k < DEPTH; k += {depth}) {{
    const int now = k / {depth} % 2, next = k + {depth};
    if (next < DEPTH)
      tc_operands_{kind}<HEIGHT, WIDTH, A_ROW, A_DEEP, B_COLUMN, B_DEEP>(
          x[1 - now], y[1 - now], a + next * A_DEEP, b + next * B_DEEP, lane);
#pragma unroll
    for (int i = 0; i < HEIGHT / 16; i++) {{
#pragma unroll
      for (int j = 0; j < WIDTH / 8; j++)
        tc_multiply_{kind}(sums + (i * (WIDTH / 8) + j) * 4, x[now][i], y[now][j]);
    }}
  }}
}}"""

# The instructions; what emulates CUDA has functions of its own for them.
MULTIPLY = """\
TC_INLINE void tc_multiply_{kind}(float *c, const unsigned *x, const unsigned *y) {{
  asm("mma.sync.aligned.m16n8k{depth}.row.col.f32.{kind}.{kind}.f32 "
      "{{%0, %1, %2, %3}}, {{%4, %5, %6, %7}}, {{%8, %9}}, {{%0, %1, %2, %3}};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(y[0]), "r"(y[1]));
}}
"""
# Four matrices of 8 x 8 halves; `p` is where a line of 8 of them lies, of matrix lane / 8.
MATRICES = """\
template <bool TURNED>
TC_INLINE void tc_matrices(unsigned &r0, unsigned &r1, unsigned &r2, unsigned &r3,
                           const unsigned short *p) {
  const unsigned at = (unsigned)__cvta_generic_to_shared(p);
  if (TURNED)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r0), "=r"(r1), "=r"(r2), "=r"(r3) : "r"(at));
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r0), "=r"(r1), "=r"(r2), "=r"(r3) : "r"(at));
}
"""
ROUND = """\
TC_INLINE unsigned tc_tf32(float x) {
  unsigned bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}
"""
# What both kinds of halves share.
SHARED = f"#ifdef __CUDACC__\n{MATRICES}#endif"


def mma_text(kind: str) -> str:
    """The functions of a kind, f16, bf16 or tf32; those of halves need `SHARED` before them.

    Shapes and who has which number are those of the PTX ISA, "Matrix fragments for mma".
    """
    single = kind == "tf32"
    depth, t = (8, "float") if single else (16, "unsigned short")
    names = {"kind": kind, "depth": depth, "t": t}
    own = (ROUND if single else "") + MULTIPLY.format(**names)
    tile = (SINGLE if single else HALVES) + TILE
    return f"#ifdef __CUDACC__\n{own}#endif\n{tile.format(**names)}"
