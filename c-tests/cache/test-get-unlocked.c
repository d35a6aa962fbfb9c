/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* q2c_cache_get_unlocked: hits and clean loads only; it leaves slots to those with the lock. */
#include "fixture.h"
#include "threads.h"

static struct storage storage;

static void *const untouched = &storage;

static void hit_and_load(void)
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

static void clean_victims_give_way(void)
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

static void needs_no_write_back(void)
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
    /* dirty or not, what is there is a hit */
    CHECK_INT(q2c_cache_get_unlocked(cache, AT(2), &table), 0);
    cache_unpin(cache, table);
    /* with the lock it goes */
    cache_touch(cache, AT(9));
    CHECK(storage_count(&storage, STORAGE_WRITE) > 0);
    cache_drop(cache);
}

/* With @reserved of @tables left over, so many can be pinned without the lock, and no more. */
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
    CHECK_INT(q2c_cache_get_unlocked(cache, AT(50), &table), -EAGAIN); /* a load */
    CHECK_INT(q2c_cache_get_unlocked(cache, AT(tables), &table), -EAGAIN); /* an unpinned one */
    CHECK_PTR(table, untouched);
    CHECK_JOURNAL(storage.journal, "");
    /* one more pin on a pinned table takes no slot */
    CHECK_INT(q2c_cache_get_unlocked(cache, AT(1), &table), 0);
    cache_unpin(cache, table);
    /* with the lock, the rest can be had */
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

static void leaves_one_slot(void)
{
    check_reserve(4, 1);
}

static void leaves_two_slots(void)
{
    check_reserve(6, 2);
}

static void pins_with_the_lock_count(void)
{
    q2c_cache *cache = cache_new(&storage, 3, TABLE, 1);
    void *first = cache_pin(cache, AT(1));
    void *second = cache_pin(cache, AT(2));
    void *table = untouched;

    CHECK_INT(q2c_cache_get_unlocked(cache, AT(3), &table), -EAGAIN);
    CHECK_PTR(table, untouched);
    cache_touch(cache, AT(4)); /* with the lock: in the slot that was left over */
    cache_unpin(cache, first);
    CHECK_INT(q2c_cache_get_unlocked(cache, AT(3), &table), 0);
    cache_unpin(cache, table);
    cache_unpin(cache, second);
    cache_drop(cache);
}

/* A slot that only the lock's holder may fill is free: better than a table's loss. */
static void a_free_slot_with_the_lock_comes_before_a_victim(void)
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

static void loads_in_flight_count(void)
{
    q2c_cache *cache = cache_new(&storage, 2, TABLE, 1);
    int hold = storage_hold(&storage, STORAGE_READ, AT(1));
    struct thread thread;
    void *table = untouched;

    thread_start(&thread, load_table_1, cache);
    storage_await_held(&storage, hold, 1);
    CHECK_INT(q2c_cache_get_unlocked(cache, AT(2), &table), -EAGAIN);
    CHECK_PTR(table, untouched);
    cache_touch(cache, AT(2)); /* the slot left over */
    storage_release(&storage, hold);
    thread_join(&thread);
    CHECK_INT(q2c_cache_get_unlocked(cache, AT(2), &table), 0);
    cache_unpin(cache, table);
    cache_drop(cache);
}

static void a_failed_load_changes_nothing(void)
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

static void wrong_arguments(void)
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
    RUN(hit_and_load);
    RUN(clean_victims_give_way);
    RUN(needs_no_write_back);
    RUN(leaves_one_slot);
    RUN(leaves_two_slots);
    RUN(pins_with_the_lock_count);
    RUN(a_free_slot_with_the_lock_comes_before_a_victim);
    RUN(loads_in_flight_count);
    RUN(a_failed_load_changes_nothing);
    RUN(wrong_arguments);
    storage_free(&storage);
    return test_end();
}
