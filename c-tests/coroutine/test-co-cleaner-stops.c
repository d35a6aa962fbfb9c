/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Stops of the cleaner that race with each other, with starts and with changes of the interval;
 * stops while the clock stands still or timers do not fire; intervals.
 */
#include <sched.h>
#include <stdatomic.h>

#include "world.h"

#define ROUNDS  host_scale_rounds(200)
#define REPEATS host_scale_rounds(5000)

static host_storage *storage;
static q2c_cache *cache;
static q2c_cleaner *cleaner;

static void begin(void)
{
    q2c_storage calls;

    storage = storage_new(64, HOST_RESUME_HOME, &calls);
    cache = co_cache_new(&calls, 32);
    cleaner = cleaner_new(cache);
}

/* No instance of the cleaner may be left: the host is closed next. */
static void end(void)
{
    TURN_UNTIL(host_co_alive() == 0);
    CHECK_U64(cleaner_stats(cleaner).instances, 0);
    CHECK_INT(q2c_cleaner_destroy(&cleaner), 0);
    cache_drop(cache);
    host_storage_free(storage);
}

static uint32_t instances(void)
{
    return cleaner_stats(cleaner).instances;
}

static uint64_t passes(void)
{
    return cleaner_stats(cleaner).passes;
}

/* ---- one stop ---- */

enum how { LOCKED, UNLOCKED, MIXED_CO, MIXED_PLAIN, HOWS };

static void stop_by(enum how how)
{
    switch (how) {
    case LOCKED:
        CHECK_INT(q2c_cleaner_lock(cleaner), 0);
        CHECK_INT(q2c_cleaner_co_locked_del_and_wait(cleaner), 0);
        CHECK_INT(q2c_cleaner_unlock(cleaner), 0);
        break;
    case UNLOCKED:
        CHECK_INT(q2c_cleaner_co_del_and_wait(cleaner), 0);
        break;
    default:
        CHECK_INT(q2c_cleaner_del_and_wait(cleaner), 0);
    }
}

static host_context *somewhere(uint64_t *random)
{
    uint64_t n = test_random(random) % (IO_THREADS + WORKERS);

    return n < IO_THREADS ? world.io[n] : world.workers[n - IO_THREADS];
}

/* Runs fn(arg) in the context, and does not wait for its end. */
static void launch(host_context *context, bool in_coroutine, host_fn *fn, void *arg)
{
    if (in_coroutine) {
        host_co_schedule(context, host_co_create(fn, arg));
    } else {
        host_bh_schedule(context, fn, arg);
    }
}

/* ---- two to eight concurrent stops ---- */

static atomic_bool go;
static atomic_uint still_running;

struct stopper {
    enum how how;
};

static void stop_when_told(void *arg)
{
    struct stopper *s = arg;

    if (host_in_coroutine()) {
        CO_EVENTUALLY(atomic_load(&go));
    } else {
        EVENTUALLY(atomic_load(&go));
    }
    stop_by(s->how);
    CHECK_U64(instances(), 0);
    atomic_fetch_sub(&still_running, 1);
}

static void concurrent_stops_all_return(void)
{
    struct stopper stoppers[8];
    uint64_t random = 77;

    begin();
    for (unsigned round = 0; round < ROUNDS; round++) {
        unsigned n = 2 + round % 7;
        atomic_store(&go, false);
        atomic_store(&still_running, n);
        CHECK_INT(q2c_cleaner_start(cleaner, world.io[0], 600 * SECOND), 0);
        for (unsigned i = 0; i < n; i++) {
            stoppers[i].how = test_random(&random) % HOWS;
            launch(somewhere(&random), stoppers[i].how != MIXED_PLAIN, stop_when_told,
                   &stoppers[i]);
        }
        atomic_store(&go, true);
        TURN_UNTIL(atomic_load(&still_running) == 0);
    }
    end();
}

/* ---- stops and starts ---- */

