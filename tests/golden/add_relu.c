static void k0_where(void *task, long chunk, long worker) {
  void **p = ((tc_task *)task)->p;
  const tinyc_rt *rt = ((tc_task *)task)->rt;
  char *scratch = rt->scratch + worker * rt->scratch_stride;
  long *status = rt->status;
  (void)p, (void)scratch, (void)status, (void)chunk;
  float *restrict a0 = (float *)p[0];
  float *restrict a1 = (float *)p[1];
  float *restrict a2 = (float *)p[2];
  for (long i0 = 0; i0 < 33; i0++) {
    #pragma omp simd
    for (long i1 = 0; i1 < 50; i1++) {
      const float t0 = a0[(50 * i0 + i1)];
      const float t1 = a1[i1];
      const float t2 = (t0 + t1);
      const _Bool t3 = ((t2 < 0.0f) | (t2 == 0.0f));
      a2[(50 * i0 + i1)] = (t3 ? 0.0f : t2);
    }
  }
}
