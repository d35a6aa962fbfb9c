/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* A stop in the wrong place is an error, and no hang. */
#include "cleaning.h"
#include "threads.h"

static q2c_cleaner *cleaner;

static void waiting_stops_with_the_lock_held(void)
{
    CHECK_INT(q2c_cleaner_start(cleaner, NULL, FOREVER), 0);
    CHECK_INT(q2c_cleaner_lock(cleaner), 0);
    CHECK_INT(q2c_cleaner_co_del_and_wait(cleaner), -EDEADLK);
    CHECK_INT(q2c_cleaner_del_and_wait(cleaner), -EDEADLK);
    CHECK_INT(q2c_cleaner_is_running(cleaner), 1); /* an error stops nothing */
    CHECK_INT(q2c_cleaner_unlock(cleaner), 0);
    CHECK_INT(q2c_cleaner_del_and_wait(cleaner), 0);
}

static void even_when_there_is_nothing_to_stop(void)
{
    CHECK_INT(q2c_cleaner_lock(cleaner), 0);
    CHECK_INT(q2c_cleaner_co_del_and_wait(cleaner), -EDEADLK);
    CHECK_INT(q2c_cleaner_del_and_wait(cleaner), -EDEADLK);
    CHECK_INT(q2c_cleaner_unlock(cleaner), 0);
    CHECK_INT(q2c_cleaner_co_locked_del_and_wait(cleaner), -EPERM);
}

static void locked_stop_without_the_lock(void)
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

static void locked_stop_with_anothers_lock(void)
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

static void what_needs_no_waiting_is_fine_with_the_lock(void)
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
    RUN(waiting_stops_with_the_lock_held);
    RUN(even_when_there_is_nothing_to_stop);
    RUN(locked_stop_without_the_lock);
    RUN(locked_stop_with_anothers_lock);
    RUN(what_needs_no_waiting_is_fine_with_the_lock);
    cleaner_drop(cleaner);
    return test_end();
}
