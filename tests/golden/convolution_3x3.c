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
  float v1[512] __attribute__((aligned(64)));
  long o1[8];
  for (long r = 0; r < 8; r++) {
    const long i0 = tc_min(0 + r, 7);
    o1[r] = 27 * i0;
  }
  tc_pack_f32_8(27, 8, a0, o1, s0 + 0);
  for (long i1 = chunk * 2L / 2; i1 < (chunk + 1) * 2L / 2; i1++) {
    for (long i2 = 0; i2 < tc_min(8, 8); i2++) {
      long o2[8];
      for (long r = 0; r < 8; r++) {
        const long i3 = tc_min(8 * i2 + r, 63);
        o2[r] = (300 * i1 + 10 * (i3 / 8) + (i3 % 8));
      }
      tc_tile_f32_8x8_8(3, 3, 3, 100, 10, 1, a1, o2, s0 + 0, 8, v0 + 64 * i2, 0);
    }
    long o3[64];
    for (long r = 0; r < 64; r++) {
      const long i4 = tc_min(0 + r, 63);
      o3[r] = 8 * i4;
    }
    tc_pack_f32_8(8, 64, v0, o3, v1 + 0);
    #pragma omp simd
    for (long i5 = 0; i5 < 512; i5++) {
      a2[(512 * i1 + i5)] = v1[i5];
    }
  }
}
