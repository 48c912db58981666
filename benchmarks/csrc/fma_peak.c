/* Peak of fused multiply-adds: 12 independent 8-wide float accumulators per thread (AVX2, FMA).
   Prints one JSON object with GFLOP/s. Usage: fma_peak [threads] */
#include <immintrin.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>

#define CHAINS 12
#define REPEATS 9
#define STEPS 20000000L

static int by_value(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return x < y ? -1 : x > y;
}

/* The accumulators are named, not an array, so that every compiler keeps them in registers. */
static float spin(void) {
  __m256 x = _mm256_set1_ps(0.9999999f), y = _mm256_set1_ps(1e-7f);
  __m256 a = y, b = y, c = y, d = y, e = y, f = y, g = y, h = y, i = y, j = y, k = y, l = y;
  for (long n = 0; n < STEPS; n++) {
    a = _mm256_fmadd_ps(a, x, y); b = _mm256_fmadd_ps(b, x, y); c = _mm256_fmadd_ps(c, x, y);
    d = _mm256_fmadd_ps(d, x, y); e = _mm256_fmadd_ps(e, x, y); f = _mm256_fmadd_ps(f, x, y);
    g = _mm256_fmadd_ps(g, x, y); h = _mm256_fmadd_ps(h, x, y); i = _mm256_fmadd_ps(i, x, y);
    j = _mm256_fmadd_ps(j, x, y); k = _mm256_fmadd_ps(k, x, y); l = _mm256_fmadd_ps(l, x, y);
  }
  __m256 low = _mm256_add_ps(_mm256_add_ps(_mm256_add_ps(a, b), _mm256_add_ps(c, d)),
                             _mm256_add_ps(_mm256_add_ps(e, f), _mm256_add_ps(g, h)));
  __m256 high = _mm256_add_ps(_mm256_add_ps(i, j), _mm256_add_ps(k, l));
  float out[8];
  _mm256_storeu_ps(out, _mm256_add_ps(low, high));
  return out[0];
}

int main(int argc, char **argv) {
  int threads = argc > 1 ? atoi(argv[1]) : 1;
  double rate[REPEATS];
  float sum = 0;
  omp_set_num_threads(threads);
  for (int repeat = 0; repeat < REPEATS; repeat++) {
    double start = omp_get_wtime();
#pragma omp parallel reduction(+ : sum)
    sum += spin();
    rate[repeat] = (double)threads * STEPS * CHAINS * 8 * 2 / (omp_get_wtime() - start) / 1e9;
  }
  qsort(rate, REPEATS, sizeof(double), by_value);
  printf("{\"threads\":%d,\"gflops_max\":%.2f,\"gflops_median\":%.2f,\"gflops_min\":%.2f}\n",
         threads, rate[REPEATS - 1], rate[REPEATS / 2], rate[0]);
  return sum == 12345.0f; /* uses the result, so that nothing is dropped */
}
