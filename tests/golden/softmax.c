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
    float v1[16] __attribute__((aligned(64)));
    #pragma omp simd
    for (long i1 = 0; i1 < 16; i1++) {
      v1[i1] = (-__builtin_inff());
    }
    for (long i2 = 0; i2 < 6; i2++) {
      #pragma omp simd
      for (long i3 = 0; i3 < 8; i3++) {
        v1[i3] = tc_max_f32(a0[(100 * i0 + 16 * i2 + i3)], v1[i3]);
      }
      #pragma omp simd
      for (long i4 = 0; i4 < 8; i4++) {
        v1[(i4 + 8)] = tc_max_f32(a0[(100 * i0 + 16 * i2 + i4 + 8)], v1[(i4 + 8)]);
      }
    }
    r0 = tc_max_f32(a0[(100 * i0 + 96)], r0);
    r0 = tc_max_f32(a0[(100 * i0 + 97)], r0);
    r0 = tc_max_f32(a0[(100 * i0 + 98)], r0);
    r0 = tc_max_f32(a0[(100 * i0 + 99)], r0);
    #pragma omp simd
    for (long i5 = 0; i5 < 8; i5++) {
      v1[i5] = tc_max_f32(v1[(i5 + 8)], v1[i5]);
    }
    #pragma omp simd
    for (long i6 = 0; i6 < 4; i6++) {
      v1[i6] = tc_max_f32(v1[(i6 + 4)], v1[i6]);
    }
    #pragma omp simd
    for (long i7 = 0; i7 < 2; i7++) {
      v1[i7] = tc_max_f32(v1[(i7 + 2)], v1[i7]);
    }
    v1[0] = tc_max_f32(v1[1], v1[0]);
    r0 = tc_max_f32(v1[0], r0);
    #pragma omp simd
    for (long i8 = 0; i8 < 100; i8++) {
      s0[i8] = tc_exp_f32((a0[(100 * i0 + i8)] - r0));
    }
    float r2;
    r2 = 0.0f;
    float v3[16] __attribute__((aligned(64)));
    #pragma omp simd
    #pragma clang loop unroll(full)
    for (long i9 = 0; i9 < 16; i9++) {
      v3[i9] = 0.0f;
    }
    for (long i10 = 0; i10 < 6; i10++) {
      #pragma omp simd
      #pragma clang loop unroll(full)
      for (long i11 = 0; i11 < 8; i11++) {
        v3[i11] += s0[(16 * i10 + i11)];
      }
      #pragma omp simd
      #pragma clang loop unroll(full)
      for (long i12 = 0; i12 < 8; i12++) {
        v3[(i12 + 8)] += s0[(16 * i10 + i12 + 8)];
      }
    }
    r2 += ((s0[96] + s0[97]) + (s0[98] + s0[99]));
    #pragma omp simd
    #pragma clang loop unroll(full)
    for (long i13 = 0; i13 < 8; i13++) {
      v3[i13] += v3[(i13 + 8)];
    }
    #pragma omp simd
    #pragma clang loop unroll(full)
    for (long i14 = 0; i14 < 4; i14++) {
      v3[i14] += v3[(i14 + 4)];
    }
    #pragma omp simd
    #pragma clang loop unroll(full)
    for (long i15 = 0; i15 < 2; i15++) {
      v3[i15] += v3[(i15 + 2)];
    }
    v3[0] += v3[1];
    r2 += v3[0];
    #pragma omp simd
    for (long i16 = 0; i16 < 100; i16++) {
      a1[(100 * i0 + i16)] = (s0[i16] / r2);
    }
  }
}
