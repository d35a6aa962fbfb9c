/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Loops of several threads that affect each other: a state moves between loops while it is used,
 * and home threads stop each other's cleaners.
 */
#include "looping.h"

enum { LOOPS = 3, ROUNDS = 300 };

static struct turner homes[LOOPS];
static struct image image;
static q2c_cleaner *cleaner;

static void begin(uint64_t interval_ns)
{
    for (unsigned i = 0; i < LOOPS; i++) {
        turner_start(&homes[i]);
    }
    image_init(&image);
    image.config.host = &loop_host;
    image.config.context = homes[0].loop;
    image.config.clean_interval_ns = interval_ns;
    image_open(&image);
    cleaner = q2c_state_cleaner(image.state);
}

static void end(void)
{
    image_close(&image);
    for (unsigned i = 0; i < LOOPS; i++) {
        turner_stop(&homes[i]); /* no part of the state is left in any of them */
    }
}

/*
 * What requests do: hits, loads and changes, with the lock and without. Each thread changes a table
 * of its own.
 */
static void use_it(void *argument)
{
    uint64_t mine = CLUSTER_AT(40 + (uint64_t)(uintptr_t)argument);
    uint64_t random = 1 + (uintptr_t)argument;

    for (unsigned round = 0; round < ROUNDS; round++) {
        uint64_t offset = CLUSTER_AT(1 + test_random(&random) % 30);
        void *table = NULL;
        int got = q2c_cache_get_unlocked(image_l2(&image), offset, &table);

        CHECK(got == 0 || got == -EAGAIN);
        if (got == 0) {
            CHECK_U64(table_word(table, 0), storage_word(offset));
            cache_unpin(image_l2(&image), table);
        }
        CHECK_INT(q2c_state_lock(image.state), 0);
        cache_dirty(image_l2(&image), mine, round);
        if (round % 16 == 0) {
            CHECK_INT(q2c_cache_flush(image_l2(&image)), 0);
        }
        CHECK_INT(q2c_state_unlock(image.state), 0);
    }
}

static void check_what_was_written(void)
{
    CHECK_INT(q2c_cache_flush(image_l2(&image)), 0);
    for (uint64_t i = 1; i < LOOPS; i++) {
        CHECK_U64(storage_peek(&image.l2_storage, CLUSTER_AT(40 + i)), ROUNDS - 1);
    }
}

static atomic_bool moving;

static void use_it_while_it_moves(void *argument)
{
    do {
        use_it(argument);
    } while (atomic_load(&moving));
}

static void state_moves_between_loops_while_it_is_used(void)
{
    begin(MILLISECOND / 10);
    atomic_store(&moving, true);
    for (unsigned i = 1; i < LOOPS; i++) {
        turner_send(&homes[i], use_it_while_it_moves, (void *)(uintptr_t)i);
    }
    for (unsigned round = 0; round < 100; round++) {
        CHECK_INT(q2c_state_detach_context(image.state), 0);
        CHECK(!image_cleaner_runs(&image));
        CHECK_INT(q2c_state_attach_context(image.state, homes[round % LOOPS].loop), 0);
        CHECK(image_cleaner_runs(&image));
        CHECK_U64(cleaner_stats(cleaner).interval_ns, MILLISECOND / 10);
    }
    atomic_store(&moving, false);
    for (unsigned i = 1; i < LOOPS; i++) {
        turner_await(&homes[i]);
    }
    check_what_was_written();
    cleaner_await_passes(cleaner, 2); /* in the loop that it was attached to last */
    end();
}

static q2c_cleaner *of_loop[LOOPS];

static void stop_the_next_one(void *argument)
{
    unsigned next = ((unsigned)(uintptr_t)argument + 1) % LOOPS;

    CHECK_INT(q2c_cleaner_del_and_wait(of_loop[next]), 0);
    CHECK_U64(cleaner_stats(of_loop[next]).instances, 0);
}

/* In a ring, all together: each waits in the home thread of a cleaner that another one stops. */
static void home_threads_stop_each_others_cleaners(void)
{
    for (unsigned i = 0; i < LOOPS; i++) {
        turner_start(&homes[i]);
        of_loop[i] = loop_cleaner_new();
    }
    for (unsigned round = 0; round < 100; round++) {
        for (unsigned i = 0; i < LOOPS; i++) {
            CHECK_INT(q2c_cleaner_start(of_loop[i], homes[i].loop, round % 2 == 0 ? FOREVER : 1),
                      0);
        }
        for (unsigned i = 0; i < LOOPS; i++) {
            turner_send(&homes[i], stop_the_next_one, (void *)(uintptr_t)i);
        }
        for (unsigned i = 0; i < LOOPS; i++) {
            turner_await(&homes[i]);
        }
    }
    for (unsigned i = 0; i < LOOPS; i++) {
        cleaner_drop(of_loop[i]);
        turner_stop(&homes[i]);
    }
}

static void many_cleaners_run_in_one_loop(void)
{
    q2c_cleaner *many[40];

    turner_start(&homes[0]);
    for (unsigned i = 0; i < 40; i++) {
        many[i] = loop_cleaner_new();
        CHECK_INT(q2c_cleaner_start(many[i], homes[0].loop, i % 2 == 0 ? FOREVER : MILLISECOND), 0);
    }
    for (unsigned i = 1; i < 40; i += 2) {
        cleaner_await_passes(many[i], 2);
    }
    for (unsigned i = 0; i < 40; i++) {
        CHECK_U64(cleaner_stats(many[i]).passes == 0, i % 2 == 0);
        CHECK_INT(cleaner_stops[i % CLEANER_STOPS].stop(many[i]), 0);
        cleaner_drop(many[i]);
    }
    turner_stop(&homes[0]);
}

int main(void)
{
    test_begin();
    RUN(state_moves_between_loops_while_it_is_used);
    RUN(home_threads_stop_each_others_cleaners);
    RUN(many_cleaners_run_in_one_loop);
    return test_end();
}
