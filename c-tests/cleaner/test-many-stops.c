/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Concurrent stops from several threads, with starts in between: every call returns. */
#include "cleaning.h"
#include "threads.h"

#define THREADS 6

static q2c_cleaner *cleaner;
static struct thread threads[THREADS];

static void stop_it(void *argument)
{
    const struct cleaner_stop *variant = argument;

    CHECK_INT(variant->stop(cleaner), 0);
    CHECK_U64(cleaner_stats(cleaner).instances, 0); /* no thread starts it meanwhile */
}

/* @count threads stop together; thread i uses variant (i * @step + @first). */
static void stop_together(unsigned count, unsigned first, unsigned step)
{
    for (unsigned i = 0; i < count; i++) {
        const struct cleaner_stop *variant = &cleaner_stops[(first + i * step) % CLEANER_STOPS];

        thread_start(&threads[i], stop_it, (void *)(uintptr_t)variant);
    }
    for (unsigned i = 0; i < count; i++) {
        thread_join(&threads[i]);
    }
    CHECK_INT(q2c_cleaner_is_running(cleaner), 0);
}

static void concurrent_stops_of_one_variant_return(void)
{
    for (unsigned round = 0; round < 10; round++) {
        for (unsigned first = 0; first < CLEANER_STOPS; first++) {
            CHECK_INT(q2c_cleaner_start(cleaner, NULL, FOREVER), 0);
            stop_together(THREADS, first, 0);
        }
    }
}

static void concurrent_stops_of_all_variants_return(void)
{
    for (unsigned round = 0; round < 20; round++) {
        CHECK_INT(q2c_cleaner_start(cleaner, NULL, round % 2 == 0 ? FOREVER : 1), 0);
        stop_together(2 + round % (THREADS - 1), round, 1);
    }
}

static void stops_return_while_the_lock_holder_stops(void)
{
    CHECK_INT(q2c_cleaner_start(cleaner, NULL, 1), 0);
    cleaner_await_passes(cleaner, 1);
    CHECK_INT(q2c_cleaner_lock(cleaner), 0);
    for (unsigned i = 0; i < 3; i++) {
        thread_start(&threads[i], stop_it, (void *)(uintptr_t)&cleaner_stops[i]);
    }
    for (unsigned i = 0; i < 3; i++) {
        thread_settle(&threads[i]);
    }
    /* it drops the lock while it waits, and holds it again when it returns */
    CHECK_INT(q2c_cleaner_co_locked_del_and_wait(cleaner), 0);
    CHECK_INT(q2c_cleaner_lock(cleaner), -EDEADLK);
    CHECK_INT(q2c_cleaner_unlock(cleaner), 0);
    for (unsigned i = 0; i < 3; i++) {
        thread_join(&threads[i]);
    }
}

#define ROUNDS 150
static atomic_uint starters;

/* Starts and stops may run in any order; each call must return. */
static void start_often(void *argument)
{
    uint64_t interval = (uintptr_t)argument;

    for (unsigned i = 0; i < ROUNDS; i++) {
        int result = q2c_cleaner_start(cleaner, NULL, interval);

        CHECK(result == 0 || result == -EALREADY);
        if (i % 8 == 0) {
            sched_yield();
        }
    }
    atomic_fetch_sub(&starters, 1);
}

static void stop_often(void *argument)
{
    const struct cleaner_stop *variant = argument;

    do {
        CHECK_INT(variant->stop(cleaner), 0);
    } while (atomic_load(&starters) > 0);
}

static void request_often(void *argument)
{
    (void)argument;
    do {
        CHECK_INT(q2c_cleaner_request_stop(cleaner), 0);
        sched_yield();
    } while (atomic_load(&starters) > 0);
}

static void stops_race_with_starts(void)
{
    atomic_store(&starters, 2);
    thread_start(&threads[0], start_often, (void *)(uintptr_t)FOREVER);
    thread_start(&threads[1], start_often, (void *)(uintptr_t)1);
    for (unsigned i = 0; i < CLEANER_STOPS; i++) {
        thread_start(&threads[2 + i], stop_often, (void *)(uintptr_t)&cleaner_stops[i]);
    }
    thread_start(&threads[5], request_often, NULL);
    for (unsigned i = 0; i < THREADS; i++) {
        thread_join(&threads[i]);
    }
    CHECK_INT(q2c_cleaner_del_and_wait(cleaner), 0);
    CHECK_U64(cleaner_stats(cleaner).instances, 0);
}

static void set_interval_often(void *argument)
{
    uint64_t state = 1 + (uintptr_t)argument;

    while (atomic_load(&starters) > 0) {
        /* 0 requests a stop; the others move the end of a sleep back and forth */
        static const uint64_t intervals[] = { 0, 1, MILLISECOND, FOREVER };
        int result = q2c_cleaner_set_interval(cleaner, intervals[test_random(&state) % 4]);

        CHECK(result == 0 || result == -ESRCH);
        sched_yield();
    }
}

static void stops_race_with_interval_changes(void)
{
    atomic_store(&starters, 1);
    thread_start(&threads[0], start_often, (void *)(uintptr_t)FOREVER);
    thread_start(&threads[1], set_interval_often, NULL);
    for (unsigned i = 0; i < CLEANER_STOPS; i++) {
        thread_start(&threads[2 + i], stop_often, (void *)(uintptr_t)&cleaner_stops[i]);
    }
    for (unsigned i = 0; i < 5; i++) {
        thread_join(&threads[i]);
    }
    CHECK_INT(q2c_cleaner_del_and_wait(cleaner), 0);
    CHECK_U64(cleaner_stats(cleaner).instances, 0);
}

static void many_cleaners_run_in_parallel(void)
{
    q2c_cleaner *cleaners[50];

    for (unsigned i = 0; i < 50; i++) {
        cleaners[i] = cleaner_new();
        CHECK_INT(q2c_cleaner_start(cleaners[i], NULL, i % 2 == 0 ? FOREVER : MILLISECOND), 0);
    }
    for (unsigned i = 1; i < 50; i += 2) {
        EVENTUALLY(cleaner_stats(cleaners[i]).passes > 0);
    }
    for (unsigned i = 0; i < 50; i++) {
        CHECK_INT(q2c_cleaner_del_and_wait(cleaners[i]), 0);
        cleaner_drop(cleaners[i]);
    }
}

int main(void)
{
    test_begin();
    cleaner = cleaner_new();
    RUN(concurrent_stops_of_one_variant_return);
    RUN(concurrent_stops_of_all_variants_return);
    RUN(stops_return_while_the_lock_holder_stops);
    RUN(stops_race_with_starts);
    RUN(stops_race_with_interval_changes);
    RUN(many_cleaners_run_in_parallel);
    cleaner_drop(cleaner);
    return test_end();
}
