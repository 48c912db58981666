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
  static const long o1[] = { 0, 27, 54, 81, 108, 135, 162, 189 };
  tc_pack_f32_8(27, 8, a0 + 0, o1, s0 + 0);
  for (long i0 = chunk * 2L / 2; i0 < (chunk + 1) * 2L / 2; i0++) {
    for (long i1 = 0; i1 < tc_min(8, 8); i1++) {
      long o2[8];
      for (long r = 0; r < 8; r++) {
        const long i2 = tc_min(8 * i1 + r, 63);
        o2[r] = (300 * i0 + 10 * (i2 / 8) + (i2 % 8));
      }
      tc_tile_f32_8x8_8_window(3, 3, 3, 100, 10, 1, a1, o2, s0 + 0, 8, v0 + 64 * i1, 8, 0);
    }
    long o3[64];
    for (long r = 0; r < 64; r++) o3[r] = 8 * r;
    tc_pack_f32_8(8, 64, v0 + 0, o3, v1 + 0);
    #pragma omp simd
    for (long i3 = 0; i3 < 512; i3++) {
      a2[(512 * i0 + i3)] = v1[i3];
    }
  }
}
