/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Measures a stop on the coroutine host while the cleaner sleeps in another thread for 600 s: the
 * time from call to return, and the number of switches into coroutines in the whole process during
 * it. Prints "name: value" lines. Run by scripts/bench lifecycle.
 */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "world.h"

enum { STOPS = 10000 };

static q2c_cleaner *cleaner;
static uint64_t taken_ns[STOPS], most_switches;
static unsigned stops;

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * SECOND + (uint64_t)now.tv_nsec;
}

static void stop(void *arg)
{
    uint64_t switches = host_co_switches(), begun = now_ns();

    (void)arg;
    MUST(q2c_cleaner_del_and_wait(cleaner));
    taken_ns[stops++] = now_ns() - begun;
    switches = host_co_switches() - switches;
    most_switches = switches > most_switches ? switches : most_switches;
}

static int compare(const void *a, const void *b)
{
    const uint64_t *left = a, *right = b;

    return (*left > *right) - (*left < *right);
}

static void print(const char *name, double share)
{
    printf("%s: %" PRIu64 "\n", name, taken_ns[(size_t)((STOPS - 1) * share)]);
}

int main(void)
{
    q2c_storage calls;
    host_storage *storage;
    q2c_cache *cache;

    test_begin();
    world_begin();
    host_clock_stop(world.program);
    host_begin((struct variant){ .own_lock = false });
    storage = storage_new(4, HOST_RESUME_HOME, &calls);
    cache = co_cache_new(&calls, 4);
    cleaner = cleaner_new(cache);
    while (stops < STOPS) {
        MUST(q2c_cleaner_start(cleaner, world.io[0], 600 * SECOND));
        EVENTUALLY(host_stats().parked == 1);
        TURN_UNTIL(host_co_alive() == 1);
        host_context_call(world.io[1], true, stop, NULL);
    }
    TURN_UNTIL(host_co_alive() == 0);
    MUST(q2c_cleaner_destroy(&cleaner));
    cache_drop(cache);
    host_storage_free(storage);
    host_end();
    world_end();
    qsort(taken_ns, STOPS, sizeof(taken_ns[0]), compare);
    print("p50_ns", 0.5);
    print("p99_ns", 0.99);
    print("max_ns", 1);
    printf("max_switches: %" PRIu64 "\n", most_switches);
    return 0;
}
