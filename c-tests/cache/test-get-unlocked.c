/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * q2c_cache_get_unlocked: only hits, and loads that need no write-back. It leaves the reserved
 * slots to the lock's holder.
 */
#include "fixture.h"
#include "threads.h"

static struct storage storage;

static void *const untouched = &storage;

static void hits_and_loads_need_no_lock(void)
{
    q2c_cache *cache = cache_new(&storage, 4, TABLE, 1);
    void *table = NULL;

    journal_clear(storage.journal);
    CHECK_INT(q2c_cache_get_unlocked(cache, AT(1), &table), 0);
    CHECK(table_untouched(table, AT(1), TABLE));
    cache_unpin(cache, table);
    CHECK_INT(q2c_cache_get_unlocked(cache, AT(1), &table), 0);
    CHECK(table_untouched(table, AT(1), TABLE));
    cache_unpin(cache, table);
    CHECK_JOURNAL(storage.journal, "read 200+200; ");
    cache_drop(cache);
}

static void clean_victims_are_evicted(void)
{
    q2c_cache *cache = cache_new(&storage, 2, TABLE, 1);
    void *table = NULL;

    cache_touch(cache, AT(20));
    cache_touch(cache, AT(21)); /* no slot is free */
    for (unsigned n = 1; n < 10; n++) {
        CHECK_INT(q2c_cache_get_unlocked(cache, AT(n), &table), 0);
        CHECK(table_untouched(table, AT(n), TABLE));
        cache_unpin(cache, table);
    }
    cache_drop(cache);
}

static void get_unlocked_never_writes_back(void)
{
    q2c_cache *cache = cache_new(&storage, 3, TABLE, 1);
    void *table = untouched;

    for (unsigned n = 1; n <= 3; n++) {
        cache_dirty(cache, AT(n), n);
    }
    journal_clear(storage.journal);
    CHECK_INT(q2c_cache_get_unlocked(cache, AT(9), &table), -EAGAIN);
    CHECK_PTR(table, untouched);
    CHECK_JOURNAL(storage.journal, "");
    /* a resident table is a hit, dirty or not */
    CHECK_INT(q2c_cache_get_unlocked(cache, AT(2), &table), 0);
    cache_unpin(cache, table);
    /* with the lock, the victim is written back */
    cache_touch(cache, AT(9));
    CHECK(storage_count(&storage, STORAGE_WRITE) > 0);
    cache_drop(cache);
}

/* Of @tables slots, all but @reserved can be pinned without the lock. */
static void check_reserve(unsigned tables, unsigned reserved)
{
    q2c_cache *cache = cache_new(&storage, tables, TABLE, reserved);
    void *pinned[8];
    void *table = untouched;
    unsigned limit = tables - reserved;

    for (unsigned n = 0; n < tables; n++) {
        cache_touch(cache, AT(n + 1));
    }
    for (unsigned n = 0; n < limit; n++) {
        CHECK_INT(q2c_cache_get_unlocked(cache, AT(n + 1), &pinned[n]), 0);
    }
    journal_clear(storage.journal);
    CHECK_INT(q2c_cache_get_unlocked(cache, AT(50), &table), -EAGAIN);     /* a load */
    CHECK_INT(q2c_cache_get_unlocked(cache, AT(tables), &table), -EAGAIN); /* a hit */
    CHECK_PTR(table, untouched);
    CHECK_JOURNAL(storage.journal, "");
    /* a second pin of a pinned table takes no slot */
    CHECK_INT(q2c_cache_get_unlocked(cache, AT(1), &table), 0);
    cache_unpin(cache, table);
    /* with the lock, the reserved slots can be pinned, too */
    for (unsigned n = limit; n < tables; n++) {
        pinned[n] = cache_pin(cache, AT(50 + n));
    }
    for (unsigned n = 0; n < tables; n++) {
        cache_unpin(cache, pinned[n]);
    }
    CHECK_INT(q2c_cache_get_unlocked(cache, AT(60), &table), 0);
    cache_unpin(cache, table);
    cache_drop(cache);
}

static void one_reserved_slot_is_left(void)
{
    check_reserve(4, 1);
}

static void two_reserved_slots_are_left(void)
{
    check_reserve(6, 2);
}

