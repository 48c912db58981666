"""Matrix instructions of NVIDIA's GPUs as CUDA C++: the tile of a warp, operands in shared memory.

Each function is `MicroMma` (`ir/loop.py`), with sizes and steps as constants of a template. Halves
come by `ldmatrix`, which turns them where rows (of `a`) or columns (of `b`) lie side by side, and
are multiplied 16 x 8 x 16 at a time; tf32 goes number by number, 16 x 8 x 8 at a time.
"""
from __future__ import annotations

# What a text of these takes: sm_80 is the first with them all.
LEAST_ARCH = 80

HEAD = """\
template <int HEIGHT, int WIDTH, int DEPTH, int A_ROW, int A_DEEP, int B_COLUMN, int B_DEEP>
TC_INLINE void tc_mma_{kind}(float *sums, const {t} *a, const {t} *b, int lane) {{
#pragma unroll
  for (int k = 0; k < DEPTH; k += {depth}) {{
    unsigned x[HEIGHT / 16][4], y[WIDTH / 8][2];
"""

MULTIPLY = """\
#pragma unroll
    for (int i = 0; i < HEIGHT / 16; i++) {{
#pragma unroll
      for (int j = 0; j < WIDTH / 8; j++) {{
        float *c = sums + (i * (WIDTH / 8) + j) * 4;
        asm volatile(
            "mma.sync.aligned.m16n8k{depth}.row.col.f32.{kind}.{kind}.f32 "
            "{{%0, %1, %2, %3}}, {{%4, %5, %6, %7}}, {{%8, %9}}, {{%0, %1, %2, %3}};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(x[i][0]), "r"(x[i][1]), "r"(x[i][2]), "r"(x[i][3]), "r"(y[j][0]), "r"(y[j][1]));
      }}
    }}
  }}
}}"""

HALVES = """\
#pragma unroll
    for (int i = 0; i < HEIGHT / 16; i++) {{
      const int row = 16 * i, half = lane / 8;
      tc_matrices_{kind}<A_DEEP != 1>(x[i][0], x[i][1], x[i][2], x[i][3], A_DEEP == 1
          ? a + (row + lane % 16) * A_ROW + k + half / 2 * 8
          : a + (k + half / 2 * 8 + lane % 8) * A_DEEP + row + half % 2 * 8);
    }}
#pragma unroll
    for (int j = 0; j < WIDTH / 8; j += 2) {{
      const int column = 8 * j, half = lane / 8;
      tc_matrices_{kind}<B_DEEP != 1>(y[j][0], y[j][1], y[j + 1][0], y[j + 1][1], B_DEEP == 1
          ? b + (column + half / 2 * 8 + lane % 8) * B_COLUMN + k + half % 2 * 8
          : b + (k + half % 2 * 8 + lane % 8) * B_DEEP + column + half / 2 * 8);
    }}
"""

# Four matrices of 8 x 8 halves; `p` is where a line of 8 of them lies, of matrix lane / 8.
MATRICES = """\
template <bool TURNED>
TC_INLINE void tc_matrices_{kind}(unsigned &r0, unsigned &r1, unsigned &r2, unsigned &r3,
                                  const unsigned short *p) {{
  const unsigned at = (unsigned)__cvta_generic_to_shared(p);
  if (TURNED)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {{%0, %1, %2, %3}}, [%4];"
                 : "=r"(r0), "=r"(r1), "=r"(r2), "=r"(r3) : "r"(at));
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{%0, %1, %2, %3}}, [%4];"
                 : "=r"(r0), "=r"(r1), "=r"(r2), "=r"(r3) : "r"(at));
}}
"""

SINGLE = """\
#pragma unroll
    for (int i = 0; i < HEIGHT / 16; i++) {{
      const float *p = a + (16 * i + lane / 4) * A_ROW + (k + lane % 4) * A_DEEP;
      x[i][0] = tc_tf32(p[0]); x[i][1] = tc_tf32(p[8 * A_ROW]);
      x[i][2] = tc_tf32(p[4 * A_DEEP]); x[i][3] = tc_tf32(p[8 * A_ROW + 4 * A_DEEP]);
    }}
#pragma unroll
    for (int j = 0; j < WIDTH / 8; j++) {{
      const float *p = b + (8 * j + lane / 4) * B_COLUMN + (k + lane % 4) * B_DEEP;
      y[j][0] = tc_tf32(p[0]); y[j][1] = tc_tf32(p[4 * B_DEEP]);
    }}
"""

ROUND = """\
TC_INLINE unsigned tc_tf32(float x) {{
  unsigned bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}}
"""


def mma_text(kind: str) -> str:
    """The function of a kind, f16, bf16 or tf32; what emulates CUDA has its own.

    Shapes and who has which number are those of the PTX ISA, "Matrix fragments for mma".
    """
    single = kind == "tf32"
    depth, t = (8, "float") if single else (16, "unsigned short")
    text = (ROUND + HEAD + SINGLE if single else MATRICES + HEAD + HALVES) + MULTIPLY
    return f"#ifdef __CUDACC__\n{text.format(kind=kind, depth=depth, t=t)}\n#endif"
