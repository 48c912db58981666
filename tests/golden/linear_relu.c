static void k0_contract_where(void *task, long chunk, long worker) {
  void **p = ((tc_task *)task)->p;
  const tinyc_rt *rt = ((tc_task *)task)->rt;
  char *scratch = rt->scratch + worker * rt->scratch_stride;
  long *status = rt->status;
  (void)p, (void)scratch, (void)status, (void)chunk;
  float *restrict a0 = (float *)p[0];
  float *restrict a1 = (float *)p[1];
  float *restrict a2 = (float *)p[2];
  float *restrict a3 = (float *)p[3];
  float *restrict s0 = (float *)(scratch + 0);
  float v0[80] __attribute__((aligned(64)));
  static const long o1[] = { 0, 64, 128, 192, 256, 320, 384, 448, 512, 576, 640, 704, 768, 832, 896, 960 };
  tc_pack_f32_8(64, 16, a0 + 0, o1, s0 + 0);
  for (long i0 = 0; i0 < 7; i0++) {
    long o2[5];
    for (long r = 0; r < 5; r++) {
      const long i1 = tc_min(5 * i0 + r, 31);
      o2[r] = 64 * i1;
    }
    tc_tile_f32_5x16_8(2, 32, 32, 32, 1, a1, o2, s0 + 0, 16, v0 + 0, 16, 0);
    for (long i2 = 0; i2 < tc_min(5, (-5 * i0 + 32)); i2++) {
      #pragma omp simd
      for (long i3 = 0; i3 < 16; i3++) {
        const float t2 = v0[(16 * i2 + i3)];
        const float t3 = a2[i3];
        const float t4 = (t2 + t3);
        const _Bool t5 = ((t4 < 0.0f) | (t4 == 0.0f));
        a3[(80 * i0 + 16 * i2 + i3)] = (t5 ? 0.0f : t4);
      }
    }
  }
}
