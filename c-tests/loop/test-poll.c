/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * q2c_poll_until_done and q2c_run_until_done on the event loop host, where they depend on the
 * thread: whose loop runs, whose does not, and which waiter a kick reaches. The simple cases are in
 * test-threads.c.
 */
#include <unistd.h>

#include "looping.h"
#include "ping_pong.h"

static q2c_loop *loop; /* of the main thread */
static struct image image;
static q2c_cleaner *cleaner;
static atomic_bool finished;
static atomic_uint asked;
static pthread_t asker; /* the thread that waits for the condition */

static void begin(void)
{
    loop = loop_new();
    MUST(q2c_loop_clock_pause(loop));
    image_init(&image);
    image.config.host = &loop_host;
    image.config.context = loop;
    image.config.clean_interval_ns = FOREVER;
    image_open(&image);
    cleaner = q2c_state_cleaner(image.state);
    atomic_store(&finished, false);
    atomic_store(&asked, 0);
    asker = pthread_self();
}

static void end(void)
{
    image_close(&image);
    loop_drop(loop);
}

static bool is_finished(void *argument)
{
    CHECK_PTR(argument, &finished);
    CHECK(pthread_equal(pthread_self(), asker));
    atomic_fetch_add(&asked, 1);
    return atomic_load(&finished);
}

static void true_condition_does_not_run_the_loop(void)
{
    begin();
    atomic_store(&finished, true);
    CHECK_INT(q2c_poll_until_done(image.state, is_finished, &finished), 0);
    CHECK_U64(atomic_load(&asked), 1);
    CHECK_INT(q2c_loop_dispatch(loop), 1); /* the cleaner has not run yet */
    end();
}

static struct thread home; /* the main thread, for others to settle */

/*
 * The detach itself ends a wait. After the home thread has settled again, it waits only for the
 * kick.
 */
static void leave_finish_and_kick(void *argument)
{
    (void)argument;
    EVENTUALLY(atomic_load(&asked) > 0);
    CHECK_INT(q2c_state_detach_context(image.state), 0);
    thread_settle(&home);
    atomic_store(&finished, true);
    CHECK_INT(q2c_poll_kick(image.state), 0);
}

static void kick_reaches_the_waiter_after_detach(void)
{
    struct thread thread;

    begin();
    thread_start(&thread, leave_finish_and_kick, NULL);
    CHECK_INT(q2c_poll_until_done(image.state, is_finished, &finished), 0);
    thread_join(&thread);
    end();
}

static void wait_for_it(void *argument)
{
    (void)argument;
    asker = pthread_self();
    CHECK_INT(q2c_poll_until_done(image.state, is_finished, &finished), 0);
    CHECK(atomic_load(&finished));
}

/*
 * The waiter does not run the state's loop, which is not its own; it does not spin; and it needs no
 * turn of the loop to return.
 */
static void another_thread_waits_for_a_kick_without_spinning(void)
{
    struct thread thread;
    unsigned before;

    begin();
    thread_start(&thread, wait_for_it, NULL);
    EVENTUALLY(atomic_load(&asked) > 0);
    thread_settle(&thread);
    before = atomic_load(&asked);
    CHECK_INT(q2c_loop_dispatch(loop), 1); /* no other thread ran the cleaner */
    for (unsigned i = 0; i < 20; i++) {
        test_pause();
    }
    CHECK_BETWEEN(atomic_load(&asked), before, before + 5);
    CHECK(!atomic_load(&thread.done));
    atomic_store(&finished, true);
    CHECK_INT(q2c_poll_kick(image.state), 0);
    thread_join(&thread);
    end();
}

static void nothing(void *argument)
{
    (void)argument;
}

static void wait_for_it_there(void *argument)
{
    turner_run(argument, wait_for_it, NULL);
}

