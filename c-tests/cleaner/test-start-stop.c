/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Starts, and the three waiting stops from every state that a test can bring about. */
#include "cleaning.h"
#include "threads.h"

static q2c_cleaner *cleaner;

static void check_stopped(const char *variant)
{
    uint64_t passes = cleaner_stats(cleaner).passes;
    bool ok = CHECK_INT(q2c_cleaner_is_running(cleaner), 0);

    ok = CHECK_U64(cleaner_stats(cleaner).instances, 0) && ok;
    test_pause();
    ok = CHECK_U64(cleaner_stats(cleaner).passes, passes) && ok;
    if (!ok) {
        test_note("    after a stop that was %s", variant);
    }
}

static void stop_without_an_instance_succeeds(void)
{
    for (unsigned i = 0; i < CLEANER_STOPS; i++) {
        CHECK_INT(cleaner_stops[i].stop(cleaner), 0);
        check_stopped(cleaner_stops[i].name);
    }
}

static void stop_returns_right_after_start(void)
{
    for (unsigned round = 0; round < 100; round++) {
        for (unsigned i = 0; i < CLEANER_STOPS; i++) {
            CHECK_INT(q2c_cleaner_start(cleaner, NULL, FOREVER), 0);
            CHECK_INT(cleaner_stops[i].stop(cleaner), 0);
            CHECK_U64(cleaner_stats(cleaner).instances, 0);
        }
    }
}

static void stop_ends_a_sleep(void)
{
    for (unsigned i = 0; i < CLEANER_STOPS; i++) {
        CHECK_INT(q2c_cleaner_start(cleaner, NULL, FOREVER), 0);
        CHECK_INT(q2c_cleaner_is_running(cleaner), 1);
        for (int pause = 0; pause < 3; pause++) {
            test_pause();
        }
        CHECK_INT(cleaner_stops[i].stop(cleaner), 0);
        check_stopped(cleaner_stops[i].name);
    }
}

static void stop_returns_during_continuous_passes(void)
{
    for (unsigned round = 0; round < 20; round++) {
        for (unsigned i = 0; i < CLEANER_STOPS; i++) {
            CHECK_INT(q2c_cleaner_start(cleaner, NULL, 1), 0);
            cleaner_await_passes(cleaner, 1);
            CHECK_INT(cleaner_stops[i].stop(cleaner), 0);
            check_stopped(cleaner_stops[i].name);
        }
    }
}

static void locked_stop_returns_while_the_cleaner_waits_for_the_lock(void)
{
    CHECK_INT(q2c_cleaner_start(cleaner, NULL, 1), 0);
    cleaner_await_passes(cleaner, 1);
    CHECK_INT(q2c_cleaner_lock(cleaner), 0);
    /* by now the pass is due and has to wait */
    for (int pause = 0; pause < 5; pause++) {
        test_pause();
    }
    CHECK_INT(q2c_cleaner_co_locked_del_and_wait(cleaner), 0);
    check_stopped("locked");
    CHECK_INT(q2c_cleaner_unlock(cleaner), 0);
}

static void stop_it(void *argument)
{
    const struct cleaner_stop *variant = argument;

    CHECK_INT(variant->stop(cleaner), 0);
}

static void stop_works_from_another_thread_than_start(void)
{
    for (unsigned i = 0; i < CLEANER_STOPS; i++) {
        struct thread thread;

        CHECK_INT(q2c_cleaner_start(cleaner, NULL, FOREVER), 0);
        thread_start(&thread, stop_it, (void *)(uintptr_t)&cleaner_stops[i]);
        thread_join(&thread);
        check_stopped(cleaner_stops[i].name);
    }
}

static void second_start_is_ealready(void)
{
    CHECK_INT(q2c_cleaner_start(cleaner, NULL, FOREVER), 0);
    CHECK_INT(q2c_cleaner_start(cleaner, NULL, FOREVER), -EALREADY);
    CHECK_INT(q2c_cleaner_start(cleaner, NULL, 1), -EALREADY);
    CHECK_U64(cleaner_stats(cleaner).instances, 1);
    CHECK_U64(cleaner_stats(cleaner).interval_ns, FOREVER);
    CHECK_INT(q2c_cleaner_del_and_wait(cleaner), 0);
    check_stopped("mixed");
}

