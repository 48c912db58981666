static void k0_gather(void *task, long chunk, long worker) {
  void **p = ((tc_task *)task)->p;
  const tinyc_rt *rt = ((tc_task *)task)->rt;
  char *scratch = rt->scratch + worker * rt->scratch_stride;
  long *status = rt->status;
  (void)p, (void)scratch, (void)status, (void)chunk;
  long *restrict a0 = (long *)p[0];
  float *restrict a1 = (float *)p[1];
  float *restrict a2 = (float *)p[2];
  for (long i0 = 0; i0 < 5; i0++) {
    long r0;
    r0 = tc_check(a0[i0], 10L, 1L, status);
    #pragma omp simd
    for (long i1 = 0; i1 < 16; i1++) {
      a2[(16 * i0 + i1)] = a1[(i1 + 16 * (long)(r0))];
    }
  }
}
static void k1_scatter_add(void *task, long chunk, long worker) {
  void **p = ((tc_task *)task)->p;
  const tinyc_rt *rt = ((tc_task *)task)->rt;
  char *scratch = rt->scratch + worker * rt->scratch_stride;
  long *status = rt->status;
  (void)p, (void)scratch, (void)status, (void)chunk;
  float *restrict a0 = (float *)p[0];
  long *restrict a1 = (long *)p[1];
  float *restrict a2 = (float *)p[2];
  #pragma omp simd
  for (long i0 = 0; i0 < 160; i0++) {
    a0[i0] = 0.0f;
  }
  for (long i1 = 0; i1 < 5; i1++) {
    long r0;
    r0 = tc_check(a1[i1], 10L, 2L, status);
    #pragma omp simd
    for (long i2 = 0; i2 < 16; i2++) {
      a0[(i2 + 16 * (long)(r0))] += a2[(16 * i1 + i2)];
    }
  }
}
