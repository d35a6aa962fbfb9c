/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* q2c_poll_until_done, q2c_poll_kick and q2c_run_until_done on the thread host. */
#include "image.h"
#include "ping_pong.h"
#include "threads.h"

static struct image image;
static atomic_bool finished;
static atomic_uint asked;

static bool is_finished(void *argument)
{
    CHECK_PTR(argument, &finished);
    atomic_fetch_add(&asked, 1);
    return atomic_load(&finished);
}

static void open_image(void)
{
    atomic_store(&finished, false);
    atomic_store(&asked, 0);
    image_init(&image);
    image_open(&image);
}

static void true_condition_needs_no_wait(void)
{
    open_image();
    atomic_store(&finished, true);
    CHECK_INT(q2c_poll_until_done(image.state, is_finished, &finished), 0);
    CHECK_BETWEEN(atomic_load(&asked), 1, 2);
    image_close(&image);
}

static void finish(void *argument)
{
    (void)argument;
    EVENTUALLY(atomic_load(&asked) > 0);
    atomic_store(&finished, true);
    CHECK_INT(q2c_poll_kick(image.state), 0);
}

static void kick_makes_the_waiter_check_again(void)
{
    struct thread thread;

    open_image();
    thread_start(&thread, finish, NULL);
    CHECK_INT(q2c_poll_until_done(image.state, is_finished, &finished), 0);
    CHECK(atomic_load(&finished));
    thread_join(&thread);
    image_close(&image);
}

static void wait_for_it(void *argument)
{
    (void)argument;
    CHECK_INT(q2c_poll_until_done(image.state, is_finished, &finished), 0);
    CHECK(atomic_load(&finished));
}

static void early_kicks_do_not_end_the_wait(void)
{
    struct thread thread;

    open_image();
    CHECK_INT(q2c_poll_kick(image.state), 0);
    thread_start(&thread, wait_for_it, NULL);
    EVENTUALLY(atomic_load(&asked) > 0);
    for (unsigned i = 0; i < 20; i++) {
        CHECK_INT(q2c_poll_kick(image.state), 0);
    }
    thread_settle(&thread);
    CHECK(!atomic_load(&thread.done));
    atomic_store(&finished, true);
    CHECK_INT(q2c_poll_kick(image.state), 0);
    thread_join(&thread);
    image_close(&image);
}

static void waiter_does_not_spin(void)
{
    struct thread thread;
    unsigned before;

    open_image();
    thread_start(&thread, wait_for_it, NULL);
    thread_settle(&thread);
    before = atomic_load(&asked);
    for (int i = 0; i < 20; i++) {
        test_pause();
    }
    CHECK(atomic_load(&asked) - before <= 5);
    atomic_store(&finished, true);
    CHECK_INT(q2c_poll_kick(image.state), 0);
    thread_join(&thread);
    image_close(&image);
}

static void one_kick_wakes_all_waiters(void)
{
    struct thread threads[4];

    open_image();
    for (unsigned i = 0; i < 4; i++) {
        thread_start(&threads[i], wait_for_it, NULL);
    }
    for (unsigned i = 0; i < 4; i++) {
        thread_settle(&threads[i]);
    }
    atomic_store(&finished, true);
    CHECK_INT(q2c_poll_kick(image.state), 0);
    for (unsigned i = 0; i < 4; i++) {
        thread_join(&threads[i]);
    }
    image_close(&image);
}

static void no_kick_is_lost(void)
{
    open_image();
    play_ping_pong(image.state);
    image_close(&image);
}

static unsigned entries;

static void entry(void *argument)
{
    CHECK_PTR(argument, &entries);
    entries++;
    /* what a driver does in it: take the lock, and use the caches */
    CHECK_INT(q2c_state_lock(image.state), 0);
    cache_touch(image_l2(&image), CLUSTER_AT(1));
    CHECK_INT(q2c_cleaner_co_locked_del_and_wait(q2c_state_cleaner(image.state)), 0);
    CHECK_INT(q2c_state_unlock(image.state), 0);
}

static void run_until_done_runs_the_function_to_its_end(void)
{
    open_image();
    entries = 0;
    CHECK_INT(q2c_run_until_done(image.state, entry, &entries), 0);
    CHECK_U64(entries, 1);
    CHECK(!image_cleaner_runs(&image));
    image_close(&image);
}

int main(void)
{
    test_begin();
    RUN(true_condition_needs_no_wait);
    RUN(kick_makes_the_waiter_check_again);
    RUN(early_kicks_do_not_end_the_wait);
    RUN(waiter_does_not_spin);
    RUN(one_kick_wakes_all_waiters);
    RUN(no_kick_is_lost);
    RUN(run_until_done_runs_the_function_to_its_end);
    return test_end();
}