static void interval_0_starts_no_instance(void)
{
    uint64_t starts = cleaner_stats(cleaner).starts;

    CHECK_INT(q2c_cleaner_start(cleaner, NULL, 0), 0);
    CHECK_INT(q2c_cleaner_is_running(cleaner), 0);
    CHECK_U64(cleaner_stats(cleaner).instances, 0);
    CHECK_U64(cleaner_stats(cleaner).starts, starts);
    CHECK_INT(q2c_cleaner_start(cleaner, NULL, 0), 0);
    CHECK_INT(q2c_cleaner_del_and_wait(cleaner), 0);
}

static void cleaner_with_the_longest_interval_can_be_stopped(void)
{
    CHECK_INT(q2c_cleaner_start(cleaner, NULL, UINT64_MAX), 0);
    CHECK_INT(q2c_cleaner_is_running(cleaner), 1);
    test_pause();
    CHECK_INT(q2c_cleaner_del_and_wait(cleaner), 0);
    check_stopped("mixed");
}

static void request_stop_does_not_need_the_lock(void)
{
    CHECK_INT(q2c_cleaner_start(cleaner, NULL, 1), 0);
    cleaner_await_passes(cleaner, 1);
    CHECK_INT(q2c_cleaner_lock(cleaner), 0);
    CHECK_INT(q2c_cleaner_request_stop(cleaner), 0);
    CHECK_INT(q2c_cleaner_is_running(cleaner), 0);
    EVENTUALLY(cleaner_stats(cleaner).instances == 0);
    CHECK_INT(q2c_cleaner_unlock(cleaner), 0);
    check_stopped("requested");
}

static void request_stop_ends_a_sleep(void)
{
    CHECK_INT(q2c_cleaner_start(cleaner, NULL, FOREVER), 0);
    CHECK_INT(q2c_cleaner_request_stop(cleaner), 0);
    CHECK_INT(q2c_cleaner_request_stop(cleaner), 0);
    CHECK_INT(q2c_cleaner_is_running(cleaner), 0);
    EVENTUALLY(cleaner_stats(cleaner).instances == 0);
    CHECK_INT(q2c_cleaner_request_stop(cleaner), 0);
    check_stopped("requested");
}

static void stop_waits_for_instances_asked_to_stop_before(void)
{
    for (unsigned round = 0; round < 200; round++) {
        CHECK_INT(q2c_cleaner_start(cleaner, NULL, FOREVER), 0);
        CHECK_INT(q2c_cleaner_request_stop(cleaner), 0);
        CHECK_INT(cleaner_stops[round % CLEANER_STOPS].stop(cleaner), 0);
        CHECK_U64(cleaner_stats(cleaner).instances, 0);
    }
}

static void start_works_while_an_older_instance_ends(void)
{
    uint64_t starts = cleaner_stats(cleaner).starts;

    for (unsigned round = 0; round < 200; round++) {
        CHECK_INT(q2c_cleaner_start(cleaner, NULL, FOREVER), 0);
        CHECK_INT(q2c_cleaner_is_running(cleaner), 1);
        CHECK_INT(q2c_cleaner_request_stop(cleaner), 0);
    }
    CHECK_U64(cleaner_stats(cleaner).starts - starts, 200);
    CHECK_INT(q2c_cleaner_co_del_and_wait(cleaner), 0);
    check_stopped("unlocked");
}

static void stop_keeps_the_interval(void)
{
    CHECK_INT(q2c_cleaner_start(cleaner, NULL, 7 * SECOND), 0);
    CHECK_INT(q2c_cleaner_del_and_wait(cleaner), 0);
    CHECK_U64(cleaner_stats(cleaner).interval_ns, 7 * SECOND);
}

int main(void)
{
    test_begin();
    cleaner = cleaner_new();
    RUN(stop_without_an_instance_succeeds);
    RUN(stop_returns_right_after_start);
    RUN(stop_ends_a_sleep);
    RUN(stop_returns_during_continuous_passes);
    RUN(locked_stop_returns_while_the_cleaner_waits_for_the_lock);
    RUN(stop_works_from_another_thread_than_start);
    RUN(second_start_is_ealready);
    RUN(interval_0_starts_no_instance);
    RUN(cleaner_with_the_longest_interval_can_be_stopped);
    RUN(request_stop_does_not_need_the_lock);
    RUN(request_stop_ends_a_sleep);
    RUN(stop_waits_for_instances_asked_to_stop_before);
    RUN(start_works_while_an_older_instance_ends);
    RUN(stop_keeps_the_interval);
    cleaner_drop(cleaner);
    return test_end();
}
