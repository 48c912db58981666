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
  float v0[96] __attribute__((aligned(64)));
  long o1[16];
  for (long r = 0; r < 16; r++) {
    const long i0 = tc_min(0 + r, 15);
    o1[r] = 64 * i0;
  }
  tc_pack_f32_8(64, 16, a0, o1, s0 + 0);
  for (long i1 = 0; i1 < 6; i1++) {
    long o2[6];
    for (long r = 0; r < 6; r++) {
      const long i2 = tc_min(6 * i1 + r, 31);
      o2[r] = 64 * i2;
    }
    tc_tile_f32_6x16_8(1, 1, 64, 0, 0, 1, a1, o2, s0 + 0, 16, v0 + 0, 0);
    for (long i3 = 0; i3 < tc_min(6, (-6 * i1 + 32)); i3++) {
      #pragma omp simd
      for (long i4 = 0; i4 < 16; i4++) {
        const float t2 = v0[(16 * i3 + i4)];
        const float t3 = a2[i4];
        const float t4 = (t2 + t3);
        const _Bool t5 = ((t4 < 0.0f) | (t4 == 0.0f));
        a3[(96 * i1 + 16 * i3 + i4)] = (t5 ? 0.0f : t4);
      }
    }
  }
}
