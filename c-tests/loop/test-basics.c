/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * q2c_loop_*: one descriptor to wait on, the next timeout, dispatch, and kicks from any thread.
 * Misuse returns its errno.
 */
#include "looping.h"

static void wrong_arguments_are_rejected(void)
{
    q2c_loop *loop = loop_new(), *none = NULL;
    q2c_error error = { .code = 0 };
    int64_t timeout = 7;

    CHECK_INT(q2c_loop_new(NULL, &error), -EINVAL);
    CHECK_INT(error.code, EINVAL);
    CHECK(error.message[0] != 0);
    CHECK_INT(q2c_loop_free(NULL), 0);
    CHECK_INT(q2c_loop_free(&none), 0);
    CHECK_INT(q2c_loop_poll(NULL, 0), -EINVAL);
    CHECK_INT(q2c_loop_poll(loop, -2), -EINVAL);
    CHECK_INT(q2c_loop_fd(NULL), -EINVAL);
    CHECK_INT(q2c_loop_timeout_ns(NULL, &timeout), -EINVAL);
    CHECK_INT(timeout, 7);
    CHECK_INT(q2c_loop_timeout_ns(loop, NULL), -EINVAL);
    CHECK_INT(q2c_loop_dispatch(NULL), -EINVAL);
    CHECK_INT(q2c_loop_kick(NULL), -EINVAL);
    CHECK_INT(q2c_loop_clock_pause(NULL), -EINVAL);
    CHECK_INT(q2c_loop_clock_resume(NULL), -EINVAL);
    CHECK_INT(q2c_loop_clock_step(NULL, 1), -EINVAL);
    loop_drop(loop);
}

static void idle_loop_has_nothing_to_do(void)
{
    q2c_loop *loop = loop_new();

    CHECK(!loop_is_readable(loop));
    CHECK_INT(loop_timeout(loop), -1);
    CHECK_INT(q2c_loop_poll(loop, 0), 0);
    CHECK_INT(q2c_loop_poll(loop, (int64_t)MILLISECOND), 0);
    CHECK_INT(q2c_loop_dispatch(loop), 0);
    loop_drop(loop);
}

static void use_elsewhere(void *argument)
{
    q2c_loop *loop = argument;

    CHECK_INT(q2c_loop_poll(loop, 0), -EPERM);
    CHECK_INT(q2c_loop_dispatch(loop), -EPERM);
    CHECK_INT(q2c_loop_free(&loop), -EPERM);
    CHECK_PTR(loop, argument);
    CHECK(q2c_loop_fd(loop) >= 0);
    CHECK_INT(loop_timeout(loop), -1);
}

static void only_the_creating_thread_runs_the_loop(void)
{
    q2c_loop *loop = loop_new();
    struct thread thread;

    thread_start(&thread, use_elsewhere, loop);
    thread_join(&thread);
    loop_drop(loop);
}

static void kick_before_the_wait_ends_it(void)
{
    q2c_loop *loop = loop_new();

    CHECK_INT(q2c_loop_kick(loop), 0);
    CHECK_INT(q2c_loop_kick(loop), 0);
    CHECK(loop_is_readable(loop));
    CHECK_INT(q2c_loop_poll(loop, -1), 0);
    CHECK(!loop_is_readable(loop));
    CHECK_INT(q2c_loop_kick(loop), 0);
    CHECK_INT(q2c_loop_dispatch(loop), 0);
    CHECK(!loop_is_readable(loop));
    loop_drop(loop);
}

#define KICKS 2000
static atomic_uint seen;

static void kick_in_turn(void *argument)
{
    for (unsigned i = 0; i < KICKS; i++) {
        while (atomic_load(&seen) < i) {
            sched_yield();
        }
        CHECK_INT(q2c_loop_kick(argument), 0);
    }
}

/* Each poll waits without limit, so a lost kick hangs the test. */
static void no_kick_is_lost(void)
{
    q2c_loop *loop = loop_new();
    struct thread thread;

    atomic_store(&seen, 0);
    thread_start(&thread, kick_in_turn, loop);
    for (unsigned i = 0; i < KICKS; i++) {
        CHECK(q2c_loop_poll(loop, -1) >= 0);
        atomic_fetch_add(&seen, 1);
    }
    thread_join(&thread);
    loop_drop(loop);
}

static void cleaner_is_a_task_with_a_timer(void)
{
    q2c_loop *loop = loop_new();
    q2c_cleaner *cleaner = loop_cleaner_new();

    CHECK_INT(q2c_cleaner_start(cleaner, NULL, SECOND), -EINVAL); /* not a context of this host */
    CHECK_INT(q2c_cleaner_start(cleaner, loop, FOREVER), 0);
    CHECK_INT(q2c_cleaner_start(cleaner, loop, FOREVER), -EALREADY);
    CHECK(loop_is_readable(loop));
    CHECK(q2c_loop_dispatch(loop) >= 1);
    loop_settle(loop);
    CHECK_BETWEEN((uint64_t)loop_timeout(loop), FOREVER / 2, FOREVER);
    CHECK_U64(cleaner_stats(cleaner).passes, 0);
    CHECK_INT(q2c_cleaner_del_and_wait(cleaner), 0);
    loop_settle(loop);
    CHECK_INT(loop_timeout(loop), -1); /* its timer is gone */
    cleaner_drop(cleaner);
    loop_drop(loop);
}

static void free_is_busy_while_the_loop_has_a_cleaner(void)
{
    q2c_loop *loop = loop_new();
    q2c_cleaner *cleaner = loop_cleaner_new();
    q2c_loop *same = loop;

    CHECK_INT(q2c_cleaner_start(cleaner, loop, FOREVER), 0);
    CHECK_INT(q2c_loop_free(&loop), -EBUSY);
    CHECK_PTR(loop, same);
    CHECK_INT(q2c_cleaner_destroy(&cleaner), -EBUSY);
    CHECK_INT(q2c_cleaner_del_and_wait(cleaner), 0);
    cleaner_drop(cleaner);
    loop_drop(loop);
}

static void poll_runs_passes(void)
{
    q2c_loop *loop = loop_new();
    q2c_cleaner *cleaner = loop_cleaner_new();

    CHECK_INT(q2c_cleaner_start(cleaner, loop, MILLISECOND), 0);
    while (cleaner_stats(cleaner).passes < 5) {
        CHECK(q2c_loop_poll(loop, -1) >= 0);
    }
    CHECK_INT(q2c_cleaner_del_and_wait(cleaner), 0);
    cleaner_drop(cleaner);
    loop_drop(loop);
}

int main(void)
{
    test_begin();
    RUN(wrong_arguments_are_rejected);
    RUN(idle_loop_has_nothing_to_do);
    RUN(only_the_creating_thread_runs_the_loop);
    RUN(kick_before_the_wait_ends_it);
    RUN(no_kick_is_lost);
    RUN(cleaner_is_a_task_with_a_timer);
    RUN(free_is_busy_while_the_loop_has_a_cleaner);
    RUN(poll_runs_passes);
    return test_end();
}
