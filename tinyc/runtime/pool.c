/* A persistent pool of threads for the parallel loops of generated programs.
 *
 * A loop of n chunks is cut into one range for each thread. A thread claims its own range from the
 * front; when that is empty it steals from the backs of the others. So chunks stay on the core
 * that had them in the loop before, and the caller never waits for a thread that the machine has
 * not scheduled: it takes that thread's chunks itself. Idle threads spin for a while, then sleep.
 *
 * A slot's ticket is generation:32 | end:16 | begin:16, changed by compare-and-swap only.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#ifdef __linux__
#include <linux/futex.h>
#include <sys/syscall.h>
#endif

#define MAX_THREADS 256
#define MAX_RANGE 65535
#define SPINS 4000
#define YIELD_AFTER 2000

#if defined(__x86_64__) || defined(__i386__)
#define PAUSE() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define PAUSE() __asm__ __volatile__("yield")
#else
#define PAUSE() ((void)0)
#endif

typedef void (*task_fn)(void *context, long chunk, long worker);

/* All that a thread reads to take part in a loop, in one cache line. */
typedef struct {
    _Alignas(64) uint64_t ticket;
    task_fn fn;
    void *context;
    long base;
    long threads;
    uint32_t wakeups;
    int sleeping;
} slot;

static slot slots[MAX_THREADS];
static _Alignas(64) long finished;
static _Alignas(64) int busy;
static uint32_t generation;
static long wanted = 1, started = 1;
static __thread long self;

#ifdef __linux__
static void sleep_while(slot *s, uint32_t seen) {
    syscall(SYS_futex, &s->wakeups, FUTEX_WAIT_PRIVATE, seen, 0, 0, 0);
}
static void wake(slot *s) {
    syscall(SYS_futex, &s->wakeups, FUTEX_WAKE_PRIVATE, 1, 0, 0, 0);
}
#else
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
static void sleep_while(slot *s, uint32_t seen) {
    pthread_mutex_lock(&mutex);
    while (__atomic_load_n(&s->wakeups, __ATOMIC_SEQ_CST) == seen)
        pthread_cond_wait(&condition, &mutex);
    pthread_mutex_unlock(&mutex);
}
static void wake(slot *s) {
    (void)s;
    pthread_mutex_lock(&mutex);
    pthread_cond_broadcast(&condition);
    pthread_mutex_unlock(&mutex);
}
#endif

/* Claims a chunk of this generation, from the front (own range) or the back; -1 if none is left. */
static long claim(slot *s, uint32_t gen, int back) {
    uint64_t ticket = __atomic_load_n(&s->ticket, __ATOMIC_ACQUIRE);
    for (;;) {
        uint32_t end = ticket >> 16 & 0xffff, begin = ticket & 0xffff;
        if ((uint32_t)(ticket >> 32) != gen || begin >= end)
            return -1;
        uint64_t next = back ? ticket - 0x10000 : ticket + 1;
        if (__atomic_compare_exchange_n(&s->ticket, &ticket, next, 1, __ATOMIC_ACQ_REL,
                                        __ATOMIC_ACQUIRE))
            return back ? end - 1 : begin;
    }
}

long tc_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000L + t.tv_nsec;
}

/* What threads did of parallel loops, for whoever asked for it: thread, start, end, chunks. */
static struct { long *rows, capacity, used; } record;

static void note_share(long worker, long start, long count) {
    long row = __atomic_fetch_add(&record.used, 1, __ATOMIC_RELAXED);
    if (row < record.capacity) {
        long *r = record.rows + 4 * row;
        r[0] = worker, r[1] = start, r[2] = tc_now(), r[3] = count;
    }
}

/* Writes shares to `rows` from now on, at most `capacity` of them; nowhere if it is null.
 * Returns how many there were since the last call. */
long tc_record(long *rows, long capacity) {
    long used = record.used < record.capacity ? record.used : record.capacity;
    record.rows = rows, record.capacity = capacity, record.used = 0;
    return used;
}

/* Runs chunks until no thread has any left. Only a claim makes reading the slot safe: the loop
 * can't end, and the slot can't be filled anew, before what was claimed is counted as finished. */
static void work(long worker, uint32_t gen, long threads) {
    long count = 0, chunk, start = record.rows ? tc_now() : 0;
    for (long i = 0; i < threads; i++) {
        long victim = worker + i < threads ? worker + i : worker + i - threads;
        slot *s = &slots[victim];
        while ((chunk = claim(s, gen, i > 0)) >= 0) {
            s->fn(s->context, s->base + chunk, worker);
            count++;
        }
    }
    if (count && start)
        note_share(worker, start, count);
    if (count)
        __atomic_add_fetch(&finished, count, __ATOMIC_ACQ_REL);
}

