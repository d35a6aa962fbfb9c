/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Several loops in several threads; a state lives in one of them and is used from all. */
#include "looping.h"

#define LOOPS 3

static struct image image;
static struct turner turners[LOOPS];

static void open_in(q2c_loop *loop, uint64_t interval_ns)
{
    image_init(&image);
    image.config.host = &loop_host;
    image.config.context = loop;
    image.config.clean_interval_ns = interval_ns;
    image_open(&image);
}

static void start_all(void)
{
    for (unsigned i = 0; i < LOOPS; i++) {
        turner_start(&turners[i]);
    }
}

static void stop_all(void)
{
    for (unsigned i = 0; i < LOOPS; i++) {
        turner_stop(&turners[i]);
    }
}

static atomic_uint retries;

/* Reads as a driver does: a copy, else an unlocked get, else a get with the lock. */
static void use_tables(void *argument)
{
    uint64_t random = 1 + (uintptr_t)argument;
    q2c_cache *l2 = image_l2(&image);

    for (unsigned i = 0; i < 3000; i++) {
        uint64_t offset = CLUSTER_AT(1 + test_random(&random) % (2 * IMAGE_L2_TABLES - 1));
        uint64_t word;
        void *table;
        int result = q2c_cache_read(l2, offset, 8, &word, sizeof(word));

        if (result == 0) {
            continue;
        }
        CHECK_INT(result, -EAGAIN);
        result = q2c_cache_get_unlocked(l2, offset, &table);
        if (result == -EAGAIN) {
            atomic_fetch_add(&retries, 1);
            CHECK_INT(q2c_state_lock(image.state), 0);
            result = q2c_cache_get(l2, offset, &table);
            CHECK_INT(q2c_state_unlock(image.state), 0);
        }
        CHECK_INT(result, 0);
        CHECK(table_untouched(table, offset, CLUSTER));
        CHECK_INT(q2c_cache_put(l2, &table), 0);
    }
}

static void state_is_used_from_all_threads(void)
{
    struct thread threads[2];
    uint64_t passes;

    start_all();
    open_in(turners[0].loop, 50000);
    passes = cleaner_stats(q2c_state_cleaner(image.state)).passes;
    thread_start(&threads[0], use_tables, (void *)10);
    thread_start(&threads[1], use_tables, (void *)11);
    for (unsigned i = 0; i < LOOPS; i++) {
        turner_run(&turners[i], use_tables, (void *)(uintptr_t)i);
    }
    use_tables((void *)12);
    thread_join(&threads[0]);
    thread_join(&threads[1]);
    EVENTUALLY(cleaner_stats(q2c_state_cleaner(image.state)).passes > passes + 3);
    image_close(&image);
    stop_all();
}

/* Both loops belong to this thread, which runs them. Only the loop attached last cleans. */
static void cleaner_runs_in_the_attached_loop(void)
{
    q2c_loop *loops[2] = { loop_new(), loop_new() };
    q2c_cleaner *cleaner;

    for (unsigned i = 0; i < 2; i++) {
        CHECK_INT(q2c_loop_clock_pause(loops[i]), 0);
    }
    open_in(loops[0], SECOND);
    cleaner = q2c_state_cleaner(image.state);
    for (unsigned i = 0; i < 6; i++) {
        q2c_loop *here = loops[i % 2], *there = loops[1 - i % 2];
        uint64_t passes = cleaner_stats(cleaner).passes;

        CHECK_INT(q2c_state_attach_context(image.state, here), -EALREADY);
        loop_settle(here);
        CHECK_INT(q2c_loop_clock_step(there, SECOND), 0);
        loop_settle(there);
        CHECK_U64(cleaner_stats(cleaner).passes, passes);
        cache_touch(image_l2(&image), CLUSTER_AT(1));
        for (unsigned pass = 0; pass < 2; pass++) {
            CHECK_INT(q2c_loop_clock_step(here, SECOND), 0);
            loop_settle(here);
        }
        CHECK_U64(cleaner_stats(cleaner).passes, passes + 2);
        CHECK(!cache_resident(image_l2(&image), CLUSTER_AT(1)));
        CHECK_INT(q2c_state_detach_context(image.state), 0);
        CHECK_INT(q2c_state_attach_context(image.state, there), 0);
        CHECK_U64(cleaner_stats(cleaner).interval_ns, SECOND);
    }
    image_close(&image);
    loop_drop(loops[0]);
    loop_drop(loops[1]);
}

