/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Two to eight concurrent stops of all kinds: each returns, and only after the cleaner has ended.
 * In the states that have a place for it, the cleaner's thread is held (seams.h) until all stops
 * wait.
 */
#include <stdio.h>

#include "setting.h"

#define MOST 8

static enum host host;
static enum state state;
static unsigned count;
static struct thread stoppers[MOST];

static void stop_it(void *argument)
{
    const struct cleaner_stop *variant = argument;

    seam_thread_cleans(false);
    CHECK_INT(variant->stop(setting.cleaner), 0);
    CHECK_U64(setting_instances(), 0); /* no thread starts it meanwhile */
}

static void begin_stops(void)
{
    for (unsigned i = 0; i < count; i++) {
        thread_start(&stoppers[i], stop_it, (void *)(uintptr_t)&cleaner_stops[i % CLEANER_STOPS]);
    }
    for (unsigned i = 0; i < count; i++) {
        thread_settle(&stoppers[i]);
    }
}

static unsigned returned(void)
{
    unsigned done = 0;

    for (unsigned i = 0; i < count; i++) {
        done += atomic_load(&stoppers[i].done) ? 1 : 0;
    }
    return done;
}

static void end_stops(void)
{
    for (unsigned i = 0; i < count; i++) {
        thread_join(&stoppers[i]);
    }
    setting_unmap_storage();
    setting_end();
}

static void stops_in_the_current_state(void)
{
    setting_begin(host);
    setting_reach(state);
    begin_stops();
    if (state == IN_A_PASS) {
        CHECK_U64(returned(), 0); /* none returns before its end */
    }
    if (state_holds(state)) {
        CHECK(seam_is_held());
        seam_release();
    }
    end_stops();
}

/* The locked stops must wait for the lock of another thread; the other stops do not. */
static void stops_while_the_cleaner_waits_for_the_lock(void)
{
    unsigned locked = (count + 2) / 3;

    setting_begin(host);
    setting_reach(state);
    turner_run(&setting.another, setting_take_lock, NULL);
    setting_await_lock();
    begin_stops();
    EVENTUALLY(returned() == count - locked);
    turner_run(&setting.another, setting_drop_lock, NULL);
    end_stops();
}

/*
 * The stops wait for both instances: the one in its pass, which was asked to stop before, and the
 * one that was started meanwhile.
 */
static void stops_of_an_ending_and_a_new_instance(void)
{
    setting_begin(host);
    setting_reach(ASKED_TO_STOP);
    CHECK_INT(setting_start(), 0);
    CHECK_INT(setting_start(), -EALREADY);
    CHECK_INT(q2c_cleaner_is_running(setting.cleaner), 1);
    CHECK_U64(setting_instances(), 2);
    begin_stops();
    CHECK_U64(returned(), 0);
    CHECK(setting_instances() >= 1);
    seam_release();
    end_stops();
}

static void run_number(const char *what, void (*function)(void))
{
    static char name[160]; /* static: the watchdog reads it */

    snprintf(name, sizeof(name), "%s, %s: %u stops", host_names[host], what, count);
    test_run(name, function);
}

int main(void)
{
    static const enum state states[] = { NOT_YET_RUN, ABOUT_TO_SLEEP, ABOUT_TO_WAIT, ASLEEP,
                                         IN_A_PASS };

    test_begin();
    seam_thread_cleans(false);
    for (host = 0; host < HOSTS; host++) {
        for (count = 2; count <= MOST; count++) {
            for (unsigned i = 0; i < sizeof(states) / sizeof(states[0]); i++) {
                state = states[i];
                if (state_exists(host, state)) {
                    run_number(state_names[state], stops_in_the_current_state);
                }
            }
            state = WAITING_FOR_LOCK;
            run_number(state_names[state], stops_while_the_cleaner_waits_for_the_lock);
            run_number("one ending and one new instance", stops_of_an_ending_and_a_new_instance);
        }
    }
    return test_end();
}
