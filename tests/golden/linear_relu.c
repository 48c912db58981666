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
  for (long i0 = 0; i0 < 16; i0++) {
    #pragma omp simd
    for (long i1 = 0; i1 < 64; i1++) {
      s0[(i0 + 16 * i1)] = a0[(64 * i0 + i1)];
    }
  }
  for (long i2 = 0; i2 < 6; i2++) {
    long o1[6];
    for (long r = 0; r < 6; r++) {
      const long i3 = tc_min(6 * i2 + r, 31);
      o1[r] = 64 * i3;
    }
    tc_tile_f32_6x16_8(1, 1, 64, 0, 0, 1, a1, o1, s0 + 0, 16, v0 + 0, 0);
    for (long i4 = 0; i4 < tc_min(6, (-6 * i2 + 32)); i4++) {
      #pragma omp simd
      for (long i5 = 0; i5 < 16; i5++) {
        const float t1 = v0[(16 * i4 + i5)];
        const float t2 = a2[i5];
        const float t3 = (t1 + t2);
        const _Bool t4 = ((t3 < 0.0f) | (t3 == 0.0f));
        a3[(96 * i2 + 16 * i4 + i5)] = (t4 ? 0.0f : t3);
      }
    }
  }
}
