/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * How long a wait lasts: until a timer is due, the limit is over, or a kick, a signal, or a start
 * or change by another thread comes. It lasts no longer, and it does not spin.
 */
#include <signal.h>
#include <time.h>
#include <unistd.h>

#include "looping.h"

static q2c_loop *loop;
static q2c_cleaner *cleaner;

static void begin(void)
{
    loop = loop_new();
    cleaner = loop_cleaner_new();
}

static void end(void)
{
    CHECK_INT(q2c_cleaner_del_and_wait(cleaner), 0);
    cleaner_drop(cleaner);
    loop_drop(loop);
}

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * SECOND + (uint64_t)now.tv_nsec;
}

static void start_makes_the_loop_readable_and_due(void)
{
    begin();
    CHECK_INT(q2c_cleaner_start(cleaner, loop, FOREVER), 0);
    CHECK(loop_is_readable(loop));
    CHECK_INT(loop_timeout(loop), 0);
    CHECK_INT(q2c_loop_dispatch(loop), 1);
    CHECK(!loop_is_readable(loop) ||
          q2c_loop_dispatch(loop) == 0); /* the new timer may be reported once */
    CHECK(!loop_is_readable(loop));
    CHECK_BETWEEN(loop_timeout(loop), 1, FOREVER);
    CHECK_INT(q2c_loop_dispatch(loop), 0); /* nothing runs before the timer is due */
    CHECK_INT(q2c_loop_poll(loop, 0), 0);
    CHECK_U64(cleaner_stats(cleaner).passes, 0);
    end();
}

static void timer_is_due_when_the_timeout_ends(void)
{
    begin();
    CHECK_INT(q2c_cleaner_start(cleaner, loop, 5 * MILLISECOND), 0);
    for (uint64_t passes = 1; passes <= 3; passes++) {
        while (cleaner_stats(cleaner).passes < passes) {
            int64_t timeout = loop_timeout(loop);

            CHECK_BETWEEN(timeout, 0, 5 * MILLISECOND);
            if (timeout > 0) {
                struct timespec sleep = { .tv_nsec = (long)timeout };

                nanosleep(&sleep, NULL);
            }
            CHECK(q2c_loop_dispatch(loop) >= 0);
        }
    }
    end();
}

static void poll_waits_for_the_timer(void)
{
    uint64_t before;
    unsigned turns = 0;

    begin();
    before = now_ns();
    CHECK_INT(q2c_cleaner_start(cleaner, loop, 5 * MILLISECOND), 0);
    while (cleaner_stats(cleaner).passes < 4) {
        CHECK(q2c_loop_poll(loop, -1) >= 0);
        turns++;
    }
    CHECK(now_ns() - before >= 20 * MILLISECOND);
    CHECK(turns <= 40); /* it does not spin */
    end();
}

static void limit_ends_a_wait_for_a_timer(void)
{
    begin();
    CHECK_INT(q2c_cleaner_start(cleaner, loop, FOREVER), 0);
    while (q2c_loop_dispatch(loop) > 0 || loop_is_readable(loop)) {
    }
    CHECK_INT(q2c_loop_poll(loop, (int64_t)MILLISECOND), 0);
    CHECK_U64(cleaner_stats(cleaner).passes, 0);
    end();
}

static void descriptor_stays_the_same(void)
{
    int fd;

    begin();
    fd = q2c_loop_fd(loop);
    CHECK(fd >= 0);
    CHECK_INT(q2c_cleaner_start(cleaner, loop, 1), 0);
    for (unsigned i = 0; i < 10; i++) {
        CHECK(q2c_loop_poll(loop, -1) >= 0);
        CHECK_INT(q2c_loop_fd(loop), fd);
    }
    end();
}

/* ---- other threads ---- */

static struct thread self; /* the main thread, for others to settle */

static void kick_it(void *argument)
{
    (void)argument;
    CHECK_INT(q2c_loop_kick(loop), 0);
}

static void kick_the_waiting(void *argument)
{
    thread_settle(&self);
    kick_it(argument);
}

