/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "world.h"

#include <stdio.h>
#include <stdlib.h>

struct world world;

void world_begin(void)
{
    const char *stack = getenv("TESTHOST_STACK");

    if (stack) {
        host_co_set_stack_size((size_t)strtoul(stack, NULL, 10));
        test_note("stacks of %s bytes", stack);
    }
    world.program = host_program_new();
    world.main = host_context_new(world.program);
    for (int i = 0; i < IO_THREADS; i++) {
        world.io_threads[i] = host_iothread_new(world.program);
        world.io[i] = host_iothread_context(world.io_threads[i]);
    }
    for (int i = 0; i < WORKERS; i++) {
        world.worker_threads[i] = host_iothread_new(world.program);
        world.workers[i] = host_iothread_context(world.worker_threads[i]);
    }
}

void world_end(void)
{
    TURN_UNTIL(host_co_alive() == 0);
    for (int i = 0; i < IO_THREADS; i++) {
        host_iothread_free(world.io_threads[i]);
    }
    for (int i = 0; i < WORKERS; i++) {
        host_iothread_free(world.worker_threads[i]);
    }
    host_context_free(world.main);
    host_program_free(world.program);
    host_co_pool_drain();
}

void host_begin(struct variant variant)
{
    host_adapter_config config = { .program = world.program,
                                   .own_lock = variant.own_lock,
                                   .wake = variant.mode,
                                   .spawn = variant.mode };

    world.variant = variant;
    world.host = host_adapter_new(&config);
    world.vtable = host_adapter_vtable(world.host);
}

void host_end(void)
{
    host_adapter_free(world.host);
    world.host = NULL;
    world.vtable = NULL;
}

host_adapter_stats host_stats(void)
{
    host_adapter_stats stats;

    host_adapter_get_stats(world.host, &stats);
    return stats;
}

static struct variant next_variant;
static void (*next_test)(void);

static void run_variant(void)
{
    host_begin(next_variant);
    next_test();
    host_end();
}

void each_variant(const char *name, void (*test)(void))
{
    static const char *const modes[HOST_RUN_MODES] = { "queued", "inline", "as in QEMU" };
    static char full_name[256]; /* static: the watchdog prints it */

    for (int own_lock = 0; own_lock < 2; own_lock++) {
        for (host_run_mode mode = HOST_RUN_QUEUED; mode < HOST_RUN_MODES; mode++) {
            next_variant = (struct variant){ own_lock, mode };
            next_test = test;
            snprintf(full_name, sizeof(full_name), "%s: %s lock, wakes %s", name,
                     own_lock ? "host's" : "built-in", modes[mode]);
            test_run(full_name, run_variant);
        }
    }
}

host_storage *storage_new(size_t tables, host_resume resume, q2c_storage *calls)
{
    host_storage_config config = {
        .fd = -1,
        .size = tables * TABLE,
        .resume = resume,
        .workers = world.workers,
        .n_workers = WORKERS,
        .spread = world.io,
        .n_spread = IO_THREADS,
        .seed = 1,
    };
    host_storage *storage = host_storage_new(&config);

    host_storage_fill(storage, calls);
    return storage;
}

q2c_cache *co_cache_new(const q2c_storage *calls, size_t tables)
{
    q2c_cache_options options = {
        .struct_size = sizeof(options), .tables = tables, .table_size = TABLE, .reserved_tables = 1
    };
    q2c_cache *cache = NULL;

    MUST(q2c_cache_create(&options, calls, world.vtable, &cache, NULL));
    return cache;
}

q2c_cleaner *cleaner_new(q2c_cache *cache)
{
    q2c_cleaner *cleaner = NULL;

    MUST(q2c_cleaner_create(world.vtable, &cleaner, NULL));
    MUST(q2c_cleaner_set_caches(cleaner, &cache, 1));
    return cleaner;
}

q2c_cleaner_stats cleaner_stats(q2c_cleaner *cleaner)
{
    q2c_cleaner_stats stats = { .struct_size = sizeof(stats) };

    CHECK_INT(q2c_cleaner_get_stats(cleaner, &stats), 0);
    return stats;
}

void turn_a_little(void)
{
    if (!host_context_poll(host_context_current(), false)) {
        test_pause();
    }
}
