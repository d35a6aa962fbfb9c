/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "co_storage.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

typedef enum op { OP_READ, OP_WRITE, OP_FLUSH } op;

/* One request. It is on its caller's stack until it is done. */
typedef struct request {
    host_storage *storage;
    op op;
    uint64_t offset;
    const struct iovec *iov;
    int iovcnt;
    size_t bytes;
    int ret;
    host_co *co;          /* NULL: the caller is not a coroutine, or does not yield */
    host_context *worker; /* its thread does the request */
    host_context *resume; /* NULL: the coroutine continues in the worker */
    host_timer *timer;
    struct request *next_in_flight;
    struct request *next_held;
} request;

struct host_storage {
    host_storage_config config;
    char *image;
    pthread_mutex_t mutex; /* the lists and hold */
    pthread_cond_t released;
    request *in_flight;
    request *held_first, **held_last;
    size_t n_held;
    atomic_bool hold; /* changed with the mutex held */
    uint64_t hold_round;
    _Atomic uint64_t tickets;
    _Atomic uint64_t fail_in;
    atomic_int fail_error;
    _Atomic uint64_t reads, writes, flushes, yields, moved;
};

/* ---- the work itself ---- */

/*
 * Accesses the table in atomic words. While a table is loaded or written, other threads may read
 * its words (q2c_cache_read, which detects that afterwards) or store one (q2c_cache_store).
 * ThreadSanitizer should report every other race.
 */
static void copy(op what, char *table, char *image, size_t n)
{
    uint64_t word;

    for (; n >= 8 && (uintptr_t)table % 8 == 0; table += 8, image += 8, n -= 8) {
        if (what == OP_READ) {
            memcpy(&word, image, 8);
            __atomic_store_n((uint64_t *)(void *)table, word, __ATOMIC_RELAXED);
        } else {
            word = __atomic_load_n((uint64_t *)(void *)table, __ATOMIC_RELAXED);
            memcpy(image, &word, 8);
        }
    }
    memcpy(what == OP_READ ? table : image, what == OP_READ ? image : table, n);
}

static int memory_io(host_storage *s, const request *r)
{
    char *at = s->image + r->offset;

    if (r->op == OP_FLUSH) {
        return 0;
    }
    if (r->offset > s->config.size || r->bytes > s->config.size - r->offset) {
        return -EIO;
    }
    for (int i = 0; i < r->iovcnt; i++) {
        copy(r->op, r->iov[i].iov_base, at, r->iov[i].iov_len);
        at += r->iov[i].iov_len;
    }
    return 0;
}

static ssize_t file_part(int fd, op what, char *p, size_t n, off_t at)
{
    ssize_t done = what == OP_READ ? pread(fd, p, n, at) : pwrite(fd, p, n, at);

    if (done == 0 && what == OP_READ) { /* past the end of the file */
        memset(p, 0, n);
        return (ssize_t)n;
    }
    return done;
}

static int file_io(int fd, const request *r)
{
    off_t at = (off_t)r->offset;

    if (r->op == OP_FLUSH) {
        return fdatasync(fd) ? -errno : 0;
    }
    for (int i = 0; i < r->iovcnt; i++) {
        char *p = r->iov[i].iov_base;
        size_t left = r->iov[i].iov_len;
        while (left) {
            ssize_t done = file_part(fd, r->op, p, left, at);
            if (done < 0 && errno != EINTR) {
                return -errno;
            }
            if (done > 0) {
                p += done;
                at += done;
                left -= (size_t)done;
            }
        }
    }
    return 0;
}

static void count(host_storage *s, op what)
{
    _Atomic uint64_t *counter = what == OP_READ    ? &s->reads
                                : what == OP_WRITE ? &s->writes
                                                   : &s->flushes;
    atomic_fetch_add_explicit(counter, 1, memory_order_relaxed);
}

static bool must_fail(host_storage *s)
{
    uint64_t n = atomic_load(&s->fail_in);

    while (n && !atomic_compare_exchange_weak(&s->fail_in, &n, n - 1)) {
    }
    return n == 1;
}

static void perform(request *r)
{
    host_storage *s = r->storage;

    count(s, r->op);
    if (must_fail(s)) {
        r->ret = -atomic_load(&s->fail_error);
    } else {
        r->ret = s->config.fd >= 0 ? file_io(s->config.fd, r) : memory_io(s, r);
    }
}

/* ---- requests in flight ---- */

/*
 * Under ThreadSanitizer there is no list. It finds two requests on the same bytes of memory by
 * itself, and a mutex that all requests take would hide races of the library from it.
 */