static void start_under_the_lock(void *arg)
{
    unsigned *started = arg;

    for (unsigned i = 0; i < ROUNDS; i++) {
        int ret;
        CHECK_INT(q2c_cleaner_lock(cleaner), 0);
        ret = q2c_cleaner_start(cleaner, world.io[i % IO_THREADS], 600 * SECOND);
        CHECK_INT(q2c_cleaner_unlock(cleaner), 0);
        CHECK(ret == 0 || ret == -EALREADY);
        *started += ret == 0;
        if (i % 4 == 0) {
            host_co_sleep_ns(true, 10000);
        }
    }
    atomic_fetch_sub(&still_running, 1);
}

static void stop_and_look_under_the_lock(void *arg)
{
    (void)arg;
    for (unsigned i = 0; i < ROUNDS; i++) {
        CHECK_INT(q2c_cleaner_lock(cleaner), 0);
        CHECK_INT(q2c_cleaner_co_locked_del_and_wait(cleaner), 0);
        CHECK_U64(instances(), 0); /* whatever number of starts came while it waited */
        CHECK_INT(q2c_cleaner_unlock(cleaner), 0);
    }
    atomic_fetch_sub(&still_running, 1);
}

static void stop_unlocked_often(void *arg)
{
    (void)arg;
    for (unsigned i = 0; i < ROUNDS; i++) {
        stop_by(i % 2 ? UNLOCKED : MIXED_CO);
        host_co_sleep_ns(true, 10000);
    }
    atomic_fetch_sub(&still_running, 1);
}

static void stops_race_with_starts(void)
{
    unsigned started[2] = { 0, 0 };

    begin();
    atomic_store(&still_running, 4);
    launch(world.io[0], true, start_under_the_lock, &started[0]);
    launch(world.io[1], true, start_under_the_lock, &started[1]);
    launch(world.io[2], true, stop_and_look_under_the_lock, NULL);
    launch(world.io[1], true, stop_unlocked_often, NULL);
    TURN_UNTIL(atomic_load(&still_running) == 0);
    CHECK_INT(q2c_cleaner_del_and_wait(cleaner), 0);
    CHECK_U64(cleaner_stats(cleaner).starts, started[0] + started[1]);
    end();
}

/* ---- stops and changes of the interval ---- */

static void change_interval_often(void *arg)
{
    uint64_t random = (uint64_t)(uintptr_t)arg;

    for (unsigned i = 0; i < ROUNDS; i++) {
        uint64_t ns = 1 + test_random(&random) % 3000;
        int ret = q2c_cleaner_set_interval(cleaner, ns % 3 == 0 ? 600 * SECOND : ns);
        CHECK(ret == 0 || ret == -ESRCH);
        if (i % 4 == 0) {
            host_co_sleep_ns(true, 10000);
        }
    }
    atomic_fetch_sub(&still_running, 1);
}

static void stops_race_with_interval_changes(void)
{
    unsigned started = 0;

    begin();
    atomic_store(&still_running, 4);
    launch(world.io[0], true, start_under_the_lock, &started);
    launch(world.io[1], true, change_interval_often, (void *)5);
    launch(world.io[2], true, change_interval_often, (void *)6);
    launch(world.io[1], true, stop_unlocked_often, NULL);
    TURN_UNTIL(atomic_load(&still_running) == 0);
    CHECK_INT(q2c_cleaner_del_and_wait(cleaner), 0);
    end();
}

/* ---- stops while passes follow each other without a pause ---- */

static void random_stop(void *arg)
{
    stop_by(*(enum how *)arg);
    CHECK_U64(instances(), 0);
}

static void touch_tables(void)
{
    for (unsigned n = 1; n < 20; n++) {
        void *table = NULL;
        CHECK_INT(q2c_cache_get_unlocked(cache, AT(n), &table), 0);
        CHECK_INT(q2c_cache_put(cache, &table), 0);
    }
}

static void stops_race_with_cleaning_passes(void)
{
    uint64_t random = 99;

    begin();
    for (unsigned i = 0; i < ROUNDS; i++) {
        enum how how = i % HOWS;
        uint64_t spin = test_random(&random) % 2000;
        touch_tables();
        CHECK_INT(q2c_cleaner_start(cleaner, world.io[0], 1), 0);
        while (spin--) {
            (void)q2c_cleaner_is_running(cleaner);
        }
        host_context_call(i % 8 < 4 ? world.io[1] : world.io[0], how != MIXED_PLAIN, random_stop,
                          &how);
    }
    CHECK(passes() > 0);
    end();
}

