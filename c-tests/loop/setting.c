/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "setting.h"

#include <dirent.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

/* A table has the size of a page, so that a pass releases the memory of each one. */
#define TABLES 8

const char *const host_names[HOSTS] = { "threads", "event loop", "event loop, clock paused" };
const char *const state_names[STATES] = { "never started",  "not yet run",
                                          "about to sleep", "about to wait",
                                          "asleep",         "waiting for the lock",
                                          "in a pass",      "asked to stop and not yet gone",
                                          "just ended" };

struct setting setting;

static size_t storage_bytes(void)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);

    return (sizeof(struct storage) + page - 1) / page * page;
}

static void do_not_clean(void *argument)
{
    (void)argument;
    seam_thread_cleans(false);
}

static bool background_thread_exists(void)
{
    DIR *tasks = opendir("/proc/self/task");
    bool found = false;

    REQUIRE(tasks != NULL);
    for (struct dirent *task; (task = readdir(tasks)) != NULL;) {
        char path[300], name[32] = "";
        FILE *file;

        snprintf(path, sizeof(path), "/proc/self/task/%s/comm", task->d_name);
        file = fopen(path, "r");
        if (file != NULL) {
            found |= fgets(name, sizeof(name), file) != NULL && strcmp(name, "qcow2cache\n") == 0;
            fclose(file);
        }
    }
    closedir(tasks);
    return found;
}

