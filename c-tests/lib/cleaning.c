/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "cleaning.h"

q2c_cleaner *cleaner_new(void)
{
    q2c_cleaner *cleaner = NULL;
    q2c_error error = { .code = 0 };

    if (q2c_cleaner_create(NULL, &cleaner, &error) != 0) {
        test_note("q2c_cleaner_create: %s", error.message);
    }
    REQUIRE(cleaner != NULL);
    return cleaner;
}

void cleaner_drop(q2c_cleaner *cleaner)
{
    CHECK_U64(cleaner_stats(cleaner).instances, 0);
    CHECK_INT(q2c_cleaner_destroy(&cleaner), 0);
    CHECK_PTR(cleaner, NULL);
}

q2c_cleaner_stats cleaner_stats(q2c_cleaner *cleaner)
{
    q2c_cleaner_stats stats = { .struct_size = sizeof(stats) };

    MUST(q2c_cleaner_get_stats(cleaner, &stats));
    return stats;
}

void cleaner_await_passes(q2c_cleaner *cleaner, uint64_t more)
{
    uint64_t passes = cleaner_stats(cleaner).passes;

    EVENTUALLY(cleaner_stats(cleaner).passes >= passes + more);
}

static int stop_locked(q2c_cleaner *cleaner)
{
    int result;

    MUST(q2c_cleaner_lock(cleaner));
    result = q2c_cleaner_co_locked_del_and_wait(cleaner);
    /* this thread holds the lock again: a second lock fails, an unlock works */
    CHECK_INT(q2c_cleaner_lock(cleaner), -EDEADLK);
    CHECK_INT(q2c_cleaner_unlock(cleaner), 0);
    return result;
}

static int stop_unlocked(q2c_cleaner *cleaner)
{
    return q2c_cleaner_co_del_and_wait(cleaner);
}

static int stop_mixed(q2c_cleaner *cleaner)
{
    return q2c_cleaner_del_and_wait(cleaner);
}

const struct cleaner_stop cleaner_stops[CLEANER_STOPS] = {
    { "locked", stop_locked },
    { "unlocked", stop_unlocked },
    { "mixed", stop_mixed },
};
