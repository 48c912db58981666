static void k0_reduce(void *task, long chunk, long worker) {
  void **p = ((tc_task *)task)->p;
  const tinyc_rt *rt = ((tc_task *)task)->rt;
  char *scratch = rt->scratch + worker * rt->scratch_stride;
  long *status = rt->status;
  (void)p, (void)scratch, (void)status, (void)chunk;
  float *restrict a0 = (float *)p[0];
  float *restrict a1 = (float *)p[1];
  float r0;
  r0 = 0.0f;
  double r1;
  r1 = 0.0;
  for (long i0 = chunk * 64L / 8; i0 < (chunk + 1) * 64L / 8; i0++) {
    for (long i1 = 0; i1 < 4; i1++) {
      float r2;
      r2 = 0.0f;
      float v3[32] __attribute__((aligned(64)));
      #pragma omp simd
      #pragma clang loop unroll(full)
      for (long i2 = 0; i2 < 32; i2++) {
        v3[i2] = 0.0f;
      }
      for (long i3 = 0; i3 < 32; i3++) {
        #pragma omp simd
        #pragma clang loop unroll(full)
        for (long i4 = 0; i4 < 8; i4++) {
          v3[i4] += a0[(4096 * i0 + 1024 * i1 + 32 * i3 + i4)];
        }
        #pragma omp simd
        #pragma clang loop unroll(full)
        for (long i5 = 0; i5 < 8; i5++) {
          v3[(i5 + 8)] += a0[(4096 * i0 + 1024 * i1 + 32 * i3 + i5 + 8)];
        }
        #pragma omp simd
        #pragma clang loop unroll(full)
        for (long i6 = 0; i6 < 8; i6++) {
          v3[(i6 + 16)] += a0[(4096 * i0 + 1024 * i1 + 32 * i3 + i6 + 16)];
        }
        #pragma omp simd
        #pragma clang loop unroll(full)
        for (long i7 = 0; i7 < 8; i7++) {
          v3[(i7 + 24)] += a0[(4096 * i0 + 1024 * i1 + 32 * i3 + i7 + 24)];
        }
      }
      #pragma omp simd
      #pragma clang loop unroll(full)
      for (long i8 = 0; i8 < 16; i8++) {
        v3[i8] += v3[(i8 + 16)];
      }
      double v4[16] __attribute__((aligned(64)));
      #pragma omp simd
      #pragma clang loop unroll(full)
      for (long i9 = 0; i9 < 16; i9++) {
        v4[i9] = ((double)v3[i9]);
      }
      #pragma omp simd
      #pragma clang loop unroll(full)
      for (long i10 = 0; i10 < 8; i10++) {
        v4[i10] += v4[(i10 + 8)];
      }
      #pragma omp simd
      #pragma clang loop unroll(full)
      for (long i11 = 0; i11 < 4; i11++) {
        v4[i11] += v4[(i11 + 4)];
      }
      #pragma omp simd
      #pragma clang loop unroll(full)
      for (long i12 = 0; i12 < 2; i12++) {
        v4[i12] += v4[(i12 + 2)];
      }
      v4[0] += v4[1];
      float r5;
      r5 = ((float)v4[0]);
      r2 += r5;
      r1 += ((double)r2);
    }
  }
  r0 += ((float)r1);
  a1[chunk] = r0;
}
static void k0_reduce_end(void *task, long chunk, long worker) {
  void **p = ((tc_task *)task)->p;
  const tinyc_rt *rt = ((tc_task *)task)->rt;
  char *scratch = rt->scratch + worker * rt->scratch_stride;
  long *status = rt->status;
  (void)p, (void)scratch, (void)status, (void)chunk;
  float *restrict a1 = (float *)p[1];
  float *restrict a2 = (float *)p[2];
  double r6;
  r6 = ((double)a1[0]);
  double r7;
  r7 = 0.0;
  double r8;
  r8 = 0.0;
  for (long i13 = 0; i13 < 7; i13++) {
    double r9;
    r9 = (r7 + ((double)a1[(i13 + 1)]));
    double r10;
    r10 = (r9 - r7);
    r8 = (r8 + ((r7 - (r9 - r10)) + (((double)a1[(i13 + 1)]) - r10)));
    r7 = r9;
  }
  const _Bool t0 = (r8 == r8);
  const double t1 = (r7 + r8);
  r6 += (t0 ? t1 : r7);
  a2[0] = ((float)r6);
}
