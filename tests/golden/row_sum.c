static void k0_reduce(void *task, long chunk, long worker) {
  void **p = ((tc_task *)task)->p;
  const tinyc_rt *rt = ((tc_task *)task)->rt;
  char *scratch = rt->scratch + worker * rt->scratch_stride;
  long *status = rt->status;
  (void)p, (void)scratch, (void)status, (void)chunk;
  float *restrict a0 = (float *)p[0];
  float *restrict a1 = (float *)p[1];
  for (long i0 = 0; i0 < 64; i0++) {
    float r0;
    r0 = 0.0f;
    float v1[16] __attribute__((aligned(64)));
    #pragma omp simd
    #pragma clang loop unroll(full)
    for (long i1 = 0; i1 < 16; i1++) {
      v1[i1] = 0.0f;
    }
    for (long i2 = 0; i2 < 6; i2++) {
      #pragma omp simd
      #pragma clang loop unroll(full)
      for (long i3 = 0; i3 < 8; i3++) {
        v1[i3] += a0[(100 * i0 + 16 * i2 + i3)];
      }
      #pragma omp simd
      #pragma clang loop unroll(full)
      for (long i4 = 0; i4 < 8; i4++) {
        v1[(i4 + 8)] += a0[(100 * i0 + 16 * i2 + i4 + 8)];
      }
    }
    r0 += ((a0[(100 * i0 + 96)] + a0[(100 * i0 + 97)]) + (a0[(100 * i0 + 98)] + a0[(100 * i0 + 99)]));
    #pragma omp simd
    #pragma clang loop unroll(full)
    for (long i5 = 0; i5 < 8; i5++) {
      v1[i5] += v1[(i5 + 8)];
    }
    #pragma omp simd
    #pragma clang loop unroll(full)
    for (long i6 = 0; i6 < 4; i6++) {
      v1[i6] += v1[(i6 + 4)];
    }
    #pragma omp simd
    #pragma clang loop unroll(full)
    for (long i7 = 0; i7 < 2; i7++) {
      v1[i7] += v1[(i7 + 2)];
    }
    v1[0] += v1[1];
    r0 += v1[0];
    a1[i0] = r0;
  }
}
