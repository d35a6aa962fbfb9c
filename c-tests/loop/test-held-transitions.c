/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Every stop in every state of the cleaner, from every thread, on each host with threads. Each stop
 * returns, the cleaner is gone, and nothing runs later: storage is unmapped right after, the loop
 * is freed, and a pass would be counted.
 *
 * No state is left to chance: the thread that the cleaner runs in is held in the library's own
 * calls of the kernel (seams.h, setting.h). The last case checks that every state was reached as
 * often as planned.
 */
#include <stdio.h>

#include "setting.h"

enum stop { LOCKED, UNLOCKED, MIXED, REQUEST, STOPS };
enum place { HOME, ANOTHER, MAIN, PLACES };

static const char *const stop_names[STOPS] = { "locked stop", "unlocked stop", "mixed stop",
                                               "request" };
static const char *const place_names[PLACES] = { "home thread", "another I/O thread",
                                                 "main thread" };

static enum host host;
static enum state state;
static enum stop stop;
static enum place place;
static atomic_bool stop_called, stop_returned;
static unsigned planned[STATES], met[STATES];

/* On the thread host, home is the library's own thread. A thread that is held cannot stop. */
static bool possible(void)
{
    return state_exists(host, state) && (place != HOME || (host != THREADS && !state_holds(state)));
}

/* Runs @function in the thread that stops. */
static void at_its_place(void (*function)(void *argument))
{
    if (place == MAIN) {
        function(NULL);
    } else {
        turner_run(place == HOME ? &setting.home : &setting.another, function, NULL);
    }
}

static void perform_stop(void *argument)
{
    (void)argument;
    if (stop == LOCKED && state != WAITING_FOR_LOCK) {
        setting_take_lock(NULL);
    }
    atomic_store(&stop_called, true);
    switch (stop) {
    case LOCKED:
        CHECK_INT(q2c_cleaner_co_locked_del_and_wait(setting.cleaner), 0);
        break;
    case UNLOCKED:
        CHECK_INT(q2c_cleaner_co_del_and_wait(setting.cleaner), 0);
        break;
    case MIXED:
        CHECK_INT(q2c_cleaner_del_and_wait(setting.cleaner), 0);
        break;
    default:
        CHECK_INT(q2c_cleaner_request_stop(setting.cleaner), 0);
    }
    CHECK_INT(q2c_cleaner_is_running(setting.cleaner), 0);
    if (stop != REQUEST) {
        CHECK_U64(setting_instances(), 0);
        setting_unmap_storage();
    }
    if (stop == LOCKED) {
        CHECK_INT(q2c_cleaner_lock(setting.cleaner), -EDEADLK); /* the lock is held again */
        setting_drop_lock(NULL);
    }
    atomic_store(&stop_returned, true);
}

/*
 * Releases the cleaner's thread after the stop has begun. If the thread is held before its first
 * run or before its wait, it holds no lock and no stop waits for it: the stop must return first. If
 * it is held in a pass, only a request returns first; the other stops wait for the end of the pass.
 */
static void release_in_time(void *argument)
{
    bool returns_first = state == NOT_YET_RUN || state == ABOUT_TO_WAIT ||
                         (stop == REQUEST && (state == IN_A_PASS || state == ASKED_TO_STOP));

    (void)argument;
    seam_thread_cleans(false);
    if (returns_first) {
        EVENTUALLY(atomic_load(&stop_returned));
    } else {
        EVENTUALLY(atomic_load(&stop_called) && q2c_cleaner_is_running(setting.cleaner) == 0);
        test_pause();
        CHECK(!atomic_load(&stop_returned) || stop == REQUEST);
    }
    CHECK(seam_is_held());
    met[state]++;
    seam_release();
}

static void stop_the_held_cleaner(void)
{
    struct thread releaser;

    thread_start(&releaser, release_in_time, NULL);
    at_its_place(perform_stop);
    thread_join(&releaser);
}

static struct thread holder_thread;
static struct gate lock_taken, let_go;

static void hold_lock(void *argument)
{
    (void)argument;
    setting_take_lock(NULL);
    gate_open(&lock_taken);
    gate_wait(&let_go);
    setting_drop_lock(NULL);
}

/* Another thread keeps the lock until the stop has returned: this stop needs no lock. */
static void stop_while_another_holds_the_lock(void)
{
    lock_taken = (struct gate)GATE_CLOSED;
    let_go = (struct gate)GATE_CLOSED;
    thread_start(&holder_thread, hold_lock, NULL);
    gate_wait(&lock_taken);
    setting_await_lock();
    met[state]++;
    at_its_place(perform_stop);
    EVENTUALLY(setting_instances() == 0);
    gate_open(&let_go);
    thread_join(&holder_thread);
}

/* The lock's holder itself stops. It may be the thread that the cleaner runs in. */
static void stop_while_holding_the_lock(void)
{
    at_its_place(setting_take_lock);
    setting_await_lock();
    met[state]++;
    at_its_place(perform_stop);
}

/* In the cleaner's own thread, whose first turn comes after the stop. */
static void start_and_stop(void *argument)
{
    CHECK_INT(setting_start(), 0);
    met[state]++;
    perform_stop(argument);
}

static void one_combination(void)
{
    setting_begin(host);
    atomic_store(&stop_called, false);
    atomic_store(&stop_returned, false);
    setting_reach(state);
    if (state == WAITING_FOR_LOCK) {
        if (stop == LOCKED) {
            stop_while_holding_the_lock();
        } else {
            stop_while_another_holds_the_lock();
        }
    } else if (state_holds(state)) {
        stop_the_held_cleaner();
    } else {
        met[state]++;
        at_its_place(perform_stop);
    }
    EVENTUALLY(setting_instances() == 0);
    if (stop == REQUEST) {
        setting_unmap_storage();
    }
    CHECK_U64(cleaner_stats(setting.cleaner).starts, state == NEVER_STARTED ? 0 : 1);
    CHECK_U64(cleaner_stats(setting.cleaner).passes,
              setting.passes + (state == IN_A_PASS || state == ASKED_TO_STOP ? 1 : 0));
    setting_end();
}

static void home_stops_before_the_first_run(void)
{
    setting_begin(host);
    turner_run(&setting.home, start_and_stop, NULL);
    EVENTUALLY(setting_instances() == 0);
    if (stop == REQUEST) {
        setting_unmap_storage();
    }
    CHECK_U64(cleaner_stats(setting.cleaner).passes, 0);
    setting_end();
}

static void run_combination(void (*function)(void))
{
    static char name[160]; /* static: the watchdog reads it */

    snprintf(name, sizeof(name), "%s, %s: %s, %s", host_names[host], state_names[state],
             stop_names[stop], place_names[place]);
    planned[state]++;
    test_run(name, function);
}

static void every_state_was_reached_as_planned(void)
{
    for (state = 0; state < STATES; state++) {
        test_note("%s: reached %u times", state_names[state], met[state]);
        CHECK_U64(met[state], planned[state]);
        CHECK(met[state] >= 3 * STOPS);
    }
}

int main(void)
{
    test_begin();
    seam_thread_cleans(false);
    for (host = 0; host < HOSTS; host++) {
        for (state = 0; state < STATES; state++) {
            for (stop = 0; stop < STOPS; stop++) {
                for (place = 0; place < PLACES; place++) {
                    if (possible()) {
                        run_combination(one_combination);
                    } else if (place == HOME && state == NOT_YET_RUN && host != THREADS) {
                        run_combination(home_stops_before_the_first_run);
                    }
                }
            }
        }
    }
    RUN(every_state_was_reached_as_planned);
    return test_end();
}
