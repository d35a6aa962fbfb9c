/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Measures gets that wait in one cache, on the coroutine host in one thread: as many coroutines as
 * the argument says. Prints "name: value" lines, in ns for each coroutine and round:
 *
 *   bare_ns       each coroutine waits for a request of its own, without the library
 *   own_table_ns  each gets an absent table of its own; there is a slot for each
 *   any_slot_ns   the same with 4 slots, so that nearly all wait for any slot
 *   one_table_ns  all get the same absent table, so that all but one wait for its load
 *
 * Run by scripts/bench waiters.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "world.h"

enum { MOST_WAITERS = 1 << 20, COROUTINES_A_CASE = 1 << 17, FEW_SLOTS = 4 };

/* A request in flight; on its coroutine's stack. */
struct request {
    struct request *next;
    host_co *co;
};

static struct request *first_request, **last_request = &first_request;
static q2c_cache *cache;
static bool one_table;
static unsigned alive;

/* Yields until the main loop ends the request: first in, first out. */
static void wait_for_request(void)
{
    struct request request = { NULL, host_co_self() };

    *last_request = &request;
    last_request = &request.next;
    host_co_yield();
}

static bool end_request(void)
{
    struct request *request = first_request;

    if (!request) {
        return false;
    }
    first_request = request->next;
    if (!first_request) {
        last_request = &first_request;
    }
    host_co_enter(request->co);
    return true;
}

static int bench_preadv(void *opaque, int kind, uint64_t offset, const struct iovec *iov, int count)
{
    (void)opaque;
    (void)kind;
    (void)offset;
    wait_for_request();
    for (int i = 0; i < count; i++) {
        memset(iov[i].iov_base, 0, iov[i].iov_len);
    }
    return 0;
}

static int bench_pwritev(void *opaque, int kind, uint64_t offset, const struct iovec *iov,
                         int count)
{
    (void)opaque;
    (void)kind;
    (void)offset;
    (void)iov;
    (void)count;
    return -EIO; /* nothing is dirty */
}

static int bench_flush(void *opaque)
{
    (void)opaque;
    return 0;
}

static void bare(void *arg)
{
    (void)arg;
    wait_for_request();
    alive--;
}

static void get_and_put(void *arg)
{
    uintptr_t number = (uintptr_t)arg;
    void *table;

    MUST(q2c_cache_get(cache, AT(one_table ? 1 : number), &table));
    MUST(q2c_cache_put(cache, &table));
    alive--;
}

static void run(host_fn *entry, unsigned waiters)
{
    alive = waiters;
    for (uintptr_t n = 1; n <= waiters; n++) {
        host_co_enter(host_co_create(entry, (void *)n));
    }
    while (alive > 0) {
        if (!end_request()) {
            host_context_poll(world.main, false);
        }
    }
}

static double now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
}

static void measure(const char *name, host_fn *entry, unsigned waiters, size_t slots)
{
    unsigned rounds = 1 + COROUTINES_A_CASE / waiters;
    double taken = 0;

    if (slots > 0) {
        q2c_storage calls = { .struct_size = sizeof(calls),
                              .preadv = bench_preadv,
                              .pwritev = bench_pwritev,
                              .flush = bench_flush };

        cache = co_cache_new(&calls, slots);
    }
    /* The first round makes the stacks. */
    for (unsigned round = 0; round <= rounds; round++) {
        double begun = now_ns();

        run(entry, waiters);
        if (round > 0) {
            taken += now_ns() - begun;
        }
        if (cache) {
            MUST(q2c_cache_discard_range(cache, 0, UINT64_MAX));
        }
    }
    if (cache) {
        cache_drop(cache);
        cache = NULL;
    }
    printf("%s: %.1f\n", name, taken / rounds / waiters);
}

int main(int argc, char **argv)
{
    char *end = NULL;
    unsigned long waiters = argc == 2 ? strtoul(argv[1], &end, 10) : 0;

    if (waiters == 0 || waiters > MOST_WAITERS || *end) {
        fprintf(stderr, "usage: bench-coroutine-waiters WAITERS   (1 to %d)\n", MOST_WAITERS);
        return 2;
    }
    world_begin();
    host_begin((struct variant){ .own_lock = false, .mode = HOST_RUN_AFTER });
    measure("bare_ns", bare, (unsigned)waiters, 0);
    measure("own_table_ns", get_and_put, (unsigned)waiters, waiters);
    measure("any_slot_ns", get_and_put, (unsigned)waiters, FEW_SLOTS);
    one_table = true;
    measure("one_table_ns", get_and_put, (unsigned)waiters, FEW_SLOTS);
    host_end();
    world_end();
    return 0;
}
