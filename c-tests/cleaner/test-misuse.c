/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* A stop in the wrong context returns an error and does not hang. */
#include "cleaning.h"
#include "threads.h"

static q2c_cleaner *cleaner;

static void waiting_stops_fail_with_the_lock_held(void)
{
    CHECK_INT(q2c_cleaner_start(cleaner, NULL, FOREVER), 0);
    CHECK_INT(q2c_cleaner_lock(cleaner), 0);
    CHECK_INT(q2c_cleaner_co_del_and_wait(cleaner), -EDEADLK);
    CHECK_INT(q2c_cleaner_del_and_wait(cleaner), -EDEADLK);
    CHECK_INT(q2c_cleaner_is_running(cleaner), 1); /* an error stops nothing */
    CHECK_INT(q2c_cleaner_unlock(cleaner), 0);
    CHECK_INT(q2c_cleaner_del_and_wait(cleaner), 0);
}

static void wrong_stops_fail_without_an_instance_too(void)
{
    CHECK_INT(q2c_cleaner_lock(cleaner), 0);
    CHECK_INT(q2c_cleaner_co_del_and_wait(cleaner), -EDEADLK);
    CHECK_INT(q2c_cleaner_del_and_wait(cleaner), -EDEADLK);
    CHECK_INT(q2c_cleaner_unlock(cleaner), 0);
    CHECK_INT(q2c_cleaner_co_locked_del_and_wait(cleaner), -EPERM);
}

static void locked_stop_fails_without_the_lock(void)
{
    CHECK_INT(q2c_cleaner_start(cleaner, NULL, FOREVER), 0);
    CHECK_INT(q2c_cleaner_co_locked_del_and_wait(cleaner), -EPERM);
    CHECK_INT(q2c_cleaner_is_running(cleaner), 1);
    CHECK_INT(q2c_cleaner_del_and_wait(cleaner), 0);
}

static void locked_stop_elsewhere(void *argument)
{
    (void)argument;
    CHECK_INT(q2c_cleaner_co_locked_del_and_wait(cleaner), -EPERM);
}

static void locked_stop_fails_with_another_threads_lock(void)
{
    struct thread thread;

    CHECK_INT(q2c_cleaner_start(cleaner, NULL, FOREVER), 0);
    CHECK_INT(q2c_cleaner_lock(cleaner), 0);
    thread_start(&thread, locked_stop_elsewhere, NULL);
    thread_join(&thread);
    CHECK_INT(q2c_cleaner_is_running(cleaner), 1);
    CHECK_INT(q2c_cleaner_co_locked_del_and_wait(cleaner), 0);
    CHECK_INT(q2c_cleaner_unlock(cleaner), 0);
}

static void calls_that_do_not_wait_work_with_the_lock_held(void)
{
    CHECK_INT(q2c_cleaner_lock(cleaner), 0);
    CHECK_INT(q2c_cleaner_start(cleaner, NULL, FOREVER), 0);
    CHECK_INT(q2c_cleaner_set_interval(cleaner, SECOND), 0);
    CHECK_INT(q2c_cleaner_is_running(cleaner), 1);
    CHECK_INT(q2c_cleaner_request_stop(cleaner), 0);
    CHECK_INT(q2c_cleaner_unlock(cleaner), 0);
    CHECK_INT(q2c_cleaner_del_and_wait(cleaner), 0);
}

int main(void)
{
    test_begin();
    cleaner = cleaner_new();
    RUN(waiting_stops_fail_with_the_lock_held);
    RUN(wrong_stops_fail_without_an_instance_too);
    RUN(locked_stop_fails_without_the_lock);
    RUN(locked_stop_fails_with_another_threads_lock);
    RUN(calls_that_do_not_wait_work_with_the_lock_held);
    cleaner_drop(cleaner);
    return test_end();
}
