/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* q2c_cache_destroy: when it refuses, and that it never writes. */
#include "fixture.h"
#include "threads.h"

static struct storage storage;

static void null_is_ignored(void)
{
    q2c_cache *cache = NULL;

    CHECK_INT(q2c_cache_destroy(NULL), 0);
    CHECK_INT(q2c_cache_destroy(&cache), 0);
}

static void unused_cache_is_destroyed(void)
{
    q2c_cache *cache = cache_new(&storage, 4, TABLE, 1);

    CHECK_INT(q2c_cache_destroy(&cache), 0);
    CHECK_PTR(cache, NULL);
}

static void destroy_is_busy_while_a_table_is_pinned(void)
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

static void destroy_fails_while_a_table_is_dirty(void)
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

static void discarded_dirty_tables_do_not_block_destroy(void)
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

static void destroy_is_busy_during_a_load(void)
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

static void destroy_is_busy_during_a_write_back(void)
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
    RUN(null_is_ignored);
    RUN(unused_cache_is_destroyed);
    RUN(destroy_is_busy_while_a_table_is_pinned);
    RUN(destroy_fails_while_a_table_is_dirty);
    RUN(discarded_dirty_tables_do_not_block_destroy);
    RUN(destroy_is_busy_during_a_load);
    RUN(destroy_is_busy_during_a_write_back);
    storage_free(&storage);
    return test_end();
}
