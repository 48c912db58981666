/* A libcuda.so.1 whose one GPU is the emulator: what PyCUDA, cuda-bindings and our own calls of the
   driver's library are run against where there is no driver. A module's image is a library that
   emulated_cuda.py has compiled. Calls outside of a context, copies beyond what was allocated, and
   launches beyond the limits fail as they do on a GPU. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define SHARED (227 << 10)
#define MEMORY (1l << 30)
enum { DONE = 0, INVALID = 1, OUT_OF_MEMORY = 2, NO_IMAGE = 200, NO_CONTEXT = 201, NOT_FOUND = 500,
       ILLEGAL = 700, FAILED = 719, NOT_SUPPORTED = 801, CAPTURING = 900 };

typedef struct Function {
  int (*run)(const unsigned *, const unsigned *, unsigned, const uint64_t *);
  int threads, arguments;
} Function;
typedef struct Node {
  Function *function;
  unsigned grid[3], block[3], shared;
  uint64_t values[256];
  struct Node *next;
} Node;
typedef struct { Node *first, *last; } Graph;
/* CUDA_KERNEL_NODE_PARAMS, first version */
typedef struct {
  void *function;
  unsigned grid[3], block[3], shared;
  void **arguments;
  void **extra;
} Params;
typedef struct Range { uint64_t start; size_t size; struct Range *next; } Range;

static __thread int depth;
static Range *ranges;
static size_t allocated;
static Graph *capturing;
static int broken;
static int stream_, context_;

#define IN_CONTEXT if (!depth) return NO_CONTEXT; if (broken) return broken

int cuInit(unsigned flags) { return flags ? INVALID : DONE; }
/* NVRTC asks for it. */
int cuGetExportTable(const void **table, const void *id) { *table = NULL; return NOT_FOUND; }
int cuDriverGetVersion(int *v) { *v = 13000; return DONE; }
int cuDeviceGetCount(int *n) { *n = 1; return DONE; }
int cuDeviceGet(int *device, int n) { *device = n; return n ? 101 : DONE; }
int cuDeviceGetName(char *name, int n, int device) {
  snprintf(name, n, "an emulated GPU");
  return DONE;
}
int cuDeviceTotalMem_v2(size_t *n, int device) { *n = MEMORY; return DONE; }
int cuDeviceComputeCapability(int *major, int *minor, int device) {
  *major = 9, *minor = 0;
  return DONE;
}
int cuDeviceGetAttribute(int *v, int what, int device) {
  *v = what == 75 ? 9 : what == 76 ? 0 : what == 97 ? SHARED : what == 16 ? 3 : what == 10 ? 32 : 0;
  return DONE;
}
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = &context_; return DONE; }
int cuDevicePrimaryCtxRelease_v2(int device) { return DONE; }
int cuCtxPushCurrent_v2(void *context) { depth++; return DONE; }
int cuCtxPopCurrent_v2(void **context) {
  if (context) *context = &context_;
  return depth-- > 0 ? DONE : NO_CONTEXT;
}
int cuCtxGetCurrent(void **context) { *context = depth ? &context_ : NULL; return DONE; }
int cuCtxGetDevice(int *device) { *device = 0; return depth ? DONE : NO_CONTEXT; }
int cuCtxSynchronize(void) { IN_CONTEXT; return DONE; }

int cuMemAlloc_v2(uint64_t *address, size_t n) {
  IN_CONTEXT;
  if (!n) return INVALID;
  if (allocated + n > MEMORY) return OUT_OF_MEMORY;
  Range *made = malloc(sizeof *made);
  *made = (Range){(uint64_t)aligned_alloc(256, (n + 255) / 256 * 256), n, ranges};
  memset((void *)made->start, 0xff, n);
  ranges = made;
  allocated += n;
  *address = made->start;
  return DONE;
}
int cuMemFree_v2(uint64_t address) {
  IN_CONTEXT;
  for (Range **at = &ranges; *at; at = &(*at)->next)
    if ((*at)->start == address) {
      Range *gone = *at;
      *at = gone->next;
      allocated -= gone->size;
      free((void *)address);
      free(gone);
      return DONE;
    }
  return INVALID;
}
int cuMemHostAlloc(void **p, size_t n, unsigned flags) { IN_CONTEXT; *p = malloc(n); return DONE; }
int cuMemAllocHost_v2(void **p, size_t n) { return cuMemHostAlloc(p, n, 0); }
int cuMemFreeHost(void *p) { free(p); return DONE; }

