/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Every kind of stop, in every state of the cleaner, from every thread. Each stop returns, no
 * instance of the cleaner is left, and no callback comes later: the host is closed and freed right
 * after the stop, and aborts on a late callback.
 *
 * The virtual clock stands still except where a case steps it: no stop may need a timer.
 */
#include <stdatomic.h>
#include <stdio.h>

#include "world.h"

enum state {
    NEVER_STARTED,
    NOT_YET_RUN,    /* started; its coroutine is still queued */
    ABOUT_TO_SLEEP, /* has announced that it parks, and has not yielded */
    ASLEEP,
    WAITING_FOR_LOCK,
    IN_A_PASS,     /* at its end: pass done, lock held */
    ASKED_TO_STOP, /* its instance has not ended yet */
    JUST_ENDED,
    STATES
};

enum stop { LOCKED, UNLOCKED, MIXED_CO, MIXED_PLAIN, REQUEST_CO, REQUEST_PLAIN, STOPS };
enum place { HOME, ANOTHER, MAIN, PLACES };

static const char *const state_names[STATES] = { "cleaner never started",
                                                 "started, not yet run",
                                                 "about to sleep",
                                                 "asleep",
                                                 "waiting for the lock",
                                                 "in a pass",
                                                 "stop requested, not yet ended",
                                                 "just ended" };
static const char *const stop_names[STOPS] = { "locked stop",
                                               "unlocked stop",
                                               "mixed stop in a coroutine",
                                               "mixed stop in plain code",
                                               "request in a coroutine",
                                               "request in plain code" };
static const char *const place_names[PLACES] = { "home thread", "another I/O thread",
                                                 "main thread" };

#define INTERVAL (600 * SECOND)

static enum state state;
static enum stop stop;
static enum place place;
static q2c_cleaner *cleaner;
static atomic_bool hook_fired, stop_called, lock_taken, lock_left, home_blocked;
static uint64_t before;

static bool is_request(void)
{
    return stop == REQUEST_CO || stop == REQUEST_PLAIN;
}

static bool in_coroutine(void)
{
    return stop != MIXED_PLAIN && stop != REQUEST_PLAIN;
}

/* Tells whether this combination can happen. */
static bool is_possible(void)
{
    /* the home thread then runs the cleaner's coroutine, and can run nothing else */
    if (place == HOME && (state == ABOUT_TO_SLEEP || state == IN_A_PASS)) {
        return false;
    }
    return true;
}

static uint32_t instances(void)
{
    return cleaner_stats(cleaner).instances;
}

static bool asked_to_stop(void)
{
    return q2c_cleaner_is_running(cleaner) == 0;
}

/* ---- holding the cleaner's thread ---- */

static void wait_for_the_stop(void)
{
    EVENTUALLY(atomic_load(&stop_called) && (stop == LOCKED || asked_to_stop()));
    test_pause(); /* lets it reach its wait */
}

/* Runs in the cleaner's own thread, as a bottom half. */
static void block_home(void *arg)
{
    (void)arg;
    atomic_store(&home_blocked, true);
    wait_for_the_stop();
}

/*
 * Runs in the cleaner's coroutine, at its first announcement. Holds it until the wake that must
 * follow has come.
 */
static void hold_before_its_yield(void *arg, const char *callback)
{
    (void)arg;
    if (host_context_current() != world.io[0] || strcmp(callback, "co_suspend") != 0 ||
        atomic_exchange(&hook_fired, true)) {
        return;
    }
    before = host_stats().wakes;
    EVENTUALLY(host_stats().wakes > before);
}

/* Runs in the cleaner's coroutine, at its first callback after a pass. It still holds the lock. */
static void hold_after_its_pass(void *arg, const char *callback)
{
    (void)arg;
    (void)callback;
    if (host_context_current() == world.io[0] && !atomic_load(&hook_fired) &&
        cleaner_stats(cleaner).passes > 0 && !atomic_exchange(&hook_fired, true)) {
        wait_for_the_stop();
    }
}

/* ---- the lock's holder ---- */

static void hold_lock(void *arg)
{
    (void)arg;
    CHECK_INT(q2c_cleaner_lock(cleaner), 0);
    atomic_store(&lock_taken, true);
    CO_EVENTUALLY(atomic_load(&stop_called) && asked_to_stop());
    CHECK_INT(q2c_cleaner_unlock(cleaner), 0);
    atomic_store(&lock_left, true);
}

/*
 * A count that grows when the cleaner has woken up and has begun to wait for the lock. @before
 * keeps the count from before the clock was stepped.
 */
static uint64_t lock_waits(void)
{
    return world.variant.own_lock ? host_stats().locks : host_stats().yields;
}

/* ---- bringing the cleaner into a state ---- */

static void start(void)
{
    CHECK_INT(q2c_cleaner_start(cleaner, world.io[0], INTERVAL), 0);
}

static void fall_asleep(void)
{
    start();
    EVENTUALLY(host_stats().parked == 1);
}

static void occupy_home(void)
{
    host_bh_schedule(world.io[0], block_home, NULL);
    EVENTUALLY(atomic_load(&home_blocked));
}