static atomic_uint asked;

static bool three_passes(void *argument)
{
    atomic_fetch_add(&asked, 1);
    return cleaner_stats(argument).passes >= 3;
}

/* No other thread runs the loop. */
static void poll_until_done_runs_the_loop_at_home(void)
{
    q2c_loop *loop = loop_new();

    open_in(loop, MILLISECOND);
    CHECK_INT(q2c_poll_until_done(image.state, three_passes, q2c_state_cleaner(image.state)), 0);
    CHECK(cleaner_stats(q2c_state_cleaner(image.state)).passes >= 3);
    image_close(&image);
    loop_drop(loop);
}

static atomic_bool finished;

static bool is_finished(void *argument)
{
    (void)argument;
    atomic_fetch_add(&asked, 1);
    return atomic_load(&finished);
}

static void wait_for_it(void *argument)
{
    (void)argument;
    CHECK_INT(q2c_poll_until_done(image.state, is_finished, NULL), 0);
    CHECK(atomic_load(&finished));
}

static void finish(void *argument)
{
    (void)argument;
    atomic_store(&finished, true);
    CHECK_INT(q2c_poll_kick(image.state), 0);
}

/* A thread without a loop, and the home thread of another loop, both sleep until the kick. */
static void poll_until_done_waits_for_a_kick_elsewhere(void)
{
    struct thread thread;
    unsigned before;

    start_all();
    open_in(turners[0].loop, FOREVER);
    atomic_store(&finished, false);
    atomic_store(&asked, 0);
    thread_start(&thread, wait_for_it, NULL);
    EVENTUALLY(atomic_load(&asked) > 0);
    thread_settle(&thread);
    before = atomic_load(&asked);
    for (unsigned i = 0; i < 20; i++) {
        test_pause();
    }
    CHECK(atomic_load(&asked) - before <= 5);
    turner_run(&turners[1], finish, NULL);
    thread_join(&thread);
    turner_run(&turners[2], wait_for_it, NULL); /* true already */
    turner_run(&turners[0], wait_for_it, NULL);
    image_close(&image);
    stop_all();
}

static void kick_later(void *argument)
{
    EVENTUALLY(atomic_load(&asked) > 0);
    finish(argument);
}

static void kick_ends_poll_until_done_at_home(void)
{
    q2c_loop *loop = loop_new();
    struct thread thread;

    open_in(loop, FOREVER);
    atomic_store(&finished, false);
    atomic_store(&asked, 0);
    thread_start(&thread, kick_later, NULL);
    wait_for_it(NULL);
    thread_join(&thread);
    image_close(&image);
    loop_drop(loop);
}

static void entry(void *argument)
{
    CHECK_INT(q2c_state_lock(image.state), 0);
    CHECK_INT(q2c_cleaner_co_locked_del_and_wait(q2c_state_cleaner(image.state)), 0);
    CHECK_INT(q2c_state_unlock(image.state), 0);
    *(unsigned *)argument += 1;
}

static void run_until_done_works_at_home(void)
{
    q2c_loop *loop = loop_new();
    unsigned entries = 0;

    open_in(loop, MILLISECOND);
    CHECK_INT(q2c_run_until_done(image.state, entry, &entries), 0);
    CHECK_U64(entries, 1);
    CHECK(!image_cleaner_runs(&image));
    image_close(&image);
    loop_drop(loop);
}

int main(void)
{
    test_begin();
    RUN(state_is_used_from_all_threads);
    RUN(cleaner_runs_in_the_attached_loop);
    RUN(poll_until_done_runs_the_loop_at_home);
    RUN(poll_until_done_waits_for_a_kick_elsewhere);
    RUN(kick_ends_poll_until_done_at_home);
    RUN(run_until_done_works_at_home);
    return test_end();
}