static int inside(uint64_t address, size_t n) {
  for (Range *r = ranges; r; r = r->next)
    if (address >= r->start && address + n <= r->start + r->size) return 1;
  return 0;
}
static int copied(void *to, const void *from, size_t n, void *stream) {
  IN_CONTEXT;
  if (stream != &stream_) return INVALID;
  if (capturing) return CAPTURING;
  memcpy(to, from, n);
  return DONE;
}
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t n, void *stream) {
  return inside(to, n) ? copied((void *)to, from, n, stream) : INVALID;
}
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t n, void *stream) {
  return inside(from, n) ? copied(to, (void *)from, n, stream) : INVALID;
}
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t n, void *stream) {
  return inside(to, n) && inside(from, n) ? copied((void *)to, (void *)from, n, stream) : INVALID;
}

int cuStreamCreate(void **stream, unsigned flags) { IN_CONTEXT; *stream = &stream_; return DONE; }
int cuStreamDestroy_v2(void *stream) { return DONE; }
int cuStreamSynchronize(void *stream) {
  IN_CONTEXT;
  return capturing ? CAPTURING : stream == &stream_ ? DONE : INVALID;
}
int cuEventCreate(void **event, unsigned flags) { IN_CONTEXT; *event = calloc(1, 8); return DONE; }
int cuEventDestroy_v2(void *event) { free(event); return DONE; }
int cuEventRecord(void *event, void *stream) {
  struct timespec t;
  IN_CONTEXT;
  clock_gettime(CLOCK_MONOTONIC, &t);
  *(double *)event = t.tv_sec * 1e3 + t.tv_nsec / 1e6;
  return stream == &stream_ ? DONE : INVALID;
}
int cuEventQuery(void *event) { return DONE; }
int cuEventSynchronize(void *event) { IN_CONTEXT; return DONE; }
int cuEventElapsedTime(float *ms, void *first, void *second) {
  IN_CONTEXT;
  *ms = *(double *)second - *(double *)first;
  return DONE;
}
int cuEventElapsedTime_v2(float *ms, void *first, void *second) {
  return cuEventElapsedTime(ms, first, second);
}

int cuModuleLoadData(void **module, const void *image) {
  IN_CONTEXT;
  const Elf64_Ehdr *head = image;
  if (memcmp(image, ELFMAG, SELFMAG)) return NO_IMAGE;
  size_t size = head->e_shoff + (size_t)head->e_shnum * head->e_shentsize;
  char path[] = "/tmp/tinyc-module-XXXXXX";
  int file = mkstemp(path);
  if (write(file, image, size) != (ssize_t)size) return NO_IMAGE;
  close(file);
  *module = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  unlink(path);
  return *module ? DONE : NO_IMAGE;
}
int cuModuleLoadDataEx(void **module, const void *image, unsigned n, void *options, void **values) {
  return cuModuleLoadData(module, image);
}
int cuModuleUnload(void *module) { return DONE; }
static long number(void *module, const char *what, const char *name) {
  char symbol[256];
  snprintf(symbol, sizeof symbol, "%s_%s", what, name);
  int (*found)(void) = dlsym(module, symbol);
  return found ? found() : -1;
}
int cuModuleGetFunction(void **function, void *module, const char *name) {
  IN_CONTEXT;
  char symbol[256];
  snprintf(symbol, sizeof symbol, "run_%s", name);
  Function made = {dlsym(module, symbol), number(module, "most", name),
                   number(module, "arguments", name)};
  if (!made.run) return NOT_FOUND;
  *function = memcpy(malloc(sizeof made), &made, sizeof made);
  return DONE;
}
int cuFuncSetAttribute(void *function, int what, int value) {
  IN_CONTEXT;
  return what == 8 && value <= SHARED ? DONE : INVALID;
}
int cuFuncSetBlockShape(void *function, int x, int y, int z) { IN_CONTEXT; return DONE; }
int cuCtxDetach(void *context) { return DONE; }
int cuFuncGetAttribute(int *value, int what, void *function) { *value = 0; return DONE; }

