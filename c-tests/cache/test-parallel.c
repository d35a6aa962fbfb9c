/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Several threads: one load per table, parallel loads of different tables, hits during I/O. */
#include "fixture.h"
#include "threads.h"

#define THREADS 4

static struct storage storage;
static q2c_cache *cache;
static struct thread threads[THREADS];

struct get {
    uint64_t offset;
    int result;
    void *table;
};

static void pin(void *argument)
{
    struct get *get = argument;

    get->result = q2c_cache_get(cache, get->offset, &get->table);
}

static void pin_unlocked(void *argument)
{
    struct get *get = argument;

    get->result = q2c_cache_get_unlocked(cache, get->offset, &get->table);
}

/* All threads get the same absent table. Its only load is held until all of them wait. */
static void check_one_load(void (*how)(void *argument), uint64_t offset)
{
    int hold = storage_hold(&storage, STORAGE_READ, offset);
    unsigned before = storage_count(&storage, STORAGE_READ);
    struct get gets[THREADS];

    for (unsigned i = 0; i < THREADS; i++) {
        gets[i] = (struct get){ .offset = offset, .result = 1 };
        thread_start(&threads[i], how, &gets[i]);
    }
    storage_await_held(&storage, hold, 1);
    for (unsigned i = 0; i < THREADS; i++) {
        thread_settle(&threads[i]);
        CHECK(!atomic_load(&threads[i].done));
    }
    storage_release(&storage, hold);
    for (unsigned i = 0; i < THREADS; i++) {
        thread_join(&threads[i]);
        CHECK_INT(gets[i].result, 0);
        CHECK_PTR(gets[i].table, gets[0].table);
    }
    CHECK_U64(storage_count(&storage, STORAGE_READ) - before, 1);
    CHECK(table_untouched(gets[0].table, offset, TABLE));
    for (unsigned i = 0; i < THREADS; i++) {
        cache_unpin(cache, gets[i].table);
    }
    CHECK_U64(cache_stats(cache).pinned_tables, 0);
}

static void concurrent_gets_share_one_load(void)
{
    check_one_load(pin, AT(1));
}

static void concurrent_unlocked_gets_share_one_load(void)
{
    check_one_load(pin_unlocked, AT(2));
}

static void different_tables_load_in_parallel(void)
{
    int hold = storage_hold(&storage, STORAGE_READ, STORAGE_ANYWHERE);
    struct get gets[THREADS];

    for (unsigned i = 0; i < THREADS; i++) {
        gets[i] = (struct get){ .offset = AT(10 + i), .result = 1 };
        thread_start(&threads[i], i % 2 == 0 ? pin : pin_unlocked, &gets[i]);
    }
    /* waits until all loads are in storage together; the watchdog ends it otherwise */
    storage_await_held(&storage, hold, THREADS);
    storage_release(&storage, hold);
    for (unsigned i = 0; i < THREADS; i++) {
        thread_join(&threads[i]);
        CHECK_INT(gets[i].result, 0);
        CHECK(table_untouched(gets[i].table, gets[i].offset, TABLE));
        cache_unpin(cache, gets[i].table);
    }
}

static void slow_load_does_not_delay_later_loads(void)
{
    int slow = storage_hold(&storage, STORAGE_READ, AT(20));
    struct get get = { .offset = AT(20), .result = 1 };
    void *table;

    thread_start(&threads[0], pin, &get);
    storage_await_held(&storage, slow, 1);
    for (unsigned n = 21; n < 24; n++) {
        table = cache_pin(cache, AT(n));
        CHECK(table_untouched(table, AT(n), TABLE));
        cache_unpin(cache, table);
    }
    CHECK(!atomic_load(&threads[0].done));
    storage_release(&storage, slow);
    thread_join(&threads[0]);
    CHECK_INT(get.result, 0);
    cache_unpin(cache, get.table);
}

static void waiters_of_a_failed_load_get_its_error_or_retry(void)
{
    int hold = storage_hold(&storage, STORAGE_READ, AT(30));
    unsigned before = storage_count(&storage, STORAGE_READ);
    unsigned failed = 0;
    struct get gets[THREADS];

    storage_fail(&storage, STORAGE_READ, 0, 1, -EREMOTEIO);
    for (unsigned i = 0; i < THREADS; i++) {
        gets[i] = (struct get){ .offset = AT(30), .result = 1 };
        thread_start(&threads[i], pin, &gets[i]);
    }
    storage_await_held(&storage, hold, 1);
    for (unsigned i = 0; i < THREADS; i++) {
        thread_settle(&threads[i]);
    }
    storage_release(&storage, hold);
    for (unsigned i = 0; i < THREADS; i++) {
        thread_join(&threads[i]);
        if (gets[i].result != 0) {
            CHECK_INT(gets[i].result, -EREMOTEIO);
            failed++;
        } else {
            CHECK(table_untouched(gets[i].table, AT(30), TABLE));
            cache_unpin(cache, gets[i].table);
        }
    }
    storage_heal(&storage);
    CHECK(failed >= 1);
    CHECK(storage_count(&storage, STORAGE_READ) - before <= 2);
    cache_touch(cache, AT(30));
    CHECK_U64(cache_stats(cache).pinned_tables, 0);
}

static void write_all(void *argument)
{
    (void)argument;
    CHECK_INT(q2c_cache_write(cache), 0);
}

static void hits_are_served_during_a_write_back(void)
{
    int hold = storage_hold(&storage, STORAGE_WRITE, AT(40));
    uint64_t word = 0;

    cache_touch(cache, AT(41));
    cache_dirty(cache, AT(40), 40);
    thread_start(&threads[0], write_all, NULL);
    storage_await_held(&storage, hold, 1);
    cache_touch(cache, AT(41));
    cache_touch(cache, AT(40));
    CHECK_INT(q2c_cache_read(cache, AT(40), 0, &word, 8), 0);
    CHECK_U64(word, 40);
    cache_dirty(cache, AT(41), 41);
    storage_release(&storage, hold);
    thread_join(&threads[0]);
    CHECK_INT(q2c_cache_flush(cache), 0);
    CHECK_U64(storage_peek(&storage, AT(41)), 41);
}

int main(void)
{
    test_begin();
    storage_init(&storage, 1 << 16);
    cache = cache_new(&storage, 8, TABLE, 1);
    RUN(concurrent_gets_share_one_load);
    RUN(concurrent_unlocked_gets_share_one_load);
    RUN(different_tables_load_in_parallel);
    RUN(slow_load_does_not_delay_later_loads);
    RUN(waiters_of_a_failed_load_get_its_error_or_retry);
    RUN(hits_are_served_during_a_write_back);
    cache_drop(cache);
    storage_free(&storage);
    return test_end();
}
