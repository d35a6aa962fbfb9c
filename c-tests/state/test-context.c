/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* q2c_state_detach_context and q2c_state_attach_context, and the state's lock. */
#include "image.h"
#include "threads.h"

static struct image image;

static void detach_requests_a_stop_of_the_cleaner(void)
{
    q2c_cleaner *cleaner;

    image_init(&image);
    image_open(&image);
    cleaner = q2c_state_cleaner(image.state);
    CHECK_INT(q2c_state_detach_context(image.state), 0);
    CHECK_INT(q2c_cleaner_is_running(cleaner), 0);
    EVENTUALLY(cleaner_stats(cleaner).instances == 0);
    CHECK_INT(q2c_state_detach_context(image.state), 0); /* twice is no error */
    image_close(&image);
}

static void detach_does_not_wait_for_the_lock(void)
{
    image_init(&image);
    image.config.clean_interval_ns = 1;
    image_open(&image);
    cleaner_await_passes(q2c_state_cleaner(image.state), 1);
    CHECK_INT(q2c_state_lock(image.state), 0);
    CHECK_INT(q2c_state_detach_context(image.state), 0);
    EVENTUALLY(cleaner_stats(q2c_state_cleaner(image.state)).instances == 0);
    CHECK_INT(q2c_state_unlock(image.state), 0);
    image_close(&image);
}

static void attach_starts_the_cleaner_with_the_same_interval(void)
{
    q2c_cleaner *cleaner;

    image_init(&image);
    image.config.clean_interval_ns = MILLISECOND;
    image_open(&image);
    cleaner = q2c_state_cleaner(image.state);
    cleaner_await_passes(cleaner, 1);
    for (unsigned i = 0; i < 50; i++) {
        CHECK_INT(q2c_state_detach_context(image.state), 0);
        CHECK_INT(q2c_state_attach_context(image.state, NULL), 0);
        CHECK(image_cleaner_runs(&image));
        CHECK_U64(cleaner_stats(cleaner).interval_ns, MILLISECOND);
    }
    cache_touch(image_l2(&image), CLUSTER_AT(1));
    EVENTUALLY(!cache_resident(image_l2(&image), CLUSTER_AT(1)));
    image_close(&image);
}

static void second_attach_is_ealready(void)
{
    image_init(&image);
    image_open(&image);
    CHECK_INT(q2c_state_attach_context(image.state, NULL), -EALREADY);
    CHECK_INT(q2c_state_detach_context(image.state), 0);
    CHECK_INT(q2c_state_attach_context(image.state, NULL), 0);
    CHECK_INT(q2c_state_attach_context(image.state, NULL), -EALREADY);
    CHECK_U64(cleaner_stats(q2c_state_cleaner(image.state)).starts, 2);
    image_close(&image);
}

static void attach_without_an_interval_starts_no_cleaner(void)
{
    image_init(&image);
    image.options.set = Q2C_OPTION_CACHE_CLEAN_INTERVAL;
    image_open(&image);
    CHECK_INT(q2c_state_detach_context(image.state), 0);
    CHECK_INT(q2c_state_attach_context(image.state, NULL), 0);
    CHECK(!image_cleaner_runs(&image));
    image_close(&image);
}

static void caches_work_while_detached(void)
{
    image_init(&image);
    image_open(&image);
    CHECK_INT(q2c_state_detach_context(image.state), 0);
    cache_dirty(image_l2(&image), CLUSTER_AT(1), 1);
    CHECK_INT(q2c_cache_flush(image_l2(&image)), 0);
    CHECK_U64(storage_peek(&image.l2_storage, CLUSTER_AT(1)), 1);
    image_close(&image);
}

static void state_lock_is_the_cleaners_lock(void)
{
    image_init(&image);
    image_open(&image);
    CHECK_INT(q2c_state_unlock(image.state), -EPERM);
    CHECK_INT(q2c_state_lock(image.state), 0);
    CHECK_INT(q2c_state_lock(image.state), -EDEADLK);
    /* it is the lock of the state's cleaner */
    CHECK_INT(q2c_cleaner_lock(q2c_state_cleaner(image.state)), -EDEADLK);
    CHECK_INT(q2c_cleaner_co_locked_del_and_wait(q2c_state_cleaner(image.state)), 0);
    CHECK_INT(q2c_state_unlock(image.state), 0);
    CHECK_INT(q2c_state_unlock(image.state), -EPERM);
    image_close(&image);
}

static void lock_elsewhere(void *argument)
{
    (void)argument;
    CHECK_INT(q2c_state_unlock(image.state), -EPERM);
    CHECK_INT(q2c_state_lock(image.state), 0);
    CHECK_INT(q2c_state_unlock(image.state), 0);
}

static void state_lock_excludes_other_threads(void)
{
    struct thread thread;

    image_init(&image);
    image_open(&image);
    CHECK_INT(q2c_state_lock(image.state), 0);
    thread_start(&thread, lock_elsewhere, NULL);
    thread_settle(&thread);
    CHECK(!atomic_load(&thread.done));
    CHECK_INT(q2c_state_unlock(image.state), 0);
    thread_join(&thread);
    image_close(&image);
}

int main(void)
{
    test_begin();
    RUN(detach_requests_a_stop_of_the_cleaner);
    RUN(detach_does_not_wait_for_the_lock);
    RUN(attach_starts_the_cleaner_with_the_same_interval);
    RUN(second_attach_is_ealready);
    RUN(attach_without_an_interval_starts_no_cleaner);
    RUN(caches_work_while_detached);
    RUN(state_lock_is_the_cleaners_lock);
    RUN(state_lock_excludes_other_threads);
    return test_end();
}
