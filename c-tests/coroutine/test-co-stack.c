/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * No call needs more than 16 KiB of stack. The test runs on stacks of 32 KiB with a guard page
 * below, and measures how deep they are used by the calls, together with the storage and host
 * callbacks that the calls make.
 */
#include "world.h"

enum { TABLES = 64 };

static q2c_storage calls;
static host_storage *storage;
static q2c_cache *cache;
static q2c_cleaner *cleaner;
static q2c_state *state;

static void use_cache(void *arg)
{
    void *table = NULL;
    uint64_t word;

    (void)arg;
    CHECK_INT(q2c_cleaner_lock(cleaner), 0);
    /* more tables than slots: each get writes another table back */
    for (unsigned n = 1; n < TABLES; n++) {
        CHECK_INT(q2c_cache_get(cache, AT(n), &table), 0);
        CHECK_INT(q2c_cache_store(cache, table, 0, n), 0);
        CHECK_INT(q2c_cache_mark_dirty(cache, table), 0);
        CHECK_INT(q2c_cache_put(cache, &table), 0);
        CHECK_INT(q2c_cache_read(cache, AT(n), 0, &word, 8), 0);
    }
    CHECK_INT(q2c_cache_flush(cache), 0);
    CHECK_INT(q2c_cache_get_unlocked(cache, AT(2), &table), 0);
    CHECK_INT(q2c_cache_put(cache, &table), 0);
    CHECK_INT(q2c_cache_get_empty(cache, AT(3), &table), 0);
    CHECK_INT(q2c_cache_put(cache, &table), 0);
    CHECK_INT(q2c_cache_discard_offset(cache, AT(3)), 0);
    CHECK_INT(q2c_cache_empty(cache), 0);
    CHECK(q2c_cache_clean_unused(cache) >= 0);
    CHECK_INT(q2c_cleaner_unlock(cleaner), 0);
}

static void use_cleaner(void *arg)
{
    (void)arg;
    CHECK_INT(q2c_cleaner_start(cleaner, world.io[0], 1), 0);
    CO_EVENTUALLY(cleaner_stats(cleaner).passes > 2);
    CHECK_INT(q2c_cleaner_set_interval(cleaner, SECOND), 0);
    CHECK_INT(q2c_cleaner_del_and_wait(cleaner), 0);
    CHECK_INT(q2c_cleaner_start(cleaner, world.io[0], SECOND), 0);
    CHECK_INT(q2c_cleaner_lock(cleaner), 0);
    CHECK_INT(q2c_cleaner_co_locked_del_and_wait(cleaner), 0);
    CHECK_INT(q2c_cleaner_unlock(cleaner), 0);
}

static void use_state(void *arg)
{
    static const q2c_geometry geometry = { .struct_size = sizeof(geometry),
                                           .virtual_size = 1 << 24,
                                           .cluster_size = 512,
                                           .l2_entry_size = 8 };
    q2c_state_config config = { .struct_size = sizeof(config),
                                .host = world.vtable,
                                .l2_storage = &calls,
                                .geometry = &geometry };
    q2c_options options = { .struct_size = sizeof(options) };
    q2c_update *update = NULL;

    (void)arg;
    CHECK_INT(q2c_state_open(&config, &state, NULL), 0);
    CHECK_INT(q2c_options_init(&options), 0);
    CHECK_INT(q2c_state_lock(state), 0);
    CHECK_INT(q2c_update_options_prepare(state, &options, NULL, SECOND, &update, NULL), 0);
    CHECK_INT(q2c_update_options_commit(state, &update, true), 0);
    CHECK_INT(q2c_state_unlock(state), 0);
    CHECK_INT(q2c_state_detach_context(state), 0);
    CHECK_INT(q2c_state_attach_context(state, world.io[1]), 0);
    CHECK_INT(q2c_state_invalidate(state), 0);
    CHECK_INT(q2c_state_close(&state), 0);
}

/* The error messages of a failed open need the deepest formatting. */
static void open_with_bad_geometry(void *arg)
{
    q2c_geometry geometry = { .struct_size = sizeof(geometry),
                              .virtual_size = 1,
                              .cluster_size = 12345,
                              .l2_entry_size = 8 };
    q2c_state_config config = { .struct_size = sizeof(config),
                                .host = world.vtable,
                                .l2_storage = &calls,
                                .geometry = &geometry };
    q2c_error error;

    (void)arg;
    CHECK_INT(q2c_state_open(&config, &state, &error), -EINVAL);
}

static void calls_use_at_most_16_kib_of_stack(void)
{
    storage = storage_new(TABLES, HOST_RESUME_MIXED, &calls);
    cache = co_cache_new(&calls, 8);
    cleaner = cleaner_new(cache);
    host_context_call(world.io[1], true, use_cache, NULL);
    host_context_call(world.io[1], true, use_cleaner, NULL);
    host_context_call(world.io[1], true, use_state, NULL);
    host_context_call(world.io[1], true, open_with_bad_geometry, NULL);
    TURN_UNTIL(host_co_alive() == 0);
    CHECK_INT(q2c_cleaner_destroy(&cleaner), 0);
    cache_drop(cache);
    host_storage_free(storage);
    test_note("deepest use of a stack: %zu bytes", host_co_stack_peak());
    if (host_co_can_measure()) {
        CHECK_BETWEEN(host_co_stack_peak(), 512, 16 * 1024);
    }
}

int main(void)
{
    test_begin();
    host_co_set_stack_size(HOST_STACK_SIZE_SMALL);
    host_co_measure_stacks(true);
    world_begin();
    EACH(calls_use_at_most_16_kib_of_stack);
    world_end();
    return test_end();
}
