/* Memory bandwidth on arrays of 64 Mi floats, with ordinary and with streaming stores: triad
   a = b + s*c, copy, fma y = a*b + c, and a sum. GB/s count the bytes that the program names
   (no write-allocate). Prints one JSON object. Usage: stream [threads] */
#include <immintrin.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>

#define N (64L << 20)
#define REPEATS 9

static float *a, *b, *c, *y;
static volatile float sink;

static int by_value(const void *p, const void *q) {
  double x = *(const double *)p, z = *(const double *)q;
  return x < z ? -1 : x > z;
}

static void fill(void) {
#pragma omp parallel for
  for (long i = 0; i < N; i++) { a[i] = 1; b[i] = 2; c[i] = 0.5f; y[i] = 0; }
}

static void triad(void) {
#pragma omp parallel for
  for (long i = 0; i < N; i++) a[i] = b[i] + 3.0f * c[i];
}

static void triad_nt(void) {
  __m256 s = _mm256_set1_ps(3.0f);
#pragma omp parallel for
  for (long i = 0; i < N; i += 8)
    _mm256_stream_ps(a + i, _mm256_fmadd_ps(s, _mm256_load_ps(c + i), _mm256_load_ps(b + i)));
}

static void copy(void) {
#pragma omp parallel for
  for (long i = 0; i < N; i += 8) _mm256_store_ps(a + i, _mm256_load_ps(b + i));
}

static void copy_nt(void) {
#pragma omp parallel for
  for (long i = 0; i < N; i += 8) _mm256_stream_ps(a + i, _mm256_load_ps(b + i));
}

static void fma4(void) {
#pragma omp parallel for
  for (long i = 0; i < N; i++) y[i] = a[i] * b[i] + c[i];
}

static void fma4_nt(void) {
#pragma omp parallel for
  for (long i = 0; i < N; i += 8)
    _mm256_stream_ps(y + i, _mm256_fmadd_ps(_mm256_load_ps(a + i), _mm256_load_ps(b + i),
                                            _mm256_load_ps(c + i)));
}

static void read_sum(void) {
  double total = 0;
#pragma omp parallel for reduction(+ : total)
  for (long block = 0; block < N / 65536; block++) {
    __m256 s0 = _mm256_setzero_ps(), s1 = s0, s2 = s0, s3 = s0;
    const float *p = b + block * 65536;
    for (long i = 0; i < 65536; i += 32) {
      s0 = _mm256_add_ps(s0, _mm256_load_ps(p + i));
      s1 = _mm256_add_ps(s1, _mm256_load_ps(p + i + 8));
      s2 = _mm256_add_ps(s2, _mm256_load_ps(p + i + 16));
      s3 = _mm256_add_ps(s3, _mm256_load_ps(p + i + 24));
    }
    float out[8];
    _mm256_storeu_ps(out, _mm256_add_ps(_mm256_add_ps(s0, s1), _mm256_add_ps(s2, s3)));
    for (int i = 0; i < 8; i++) total += out[i];
  }
  sink = (float)total;
}

static void measure(const char *name, double bytes, void (*run)(void)) {
  double rate[REPEATS];
  run();
  for (int repeat = 0; repeat < REPEATS; repeat++) {
    double start = omp_get_wtime();
    run();
    rate[repeat] = bytes / (omp_get_wtime() - start) / 1e9;
  }
  qsort(rate, REPEATS, sizeof(double), by_value);
  printf(",\"%s\":{\"min\":%.2f,\"median\":%.2f,\"max\":%.2f}", name, rate[0], rate[REPEATS / 2],
         rate[REPEATS - 1]);
}

int main(int argc, char **argv) {
  int threads = argc > 1 ? atoi(argv[1]) : 2;
  omp_set_num_threads(threads);
  a = aligned_alloc(64, N * 4);
  b = aligned_alloc(64, N * 4);
  c = aligned_alloc(64, N * 4);
  y = aligned_alloc(64, N * 4);
  if (!a || !b || !c || !y) return 1;
  fill();
  printf("{\"threads\":%d", threads);
  measure("triad", 12.0 * N, triad);
  measure("triad_nt", 12.0 * N, triad_nt);
  measure("copy", 8.0 * N, copy);
  measure("copy_nt", 8.0 * N, copy_nt);
  measure("fma4", 16.0 * N, fma4);
  measure("fma4_nt", 16.0 * N, fma4_nt);
  measure("read_sum", 4.0 * N, read_sum);
  printf("}\n");
  return 0;
}