#ifdef HOST_TSAN
static const bool keep_list = false;
#else
static const bool keep_list = true;
#endif

static bool collide(const request *a, const request *b)
{
    if (a->op == OP_FLUSH || b->op == OP_FLUSH || (a->op == OP_READ && b->op == OP_READ)) {
        return false;
    }
    return a->offset < b->offset + b->bytes && b->offset < a->offset + a->bytes;
}

static void begin(request *r)
{
    host_storage *s = r->storage;

    if (!keep_list) {
        return;
    }
    pthread_mutex_lock(&s->mutex);
    for (request *o = s->in_flight; o; o = o->next_in_flight) {
        if (collide(r, o)) {
            host_die(
                "storage: a %s of %zu bytes at %llu while a %s of %zu bytes at %llu is in flight",
                r->op == OP_READ ? "read" : "write", r->bytes, (unsigned long long)r->offset,
                o->op == OP_READ ? "read" : "write", o->bytes, (unsigned long long)o->offset);
        }
    }
    r->next_in_flight = s->in_flight;
    s->in_flight = r;
    pthread_mutex_unlock(&s->mutex);
}

static void end(request *r)
{
    host_storage *s = r->storage;
    request **p;

    if (!keep_list) {
        return;
    }
    pthread_mutex_lock(&s->mutex);
    for (p = &s->in_flight; *p != r; p = &(*p)->next_in_flight) {
    }
    *p = r->next_in_flight;
    pthread_mutex_unlock(&s->mutex);
}

/* ---- coroutines ---- */

static void finish(request *r)
{
    host_co *co = r->co;
    host_context *resume = r->resume;

    perform(r);
    end(r);
    if (resume) {
        host_co_schedule(resume, co);
    } else {
        host_co_enter(co);
    }
}

static void delay_over(void *arg)
{
    request *r = arg;

    host_timer_free(r->timer);
    finish(r);
}

/* Runs in plain code of the worker. */
static void work(void *arg)
{
    request *r = arg;
    int64_t delay = r->storage->config.delay_ns;

    if (delay <= 0) {
        finish(r);
        return;
    }
    r->timer = host_timer_new(true, delay_over, r);
    host_timer_mod(r->timer, host_real_now() + delay);
}

/* Adds the request to the held ones. Returns false if the release came first. */
static bool hold_back(request *r)
{
    host_storage *s = r->storage;
    bool hold;

    pthread_mutex_lock(&s->mutex);
    hold = atomic_load(&s->hold);
    if (hold) {
        r->next_held = NULL;
        *s->held_last = r;
        s->held_last = &r->next_held;
        s->n_held++;
    }
    pthread_mutex_unlock(&s->mutex);
    return hold;
}

/* Runs when the coroutine is off its stack: from here on any thread may continue it. */
static void submit(void *arg)
{
    request *r = arg;
    host_storage *s = r->storage;

    if (!atomic_load_explicit(&s->hold, memory_order_relaxed) || !hold_back(r)) {
        host_bh_schedule(r->worker, work, r);
    }
}

