/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* q2c_cache_destroy: what it refuses, and that it never writes. */
#include "fixture.h"
#include "threads.h"

static struct storage storage;

static void nothing_to_destroy(void)
{
    q2c_cache *cache = NULL;

    CHECK_INT(q2c_cache_destroy(NULL), 0);
    CHECK_INT(q2c_cache_destroy(&cache), 0);
}

static void unused_cache(void)
{
    q2c_cache *cache = cache_new(&storage, 4, TABLE, 1);

    CHECK_INT(q2c_cache_destroy(&cache), 0);
    CHECK_PTR(cache, NULL);
}

static void busy_while_pinned(void)
{
    q2c_cache *cache = cache_new(&storage, 4, TABLE, 1);
    void *table = cache_pin(cache, AT(1));

    CHECK_INT(q2c_cache_destroy(&cache), -EBUSY);
    REQUIRE(cache != NULL);
    CHECK(table_untouched(table, AT(1), TABLE));
    cache_unpin(cache, table);
    CHECK_INT(q2c_cache_destroy(&cache), 0);
    CHECK_PTR(cache, NULL);
}

static void refuses_while_dirty(void)
{
    q2c_cache *cache = cache_new(&storage, 4, TABLE, 1);

    cache_dirty(cache, AT(2), 1234);
    journal_clear(storage.journal);
    CHECK_INT(q2c_cache_destroy(&cache), -ENOTEMPTY);
    REQUIRE(cache != NULL);
    CHECK_JOURNAL(storage.journal, "");
    CHECK_U64(cache_stats(cache).dirty_tables, 1);
    CHECK_INT(q2c_cache_flush(cache), 0);
    CHECK_U64(storage_peek(&storage, AT(2)), 1234);
    CHECK_INT(q2c_cache_destroy(&cache), 0);
    CHECK_PTR(cache, NULL);
}

static void dirty_tables_can_be_given_up(void)
{
    q2c_cache *cache = cache_new(&storage, 4, TABLE, 1);

    cache_dirty(cache, AT(3), 1);
    cache_dirty(cache, AT(4), 1);
    journal_clear(storage.journal);
    CHECK_INT(q2c_cache_discard_range(cache, 0, UINT64_MAX), 0);
    CHECK_INT(q2c_cache_destroy(&cache), 0);
    CHECK_JOURNAL(storage.journal, "");
    CHECK(storage_untouched(&storage, AT(3), 2 * TABLE));
}

static void get_table_5(void *argument)
{
    cache_touch(argument, AT(5));
}

static void busy_while_loading(void)
{
    q2c_cache *cache = cache_new(&storage, 4, TABLE, 1);
    int hold = storage_hold(&storage, STORAGE_READ, AT(5));
    struct thread thread;

    thread_start(&thread, get_table_5, cache);
    storage_await_held(&storage, hold, 1);
    CHECK_INT(q2c_cache_destroy(&cache), -EBUSY);
    storage_release(&storage, hold);
    thread_join(&thread);
    REQUIRE(cache != NULL);
    CHECK_INT(q2c_cache_destroy(&cache), 0);
}

static void write_all(void *argument)
{
    CHECK_INT(q2c_cache_write(argument), 0);
}

static void busy_while_writing(void)
{
    q2c_cache *cache = cache_new(&storage, 4, TABLE, 1);
    int hold = storage_hold(&storage, STORAGE_WRITE, AT(6));
    struct thread thread;

    cache_dirty(cache, AT(6), 1);
    thread_start(&thread, write_all, cache);
    storage_await_held(&storage, hold, 1);
    CHECK_INT(q2c_cache_destroy(&cache), -EBUSY);
    storage_release(&storage, hold);
    thread_join(&thread);
    REQUIRE(cache != NULL);
    CHECK_INT(q2c_cache_destroy(&cache), 0);
}

int main(void)
{
    test_begin();
    storage_init(&storage, 1 << 16);
    RUN(nothing_to_destroy);
    RUN(unused_cache);
    RUN(busy_while_pinned);
    RUN(refuses_while_dirty);
    RUN(dirty_tables_can_be_given_up);
    RUN(busy_while_loading);
    RUN(busy_while_writing);
    storage_free(&storage);
    return test_end();
}
