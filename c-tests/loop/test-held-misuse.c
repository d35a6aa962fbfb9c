/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Wrong calls around a cleaner return their errno and never hang, on each host with threads. Cases
 * that do not depend on a place inside the cleaner are in cleaner/test-misuse.c, which runs in an
 * event loop, too.
 */
#include <stdio.h>

#include "setting.h"

static enum host host;
static atomic_int inside[7];
static atomic_bool was_inside;

static void make_passes_until_inside(void)
{
    setting_make_due();
    while (!atomic_load(&was_inside)) {
        setting_turn();
        if (host == STANDING_LOOP) { /* where the clock runs, the interval stays short */
            setting_make_due();
        }
        test_pause();
    }
}

/* In the cleaner's own thread, in the middle of a pass. */
static void stop_from_inside(void)
{
    q2c_cleaner *cleaner = setting.cleaner;

    atomic_store(&inside[0], q2c_cleaner_co_del_and_wait(cleaner));
    atomic_store(&inside[1], q2c_cleaner_del_and_wait(cleaner));
    atomic_store(&inside[2], q2c_cleaner_co_locked_del_and_wait(cleaner));
    atomic_store(&inside[3], q2c_cleaner_lock(cleaner));
    MUST(q2c_cleaner_unlock(cleaner));
    atomic_store(&inside[4], q2c_cleaner_destroy(&cleaner));
    atomic_store(&inside[5], q2c_cleaner_is_running(setting.cleaner));
    atomic_store(&inside[6], setting_start());
    atomic_store(&was_inside, true);
}

static void stop_from_inside_the_cleaner_fails(void)
{
    setting_begin(host);
    atomic_store(&was_inside, false);
    setting_reach(
        IN_A_PASS); /* held while it releases memory; the pass after the next releases some again */
    seam_release();
    for (unsigned n = 1; n <= 8; n++) {
        cache_touch(setting.cache, n * cache_stats(setting.cache).table_size);
    }
    seam_call(SEAM_GIVE_BACK, stop_from_inside);
    make_passes_until_inside();
    CHECK_INT(atomic_load(&inside[0]), -EDEADLK);
    CHECK_INT(atomic_load(&inside[1]), -EDEADLK);
    CHECK_INT(atomic_load(&inside[2]), -EPERM); /* memory is released without the lock */
    CHECK_INT(atomic_load(&inside[3]), 0);
    CHECK_INT(atomic_load(&inside[4]), -EBUSY);
    CHECK_INT(atomic_load(&inside[5]), 1); /* an error stops nothing */
    CHECK_INT(atomic_load(&inside[6]), -EALREADY);
    CHECK_INT(q2c_cleaner_del_and_wait(setting.cleaner), 0);
    setting_unmap_storage();
    setting_end();
}

static void request_from_inside(void)
{
    atomic_store(&inside[0], q2c_cleaner_request_stop(setting.cleaner));
    atomic_store(&inside[1], (int)setting_instances());
    atomic_store(&was_inside, true);
}

static void request_from_inside_the_cleaner_works(void)
{
    setting_begin(host);
    atomic_store(&was_inside, false);
    CHECK_INT(setting_start(), 0);
    seam_call(SEAM_GIVE_BACK, request_from_inside);
    make_passes_until_inside();
    EVENTUALLY(setting_instances() == 0);
    CHECK_INT(atomic_load(&inside[0]), 0);
    CHECK_INT(atomic_load(&inside[1]), 1); /* the instance ends after the pass */
    setting_unmap_storage();
    setting_end();
}

static void context_of_another_host_is_rejected(void)
{
    setting_begin(host);
    if (host == THREADS) {
        CHECK_INT(q2c_cleaner_start(setting.cleaner, setting.home.loop, FOREVER), -EINVAL);
    } else {
        CHECK_INT(q2c_cleaner_start(setting.cleaner, NULL, FOREVER), -EINVAL);
    }
    CHECK_INT(q2c_cleaner_is_running(setting.cleaner), 0);
    CHECK_U64(cleaner_stats(setting.cleaner).starts, 0);
    setting_unmap_storage();
    setting_end();
}

static void destroy_is_busy_until_the_instance_ends(void)
{
    setting_begin(host);
    setting_reach(ASLEEP);
    CHECK_INT(q2c_cleaner_destroy(&setting.cleaner), -EBUSY);
    CHECK_INT(q2c_cleaner_request_stop(setting.cleaner), 0);
    EVENTUALLY(setting_instances() == 0);
    CHECK_INT(setting_start(), 0);
    CHECK_INT(q2c_cleaner_del_and_wait(setting.cleaner), 0);
    setting_reach(ASKED_TO_STOP);
    CHECK_INT(q2c_cleaner_destroy(&setting.cleaner), -EBUSY);
    REQUIRE(setting.cleaner != NULL);
    seam_release();
    CHECK_INT(q2c_cleaner_del_and_wait(setting.cleaner), 0);
    setting_unmap_storage();
    setting_end();
}

/* test-threads.c has the wrong contexts of a state. */
static void state_calls_fail_with_the_lock_held(void)
{
    struct image image;

    setting_begin(host);
    image_init(&image);
    if (host != THREADS) {
        image.config.host = &loop_host;
        CHECK_INT(q2c_state_open(&image.config, &image.state, NULL), -EINVAL); /* no context */
        image.config.context = setting.home.loop;
    }
    image_open(&image);
    CHECK_INT(q2c_state_lock(image.state), 0);
    CHECK_INT(q2c_state_close(&image.state), -EDEADLK);
    CHECK_INT(q2c_state_invalidate(image.state), -EDEADLK);
    CHECK_INT(q2c_state_attach_context(image.state, image.config.context), -EALREADY);
    CHECK(image_cleaner_runs(&image));
    CHECK_INT(q2c_state_unlock(image.state), 0);
    image_close(&image);
    setting_unmap_storage();
    setting_end();
}

static void run_case(const char *what, void (*function)(void))
{
    static char name[160]; /* static: the watchdog reads it */

    snprintf(name, sizeof(name), "%s: %s", host_names[host], what);
    test_run(name, function);
}
#define ON_HOST(function) run_case(#function, function)

int main(void)
{
    test_begin();
    seam_thread_cleans(false);
    for (host = 0; host < HOSTS; host++) {
        ON_HOST(stop_from_inside_the_cleaner_fails);
        ON_HOST(request_from_inside_the_cleaner_works);
        ON_HOST(context_of_another_host_is_rejected);
        ON_HOST(destroy_is_busy_until_the_instance_ends);
        ON_HOST(state_calls_fail_with_the_lock_held);
    }
    return test_end();
}
