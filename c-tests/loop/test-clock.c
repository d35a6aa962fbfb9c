/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* The loop's clock: pause, resume, and steps by hand. It pauses passes, never a stop. */
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
    CHECK_INT(q2c_loop_clock_step(loop, 1), -EINVAL); /* the clock runs */
    end();
}

static void only_steps_move_a_paused_clock(void)
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

static void no_pass_runs_while_the_clock_is_paused(void)
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

/* From the home thread, which does not run the loop meanwhile, and from another thread. */
static void stop_returns_while_the_clock_is_paused(void)
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

static void new_interval_counts_from_the_start_of_the_sleep(void)
{
    begin();
    CHECK_INT(q2c_cleaner_start(cleaner, loop, 100), 0);
    CHECK_U64(passes(), 0);
    CHECK_INT(q2c_loop_clock_step(loop, 50), 0);
    CHECK_U64(passes(), 0);
    CHECK_INT(q2c_cleaner_set_interval(cleaner, 200), 0); /* counts from the start of this sleep */
    CHECK_INT(q2c_loop_clock_step(loop, 100), 0);
    CHECK_U64(passes(), 0);
    CHECK_INT(q2c_loop_clock_step(loop, 50), 0);
    CHECK_U64(passes(), 1);
    CHECK_INT(q2c_loop_clock_step(loop, 60), 0);
    CHECK_U64(passes(), 1);
    CHECK_INT(q2c_cleaner_set_interval(cleaner, 60), 0); /* has passed already */
    CHECK_U64(passes(), 2);
    CHECK_INT(q2c_cleaner_set_interval(cleaner, 0), 0); /* a stop */
    CHECK_INT(q2c_loop_clock_step(loop, FOREVER), 0);
    CHECK_U64(passes(), 2);
    CHECK_INT(q2c_cleaner_is_running(cleaner), 0);
    CHECK_INT(q2c_cleaner_set_interval(cleaner, 60), -ESRCH);
    end();
}

static void interval_0_starts_no_instance(void)
{
    begin();
    CHECK_INT(q2c_cleaner_start(cleaner, loop, 0), 0);
    CHECK_INT(q2c_cleaner_is_running(cleaner), 0);
    CHECK_U64(cleaner_stats(cleaner).starts, 0);
    end();
}

/* An endless sleep does not end, however far the clock goes. A due timer fires once. */
static void endless_sleep_outlasts_every_step(void)
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
    RUN(only_steps_move_a_paused_clock);
    RUN(no_pass_runs_while_the_clock_is_paused);
    RUN(stop_returns_while_the_clock_is_paused);
    RUN(new_interval_counts_from_the_start_of_the_sleep);
    RUN(interval_0_starts_no_instance);
    RUN(endless_sleep_outlasts_every_step);
    return test_end();
}
