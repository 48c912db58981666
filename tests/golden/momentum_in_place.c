static void k0_add_sub(void *task, long chunk, long worker) {
  void **p = ((tc_task *)task)->p;
  const tinyc_rt *rt = ((tc_task *)task)->rt;
  char *scratch = rt->scratch + worker * rt->scratch_stride;
  long *status = rt->status;
  (void)p, (void)scratch, (void)status, (void)chunk;
  float *restrict a0 = (float *)p[0];
  float *restrict a1 = (float *)p[1];
  float *restrict a2 = (float *)p[2];
  #pragma omp simd
  for (long i0 = 0; i0 < 1000; i0++) {
    a0[i0] = ((a0[i0] * 0.9f) + a1[i0]);
    a2[i0] = (a2[i0] - (a0[i0] * 0.1f));
  }
}
