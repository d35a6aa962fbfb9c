/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* q2c_cleaner_set_interval and q2c_cleaner_get_stats. */
#include "cleaning.h"

static q2c_cleaner *cleaner;

static void set_interval_without_an_instance_is_esrch(void)
{
    CHECK_INT(q2c_cleaner_set_interval(cleaner, SECOND), -ESRCH);
    CHECK_INT(q2c_cleaner_set_interval(cleaner, 0), -ESRCH);
    CHECK_INT(q2c_cleaner_start(cleaner, NULL, FOREVER), 0);
    CHECK_INT(q2c_cleaner_request_stop(cleaner), 0);
    CHECK_INT(q2c_cleaner_set_interval(cleaner, SECOND), -ESRCH);
    CHECK_INT(q2c_cleaner_del_and_wait(cleaner), 0);
}

static void shorter_interval_ends_the_current_sleep(void)
{
    CHECK_INT(q2c_cleaner_start(cleaner, NULL, FOREVER), 0);
    for (int pause = 0; pause < 3; pause++) {
        test_pause();
    }
    CHECK_INT(q2c_cleaner_set_interval(cleaner, MILLISECOND), 0);
    CHECK_U64(cleaner_stats(cleaner).interval_ns, MILLISECOND);
    cleaner_await_passes(cleaner, 3);
    CHECK_INT(q2c_cleaner_del_and_wait(cleaner), 0);
    CHECK_U64(cleaner_stats(cleaner).interval_ns, MILLISECOND);
}

static void longer_interval_delays_the_next_pass(void)
{
    uint64_t passes;

    CHECK_INT(q2c_cleaner_start(cleaner, NULL, MILLISECOND), 0);
    cleaner_await_passes(cleaner, 2);
    CHECK_INT(q2c_cleaner_lock(cleaner), 0);
    CHECK_INT(q2c_cleaner_set_interval(cleaner, FOREVER), 0);
    passes = cleaner_stats(cleaner).passes;
    CHECK_INT(q2c_cleaner_unlock(cleaner), 0);
    for (int pause = 0; pause < 20; pause++) {
        test_pause();
    }
    /* one pass may have been due already and have waited for the lock */
    CHECK_BETWEEN(cleaner_stats(cleaner).passes, passes, passes + 1);
    CHECK_INT(q2c_cleaner_is_running(cleaner), 1);
    CHECK_INT(q2c_cleaner_del_and_wait(cleaner), 0);
}

static void interval_0_requests_a_stop(void)
{
    CHECK_INT(q2c_cleaner_start(cleaner, NULL, FOREVER), 0);
    CHECK_INT(q2c_cleaner_set_interval(cleaner, 0), 0);
    CHECK_INT(q2c_cleaner_is_running(cleaner), 0);
    EVENTUALLY(cleaner_stats(cleaner).instances == 0);
    CHECK_INT(q2c_cleaner_del_and_wait(cleaner), 0);
}

static void interval_can_change_repeatedly(void)
{
    CHECK_INT(q2c_cleaner_start(cleaner, NULL, FOREVER), 0);
    for (int i = 0; i < 50; i++) {
        CHECK_INT(q2c_cleaner_set_interval(cleaner, FOREVER), 0);
        CHECK_INT(q2c_cleaner_set_interval(cleaner, MILLISECOND), 0);
        if (i % 10 == 0) {
            cleaner_await_passes(cleaner, 1);
        }
    }
    CHECK_INT(q2c_cleaner_set_interval(cleaner, UINT64_MAX), 0);
    CHECK_INT(q2c_cleaner_is_running(cleaner), 1);
    CHECK_INT(q2c_cleaner_del_and_wait(cleaner), 0);
}

static void stats_count_starts_instances_and_interval(void)
{
    q2c_cleaner *fresh = cleaner_new();
    q2c_cleaner_stats now;

    for (unsigned i = 1; i <= 5; i++) {
        CHECK_INT(q2c_cleaner_start(fresh, NULL, i * SECOND), 0);
        now = cleaner_stats(fresh);
        CHECK_U64(now.starts, i);
        CHECK_U64(now.instances, 1);
        CHECK_U64(now.interval_ns, i * SECOND);
        CHECK_U64(now.passes, 0);
        CHECK_INT(q2c_cleaner_del_and_wait(fresh), 0);
        now = cleaner_stats(fresh);
        CHECK_U64(now.starts, i);
        CHECK_U64(now.instances, 0);
        CHECK_U64(now.interval_ns, i * SECOND);
    }
    cleaner_drop(fresh);
}

static void get_stats_checks_its_arguments(void)
{
    struct {
        q2c_cleaner_stats stats;
        uint64_t tail[2];
    } longer = { .tail = { 1, 2 } };

    CHECK_INT(q2c_cleaner_get_stats(cleaner, NULL), -EINVAL);
    longer.stats.starts = 99;
    CHECK_INT(q2c_cleaner_get_stats(cleaner, &longer.stats), -EINVAL);
    longer.stats.struct_size = sizeof(size_t);
    CHECK_INT(q2c_cleaner_get_stats(cleaner, &longer.stats), -EINVAL);
    CHECK_U64(longer.stats.starts, 99);
    longer.stats.struct_size = sizeof(longer);
    CHECK_INT(q2c_cleaner_get_stats(cleaner, &longer.stats), 0);
    CHECK_U64(longer.tail[1], 2);
}

int main(void)
{
    test_begin();
    cleaner = cleaner_new();
    RUN(set_interval_without_an_instance_is_esrch);
    RUN(shorter_interval_ends_the_current_sleep);
    RUN(longer_interval_delays_the_next_pass);
    RUN(interval_0_requests_a_stop);
    RUN(interval_can_change_repeatedly);
    RUN(stats_count_starts_instances_and_interval);
    RUN(get_stats_checks_its_arguments);
    cleaner_drop(cleaner);
    return test_end();
}
