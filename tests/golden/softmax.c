static void k0_exp_div_reduce(void *task, long chunk, long worker) {
  void **p = ((tc_task *)task)->p;
  const tinyc_rt *rt = ((tc_task *)task)->rt;
  char *scratch = rt->scratch + worker * rt->scratch_stride;
  long *status = rt->status;
  (void)p, (void)scratch, (void)status, (void)chunk;
  float *restrict a0 = (float *)p[0];
  float *restrict a1 = (float *)p[1];
  float *restrict s0 = (float *)(scratch + 0);
  for (long i0 = chunk * 64L / 8; i0 < (chunk + 1) * 64L / 8; i0++) {
    float r0;
    r0 = (-__builtin_inff());
    float v1[8] __attribute__((aligned(64)));
    #pragma omp simd
    for (long i1 = 0; i1 < 8; i1++) {
      v1[i1] = (-__builtin_inff());
    }
    for (long i2 = 0; i2 < 12; i2++) {
      #pragma omp simd
      for (long i3 = 0; i3 < 8; i3++) {
        v1[i3] = tc_max_f32(a0[(100 * i0 + 8 * i2 + i3)], v1[i3]);
      }
    }
    #pragma omp simd
    for (long i4 = 0; i4 < 4; i4++) {
      v1[i4] = tc_max_f32(a0[(100 * i0 + i4 + 96)], v1[i4]);
    }
    #pragma omp simd
    for (long i5 = 0; i5 < 4; i5++) {
      v1[i5] = tc_max_f32(v1[(i5 + 4)], v1[i5]);
    }
    #pragma omp simd
    for (long i6 = 0; i6 < 2; i6++) {
      v1[i6] = tc_max_f32(v1[(i6 + 2)], v1[i6]);
    }
    v1[0] = tc_max_f32(v1[1], v1[0]);
    r0 = tc_max_f32(v1[0], r0);
    #pragma omp simd
    for (long i7 = 0; i7 < 100; i7++) {
      s0[i7] = tc_exp_f32((a0[(100 * i0 + i7)] - r0));
    }
    float r2;
    r2 = 0.0f;
    float v3[8] __attribute__((aligned(64)));
    #pragma omp simd
    #pragma clang loop unroll(full)
    for (long i8 = 0; i8 < 8; i8++) {
      v3[i8] = 0.0f;
    }
    for (long i9 = 0; i9 < 12; i9++) {
      #pragma omp simd
      #pragma clang loop unroll(full)
      for (long i10 = 0; i10 < 8; i10++) {
        v3[i10] += s0[(8 * i9 + i10)];
      }
    }
    #pragma omp simd
    #pragma clang loop unroll(full)
    for (long i11 = 0; i11 < 4; i11++) {
      v3[i11] += s0[(i11 + 96)];
    }
    #pragma omp simd
    #pragma clang loop unroll(full)
    for (long i12 = 0; i12 < 4; i12++) {
      v3[i12] += v3[(i12 + 4)];
    }
    #pragma omp simd
    #pragma clang loop unroll(full)
    for (long i13 = 0; i13 < 2; i13++) {
      v3[i13] += v3[(i13 + 2)];
    }
    v3[0] += v3[1];
    r2 += v3[0];
    #pragma omp simd
    for (long i14 = 0; i14 < 100; i14++) {
      a1[(100 * i0 + i14)] = (s0[i14] / r2);
    }
  }
}
