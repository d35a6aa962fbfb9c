/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* q2c_cleaner_lock and q2c_cleaner_unlock: one owner, and a pass runs under the lock. */
#include "cleaning.h"
#include "threads.h"

static q2c_cleaner *cleaner;

static void lock_has_one_owner(void)
{
    CHECK_INT(q2c_cleaner_unlock(cleaner), -EPERM);
    CHECK_INT(q2c_cleaner_lock(cleaner), 0);
    CHECK_INT(q2c_cleaner_lock(cleaner), -EDEADLK);
    CHECK_INT(q2c_cleaner_unlock(cleaner), 0);
    CHECK_INT(q2c_cleaner_unlock(cleaner), -EPERM);
}

static void unlock_anothers(void *argument)
{
    (void)argument;
    CHECK_INT(q2c_cleaner_unlock(cleaner), -EPERM);
}

static void only_the_owner_unlocks(void)
{
    struct thread thread;

    CHECK_INT(q2c_cleaner_lock(cleaner), 0);
    thread_start(&thread, unlock_anothers, NULL);
    thread_join(&thread);
    CHECK_INT(q2c_cleaner_lock(cleaner), -EDEADLK);
    CHECK_INT(q2c_cleaner_unlock(cleaner), 0);
}

#define THREADS 4
#define ROUNDS  500
static unsigned shared_count; /* guarded by the lock under test */

static void count_up(void *argument)
{
    (void)argument;
    for (unsigned i = 0; i < ROUNDS; i++) {
        CHECK_INT(q2c_cleaner_lock(cleaner), 0);
        shared_count++;
        CHECK_INT(q2c_cleaner_unlock(cleaner), 0);
    }
}

static void lock_excludes_other_threads(void)
{
    struct thread threads[THREADS];

    for (unsigned i = 0; i < THREADS; i++) {
        thread_start(&threads[i], count_up, NULL);
    }
    for (unsigned i = 0; i < THREADS; i++) {
        thread_join(&threads[i]);
    }
    CHECK_U64(shared_count, THREADS * ROUNDS);
}

static void lock_and_unlock(void *argument)
{
    (void)argument;
    CHECK_INT(q2c_cleaner_lock(cleaner), 0);
    CHECK_INT(q2c_cleaner_unlock(cleaner), 0);
}

static void lock_waits_for_the_owner(void)
{
    struct thread thread;

    CHECK_INT(q2c_cleaner_lock(cleaner), 0);
    thread_start(&thread, lock_and_unlock, NULL);
    thread_settle(&thread);
    CHECK(!atomic_load(&thread.done));
    CHECK_INT(q2c_cleaner_unlock(cleaner), 0);
    thread_join(&thread);
}

static void no_pass_runs_while_the_lock_is_held(void)
{
    uint64_t passes;

    CHECK_INT(q2c_cleaner_start(cleaner, NULL, MILLISECOND), 0);
    cleaner_await_passes(cleaner, 2);
    CHECK_INT(q2c_cleaner_lock(cleaner), 0);
    passes = cleaner_stats(cleaner).passes;
    for (int i = 0; i < 20; i++) {
        test_pause();
    }
    /* a pass that only had memory left to release may have ended */
    CHECK(cleaner_stats(cleaner).passes <= passes + 1);
    CHECK_INT(q2c_cleaner_unlock(cleaner), 0);
    cleaner_await_passes(cleaner, 2);
    CHECK_INT(q2c_cleaner_del_and_wait(cleaner), 0);
}

int main(void)
{
    test_begin();
    cleaner = cleaner_new();
    RUN(lock_has_one_owner);
    RUN(only_the_owner_unlocks);
    RUN(lock_excludes_other_threads);
    RUN(lock_waits_for_the_owner);
    RUN(no_pass_runs_while_the_lock_is_held);
    cleaner_drop(cleaner);
    return test_end();
}
