/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * A cleaning pass over many tables is made in several steps. Between two steps its thread runs
 * other work, and other coroutines can take the state lock.
 */
#include <stdatomic.h>

#include "world.h"

enum { TABLES = 2048 };

static q2c_cache *cache;
static q2c_cleaner *cleaner;
static atomic_uint seen_between; /* checks that found some tables cleaned, but not all */
static atomic_bool locked_between, over;

static uint64_t tables_cleaned(void)
{
    q2c_cache_stats stats = { .struct_size = sizeof(stats) };

    MUST(q2c_cache_get_stats(cache, &stats));
    return stats.cleaned;
}

static bool is_between(void)
{
    uint64_t cleaned = tables_cleaned();

    return cleaned > 0 && cleaned < TABLES;
}

static void fill(void *arg)
{
    (void)arg;
    for (unsigned n = 1; n <= TABLES; n++) {
        void *table;

        MUST(q2c_cache_get(cache, AT(n), &table));
        MUST(q2c_cache_put(cache, &table));
    }
    CHECK_INT(q2c_cache_clean_unused(cache), 0); /* forgets which tables were used */
}

static void take_the_lock(void *arg)
{
    (void)arg;
    CHECK_INT(q2c_cleaner_lock(cleaner), 0);
    if (is_between()) {
        atomic_store(&locked_between, true);
    }
    CHECK_INT(q2c_cleaner_unlock(cleaner), 0);
}

/* Runs in the cleaner's thread, once in each round of its event loop. */
static void look(void *arg)
{
    host_context *home = arg;

    if (is_between() && atomic_fetch_add(&seen_between, 1) == 0) {
        host_co_schedule(home, host_co_create(take_the_lock, NULL));
    }
    if (tables_cleaned() < TABLES) {
        host_bh_schedule(home, look, home);
    } else {
        atomic_store(&over, true);
    }
}

static void cleaning_pass_releases_thread_and_lock_between_steps(void)
{
    host_context *home = world.io[0];
    q2c_storage calls;
    host_storage *storage = storage_new(TABLES + 1, HOST_RESUME_INLINE, &calls);

    atomic_store(&seen_between, 0);
    atomic_store(&locked_between, false);
    atomic_store(&over, false);
    cache = co_cache_new(&calls, TABLES);
    cleaner = cleaner_new(cache);
    host_context_call(home, true, fill, NULL);
    host_bh_schedule(home, look, home);
    CHECK_INT(q2c_cleaner_start(cleaner, home, 1), 0);
    TURN_UNTIL(atomic_load(&over));
    CHECK_INT(q2c_cleaner_del_and_wait(cleaner), 0);
    TURN_UNTIL(host_co_alive() == 0);
    /* a step takes 256 tables and the rest of a group of 64 */
    CHECK(atomic_load(&seen_between) >= 3);
    CHECK(atomic_load(&locked_between));
    CHECK_INT(q2c_cleaner_destroy(&cleaner), 0);
    cache_drop(cache);
    host_storage_free(storage);
}

int main(void)
{
    test_begin();
    world_begin();
    EACH(cleaning_pass_releases_thread_and_lock_between_steps);
    world_end();
    return test_end();
}