static void pins_with_the_lock_count_towards_the_limit(void)
{
    q2c_cache *cache = cache_new(&storage, 3, TABLE, 1);
    void *first = cache_pin(cache, AT(1));
    void *second = cache_pin(cache, AT(2));
    void *table = untouched;

    CHECK_INT(q2c_cache_get_unlocked(cache, AT(3), &table), -EAGAIN);
    CHECK_PTR(table, untouched);
    cache_touch(cache, AT(4)); /* with the lock: takes the reserved slot */
    cache_unpin(cache, first);
    CHECK_INT(q2c_cache_get_unlocked(cache, AT(3), &table), 0);
    cache_unpin(cache, table);
    cache_unpin(cache, second);
    cache_drop(cache);
}

/* The lock's holder fills the free reserved slot; it does not evict a table. */
static void locked_get_prefers_the_reserved_slot_over_a_victim(void)
{
    q2c_cache *cache = cache_new(&storage, 3, TABLE, 1);
    void *table = untouched;

    for (unsigned n = 1; n <= 2; n++) {
        CHECK_INT(q2c_cache_get_unlocked(cache, AT(n), &table), 0);
        cache_unpin(cache, table);
    }
    table = untouched;
    CHECK_INT(q2c_cache_get_unlocked(cache, AT(3), &table), -EAGAIN);
    CHECK_PTR(table, untouched);
    cache_touch(cache, AT(3));
    CHECK_U64(cache_stats(cache).evictions, 0);
    CHECK_U64(cache_stats(cache).resident_tables, 3);
    cache_drop(cache);
}

static void load_table_1(void *argument)
{
    void *table = NULL;

    CHECK_INT(q2c_cache_get_unlocked(argument, AT(1), &table), 0);
    cache_unpin(argument, table);
}

static void loads_in_flight_count_towards_the_limit(void)
{
    q2c_cache *cache = cache_new(&storage, 2, TABLE, 1);
    int hold = storage_hold(&storage, STORAGE_READ, AT(1));
    struct thread thread;
    void *table = untouched;

    thread_start(&thread, load_table_1, cache);
    storage_await_held(&storage, hold, 1);
    CHECK_INT(q2c_cache_get_unlocked(cache, AT(2), &table), -EAGAIN);
    CHECK_PTR(table, untouched);
    cache_touch(cache, AT(2)); /* takes the reserved slot */
    storage_release(&storage, hold);
    thread_join(&thread);
    CHECK_INT(q2c_cache_get_unlocked(cache, AT(2), &table), 0);
    cache_unpin(cache, table);
    cache_drop(cache);
}

static void failed_load_changes_nothing(void)
{
    q2c_cache *cache = cache_new(&storage, 2, TABLE, 1);
    void *table = untouched;

    storage_fail(&storage, STORAGE_READ, 0, 1, -EREMOTEIO);
    CHECK_INT(q2c_cache_get_unlocked(cache, AT(1), &table), -EREMOTEIO);
    CHECK_PTR(table, untouched);
    storage_heal(&storage);
    CHECK(!cache_resident(cache, AT(1)));
    CHECK_U64(cache_stats(cache).pinned_tables, 0);
    CHECK_INT(q2c_cache_get_unlocked(cache, AT(1), &table), 0);
    cache_unpin(cache, table);
    cache_drop(cache);
}

static void wrong_arguments_are_rejected(void)
{
    q2c_cache *cache = cache_new(&storage, 2, TABLE, 1);
    void *table = untouched;

    CHECK_INT(q2c_cache_get_unlocked(NULL, AT(1), &table), -EINVAL);
    CHECK_INT(q2c_cache_get_unlocked(cache, AT(1), NULL), -EINVAL);
    CHECK_INT(q2c_cache_get_unlocked(cache, 0, &table), -EINVAL);
    memset(&storage.corruption, 0, sizeof(storage.corruption));
    CHECK_INT(q2c_cache_get_unlocked(cache, AT(1) + 1, &table), -EIO);
    CHECK_U64(storage.corruption.count, 1);
    CHECK_PTR(table, untouched);
    cache_drop(cache);
}

int main(void)
{
    test_begin();
    storage_init(&storage, 1 << 16);
    RUN(hits_and_loads_need_no_lock);
    RUN(clean_victims_are_evicted);
    RUN(get_unlocked_never_writes_back);
    RUN(one_reserved_slot_is_left);
    RUN(two_reserved_slots_are_left);
    RUN(pins_with_the_lock_count_towards_the_limit);
    RUN(locked_get_prefers_the_reserved_slot_over_a_victim);
    RUN(loads_in_flight_count_towards_the_limit);
    RUN(failed_load_changes_nothing);
    RUN(wrong_arguments_are_rejected);
    storage_free(&storage);
    return test_end();
}
