// Runs CUDA C++ on a CPU: blocks one after another, a fiber for each thread of a block.
//
// A thread runs until it waits (at a barrier, or for the lanes of its warp) or ends; then the next
// one runs, so there are no data races, only orders: TC_EMULATE_BACKWARDS starts threads from the
// last one, and a kernel that lacks a barrier computes something else then. A barrier which not all
// living threads of a block, or of a warp, come to is reported. Accesses are those of C++, so the
// address sanitizer sees them.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sys/mman.h>
#include <ucontext.h>
#include <vector>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __shared__ static
#define __constant__
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __restrict__ __restrict

struct dim3 { unsigned x = 1, y = 1, z = 1; };
template <class T> struct __align__(2 * sizeof(T)) emulated2 { T x, y; };
template <class T> struct __align__(sizeof(T) > 4 ? 16 : 4 * sizeof(T)) emulated4 { T x, y, z, w; };
#define EMULATED_VECTORS(T, name) typedef emulated2<T> name##2; typedef emulated4<T> name##4
EMULATED_VECTORS(char, char); EMULATED_VECTORS(unsigned char, uchar);
EMULATED_VECTORS(short, short); EMULATED_VECTORS(unsigned short, ushort);
EMULATED_VECTORS(int, int); EMULATED_VECTORS(unsigned, uint);
EMULATED_VECTORS(long, long); EMULATED_VECTORS(unsigned long, ulong);
EMULATED_VECTORS(float, float); EMULATED_VECTORS(double, double);
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static inline int2 make_int2(int x, int y) { return {x, y}; }
static inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) {
  return {x, y, z, w};
}
static inline double2 make_double2(double x, double y) { return {x, y}; }

