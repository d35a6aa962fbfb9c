/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* The loop's clock: paused, resumed, stepped by hand. It pauses cleaning, never stopping. */
#include "looping.h"

static q2c_loop *loop;
static q2c_cleaner *cleaner;

static uint64_t passes(void)
{
    loop_settle(loop);
    return cleaner_stats(cleaner).passes;
}

static void begin(void)
{
    loop = loop_new();
    cleaner = loop_cleaner_new();
    CHECK_INT(q2c_loop_clock_pause(loop), 0);
}

static void end(void)
{
    CHECK_INT(q2c_cleaner_del_and_wait(cleaner), 0);
    cleaner_drop(cleaner);
    loop_drop(loop);
}

static void pause_and_resume_alternate(void)
{
    begin();
    CHECK_INT(q2c_loop_clock_pause(loop), -EALREADY);
    CHECK_INT(q2c_loop_clock_resume(loop), 0);
    CHECK_INT(q2c_loop_clock_resume(loop), -EALREADY);
    CHECK_INT(q2c_loop_clock_step(loop, 1), -EINVAL); /* it runs */
    end();
}

static void a_step_is_the_only_time_that_passes(void)
{
    begin();
    CHECK_INT(q2c_cleaner_start(cleaner, loop, FOREVER), 0);
    CHECK_U64(passes(), 0);
    for (uint64_t i = 0; i < 5; i++) {
        CHECK_INT(q2c_loop_clock_step(loop, FOREVER - 1), 0);
        CHECK_U64(passes(), i);
        CHECK_INT(q2c_loop_clock_step(loop, 1), 0);
        CHECK_U64(passes(), i + 1);
    }
    end();
}

static void while_it_stands_nothing_is_cleaned(void)
{
    begin();
    CHECK_INT(q2c_cleaner_start(cleaner, loop, 1), 0);
    CHECK_U64(passes(), 0);
    CHECK_INT(loop_timeout(loop), -1);
    CHECK_INT(q2c_loop_poll(loop, (int64_t)(5 * MILLISECOND)), 0);
    CHECK_U64(passes(), 0);
    CHECK_INT(q2c_loop_clock_resume(loop), 0);
    while (cleaner_stats(cleaner).passes < 3) {
        CHECK(q2c_loop_poll(loop, -1) >= 0);
    }
    end();
}

static void stop_it(void *argument)
{
    const struct cleaner_stop *how = argument;

    CHECK_INT(how->stop(cleaner), 0);
    CHECK_U64(cleaner_stats(cleaner).instances, 0);
}

/* From home, which does not turn the loop meanwhile, and from another thread. */
static void a_stop_returns_while_it_stands(void)
{
    begin();
    for (unsigned i = 0; i < CLEANER_STOPS; i++) {
        struct thread thread;

        CHECK_INT(q2c_cleaner_start(cleaner, loop, SECOND), 0);
        loop_settle(loop);
        stop_it((void *)(uintptr_t)&cleaner_stops[i]);
        CHECK_INT(q2c_cleaner_start(cleaner, loop, SECOND), 0);
        loop_settle(loop);
        thread_start(&thread, stop_it, (void *)(uintptr_t)&cleaner_stops[i]);
        thread_join(&thread);
    }
    CHECK_INT(q2c_loop_clock_step(loop, FOREVER), 0);
    CHECK_U64(passes(), 0);
    end();
}

static void a_new_interval_in_mid_sleep(void)
{
    begin();
    CHECK_INT(q2c_cleaner_start(cleaner, loop, 100), 0);
    CHECK_U64(passes(), 0);
    CHECK_INT(q2c_loop_clock_step(loop, 50), 0);
    CHECK_U64(passes(), 0);
    CHECK_INT(q2c_cleaner_set_interval(cleaner, 200), 0); /* from the beginning of this sleep */
    CHECK_INT(q2c_loop_clock_step(loop, 100), 0);
    CHECK_U64(passes(), 0);
    CHECK_INT(q2c_loop_clock_step(loop, 50), 0);
    CHECK_U64(passes(), 1);
    CHECK_INT(q2c_loop_clock_step(loop, 60), 0);
    CHECK_U64(passes(), 1);
    CHECK_INT(q2c_cleaner_set_interval(cleaner, 60), 0); /* over already */
    CHECK_U64(passes(), 2);
    CHECK_INT(q2c_cleaner_set_interval(cleaner, 0), 0); /* a stop */
    CHECK_INT(q2c_loop_clock_step(loop, FOREVER), 0);
    CHECK_U64(passes(), 2);
    CHECK_INT(q2c_cleaner_is_running(cleaner), 0);
    CHECK_INT(q2c_cleaner_set_interval(cleaner, 60), -ESRCH);
    end();
}

static void an_interval_of_0_starts_none(void)
{
    begin();
    CHECK_INT(q2c_cleaner_start(cleaner, loop, 0), 0);
    CHECK_INT(q2c_cleaner_is_running(cleaner), 0);
    CHECK_U64(cleaner_stats(cleaner).starts, 0);
    end();
}

/* A sleep without an end does not end, however far the clock goes; what is due is due once. */
static void a_step_to_the_end_of_time(void)
{
    begin();
    CHECK_INT(q2c_cleaner_start(cleaner, loop, UINT64_MAX), 0);
    CHECK_U64(passes(), 0);
    CHECK_INT(q2c_loop_clock_step(loop, UINT64_MAX), 0);
    CHECK_U64(passes(), 0);
    CHECK_INT(q2c_cleaner_set_interval(cleaner, 1), 0);
    CHECK_U64(passes(), 1);
    CHECK_INT(q2c_loop_clock_step(loop, UINT64_MAX), 0);
    CHECK_U64(passes(), 1);
    end();
}

int main(void)
{
    test_begin();
    RUN(pause_and_resume_alternate);
    RUN(a_step_is_the_only_time_that_passes);
    RUN(while_it_stands_nothing_is_cleaned);
    RUN(a_stop_returns_while_it_stands);
    RUN(a_new_interval_in_mid_sleep);
    RUN(an_interval_of_0_starts_none);
    RUN(a_step_to_the_end_of_time);
    return test_end();
}