static int run(const Node *n) {
  if (n->function->run(n->grid, n->block, n->shared, n->values)) return broken = FAILED;
  return DONE;
}
static int gather(Node *node, void **arguments, void **extra) {
  if (arguments) {
    for (int i = 0; i < node->function->arguments; i++)
      node->values[i] = *(uint64_t *)arguments[i];
    return DONE;
  }
  for (; extra && *extra; extra += 2)
    if (*extra == (void *)1)
      memcpy(node->values, extra[1], 8 * node->function->arguments);
  return extra ? DONE : INVALID;
}
int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                   unsigned bz, unsigned shared, void *stream, void **arguments, void **extra) {
  IN_CONTEXT;
  Function *f = function;
  if (!gx || !bx || bx * by * bz > (unsigned)f->threads || shared > SHARED) return INVALID;
  if (stream != &stream_) return INVALID;
  Node node = {f, {gx, gy, gz}, {bx, by, bz}, shared, {0}, NULL};
  int problem = gather(&node, arguments, extra);
  if (problem) return problem;
  if (!capturing) return run(&node);
  Node *kept = memcpy(malloc(sizeof node), &node, sizeof node);
  *(capturing->last ? &capturing->last->next : &capturing->first) = kept;
  capturing->last = kept;
  return DONE;
}

int cuStreamBeginCapture_v2(void *stream, int mode) {
  IN_CONTEXT;
  if (getenv("TC_WITHOUT_GRAPHS")) return NOT_SUPPORTED;
  capturing = calloc(1, sizeof *capturing);
  return DONE;
}
int cuStreamEndCapture(void *stream, void **graph) {
  IN_CONTEXT;
  *graph = capturing;
  capturing = NULL;
  return DONE;
}
static Graph *copy_of(const Graph *graph) {
  Graph *made = calloc(1, sizeof *made);
  for (Node *n = graph->first; n; n = n->next) {
    Node *copy = memcpy(malloc(sizeof *n), n, sizeof *n);
    copy->next = NULL;
    *(made->last ? &made->last->next : &made->first) = copy;
    made->last = copy;
  }
  return made;
}
int cuGraphInstantiateWithFlags(void **ready, void *graph, unsigned long long flags) {
  IN_CONTEXT;
  *ready = copy_of(graph);
  return DONE;
}
int cuGraphGetRootNodes(void *graph, void **nodes, size_t *n) {
  *n = ((Graph *)graph)->first != NULL;
  if (nodes) nodes[0] = ((Graph *)graph)->first;
  return DONE;
}
int cuGraphNodeGetDependentNodes(void *node, void **nodes, size_t *n) {
  *n = ((Node *)node)->next != NULL;
  if (nodes) nodes[0] = ((Node *)node)->next;
  return DONE;
}
int cuGraphKernelNodeGetParams(void *node, Params *params) {
  Node *n = node;
  *params = (Params){n->function, {n->grid[0], n->grid[1], n->grid[2]},
                     {n->block[0], n->block[1], n->block[2]}, n->shared, NULL, (void **)8};
  return DONE;
}
/* The node is the graph's, and stands at the same place as that of what is ready. */
int cuGraphExecKernelNodeSetParams(void *ready, void *node, const Params *params) {
  IN_CONTEXT;
  for (Node *n = ((Graph *)ready)->first; n; n = n->next)
    if (n->function == params->function &&
        !memcmp(n->values, ((Node *)node)->values, sizeof n->values)) {
      int problem = params->extra ? INVALID : gather(n, params->arguments, NULL);
      return problem ? problem : gather(node, params->arguments, NULL);
    }
  return INVALID;
}
int cuGraphLaunch(void *ready, void *stream) {
  IN_CONTEXT;
  int problem = DONE;
  for (Node *n = ((Graph *)ready)->first; n && !problem; n = n->next) problem = run(n);
  return problem;
}
static int destroyed(Graph *graph) {
  for (Node *n = graph->first, *next; n; n = next) next = n->next, free(n);
  free(graph);
  return DONE;
}
int cuGraphExecDestroy(void *ready) { return destroyed(ready); }
int cuGraphDestroy(void *graph) { return destroyed(graph); }

int cuGetErrorString(int code, const char **text) {
  *text = code == OUT_OF_MEMORY ? "out of memory" : code == FAILED ? "unspecified launch failure"
        : code == NO_IMAGE ? "device kernel image is invalid" : code == NO_CONTEXT
        ? "invalid device context" : code == NOT_SUPPORTED ? "operation not supported"
        : "invalid argument";
  return DONE;
}
int cuGetErrorName(int code, const char **text) { *text = "CUDA_ERROR"; return DONE; }
int cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags,
                        int *status) {
  static const char *forms[] = {"%s_v2", "%s"};
  char symbol[256];
  void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
  *function = NULL;
  for (int i = 0; i < 2 && !*function; i++) {
    snprintf(symbol, sizeof symbol, forms[i], name);
    *function = dlsym(library, symbol);
  }
  if (status) *status = *function ? 0 : 1;
  return DONE;
}
int cuGetProcAddress(const char *name, void **function, int version, uint64_t flags) {
  return cuGetProcAddress_v2(name, function, version, flags, NULL);
}
