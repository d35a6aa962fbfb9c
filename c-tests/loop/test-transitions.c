/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Every way to stop, from every thread, near every state of a cleaner, on threads and on event
 * loops, repeatedly. Each stop returns, the cleaner is gone, and nothing is touched afterwards: its
 * cache is destroyed immediately, which unmaps the tables.
 *
 * test-held-transitions.c has the same table with the cleaner held in each state. Here no thread is
 * held: the stop also meets the moments between the states, and sanitizers see threads that run
 * freely. The states are only approximate:
 * - about to sleep: the stop follows the start immediately;
 * - asleep: the cleaner's first look at the clock is over;
 * - waiting for the lock: another thread holds it for many intervals;
 * - in a pass: passes follow each other without a pause, and the stop comes at a random moment.
 */
#include "looping.h"

enum state {
    NEVER_STARTED,
    ABOUT_TO_SLEEP,
    ASLEEP,
    WAITING_FOR_THE_LOCK,
    IN_A_PASS,
    ASKED,
    JUST_ENDED,
    STATES
};
static const char *const state_names[STATES] = {
    "never started", "about to sleep", "asleep",     "waiting for the lock",
    "in a pass",     "asked to stop",  "just ended",
};
enum place { HOME, OTHER, MAIN, PLACES };
static const char *const place_names[PLACES] = { "home", "another I/O thread", "main" };
/* The stops that wait, and the request. */
#define WAYS   (CLEANER_STOPS + 1)
#define ROUNDS 4

static bool on_loops;
static struct turner home, other;
static struct storage storage;
static q2c_cleaner *cleaner;
static q2c_cache *cache;
static uint64_t seed = 5;
static unsigned combinations;

static void create(void)
{
    cleaner = on_loops ? loop_cleaner_new() : cleaner_new();
    cache = cache_new(&storage, 64, 4096, 1);
    for (unsigned i = 1; i <= 64; i++) {
        cache_touch(cache, i * UINT64_C(4096));
    }
    CHECK_INT(q2c_cleaner_set_caches(cleaner, &cache, 1), 0);
}

static void start(uint64_t interval_ns)
{
    CHECK_INT(q2c_cleaner_start(cleaner, on_loops ? home.loop : NULL, interval_ns), 0);
}

static void destroy(void)
{
    CHECK_U64(cleaner_stats(cleaner).instances, 0);
    cleaner_drop(cleaner);
    cache_drop(cache);
}

static void nothing(void *argument)
{
    (void)argument;
}

static void reach(enum state state)
{
    switch (state) {
    case NEVER_STARTED:
        break;
    case ABOUT_TO_SLEEP:
        start(FOREVER);
        break;
    case ASLEEP:
        start(FOREVER);
        if (on_loops) {
            turner_run(&home, nothing, NULL); /* a turn is over */
        } else {
            test_pause();
        }
        break;
    case WAITING_FOR_THE_LOCK:
        CHECK_INT(q2c_cleaner_lock(cleaner), 0);
        start(1);
        test_pause();
        CHECK_U64(cleaner_stats(cleaner).passes, 0);
        break;
    case IN_A_PASS:
        start(1);
        cleaner_await_passes(cleaner, 1);
        for (uint64_t i = test_random(&seed) % 2000; i > 0; i--) {
            atomic_signal_fence(memory_order_seq_cst);
        }
        break;
    case ASKED:
        start(test_random(&seed) % 2 == 0 ? FOREVER : 1);
        CHECK_INT(q2c_cleaner_request_stop(cleaner), 0);
        CHECK_INT(q2c_cleaner_is_running(cleaner), 0);
        break;
    case JUST_ENDED:
        start(1);
        CHECK_INT(q2c_cleaner_co_del_and_wait(cleaner), 0);
        break;
    case STATES:
        break;
    }
}

static void stop_by(void *argument)
{
    unsigned way = (unsigned)(uintptr_t)argument;

    if (way < CLEANER_STOPS) {
        CHECK_INT(cleaner_stops[way].stop(cleaner), 0);
        CHECK_U64(cleaner_stats(cleaner).instances, 0);
    } else {
        CHECK_INT(q2c_cleaner_request_stop(cleaner), 0);
        CHECK_INT(q2c_cleaner_is_running(cleaner), 0);
    }
}

static void stop_from(enum place place, unsigned way)
{
    void *argument = (void *)(uintptr_t)way;

    switch (place) {
    case HOME:
        turner_run(&home, stop_by, argument);
        break;
    case OTHER:
        turner_run(&other, stop_by, argument);
        break;
    default:
        stop_by(argument);
        break;
    }
}

/*
 * The main thread holds the lock. The other stops return without it. A locked stop in another
 * thread could not begin, so the lock is released for it.
 */