/* A wait does not run the other loop of its thread: tasks there might not expect it. */
static void wait_in_the_home_of_another_loop_does_not_run_it(void)
{
    q2c_cleaner *other = loop_cleaner_new();
    struct turner turner;
    struct thread sender;

    begin();
    turner_start(&turner);
    CHECK_INT(q2c_loop_clock_pause(turner.loop), 0);
    CHECK_INT(q2c_cleaner_start(other, turner.loop, 1), 0);
    turner_run(&turner, nothing, NULL); /* asleep */
    thread_start(&sender, wait_for_it_there, &turner);
    EVENTUALLY(atomic_load(&asked) > 0);
    CHECK_INT(q2c_loop_clock_step(turner.loop, SECOND), 0); /* its cleaner is due */
    thread_settle(&turner.thread);
    CHECK_U64(cleaner_stats(other).passes, 0);
    atomic_store(&finished, true);
    CHECK_INT(q2c_poll_kick(image.state), 0);
    thread_join(&sender);
    turner_run(&turner, nothing, NULL);
    CHECK_U64(cleaner_stats(other).passes, 1);
    CHECK_INT(q2c_cleaner_del_and_wait(other), 0);
    cleaner_drop(other);
    turner_stop(&turner);
    end();
}

static void no_kick_is_lost_between_home_and_another_thread(void)
{
    begin();
    play_ping_pong(image.state);
    end();
}

static void entry(void *argument)
{
    pthread_t *caller = argument;

    CHECK(pthread_equal(*caller, pthread_self()));
    /* what a driver does in it: take the lock, use the caches, stop the cleaner */
    CHECK_INT(q2c_state_lock(image.state), 0);
    cache_touch(image_l2(&image), CLUSTER_AT(1));
    CHECK_INT(q2c_cleaner_co_locked_del_and_wait(cleaner), 0);
    CHECK_INT(q2c_state_unlock(image.state), 0);
    CHECK(!image_cleaner_runs(&image));
    atomic_fetch_add(&asked, 1);
}

static void run_it_elsewhere(void *argument)
{
    pthread_t me = pthread_self();

    (void)argument;
    CHECK_INT(q2c_run_until_done(image.state, entry, &me), 0);
    CHECK_INT(q2c_state_detach_context(image.state), 0);
    CHECK_INT(q2c_state_attach_context(image.state, loop), 0);
}

static void run_until_done_runs_in_the_calling_thread(void)
{
    pthread_t me = pthread_self();
    struct thread thread;

    begin();
    thread_start(&thread, run_it_elsewhere, NULL);
    thread_join(&thread);
    CHECK(image_cleaner_runs(&image));
    CHECK_INT(q2c_run_until_done(image.state, entry, &me), 0);
    CHECK_U64(atomic_load(&asked), 2);
    end();
}

static void wrong_arguments_are_rejected(void)
{
    pthread_t me = pthread_self();

    begin();
    CHECK_INT(q2c_poll_until_done(NULL, is_finished, &finished), -EINVAL);
    CHECK_INT(q2c_poll_until_done(image.state, NULL, &finished), -EINVAL);
    CHECK_INT(q2c_poll_kick(NULL), -EINVAL);
    CHECK_INT(q2c_run_until_done(NULL, entry, &me), -EINVAL);
    CHECK_INT(q2c_run_until_done(image.state, NULL, &me), -EINVAL);
    CHECK_INT(q2c_state_lock(image.state), 0);
    CHECK_INT(q2c_run_until_done(image.state, entry, &me), -EDEADLK);
    CHECK_INT(q2c_state_unlock(image.state), 0);
    CHECK_U64(atomic_load(&asked), 0);
    end();
}

int main(void)
{
    test_begin();
    atomic_store(&home.kernel_id, (int)gettid());
    RUN(true_condition_does_not_run_the_loop);
    RUN(kick_reaches_the_waiter_after_detach);
    RUN(another_thread_waits_for_a_kick_without_spinning);
    RUN(wait_in_the_home_of_another_loop_does_not_run_it);
    RUN(no_kick_is_lost_between_home_and_another_thread);
    RUN(run_until_done_runs_in_the_calling_thread);
    RUN(wrong_arguments_are_rejected);
    return test_end();
}
