/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* q2c_cleaner_lock and q2c_cleaner_unlock: one owner, and the pass is under it. */
#include "cleaning.h"
#include "threads.h"

static q2c_cleaner *cleaner;

static void owner(void)
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
#define ROUNDS 500
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

static void excludes_the_others(void)
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

static void waits_for_the_owner(void)
{
    struct thread thread;

    CHECK_INT(q2c_cleaner_lock(cleaner), 0);
    thread_start(&thread, lock_and_unlock, NULL);
    thread_settle(&thread);
    CHECK(!atomic_load(&thread.done));
    CHECK_INT(q2c_cleaner_unlock(cleaner), 0);
    thread_join(&thread);
}

static void no_pass_while_it_is_held(void)
{
    uint64_t passes;

    CHECK_INT(q2c_cleaner_start(cleaner, NULL, MILLISECOND), 0);
    cleaner_await_passes(cleaner, 2);
    CHECK_INT(q2c_cleaner_lock(cleaner), 0);
    passes = cleaner_stats(cleaner).passes;
    for (int i = 0; i < 20; i++) {
        test_pause();
    }
    /* one that had only memory to give back may have come to its end */
    CHECK(cleaner_stats(cleaner).passes <= passes + 1);
    CHECK_INT(q2c_cleaner_unlock(cleaner), 0);
    cleaner_await_passes(cleaner, 2);
    CHECK_INT(q2c_cleaner_del_and_wait(cleaner), 0);
}

int main(void)
{
    test_begin();
    cleaner = cleaner_new();
    RUN(owner);
    RUN(only_the_owner_unlocks);
    RUN(excludes_the_others);
    RUN(waits_for_the_owner);
    RUN(no_pass_while_it_is_held);
    cleaner_drop(cleaner);
    return test_end();
}