static void doze(slot *s, uint32_t seen) {
    uint32_t wakeups = __atomic_load_n(&s->wakeups, __ATOMIC_SEQ_CST);
    __atomic_store_n(&s->sleeping, 1, __ATOMIC_SEQ_CST);
    if ((uint32_t)(__atomic_load_n(&s->ticket, __ATOMIC_SEQ_CST) >> 32) == seen)
        sleep_while(s, wakeups);
    __atomic_store_n(&s->sleeping, 0, __ATOMIC_SEQ_CST);
}

static void *thread_main(void *argument) {
    self = (long)(intptr_t)argument;
    slot *s = &slots[self];
    uint32_t seen = 0;
    for (int spins = 0;;) {
        uint32_t gen = __atomic_load_n(&s->ticket, __ATOMIC_ACQUIRE) >> 32;
        if (gen != seen) {
            work(self, gen, __atomic_load_n(&s->threads, __ATOMIC_RELAXED));
            seen = gen;
            spins = 0;
        } else if (++spins < SPINS) {
            PAUSE();
        } else {
            doze(s, seen);
            spins = 0;
        }
    }
    return 0;
}

/* Threads block all signals, so that Ctrl-C always reaches Python. */
static void start_threads(void) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (started < wanted) {
        pthread_t thread;
        memset(&slots[started], 0, sizeof(slot));
        if (pthread_create(&thread, 0, thread_main, (void *)(intptr_t)started))
            wanted = started;
        else {
            pthread_detach(thread);
            started++;
        }
    }
    pthread_sigmask(SIG_SETMASK, &before, 0);
}

static void post(slot *s, task_fn fn, void *context, long base, long threads, uint64_t ticket) {
    s->fn = fn;
    s->context = context;
    s->base = base;
    __atomic_store_n(&s->threads, threads, __ATOMIC_RELAXED);
    __atomic_store_n(&s->ticket, ticket, __ATOMIC_SEQ_CST);
}

static void run_range(task_fn fn, void *context, long base, long n) {
    long threads = n < wanted ? n : wanted;
    /* Zero is what a new thread has seen. */
    uint32_t gen = ++generation ? generation : ++generation;
    __atomic_store_n(&finished, 0, __ATOMIC_RELAXED);
    for (long t = threads - 1; t >= 0; t--) {
        uint64_t begin = n * t / threads, end = n * (t + 1) / threads;
        post(&slots[t], fn, context, base, threads, (uint64_t)gen << 32 | end << 16 | begin);
        if (t && __atomic_load_n(&slots[t].sleeping, __ATOMIC_SEQ_CST)) {
            __atomic_add_fetch(&slots[t].wakeups, 1, __ATOMIC_SEQ_CST);
            wake(&slots[t]);
        }
    }
    work(0, gen, threads);
    for (int spins = 0; __atomic_load_n(&finished, __ATOMIC_ACQUIRE) != n;) {
        PAUSE();
        if (++spins > YIELD_AFTER) {
            sched_yield();
            spins = 0;
        }
    }
}

/* Runs fn(context, chunk, worker) for every chunk below n; 0 <= worker < the number of threads.
 * A call from inside a chunk, or beside another call, runs its chunks one after the other. */
void tc_par(task_fn fn, void *context, long n) {
    if (n <= 1 || wanted <= 1 || __atomic_exchange_n(&busy, 1, __ATOMIC_ACQUIRE)) {
        for (long chunk = 0; chunk < n; chunk++)
            fn(context, chunk, self);
        return;
    }
    if (started < wanted)
        start_threads();
    for (long base = 0; base < n; base += MAX_RANGE)
        run_range(fn, context, base, n - base < MAX_RANGE ? n - base : MAX_RANGE);
    __atomic_store_n(&busy, 0, __ATOMIC_RELEASE);
}

/* Sets how many threads take part, the caller among them; returns the number in force. */
long tc_set_threads(long n) {
    wanted = n < 1 ? 1 : n > MAX_THREADS ? MAX_THREADS : n;
    return wanted;
}

/* A forked child has none of its parent's threads; it starts its own when it needs them. */
static void forget_threads(void) {
    started = 1;
    busy = 0;
    memset(slots, 0, sizeof slots);
#ifndef __linux__
    pthread_mutex_init(&mutex, 0);
    pthread_cond_init(&condition, 0);
#endif
}

__attribute__((constructor)) static void prepare(void) { pthread_atfork(0, 0, forget_threads); }
