static void k0_pad(void *task, long chunk, long worker) {
  void **p = ((tc_task *)task)->p;
  const tinyc_rt *rt = ((tc_task *)task)->rt;
  char *scratch = rt->scratch + worker * rt->scratch_stride;
  long *status = rt->status;
  (void)p, (void)scratch, (void)status, (void)chunk;
  float *restrict a0 = (float *)p[0];
  float *restrict a1 = (float *)p[1];
  for (long i0 = 0; i0 < 3; i0++) {
    for (long i1 = 0; i1 < 22; i1++) {
      #pragma omp simd
      for (long i2 = 0; i2 < 22; i2++) {
        a1[(484 * i0 + 22 * i1 + i2)] = (((i1 - 1) >= 0 && (i1 - 1) < 20) && ((i2 - 1) >= 0 && (i2 - 1) < 20) ? a0[(400 * i0 + 20 * i1 + i2 - 21)] : 0);
      }
    }
  }
}