void setting_begin(enum host host)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    void *memory =
        mmap(NULL, storage_bytes(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    REQUIRE(memory != MAP_FAILED);
    seam_await_calls();
    if (host != THREADS) {
        /* It stays for a second after the last case on threads, and passes the seams as well. */
        EVENTUALLY(!background_thread_exists());
    }
    setting = (struct setting){ .host = host, .storage = memory };
    storage_init(setting.storage, (TABLES + 1) * page);
    turner_start(&setting.home);
    turner_start(&setting.another);
    turner_run(&setting.another, do_not_clean, NULL);
    if (host == THREADS) {
        turner_run(&setting.home, do_not_clean, NULL);
    }
    if (host == STANDING_LOOP) {
        MUST(q2c_loop_clock_pause(setting.home.loop));
    }
    setting.cleaner = host == THREADS ? cleaner_new() : loop_cleaner_new();
    setting.cache = cache_new(setting.storage, TABLES, page, 1);
    for (unsigned n = 1; n <= TABLES; n++) {
        cache_touch(setting.cache, n * page);
    }
    MUST(q2c_cleaner_set_caches(setting.cleaner, &setting.cache, 1));
}

void setting_unmap_storage(void)
{
    storage_free(setting.storage);
    MUST(munmap(setting.storage, storage_bytes()));
    setting.storage = NULL;
}

void setting_end(void)
{
    uint64_t passes = cleaner_stats(setting.cleaner).passes;
    unsigned given_back = seam_given_back();

    CHECK(!seam_is_held());
    CHECK_PTR(setting.storage, NULL);
    if (setting.host == STANDING_LOOP) {
        MUST(q2c_loop_clock_step(setting.home.loop, 2 * FOREVER));
    }
    setting_turn();
    test_pause();
    CHECK_U64(cleaner_stats(setting.cleaner).passes, passes);
    CHECK_U64(seam_given_back(), given_back);
    CHECK_INT(q2c_cleaner_is_running(setting.cleaner), 0);
    cleaner_drop(setting.cleaner);
    CHECK_INT(q2c_cache_destroy(&setting.cache), 0);
    turner_stop(&setting.home);
    turner_stop(&setting.another);
}

bool state_exists(enum host host, enum state state)
{
    if (host == THREADS && state == NOT_YET_RUN) {
        return false; /* the start runs it */
    }
    return host != STANDING_LOOP || state != ABOUT_TO_SLEEP;
}

bool state_holds(enum state state)
{
    switch (state) {
    case NOT_YET_RUN:
    case ABOUT_TO_SLEEP:
    case ABOUT_TO_WAIT:
    case IN_A_PASS:
    case ASKED_TO_STOP:
        return true;
    default:
        return false;
    }
}

int setting_start(void)
{
    return q2c_cleaner_start(setting.cleaner, setting.host == THREADS ? NULL : setting.home.loop,
                             FOREVER);
}

void setting_take_lock(void *argument)
{
    (void)argument;
    CHECK_INT(q2c_cleaner_lock(setting.cleaner), 0);
}

void setting_drop_lock(void *argument)
{
    (void)argument;
    CHECK_INT(q2c_cleaner_unlock(setting.cleaner), 0);
}

static void nothing(void *argument)
{
    (void)argument;
}

void setting_turn(void)
{
    turner_run(&setting.home, nothing, NULL);
    turner_run(&setting.home, nothing, NULL);
}

uint32_t setting_instances(void)
{
    return cleaner_stats(setting.cleaner).instances;
}

/*
 * The thread is held after it was woken to run the cleaner, which no other thread can run. On
 * threads the cleaner has run once then: the start itself runs it, as far as its first sleep.
 */
static void hold_before_it_runs(void)
{
    if (setting.host == THREADS) {
        setting_fall_asleep();
    }
    seam_hold(SEAM_WOKEN, 0);
    if (setting.host == THREADS) {
        CHECK_INT(q2c_cleaner_set_interval(setting.cleaner, FOREVER - 1), 0);
    } else {
        CHECK_INT(setting_start(), 0);
    }
    EVENTUALLY(seam_is_held());
}

/* Holds the thread before it runs the cleaner, then at @seam after @skip calls there. */
static void hold_further_on(enum seam seam, unsigned skip)
{
    hold_before_it_runs();
    seam_move(seam, skip);
    EVENTUALLY(seam_is_held());
}

void setting_fall_asleep(void)
{
    CHECK_INT(setting_start(), 0);
    if (setting.host == STANDING_LOOP) {
        setting_turn(); /* it has run, and its thread waits for no timer */
        EVENTUALLY(seam_waits() == SEAM_WAITS);
    } else {
        EVENTUALLY(seam_waits() == SEAM_WAITS_FOR_TIMER);
    }
}

void setting_make_due(void)
{
    if (setting.host == STANDING_LOOP) {
        CHECK_INT(q2c_loop_clock_step(setting.home.loop, FOREVER), 0);
    } else {
        CHECK_INT(q2c_cleaner_set_interval(setting.cleaner, 1), 0);
    }
}

void setting_await_lock(void)
{
    setting_make_due();
    if (setting.host == STANDING_LOOP) {
        setting_turn(); /* runs the timer, and the cleaner */
    }
    /* with an interval of 1 ns, a wait without limit is not a wait for the timer */
    EVENTUALLY(seam_waits() == SEAM_WAITS);
}

/* The first pass clears the marks of use; the next pass drops the tables. */
static void hold_in_a_pass(void)
{
    setting_fall_asleep();
    seam_hold(SEAM_GIVE_BACK, 0);
    setting_make_due();
    if (setting.host == STANDING_LOOP) {
        EVENTUALLY(cleaner_stats(setting.cleaner).passes == 1);
        setting_turn(); /* asleep again */
        setting_make_due();
    }
    EVENTUALLY(seam_is_held());
    if (setting.host != STANDING_LOOP) {
        CHECK_INT(q2c_cleaner_set_interval(setting.cleaner, FOREVER), 0); /* no further pass */
    }
}

void setting_reach(enum state state)
{
    switch (state) {
    case NEVER_STARTED:
        break;
    case NOT_YET_RUN:
        hold_before_it_runs();
        break;
    case ABOUT_TO_SLEEP:
        hold_further_on(SEAM_CLOCK, 1); /* skips the loop's own look, for timers that are due */
        break;
    case ABOUT_TO_WAIT:
        hold_further_on(SEAM_WAIT, 0);
        break;
    case ASLEEP:
    case WAITING_FOR_LOCK:
        setting_fall_asleep();
        break;
    case IN_A_PASS:
        hold_in_a_pass();
        break;
    case ASKED_TO_STOP:
        hold_in_a_pass();
        CHECK_INT(q2c_cleaner_request_stop(setting.cleaner), 0);
        break;
    default:
        setting_fall_asleep();
        CHECK_INT(q2c_cleaner_request_stop(setting.cleaner), 0);
        EVENTUALLY(setting_instances() == 0);
    }
    if (state_holds(state)) {
        CHECK_U64(setting_instances(), 1);
        CHECK_INT(q2c_cleaner_is_running(setting.cleaner), state == ASKED_TO_STOP ? 0 : 1);
    }
    setting.passes = cleaner_stats(setting.cleaner).passes;
}
