static void k0_contract(void *task, long chunk, long worker) {
  void **p = ((tc_task *)task)->p;
  const tinyc_rt *rt = ((tc_task *)task)->rt;
  char *scratch = rt->scratch + worker * rt->scratch_stride;
  long *status = rt->status;
  (void)p, (void)scratch, (void)status, (void)chunk;
  float *restrict a0 = (float *)p[0];
  float *restrict a1 = (float *)p[1];
  float *restrict a2 = (float *)p[2];
  float *restrict s0 = (float *)(scratch + 0);
  float v0[512] __attribute__((aligned(64)));
  for (long i0 = 0; i0 < 8; i0++) {
    #pragma omp simd
    for (long i1 = 0; i1 < 27; i1++) {
      s0[(i0 + 8 * i1)] = a0[(27 * i0 + i1)];
    }
  }
  for (long i2 = chunk * 2L / 2; i2 < (chunk + 1) * 2L / 2; i2++) {
    for (long i3 = 0; i3 < tc_min(8, 8); i3++) {
      long o1[8];
      for (long r = 0; r < 8; r++) {
        const long i4 = tc_min(8 * i3 + r, 63);
        o1[r] = (300 * i2 + 10 * (i4 / 8) + (i4 % 8));
      }
      tc_tile_f32_8x8_8(3, 3, 3, 100, 10, 1, a1, o1, s0 + 0, 8, v0 + 64 * i3, 0);
    }
    for (long i5 = 0; i5 < 8; i5++) {
      #pragma omp simd
      for (long i6 = 0; i6 < 64; i6++) {
        a2[(512 * i2 + i6 + 64 * i5)] = v0[(8 * i6 + i5)];
      }
    }
  }
}