/* ---- no callback after the return ---- */

static atomic_bool keep_kicking;

/*
 * Makes pollers check their conditions all the time, so that they find a wait over before the
 * library's own kick tells them.
 */
static void kick_repeatedly(void *arg)
{
    (void)arg;
    while (atomic_load(&keep_kicking)) {
        host_kick(world.program);
        sched_yield();
    }
}

static void no_callback_after_stop_returns(void)
{
    struct variant variant = world.variant;

    atomic_store(&keep_kicking, true);
    host_bh_schedule(world.workers[0], kick_repeatedly, NULL);
    for (unsigned i = 0; i < ROUNDS; i++) {
        CHECK_INT(q2c_cleaner_create(world.vtable, &cleaner, NULL), 0);
        CHECK_INT(q2c_cleaner_start(cleaner, world.io[0], 600 * SECOND), 0);
        CHECK_INT(q2c_cleaner_del_and_wait(cleaner), 0);
        CHECK_INT(q2c_cleaner_destroy(&cleaner), 0);
        host_end();
        host_begin(variant);
    }
    atomic_store(&keep_kicking, false);
}

/* ---- repeated starts and stops ---- */

/* The virtual clock stands still, as it does while a virtual machine is stopped. */
static void repeated_starts_and_stops_with_stopped_clock(void)
{
    begin();
    host_clock_stop(world.program);
    for (unsigned i = 0; i < REPEATS; i++) {
        if (q2c_cleaner_start(cleaner, world.io[0], 600 * SECOND) ||
            q2c_cleaner_del_and_wait(cleaner)) {
            CHECK(false);
        }
    }
    CHECK_U64(cleaner_stats(cleaner).starts, REPEATS);
    host_clock_resume(world.program);
    end();
}

/* ---- clocks ---- */

static void stop_needs_no_timer(void)
{
    begin();
    host_clock_set_firing(world.program, false); /* the clock runs */
    CHECK_INT(q2c_cleaner_start(cleaner, world.io[0], SECOND / 50), 0);
    EVENTUALLY(host_stats().parked == 1);
    for (int i = 0; i < 40; i++) {
        test_pause();
    }
    CHECK_INT(q2c_cleaner_del_and_wait(cleaner), 0);
    CHECK_U64(passes(), 0);
    host_clock_set_firing(world.program, true);
    end();
}

static void stopped_clock_stops_cleaning(void)
{
    uint64_t seen;

    begin();
    host_clock_stop(world.program);
    CHECK_INT(q2c_cleaner_start(cleaner, world.io[0], SECOND), 0);
    EVENTUALLY(host_stats().parked == 1);
    for (int i = 0; i < 20; i++) {
        test_pause();
    }
    CHECK_U64(passes(), 0);
    for (seen = 0; seen < 3; seen++) {
        host_clock_step(world.program, SECOND - 1);
        test_pause();
        CHECK_U64(passes(), seen);
        host_clock_step(world.program, 1);
        EVENTUALLY(passes() == seen + 1 && host_stats().parked == 1);
    }
    host_clock_resume(world.program);
    CHECK_INT(q2c_cleaner_del_and_wait(cleaner), 0);
    end();
}

static void shorter_interval_ends_long_sleep(void)
{
    begin();
    host_clock_stop(world.program);
    CHECK_INT(q2c_cleaner_start(cleaner, world.io[0], 600 * SECOND), 0);
    EVENTUALLY(host_stats().parked == 1);
    CHECK_INT(q2c_cleaner_set_interval(cleaner, 2 * SECOND), 0);
    CHECK_U64(cleaner_stats(cleaner).interval_ns, 2 * SECOND);
    host_clock_step(world.program, 2 * SECOND);
    EVENTUALLY(passes() == 1 && host_stats().parked == 1);
    CHECK_U64(cleaner_stats(cleaner).starts, 1);
    /* and a longer interval again */
    CHECK_INT(q2c_cleaner_set_interval(cleaner, 10 * SECOND), 0);
    EVENTUALLY(host_stats().parked == 1);
    host_clock_step(world.program, 5 * SECOND);
    test_pause();
    CHECK_U64(passes(), 1);
    host_clock_step(world.program, 5 * SECOND);
    EVENTUALLY(passes() == 2);
    host_clock_resume(world.program);
    CHECK_INT(q2c_cleaner_del_and_wait(cleaner), 0);
    end();
}

