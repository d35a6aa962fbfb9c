/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* A library for LD_PRELOAD that records which tables a program asks libqcow2cache for. It appends
 * to the file that QCOW2CACHE_TRACE names, eight bytes for each request, in the order in which the
 * requests were answered. The top byte is the cache's number (1 for the first one seen, …), the
 * table's offset is below. A read that finds nothing is not recorded, since a get follows it. */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "qcow2cache.h"

#define REQUESTS (UINT64_C(1) << 23) /* later requests are not recorded */
#define CACHES   255

static uint64_t *requests; /* the mapped file */
static _Atomic uint64_t count;
static _Atomic(q2c_cache *) caches[CACHES];
static int fd = -1;

__attribute__((constructor)) static void begin(void)
{
    const char *name = getenv("QCOW2CACHE_TRACE");
    off_t size;

    if (!name)
        return;
    fd = open(name, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    size = fd < 0 ? -1 : lseek(fd, 0, SEEK_END);
    if (size < 0 || ftruncate(fd, REQUESTS * sizeof(*requests)) < 0) {
        fprintf(stderr, "QCOW2CACHE_TRACE=%s: %s\n", name, strerror(errno));
        exit(1);
    }
    requests = mmap(NULL, REQUESTS * sizeof(*requests), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (requests == MAP_FAILED) {
        fprintf(stderr, "QCOW2CACHE_TRACE=%s: %s\n", name, strerror(errno));
        exit(1);
    }
    atomic_store(&count, (uint64_t)size / sizeof(*requests));
}

__attribute__((destructor)) static void end(void)
{
    uint64_t n = atomic_load(&count);

    if (fd >= 0 && ftruncate(fd, (off_t)((n < REQUESTS ? n : REQUESTS) * sizeof(*requests))) < 0)
        fprintf(stderr, "QCOW2CACHE_TRACE: %s\n", strerror(errno));
}

static uint64_t number_of(q2c_cache *cache)
{
    for (uint64_t i = 0; i < CACHES; i++) {
        q2c_cache *known = NULL;

        if (atomic_compare_exchange_strong(&caches[i], &known, cache) || known == cache)
            return i + 1;
    }
    return 0;
}

static void record(q2c_cache *cache, uint64_t offset)
{
    uint64_t at;

    if (!requests)
        return;
    at = atomic_fetch_add(&count, 1);
    if (at < REQUESTS)
        requests[at] = number_of(cache) << 56 | offset;
}

static void *next(const char *name)
{
    void *function = dlsym(RTLD_NEXT, name);

    if (!function) {
        fprintf(stderr, "%s: %s\n", name, dlerror());
        abort();
    }
    return function;
}

#define RECORD_GET(name)                                                                           \
    int name(q2c_cache *cache, uint64_t offset, void **table)                                      \
    {                                                                                              \
        static _Atomic(int (*)(q2c_cache *, uint64_t, void **)) real;                              \
        int (*call)(q2c_cache *, uint64_t, void **) = atomic_load(&real);                          \
        int r;                                                                                     \
        if (!call) {                                                                               \
            *(void **)&call = next(#name);                                                         \
            atomic_store(&real, call);                                                             \
        }                                                                                          \
        r = call(cache, offset, table);                                                            \
        if (r == 0)                                                                                \
            record(cache, offset);                                                                 \
        return r;                                                                                  \
    }

RECORD_GET(q2c_cache_get)
RECORD_GET(q2c_cache_get_empty)
RECORD_GET(q2c_cache_get_unlocked)
RECORD_GET(q2c_cache_try_get)

int q2c_cache_read(q2c_cache *cache, uint64_t offset, size_t at, void *buf, size_t bytes)
{
    static _Atomic(int (*)(q2c_cache *, uint64_t, size_t, void *, size_t)) real;
    int (*call)(q2c_cache *, uint64_t, size_t, void *, size_t) = atomic_load(&real);
    int r;

    if (!call) {
        *(void **)&call = next("q2c_cache_read");
        atomic_store(&real, call);
    }
    r = call(cache, offset, at, buf, bytes);
    if (r == 0)
        record(cache, offset);
    return r;
}