/* Brings the cleaner into the state. Runs in the main thread, before the stop. */
static void prepare(void)
{
    switch (state) {
    case NEVER_STARTED:
        break;
    case NOT_YET_RUN:
        if (place != HOME) {
            occupy_home();
            start();
        } /* else perform_stop() starts it, in the same thread */
        break;
    case ABOUT_TO_SLEEP:
        host_adapter_on_call(world.host, hold_before_its_yield, NULL);
        start();
        EVENTUALLY(atomic_load(&hook_fired));
        break;
    case ASLEEP:
        fall_asleep();
        break;
    case WAITING_FOR_LOCK:
        fall_asleep();
        if (stop != LOCKED) { /* else the caller of the stop holds it */
            host_co_schedule(world.io[2], host_co_create(hold_lock, NULL));
            EVENTUALLY(atomic_load(&lock_taken));
            before = lock_waits();
            host_clock_step(world.program, INTERVAL);
            EVENTUALLY(lock_waits() > before);
        }
        break;
    case IN_A_PASS:
        fall_asleep();
        host_adapter_on_call(world.host, hold_after_its_pass, NULL);
        host_clock_step(world.program, INTERVAL);
        EVENTUALLY(atomic_load(&hook_fired));
        break;
    case ASKED_TO_STOP:
        fall_asleep();
        if (place != HOME) {
            occupy_home();
            CHECK_INT(q2c_cleaner_request_stop(cleaner), 0);
        }
        break;
    default:
        fall_asleep();
        CHECK_INT(q2c_cleaner_request_stop(cleaner), 0);
        EVENTUALLY(instances() == 0);
    }
}

/* ---- the stop ---- */

static void stop_locked(void)
{
    CHECK_INT(q2c_cleaner_lock(cleaner), 0);
    if (state == WAITING_FOR_LOCK) {
        before = lock_waits();
        host_clock_step(world.program, INTERVAL);
        CO_EVENTUALLY(lock_waits() > before);
    }
    CHECK_INT(q2c_cleaner_co_locked_del_and_wait(cleaner), 0);
    CHECK_U64(instances(), 0);
    CHECK_INT(q2c_cleaner_unlock(cleaner), 0);
}

/* Stops as a detach does: no wait is allowed here, and the host aborts on one. */
static void request(void)
{
    host_graph_wrlock(world.program);
    CHECK_INT(q2c_cleaner_request_stop(cleaner), 0);
    host_graph_wrunlock(world.program);
    CHECK(asked_to_stop());
}

static void perform_stop(void *arg)
{
    (void)arg;
    if (place == HOME && state == NOT_YET_RUN) {
        start();
    } else if (place == HOME && state == ASKED_TO_STOP) {
        CHECK_INT(q2c_cleaner_request_stop(cleaner), 0);
    }
    atomic_store(&stop_called, true);
    switch (stop) {
    case LOCKED:
        stop_locked();
        break;
    case UNLOCKED:
        CHECK_INT(q2c_cleaner_co_del_and_wait(cleaner), 0);
        break;
    case MIXED_CO:
    case MIXED_PLAIN:
        CHECK_INT(q2c_cleaner_del_and_wait(cleaner), 0);
        break;
    default:
        request();
    }
    if (!is_request()) {
        CHECK_U64(instances(), 0);
    }
}

/* Makes the stop, and destroys everything right after it. The host is closed next. */
static void run_combination(void)
{
    host_context *const places[PLACES] = { world.io[0], world.io[1], world.main };
    q2c_storage calls;
    host_storage *storage = storage_new(4, HOST_RESUME_HOME, &calls);
    q2c_cache *cache = co_cache_new(&calls, 4);

    cleaner = cleaner_new(cache);
    atomic_store(&hook_fired, false);
    atomic_store(&stop_called, false);
    atomic_store(&lock_taken, false);
    atomic_store(&lock_left, false);
    atomic_store(&home_blocked, false);
    prepare();
    host_context_call(places[place], in_coroutine(), perform_stop, NULL);
    TURN_UNTIL(instances() == 0);
    TURN_UNTIL(atomic_load(&lock_left) == atomic_load(&lock_taken));
    host_adapter_on_call(world.host, NULL, NULL);
    CHECK_INT(q2c_cleaner_is_running(cleaner), 0);
    CHECK_U64(cleaner_stats(cleaner).starts, state == NEVER_STARTED ? 0 : 1);
    if (state == WAITING_FOR_LOCK && stop == LOCKED) {
        /* the stop releases the lock, and the cleaner may take it next */
        CHECK_BETWEEN(cleaner_stats(cleaner).passes, 0, 1);
    } else {
        CHECK_U64(cleaner_stats(cleaner).passes, state == IN_A_PASS ? 1 : 0);
    }
    CHECK_U64(host_stats().timers_alive, 0);
    CHECK_INT(q2c_cleaner_destroy(&cleaner), 0);
    cache_drop(cache);
    host_storage_free(storage);
}

int main(void)
{
    char name[128];

    test_begin();
    world_begin();
    host_clock_stop(world.program);
    for (state = 0; state < STATES; state++) {
        for (stop = 0; stop < STOPS; stop++) {
            for (place = 0; place < PLACES; place++) {
                if (is_possible()) {
                    snprintf(name, sizeof(name), "%s: %s, %s", state_names[state], stop_names[stop],
                             place_names[place]);
                    each_variant(name, run_combination);
                }
            }
        }
    }
    world_end();
    return test_end();
}
