/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* q2c_cache_empty: writes all dirty tables, then drops all tables. */
#include "fixture.h"

static struct storage storage;
static q2c_cache *cache;

static void empty_writes_flushes_and_drops(void)
{
    cache_touch(cache, AT(1));
    cache_dirty(cache, AT(2), 2);
    journal_clear(storage.journal);
    CHECK_INT(q2c_cache_empty(cache), 0);
    CHECK_JOURNAL(storage.journal, "check 400+200; write 400+200; flush; ");
    CHECK_U64(storage_peek(&storage, AT(2)), 2);
    CHECK_U64(cache_stats(cache).resident_tables, 0);
    CHECK_U64(cache_stats(cache).dirty_tables, 0);
    CHECK(!cache_resident(cache, AT(1)));
    CHECK(!cache_resident(cache, AT(2)));
}

static void dropped_table_is_loaded_again(void)
{
    uint64_t changed = 77;
    void *table;

    cache_touch(cache, AT(3));
    CHECK_INT(q2c_cache_empty(cache), 0);
    memcpy(storage.data + AT(3), &changed, sizeof(changed));
    table = cache_pin(cache, AT(3));
    CHECK_U64(table_word(table, 0), 77);
    cache_unpin(cache, table);
}

static void empty_is_busy_while_a_table_is_pinned(void)
{
    void *table = cache_pin(cache, AT(4));

    CHECK_INT(q2c_cache_empty(cache), -EBUSY);
    CHECK(table_untouched(table, AT(4), TABLE));
    cache_unpin(cache, table);
    CHECK_INT(q2c_cache_empty(cache), 0);
    CHECK(!cache_resident(cache, AT(4)));
}

static void failed_write_keeps_dirty_tables(void)
{
    cache_dirty(cache, AT(5), 5);
    storage_fail(&storage, STORAGE_WRITE, 0, 1, -ENOSPC);
    CHECK_INT(q2c_cache_empty(cache), -ENOSPC);
    storage_heal(&storage);
    CHECK(cache_resident(cache, AT(5)));
    CHECK_U64(cache_stats(cache).dirty_tables, 1);
    CHECK_INT(q2c_cache_empty(cache), 0);
    CHECK_U64(storage_peek(&storage, AT(5)), 5);
}

static void failed_flush_is_returned(void)
{
    cache_dirty(cache, AT(6), 6);
    storage_fail(&storage, STORAGE_FLUSH, 0, 1, -EIO);
    CHECK_INT(q2c_cache_empty(cache), -EIO);
    storage_heal(&storage);
    CHECK_INT(q2c_cache_empty(cache), 0);
    CHECK_U64(storage_peek(&storage, AT(6)), 6);
}

static void empty_cache_can_be_emptied(void)
{
    CHECK_INT(q2c_cache_empty(cache), 0);
    CHECK_INT(q2c_cache_empty(cache), 0);
    CHECK_INT(q2c_cache_empty(NULL), -EINVAL);
}

int main(void)
{
    test_begin();
    storage_init(&storage, 1 << 16);
    cache = cache_new(&storage, 4, TABLE, 1);
    RUN(empty_writes_flushes_and_drops);
    RUN(dropped_table_is_loaded_again);
    RUN(empty_is_busy_while_a_table_is_pinned);
    RUN(failed_write_keeps_dirty_tables);
    RUN(failed_flush_is_returned);
    RUN(empty_cache_can_be_emptied);
    cache_drop(cache);
    storage_free(&storage);
    return test_end();
}