/* ---- interval 0 ---- */

static void interval_0_means_no_cleaner(void)
{
    begin();
    CHECK_INT(q2c_cleaner_start(cleaner, world.io[0], 0), 0);
    CHECK_U64(instances(), 0);
    CHECK_INT(q2c_cleaner_is_running(cleaner), 0);
    CHECK_U64(cleaner_stats(cleaner).starts, 0);
    CHECK_INT(q2c_cleaner_del_and_wait(cleaner), 0);
    CHECK_INT(q2c_cleaner_set_interval(cleaner, SECOND), -ESRCH);
    CHECK_U64(host_stats().spawns, 0);
    CHECK_INT(q2c_cleaner_start(cleaner, world.io[0], 600 * SECOND), 0);
    CHECK_INT(q2c_cleaner_set_interval(cleaner, 0), 0);
    CHECK_INT(q2c_cleaner_is_running(cleaner), 0);
    EVENTUALLY(instances() == 0);
    CHECK_U64(cleaner_stats(cleaner).interval_ns, 600 * SECOND);
    end();
}

/* ---- a new instance while the old one is stopping ---- */

static atomic_bool home_blocked, release_home;

static void block_home(void *arg)
{
    (void)arg;
    atomic_store(&home_blocked, true);
    EVENTUALLY(atomic_load(&release_home));
}

static void release_later(void *arg)
{
    (void)arg;
    host_co_sleep_ns(true, 2000000);
    CHECK_U64(instances() > 0, true); /* the stop waits for the old instance */
    atomic_store(&release_home, true);
}

static void start_does_not_wait_for_stopping_instance(void)
{
    begin();
    host_clock_stop(world.program);
    atomic_store(&home_blocked, false);
    atomic_store(&release_home, false);
    CHECK_INT(q2c_cleaner_start(cleaner, world.io[0], 600 * SECOND), 0);
    EVENTUALLY(host_stats().parked == 1);
    host_bh_schedule(world.io[0], block_home, NULL);
    EVENTUALLY(atomic_load(&home_blocked));
    host_graph_wrlock(world.program);
    CHECK_INT(q2c_cleaner_request_stop(cleaner), 0);
    host_graph_wrunlock(world.program);
    CHECK_INT(q2c_cleaner_is_running(cleaner), 0);
    CHECK_INT(q2c_cleaner_start(cleaner, world.io[1], 5 * SECOND), 0);
    CHECK_INT(q2c_cleaner_is_running(cleaner), 1);
    CHECK_U64(instances(), 2);
    CHECK_INT(q2c_cleaner_start(cleaner, world.io[1], 5 * SECOND), -EALREADY);
    EVENTUALLY(host_stats().parked >= 1 && host_stats().timers >= 2);
    host_clock_step(world.program, 5 * SECOND);
    EVENTUALLY(passes() == 1); /* the new instance cleans already */
    launch(world.io[2], true, release_later, NULL);
    CHECK_INT(q2c_cleaner_del_and_wait(cleaner), 0);
    CHECK(atomic_load(&release_home));
    CHECK_U64(instances(), 0);
    host_clock_resume(world.program);
    end();
}

int main(void)
{
    test_begin();
    world_begin();
    EACH(interval_0_means_no_cleaner);
    EACH(stop_needs_no_timer);
    EACH(stopped_clock_stops_cleaning);
    EACH(shorter_interval_ends_long_sleep);
    EACH(start_does_not_wait_for_stopping_instance);
    EACH(concurrent_stops_all_return);
    EACH(stops_race_with_starts);
    EACH(stops_race_with_interval_changes);
    EACH(stops_race_with_cleaning_passes);
    EACH(no_callback_after_stop_returns);
    EACH(repeated_starts_and_stops_with_stopped_clock);
    world_end();
    return test_end();
}