static void kick_from_another_thread_ends_a_wait(void)
{
    struct thread thread;

    begin();
    for (unsigned i = 0; i < 20; i++) {
        thread_start(&thread, i % 2 == 0 ? kick_the_waiting : kick_it, NULL);
        CHECK_INT(q2c_loop_poll(loop, -1), 0);
        thread_join(&thread);
    }
    end();
}

static void start_it(void *argument)
{
    (void)argument;
    thread_settle(&self);
    CHECK_INT(q2c_cleaner_start(cleaner, loop, FOREVER), 0);
}

static void hurry_it(void *argument)
{
    (void)argument;
    thread_settle(&self);
    CHECK_INT(q2c_cleaner_set_interval(cleaner, 1), 0);
}

/* The loop waits without limit, then for a distant timer. Another thread's call ends each wait. */
static void start_and_interval_change_end_a_wait(void)
{
    struct thread thread;

    begin();
    thread_start(&thread, start_it, NULL);
    CHECK_INT(q2c_loop_poll(loop, -1), 1);
    thread_join(&thread);
    thread_start(&thread, hurry_it, NULL);
    while (cleaner_stats(cleaner).passes < 1) {
        CHECK(q2c_loop_poll(loop, -1) >= 0);
    }
    thread_join(&thread);
    end();
}

static void step_it(void *argument)
{
    (void)argument;
    thread_settle(&self);
    CHECK_INT(q2c_loop_clock_step(loop, FOREVER), 0);
}

static void resume_it(void *argument)
{
    (void)argument;
    thread_settle(&self);
    CHECK_INT(q2c_loop_clock_resume(loop), 0);
}

/* While its clock is paused, the loop waits without limit, whatever its timers. */
static void clock_step_and_resume_end_a_wait(void)
{
    struct thread thread;

    begin();
    CHECK_INT(q2c_loop_clock_pause(loop), 0);
    CHECK_INT(q2c_cleaner_start(cleaner, loop, MILLISECOND), 0);
    loop_settle(loop);
    thread_start(&thread, step_it, NULL);
    while (cleaner_stats(cleaner).passes < 1) {
        CHECK(q2c_loop_poll(loop, -1) >= 0);
    }
    thread_join(&thread);
    loop_settle(loop);
    thread_start(&thread, resume_it, NULL);
    while (cleaner_stats(cleaner).passes < 4) {
        CHECK(q2c_loop_poll(loop, -1) >= 0);
    }
    thread_join(&thread);
    end();
}

static void on_signal(int number)
{
    (void)number;
}

static atomic_bool interrupted;

/* Signals more than once: unlike a kick, a signal before the wait does not end it. */
static void interrupt_it(void *argument)
{
    pthread_t *main_thread = argument;

    while (!atomic_load(&interrupted)) {
        MUST(pthread_kill(*main_thread, SIGUSR1));
        test_pause();
    }
}

static void signal_ends_a_wait(void)
{
    struct sigaction action = { .sa_handler = on_signal };
    pthread_t main_thread = pthread_self();
    struct thread thread;

    begin();
    MUST(sigaction(SIGUSR1, &action, NULL));
    atomic_store(&interrupted, false);
    thread_start(&thread, interrupt_it, &main_thread);
    CHECK_INT(q2c_loop_poll(loop, -1), 0);
    atomic_store(&interrupted, true);
    thread_join(&thread);
    end();
}

int main(void)
{
    test_begin();
    atomic_store(&self.kernel_id, (int)gettid());
    RUN(start_makes_the_loop_readable_and_due);
    RUN(timer_is_due_when_the_timeout_ends);
    RUN(poll_waits_for_the_timer);
    RUN(limit_ends_a_wait_for_a_timer);
    RUN(descriptor_stays_the_same);
    RUN(kick_from_another_thread_ends_a_wait);
    RUN(start_and_interval_change_end_a_wait);
    RUN(clock_step_and_resume_end_a_wait);
    RUN(signal_ends_a_wait);
    return test_end();
}