namespace emulator {

enum State : uint8_t { FRESH, READY, AT_BARRIER, AT_WARP, DONE };
constexpr int WARP = 32;
constexpr size_t STACK = 128 << 10;

struct Stack {
  char *base = (char *)mmap(nullptr, STACK, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
};
#if defined(__x86_64__)
typedef void *Context;
#else
typedef ucontext_t Context;
#endif
struct Asked { void *to; const void *from; int bytes; };
struct Fiber {
  Context at; char *stack; dim3 place; int number; State state;
  std::vector<Asked> asked;
  std::vector<std::vector<Asked>> groups;
};
struct Words { uint64_t lanes[WARP][3]; };
struct Warp { uint64_t slots[2][WARP]; Words words[2]; int arrived, alive; unsigned turn; };

static std::vector<Fiber> fibers;
static std::vector<Warp> warps;
static std::vector<char *> stacks;
static Context outside;
static Fiber *running;
static dim3 block_place, block_size, grid_size;
static int alive, arrived, true_count, last_count;
static char *dynamic;
static const char *kernel = "";
static void (*entry)(const uint64_t *);
static const uint64_t *arguments;
// What was wrong, for whoever launched: a launch that failed says so.
static char problem[256];

#if defined(__x86_64__)
asm(".text\n.local tinyc_emulator_switch\ntinyc_emulator_switch:\n"
    " push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n"
    " mov %rsp, (%rdi)\n mov %rsi, %rsp\n"
    " pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n ret\n");
extern "C" void tinyc_emulator_switch(void **from, void *to);
static inline void leave() { tinyc_emulator_switch(&running->at, outside); }
static inline void enter(Fiber &f) { running = &f; tinyc_emulator_switch(&outside, f.at); }
#else
static inline void leave() { swapcontext(&running->at, &outside); }
static inline void enter(Fiber &f) { running = &f; swapcontext(&outside, &f.at); }
#endif

static void release_block() {
  arrived = 0; last_count = true_count; true_count = 0;
  for (Fiber &f : fibers) if (f.state == AT_BARRIER) f.state = READY;
}

static void release_warp(int w) {
  warps[w].arrived = 0; warps[w].turn ^= 1;
  int end = std::min<int>(fibers.size(), (w + 1) * WARP);
  for (int i = w * WARP; i < end; i++) if (fibers[i].state == AT_WARP) fibers[i].state = READY;
}

static void begin() {
  entry(arguments);
  running->state = DONE;
  Warp &w = warps[running->number / WARP];
  alive--; w.alive--;
  if (arrived && arrived == alive) release_block();
  if (w.arrived && w.arrived == w.alive) release_warp(running->number / WARP);
  leave();
  abort();
}

static void prepare(Fiber &f) {
  if (stacks.empty()) stacks.push_back(Stack().base);
  f.stack = stacks.back();
  stacks.pop_back();
#if defined(__SANITIZE_ADDRESS__)
  // Of the thread that had it before: its first function never returns.
  ASAN_UNPOISON_MEMORY_REGION(f.stack, STACK);
#endif
#if defined(__x86_64__)
  void **top = (void **)(f.stack + STACK - 64);
  *--top = nullptr;
  *--top = (void *)begin;
  for (int k = 0; k < 6; k++) *--top = nullptr;
  f.at = top;
#else
  getcontext(&f.at);
  f.at.uc_stack.ss_sp = f.stack;
  f.at.uc_stack.ss_size = STACK;
  f.at.uc_link = nullptr;
  makecontext(&f.at, begin, 0);
#endif
}

// Waits for the threads of the block; a predicate is counted over all of them.
static inline int barrier(int predicate = 0) {
  running->state = AT_BARRIER;
  true_count += predicate != 0;
  if (++arrived == alive) release_block();
  leave();
  return last_count;
}

static inline void warp_barrier() {
  Warp &w = warps[running->number / WARP];
  running->state = AT_WARP;
  if (++w.arrived == w.alive) release_warp(running->number / WARP);
  leave();
}

// The value that another lane of the warp has, once all lanes are here; an own one from outside.
template <class T> static inline T exchanged(T value, int source, int width) {
  static_assert(sizeof(T) <= 8, "of a register pair at most");
  int lane = running->number % WARP;
  Warp &w = warps[running->number / WARP];
  unsigned turn = w.turn;
  memcpy(&w.slots[turn][lane], &value, sizeof(T));
  warp_barrier();
  int first = lane & ~(width - 1);
  if (source < first || source >= first + width) return value;
  T found;
  memcpy(&found, &w.slots[turn][source], sizeof(T));
  return found;
}

// What all lanes of the warp have given, once all of them are here.
static inline const Words &exchanged_words(uint64_t x, uint64_t y = 0, uint64_t z = 0) {
  Warp &w = warps[running->number / WARP];
  Words &all = w.words[w.turn];
  uint64_t *mine = all.lanes[running->number % WARP];
  mine[0] = x; mine[1] = y; mine[2] = z;
  warp_barrier();
  return all;
}

// 0, or 1 where threads wait for ever.
static int run_block(bool backwards) {
  int n = fibers.size();
  alive = n; arrived = true_count = 0;
  for (size_t w = 0; w < warps.size(); w++)
    warps[w] = Warp{{}, {}, 0, std::min(WARP, n - (int)w * WARP), 0};
  problem[0] = 0;
  for (int i = 0; i < n; i++) {
    unsigned x = block_size.x, y = block_size.y;
    fibers[i].place = {i % x, i / x % y, i / (x * y)};
    fibers[i].number = i;
    fibers[i].state = FRESH;
    fibers[i].asked.clear();
    fibers[i].groups.clear();
  }
  while (alive) {
    bool moved = false;
    for (int k = 0; k < n; k++) {
      Fiber &f = fibers[backwards ? n - 1 - k : k];
      if (f.state != FRESH && f.state != READY) continue;
      if (f.state == FRESH) prepare(f);
      f.state = READY;
      moved = true;
      enter(f);
      if (f.state == DONE) stacks.push_back(f.stack);
    }
    if (problem[0]) return 1;
    if (moved) continue;
    snprintf(problem, sizeof problem,
             "%s: divergent barrier: %d of %d threads wait for the others in block %u", kernel,
             arrived, alive, block_place.x);
    for (Fiber &f : fibers) if (f.state != DONE) stacks.push_back(f.stack);
    return 1;
  }
  return 0;
}

static int launch(const char *name, void (*code)(const uint64_t *), const unsigned *grid,
                  const unsigned *block, unsigned shared, const uint64_t *values) {
  static bool backwards = getenv("TC_EMULATE_BACKWARDS") != nullptr;
  kernel = name; entry = code; arguments = values;
  grid_size = {grid[0], grid[1], grid[2]};
  block_size = {block[0], block[1], block[2]};
  int n = block[0] * block[1] * block[2];
  fibers.resize(n);
  warps.resize((n + WARP - 1) / WARP);
  std::vector<char> memory(shared + 128);
  dynamic = (char *)(((uintptr_t)memory.data() + 127) & ~(uintptr_t)127);
  for (block_place.z = 0; block_place.z < grid[2]; block_place.z++)
    for (block_place.y = 0; block_place.y < grid[1]; block_place.y++)
      for (block_place.x = 0; block_place.x < grid[0]; block_place.x++)
        if (run_block(backwards)) return 1;
  return 0;
}

}  // namespace emulator

extern "C" const char *emulator_problem() { return emulator::problem; }

#define threadIdx (emulator::running->place)
#define blockIdx (emulator::block_place)
#define blockDim (emulator::block_size)
#define gridDim (emulator::grid_size)
#define warpSize 32
#define __syncthreads() ((void)emulator::barrier())
#define __syncthreads_or(p) (emulator::barrier(p) != 0)
#define __syncthreads_count(p) emulator::barrier(p)
#define __syncwarp(...) emulator::warp_barrier()
#define __threadfence() ((void)0)
#define __threadfence_block() ((void)0)

static inline int emulated_lane() { return emulator::running->number % emulator::WARP; }
template <class T> static inline T __shfl_sync(unsigned, T v, int source, int width = 32) {
  return emulator::exchanged(v, (emulated_lane() & ~(width - 1)) + (source & (width - 1)), width);
}
template <class T> static inline T __shfl_down_sync(unsigned, T v, int by, int width = 32) {
  return emulator::exchanged(v, emulated_lane() + by, width);
}
template <class T> static inline T __shfl_up_sync(unsigned, T v, int by, int width = 32) {
  return emulator::exchanged(v, emulated_lane() - by, width);
}
template <class T> static inline T __shfl_xor_sync(unsigned, T v, int mask, int width = 32) {
  return emulator::exchanged(v, emulated_lane() ^ mask, width);
}

template <class T> static inline T atomicAdd(T *p, T v) { T old = *p; *p = old + v; return old; }
template <class T> static inline T atomicMax(T *p, T v) {
  T old = *p;
  if (old < v) *p = v;
  return old;
}
template <class T> static inline T atomicMin(T *p, T v) {
  T old = *p;
  if (v < old) *p = v;
  return old;
}
template <class T> static inline T atomicOr(T *p, T v) { T old = *p; *p = old | v; return old; }
template <class T> static inline T atomicExch(T *p, T v) { T old = *p; *p = v; return old; }
template <class T> static inline T atomicCAS(T *p, T expected, T v) {
  T old = *p;
  if (old == expected) *p = v;
  return old;
}
static inline unsigned atomicInc(unsigned *p, unsigned last) {
  unsigned old = *p;
  *p = old >= last ? 0 : old + 1;
  return old;
}

// Instructions of warps that kernels use by name (tinyc/codegen/mma.py): who has which number is
// what the PTX ISA says of ldmatrix and of mma.
static inline float emulated_tf32(float x) {
  unsigned bits;
  memcpy(&bits, &x, 4);
  bits = (bits + 0x1000) & 0xffffe000u;
  memcpy(&x, &bits, 4);
  return x;
}
static inline float emulated_bf16(unsigned short x) {
  const unsigned bits = (unsigned)x << 16;
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
static inline float emulated_f16(unsigned short x) {
  _Float16 value;
  memcpy(&value, &x, 2);
  return (float)value;
}
// Register n of a lane has two neighbours of line lane / 4 of matrix n, or of a column where turned.
template <bool TURNED>
static inline void tc_matrices(unsigned &r0, unsigned &r1, unsigned &r2, unsigned &r3,
                               const unsigned short *p) {
  unsigned *r[4] = {&r0, &r1, &r2, &r3};
  const int lane = emulated_lane();
  const unsigned short *lines[4][8];
  if ((uintptr_t)p % 16) snprintf(emulator::problem, sizeof emulator::problem,
                                  "%s: a line of ldmatrix is not aligned", emulator::kernel);
  const emulator::Words &all = emulator::exchanged_words((uint64_t)(uintptr_t)p);
  for (int n = 0; n < 4; n++)
    for (int k = 0; k < 8; k++) lines[n][k] = (const unsigned short *)all.lanes[8 * n + k][0];
  for (int n = 0; n < 4; n++) {
    const int line = lane / 4, at = lane % 4 * 2;
    const unsigned low = TURNED ? lines[n][at][line] : lines[n][line][at];
    const unsigned high = TURNED ? lines[n][at + 1][line] : lines[n][line][at + 1];
    *r[n] = low | high << 16;
  }
}
static inline unsigned tc_tf32(float x) {
  x = emulated_tf32(x);
  unsigned bits;
  memcpy(&bits, &x, 4);
  return bits;
}
static inline float emulated_number_tf32(unsigned word, int) {
  float value;
  memcpy(&value, &word, 4);
  return value;
}
static inline float emulated_number_bf16(unsigned word, int half) {
  return emulated_bf16(word >> 16 * half);
}
static inline float emulated_number_f16(unsigned word, int half) {
  return emulated_f16(word >> 16 * half);
}
// c[0..1] are two neighbours of row lane / 4 of 16 x 8 sums, c[2..3] those eight rows below. A
// register of an operand has `PACKED` points of the depth.
#define EMULATED_MMA(kind, PACKED)                                                               \
  static inline void tc_multiply_##kind(float *c, const unsigned *x, const unsigned *y) {        \
    const emulator::Words &all = emulator::exchanged_words(                                      \
        (uint64_t)x[0] << 32 | x[1], (uint64_t)x[2] << 32 | x[3], (uint64_t)y[0] << 32 | y[1]);  \
    const int lane = emulated_lane();                                                            \
    for (int r = 0; r < 4; r++) {                                                                \
      const int row = lane / 4 + 8 * (r / 2), column = lane % 4 * 2 + r % 2;                     \
      float sum = 0;                                                                             \
      for (int k = 0; k < 8 * PACKED; k++) {                                                     \
        const int far = k / (4 * PACKED), quad = k / PACKED % 4, half = k % PACKED;              \
        const uint64_t *a = all.lanes[row % 8 * 4 + quad], *b = all.lanes[column * 4 + quad];    \
        sum += emulated_number_##kind(a[far] >> (row < 8 ? 32 : 0), half) *                      \
               emulated_number_##kind(b[2] >> (far ? 0 : 32), half);                             \
      }                                                                                          \
      c[r] += sum;                                                                               \
    }                                                                                            \
  }
EMULATED_MMA(tf32, 1)
EMULATED_MMA(bf16, 2)
EMULATED_MMA(f16, 2)

// Asynchronous stores (tinyc/codegen/cuda.py) happen as late as they may: where the thread waits.
// Until then there is NaN.
template <int BYTES> static inline void tc_copy(void *to, const void *from, bool there) {
  static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "what cp.async copies");
  if ((uintptr_t)to % BYTES || (there && (uintptr_t)from % BYTES))
    snprintf(emulator::problem, sizeof emulator::problem, "%s: a copy of %d bytes is not aligned",
             emulator::kernel, BYTES);
  memset(to, 0xff, BYTES);
  emulator::running->asked.push_back({to, there ? from : nullptr, BYTES});
}
template <int PENDING> static inline void tc_await() {
  emulator::Fiber &f = *emulator::running;
  f.groups.push_back(std::move(f.asked));
  f.asked.clear();
  while (f.groups.size() > PENDING) {
    for (const emulator::Asked &c : f.groups.front())
      if (c.from) memcpy(c.to, c.from, c.bytes);
      else memset(c.to, 0, c.bytes);
    f.groups.erase(f.groups.begin());
  }
}

template <class T> static inline T __ldg(const T *p) { return *p; }
template <class To, class From> static inline To emulated_bits(From x) {
  To y;
  memcpy(&y, &x, sizeof y);
  return y;
}
static inline int __float_as_int(float x) { return emulated_bits<int>(x); }
static inline unsigned __float_as_uint(float x) { return emulated_bits<unsigned>(x); }
static inline float __int_as_float(int x) { return emulated_bits<float>(x); }
static inline float __uint_as_float(unsigned x) { return emulated_bits<float>(x); }
static inline long long __double_as_longlong(double x) { return emulated_bits<long long>(x); }
static inline double __longlong_as_double(long long x) { return emulated_bits<double>(x); }