static uint64_t mix(uint64_t x)
{
    x += UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

/*
 * Decides where the request is done and where its coroutine continues. Returns false if the request
 * is done in the call.
 */
static bool route(request *r)
{
    const host_storage_config *c = &r->storage->config;
    uint64_t ticket = atomic_fetch_add_explicit(&r->storage->tickets, 1, memory_order_relaxed);
    uint64_t chance = mix(ticket ^ c->seed);
    host_context *home = host_context_current();
    host_resume resume = c->resume;

    if (resume == HOST_RESUME_MIXED) {
        resume = (host_resume)(chance % HOST_RESUME_MIXED);
    }
    if (resume == HOST_RESUME_INLINE || !host_in_coroutine()) {
        return false;
    }
    r->co = host_co_self();
    r->worker = c->n_workers ? c->workers[ticket % c->n_workers] : home;
    if (resume == HOST_RESUME_HOME) {
        r->resume = home;
    } else if (resume == HOST_RESUME_SPREAD && c->n_spread) {
        r->resume = c->spread[(chance >> 8) % c->n_spread];
    }
    return true;
}

static int co_request(request *r)
{
    host_storage *s = r->storage;
    host_context *before = host_context_current();

    atomic_fetch_add_explicit(&s->yields, 1, memory_order_relaxed);
    host_co_yield_then(submit, r);
    if (host_context_current() != before) {
        atomic_fetch_add_explicit(&s->moved, 1, memory_order_relaxed);
    }
    return r->ret;
}

/* ---- callers that block ---- */

static int blocking_request(request *r)
{
    host_storage *s = r->storage;
    uint64_t round;

    if (atomic_load_explicit(&s->hold, memory_order_relaxed)) {
        pthread_mutex_lock(&s->mutex);
        round = s->hold_round;
        s->n_held += atomic_load(&s->hold);
        while (atomic_load(&s->hold) && s->hold_round == round) {
            pthread_cond_wait(&s->released, &s->mutex);
        }
        pthread_mutex_unlock(&s->mutex);
    }
    perform(r);
    end(r);
    return r->ret;
}

static int run_request(request *r)
{
    for (int i = 0; i < r->iovcnt; i++) {
        r->bytes += r->iov[i].iov_len;
    }
    begin(r);
    return route(r) ? co_request(r) : blocking_request(r);
}

/* ---- the library's callbacks ---- */

static int cb_preadv(void *opaque, int kind, uint64_t offset, const struct iovec *iov, int iovcnt)
{
    (void)kind;
    request r = {
        .storage = opaque, .op = OP_READ, .offset = offset, .iov = iov, .iovcnt = iovcnt
    };
    return run_request(&r);
}

static int cb_pwritev(void *opaque, int kind, uint64_t offset, const struct iovec *iov, int iovcnt)
{
    (void)kind;
    request r = {
        .storage = opaque, .op = OP_WRITE, .offset = offset, .iov = iov, .iovcnt = iovcnt
    };
    return run_request(&r);
}

static int cb_flush(void *opaque)
{
    request r = { .storage = opaque, .op = OP_FLUSH };
    return run_request(&r);
}

void host_storage_fill(host_storage *storage, q2c_storage *callbacks)
{
    *callbacks = (q2c_storage){
        .struct_size = sizeof(*callbacks),
        .opaque = storage,
        .preadv = cb_preadv,
        .pwritev = cb_pwritev,
        .flush = cb_flush,
    };
}

/* ---- the object ---- */

host_storage *host_storage_new(const host_storage_config *config)
{
    host_storage *s = calloc(1, sizeof(*s));

    if (!s || (config->fd < 0 && !(s->image = calloc(1, config->size)))) {
        host_die("no memory for an image of %zu bytes", config->size);
    }
    s->config = *config;
    pthread_mutex_init(&s->mutex, NULL);
    pthread_cond_init(&s->released, NULL);
    s->held_last = &s->held_first;
    return s;
}

void host_storage_free(host_storage *storage)
{
    if (storage->in_flight) {
        host_die("storage is freed while a request at %llu is in flight",
                 (unsigned long long)storage->in_flight->offset);
    }
    pthread_mutex_destroy(&storage->mutex);
    pthread_cond_destroy(&storage->released);
    free(storage->image);
    free(storage);
}

void *host_storage_image(host_storage *storage)
{
    return storage->image;
}

void host_storage_fail_at(host_storage *storage, uint64_t n, int error)
{
    atomic_store(&storage->fail_error, error);
    atomic_store(&storage->fail_in, n);
}

void host_storage_hold(host_storage *storage)
{
    pthread_mutex_lock(&storage->mutex);
    atomic_store(&storage->hold, true);
    pthread_mutex_unlock(&storage->mutex);
}

void host_storage_release(host_storage *storage)
{
    request *r, *next;

    pthread_mutex_lock(&storage->mutex);
    atomic_store(&storage->hold, false);
    storage->hold_round++;
    r = storage->held_first;
    storage->held_first = NULL;
    storage->held_last = &storage->held_first;
    storage->n_held = 0;
    pthread_cond_broadcast(&storage->released);
    pthread_mutex_unlock(&storage->mutex);
    for (; r; r = next) {
        next = r->next_held;
        host_bh_schedule(r->worker, work, r);
    }
}

size_t host_storage_held(host_storage *storage)
{
    size_t n;

    pthread_mutex_lock(&storage->mutex);
    n = storage->n_held;
    pthread_mutex_unlock(&storage->mutex);
    return n;
}

void host_storage_get_stats(host_storage *storage, host_storage_stats *stats)
{
    *stats = (host_storage_stats){
        .reads = atomic_load(&storage->reads),
        .writes = atomic_load(&storage->writes),
        .flushes = atomic_load(&storage->flushes),
        .yields = atomic_load(&storage->yields),
        .moved = atomic_load(&storage->moved),
    };
}
