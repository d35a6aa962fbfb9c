/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Which table is evicted, and when a get waits for a slot. */
#include "fixture.h"
#include "threads.h"

static struct storage storage;

static void clean_tables_are_evicted_first(void)
{
    q2c_cache *cache = cache_new(&storage, 4, TABLE, 0);

    for (unsigned n = 1; n <= 3; n++) {
        cache_dirty(cache, AT(n), n);
    }
    cache_touch(cache, AT(4));
    journal_clear(storage.journal);
    for (unsigned n = 5; n < 15; n++) {
        cache_touch(cache, AT(n));
    }
    CHECK_U64(storage_count(&storage, STORAGE_WRITE), 0);
    CHECK(cache_resident(cache, AT(1)));
    CHECK(cache_resident(cache, AT(2)));
    CHECK(cache_resident(cache, AT(3)));
    CHECK_U64(cache_stats(cache).evictions, 10);
    cache_drop(cache);
}

static void dirty_victim_is_written_before_the_load(void)
{
    q2c_cache *cache = cache_new(&storage, 1, TABLE, 0);
    void *table;

    cache_dirty(cache, AT(1), 11);
    journal_clear(storage.journal);
    table = cache_pin(cache, AT(2));
    CHECK_JOURNAL(storage.journal, "check 200+200; write 200+200; read 400+200; ");
    CHECK(table_untouched(table, AT(2), TABLE));
    CHECK_U64(storage_peek(&storage, AT(1)), 11);
    cache_unpin(cache, table);
    table = cache_pin(cache, AT(1));
    CHECK_U64(table_word(table, 0), 11);
    cache_unpin(cache, table);
    cache_drop(cache);
}

static void pinned_tables_are_never_evicted(void)
{
    q2c_cache *cache = cache_new(&storage, 3, TABLE, 0);
    void *first = cache_pin(cache, AT(10));
    void *second = cache_pin(cache, AT(11));

    for (unsigned n = 12; n < 30; n++) {
        cache_touch(cache, AT(n));
    }
    CHECK(cache_resident(cache, AT(10)));
    CHECK(cache_resident(cache, AT(11)));
    cache_unpin(cache, first);
    cache_unpin(cache, second);
    cache_drop(cache);
}

struct get {
    q2c_cache *cache;
    uint64_t offset;
    int result;
};

static void get_and_put(void *argument)
{
    struct get *get = argument;
    void *table = NULL;

    get->result = q2c_cache_get(get->cache, get->offset, &table);
    if (get->result == 0) {
        CHECK_U64(table_word(table, 8), storage_word(get->offset + 8));
        cache_unpin(get->cache, table);
    }
}

static void get_waits_while_the_only_slot_loads(void)
{
    q2c_cache *cache = cache_new(&storage, 1, TABLE, 0);
    int hold = storage_hold(&storage, STORAGE_READ, AT(1));
    struct get loads = { cache, AT(1), 1 };
    struct get waits = { cache, AT(2), 1 };
    struct thread loader, waiter;

    storage_fail(&storage, STORAGE_READ, 0, 1, -EIO);
    thread_start(&loader, get_and_put, &loads);
    storage_await_held(&storage, hold, 1);
    thread_start(&waiter, get_and_put, &waits);
    thread_settle(&waiter);
    CHECK(!atomic_load(&waiter.done));
    storage_release(&storage, hold);
    thread_join(&loader);
    thread_join(&waiter);
    storage_heal(&storage);
    CHECK_INT(loads.result, -EIO);
    CHECK_INT(waits.result, 0);
    cache_drop(cache);
}

static void write_all(void *argument)
{
    CHECK_INT(q2c_cache_write(argument), 0);
}