static void stop_while_the_lock_is_held(enum place place, unsigned way)
{
    if (way == 0) {
        CHECK_INT(q2c_cleaner_unlock(cleaner), 0);
        stop_from(place, way);
    } else if (place == MAIN && way < CLEANER_STOPS) {
        CHECK_INT(cleaner_stops[way].stop(cleaner), -EDEADLK);
        CHECK_INT(q2c_cleaner_co_locked_del_and_wait(cleaner), 0);
        CHECK_INT(q2c_cleaner_unlock(cleaner), 0);
    } else {
        stop_from(place, way);
        CHECK_INT(q2c_cleaner_unlock(cleaner), 0);
    }
}

static void combination(enum state state, unsigned way, enum place place)
{
    create();
    reach(state);
    if (state == WAITING_FOR_THE_LOCK) {
        stop_while_the_lock_is_held(place, way);
    } else {
        stop_from(place, way);
    }
    if (way == CLEANER_STOPS) {
        EVENTUALLY(cleaner_stats(cleaner).instances == 0);
    }
    destroy();
    combinations++;
}

static void every_stop_returns_in_every_state(void)
{
    for (int round = 0; round < ROUNDS; round++) {
        for (enum state state = 0; state < STATES; state++) {
            for (unsigned way = 0; way < WAYS; way++) {
                for (enum place place = 0; place < PLACES; place++) {
                    combination(state, way, place);
                }
            }
        }
    }
    CHECK_U64(combinations, ROUNDS * STATES * WAYS * PLACES);
    test_note("%u combinations of %u states (%s to %s), %u ways and %u places (%s to %s)",
              combinations, STATES, state_names[0], state_names[STATES - 1], WAYS, PLACES,
              place_names[0], place_names[PLACES - 1]);
    combinations = 0;
}

/* Two to eight stops, by all ways, in each state after a start. */
static void concurrent_stops_return_in_every_state(void)
{
    for (unsigned count = 2; count <= 8; count++) {
        for (enum state state = ABOUT_TO_SLEEP; state < STATES; state++) {
            struct thread threads[8];

            if (state == WAITING_FOR_THE_LOCK) {
                continue; /* this thread would hold it */
            }
            create();
            reach(state);
            for (unsigned i = 0; i < count; i++) {
                thread_start(&threads[i], stop_by, (void *)(uintptr_t)((i + count) % WAYS));
            }
            for (unsigned i = 0; i < count; i++) {
                thread_join(&threads[i]);
            }
            CHECK_INT(q2c_cleaner_del_and_wait(cleaner), 0);
            destroy();
        }
    }
}

static atomic_bool stopping;

static void start_again_and_again(void *argument)
{
    void *context = on_loops ? home.loop : NULL;

    for (unsigned i = 0; i < 500; i++) {
        int result = q2c_cleaner_start(cleaner, context, i % 3 == 0 ? 1 : FOREVER);

        CHECK(result == 0 || result == -EALREADY);
        result = q2c_cleaner_set_interval(cleaner, i % 5 == 0 ? 0 : 1 + i % 7 * 1000);
        CHECK(result == 0 || result == -ESRCH);
    }
    atomic_store(&stopping, false);
    (void)argument;
}

static void stops_race_with_starts_and_interval_changes(void)
{
    struct thread starter;
    unsigned way = 0;

    create();
    atomic_store(&stopping, true);
    thread_start(&starter, start_again_and_again, NULL);
    while (atomic_load(&stopping)) {
        if (way % WAYS < CLEANER_STOPS) {
            CHECK_INT(cleaner_stops[way % WAYS].stop(cleaner), 0);
        } else {
            CHECK_INT(q2c_cleaner_request_stop(cleaner), 0);
        }
        way++;
    }
    thread_join(&starter);
    CHECK_INT(q2c_cleaner_del_and_wait(cleaner), 0);
    destroy();
}

static void stops_return_while_the_clock_is_paused(void)
{
    CHECK_INT(q2c_loop_clock_pause(home.loop), 0);
    for (unsigned way = 0; way < WAYS; way++) {
        for (enum place place = 0; place < PLACES; place++) {
            combination(ASLEEP, way, place);
            combination(ABOUT_TO_SLEEP, way, place);
        }
    }
    CHECK_INT(q2c_loop_clock_resume(home.loop), 0);
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        test_note("usage: test-transitions threads|loops");
        return 2;
    }
    on_loops = strcmp(argv[1], "loops") == 0;
    test_begin();
    storage_init(&storage, 65 * 4096);
    turner_start(&home);
    turner_start(&other);
    RUN(every_stop_returns_in_every_state);
    RUN(concurrent_stops_return_in_every_state);
    RUN(stops_race_with_starts_and_interval_changes);
    if (on_loops) { /* the thread host has no clock to pause */
        RUN(stops_return_while_the_clock_is_paused);
    }
    turner_stop(&home);
    turner_stop(&other);
    return test_end();
}
