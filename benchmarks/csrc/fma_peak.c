/* Peak of fused multiply-adds: 12 independent float accumulators per thread, as wide as vectors are
   (16 with AVX-512, else 8). Prints one JSON object with GFLOP/s. Usage: fma_peak [threads] */
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>

#define CHAINS 12
#define REPEATS 9
#define STEPS 10000000L
#ifdef __AVX512F__
#define WIDTH 16
#else
#define WIDTH 8
#endif

typedef float vec __attribute__((vector_size(4 * WIDTH)));

static int by_value(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return x < y ? -1 : x > y;
}

/* The accumulators are named, not an array, so that every compiler keeps them in registers, and all
   start differently: of two that are always equal a compiler computes one. */
static float spin(void) {
  vec x = {0.9999999f}, y = {1e-7f};
  vec a = y, b = y + 1, c = y + 2, d = y + 3, e = y + 4, f = y + 5;
  vec g = y + 6, h = y + 7, i = y + 8, j = y + 9, k = y + 10, l = y + 11;
  for (long n = 0; n < STEPS; n++) {
    a = a * x + y; b = b * x + y; c = c * x + y; d = d * x + y; e = e * x + y; f = f * x + y;
    g = g * x + y; h = h * x + y; i = i * x + y; j = j * x + y; k = k * x + y; l = l * x + y;
  }
  vec sum = ((a + b) + (c + d)) + ((e + f) + (g + h)) + ((i + j) + (k + l));
  return sum[0];
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
    rate[repeat] = (double)threads * STEPS * CHAINS * WIDTH * 2 / (omp_get_wtime() - start) / 1e9;
  }
  qsort(rate, REPEATS, sizeof(double), by_value);
  printf("{\"threads\":%d,\"gflops_max\":%.2f,\"gflops_median\":%.2f,\"gflops_min\":%.2f}\n",
         threads, rate[REPEATS - 1], rate[REPEATS / 2], rate[0]);
  return sum == 12345.0f; /* uses the result, so that nothing is dropped */
}