static void get_waits_while_the_only_slot_is_written(void)
{
    q2c_cache *cache = cache_new(&storage, 1, TABLE, 0);
    int hold = storage_hold(&storage, STORAGE_WRITE, AT(3));
    struct get waits = { cache, AT(4), 1 };
    struct thread writer, waiter;

    cache_dirty(cache, AT(3), 3);
    thread_start(&writer, write_all, cache);
    storage_await_held(&storage, hold, 1);
    thread_start(&waiter, get_and_put, &waits);
    thread_settle(&waiter);
    CHECK(!atomic_load(&waiter.done));
    storage_release(&storage, hold);
    thread_join(&writer);
    thread_join(&waiter);
    CHECK_INT(waits.result, 0);
    CHECK_U64(storage_peek(&storage, AT(3)), 3);
    cache_drop(cache);
}

static void get_is_busy_only_when_all_slots_are_pinned(void)
{
    q2c_cache *cache = cache_new(&storage, 2, TABLE, 0);
    int hold = storage_hold(&storage, STORAGE_WRITE, AT(5));
    struct get waits = { cache, AT(7), 1 };
    struct thread writer, waiter;
    void *pinned, *table = NULL;

    cache_dirty(cache, AT(5), 5);
    pinned = cache_pin(cache, AT(6));
    thread_start(&writer, write_all, cache);
    storage_await_held(&storage, hold, 1);
    /* one slot is pinned, one is being written: the get waits */
    thread_start(&waiter, get_and_put, &waits);
    thread_settle(&waiter);
    CHECK(!atomic_load(&waiter.done));
    storage_release(&storage, hold);
    thread_join(&writer);
    thread_join(&waiter);
    CHECK_INT(waits.result, 0);
    /* now both slots are pinned */
    table = cache_pin(cache, AT(8));
    CHECK_INT(q2c_cache_get(cache, AT(9), &(void *){ NULL }), -EBUSY);
    cache_unpin(cache, table);
    cache_unpin(cache, pinned);
    cache_drop(cache);
}

static void put_frees_a_slot(void)
{
    q2c_cache *cache = cache_new(&storage, 2, TABLE, 0);
    void *first = cache_pin(cache, AT(1));
    void *second = cache_pin(cache, AT(2));
    void *table = NULL;

    for (unsigned n = 10; n < 20; n++) {
        CHECK_INT(q2c_cache_get(cache, AT(n), &table), -EBUSY);
        cache_unpin(cache, first);
        first = cache_pin(cache, AT(n));
    }
    cache_unpin(cache, first);
    cache_unpin(cache, second);
    cache_drop(cache);
}

/* A loop over half of the cache's slots keeps its hits while scans run in between. */
static void hot_tables_survive_a_scan(void)
{
    q2c_cache *cache = cache_new(&storage, 32, TABLE, 0);
    q2c_cache_stats before, after;

    for (unsigned round = 0; round < 20; round++) {
        for (unsigned n = 1; n <= 16; n++) {
            cache_touch(cache, AT(n));
        }
    }
    before = cache_stats(cache);
    for (unsigned round = 0; round < 20; round++) {
        for (unsigned n = 1; n <= 16; n++) {
            cache_touch(cache, AT(n));
        }
        for (unsigned n = 0; n < 8; n++) {
            cache_touch(cache, AT(40 + (round * 8 + n) % 64));
        }
    }
    after = cache_stats(cache);
    /* with LRU, every access of the loop is a hit: 320 hits */
    CHECK(after.hits - before.hits >= 320);
    cache_drop(cache);
}

int main(void)
{
    test_begin();
    storage_init(&storage, 1 << 16);
    RUN(clean_tables_are_evicted_first);
    RUN(dirty_victim_is_written_before_the_load);
    RUN(pinned_tables_are_never_evicted);
    RUN(get_waits_while_the_only_slot_loads);
    RUN(get_waits_while_the_only_slot_is_written);
    RUN(get_is_busy_only_when_all_slots_are_pinned);
    RUN(put_frees_a_slot);
    RUN(hot_tables_survive_a_scan);
    storage_free(&storage);
    return test_end();
}
