/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * A stop takes at most three switches into coroutines while the cleaner sleeps. The virtual clock
 * stands still.
 */
#include "world.h"

enum { ROUNDS = 50 };

static q2c_cleaner *cleaner;

static void stop_locked(void)
{
    CHECK_INT(q2c_cleaner_lock(cleaner), 0);
    CHECK_INT(q2c_cleaner_co_locked_del_and_wait(cleaner), 0);
    CHECK_INT(q2c_cleaner_unlock(cleaner), 0);
}

static void stop_unlocked(void)
{
    CHECK_INT(q2c_cleaner_co_del_and_wait(cleaner), 0);
}

static void stop_mixed(void)
{
    CHECK_INT(q2c_cleaner_del_and_wait(cleaner), 0);
}

struct counted {
    void (*stop)(void);
    uint64_t most;
};

/* Counts all switches into coroutines in the process from the call to its return. */
static void count_switches(void *arg)
{
    struct counted *c = arg;
    uint64_t before = host_co_switches(), n;

    c->stop();
    n = host_co_switches() - before;
    c->most = n > c->most ? n : c->most;
}

static void measure(const char *name, void (*stop)(void), host_context *context, bool in_coroutine)
{
    struct counted c = { stop, 0 };

    for (int i = 0; i < ROUNDS; i++) {
        CHECK_INT(q2c_cleaner_start(cleaner, world.io[0], 600 * SECOND), 0);
        EVENTUALLY(host_stats().parked == 1);
        TURN_UNTIL(host_co_alive() == 1);
        host_context_call(context, in_coroutine, count_switches, &c);
    }
    test_note("%s: %" PRIu64, name, c.most);
    CHECK_BETWEEN(c.most, 1, 3);
}

static void stop_takes_at_most_three_switches(void)
{
    q2c_storage calls;
    host_storage *storage = storage_new(4, HOST_RESUME_HOME, &calls);
    q2c_cache *cache = co_cache_new(&calls, 4);

    cleaner = cleaner_new(cache);
    measure("locked, another thread", stop_locked, world.io[1], true);
    measure("locked, the cleaner's thread", stop_locked, world.io[0], true);
    measure("unlocked, another thread", stop_unlocked, world.io[1], true);
    measure("unlocked, the cleaner's thread", stop_unlocked, world.io[0], true);
    measure("mixed, a coroutine of another thread", stop_mixed, world.io[1], true);
    measure("mixed, plain code of another thread", stop_mixed, world.main, false);
    measure("mixed, plain code of the cleaner's thread", stop_mixed, world.io[0], false);
    TURN_UNTIL(host_co_alive() == 0);
    CHECK_INT(q2c_cleaner_destroy(&cleaner), 0);
    cache_drop(cache);
    host_storage_free(storage);
}

int main(void)
{
    test_begin();
    world_begin();
    host_clock_stop(world.program);
    EACH(stop_takes_at_most_three_switches);
    world_end();
    return test_end();
}
