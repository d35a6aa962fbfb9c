/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* q2c_cache_get_empty: gives a table that the caller fills; it does not read storage. */
#include "fixture.h"

static struct storage storage;
static q2c_cache *cache;

static bool is_zero(const void *table)
{
    for (size_t at = 0; at < TABLE; at += 8) {
        if (table_word(table, at) != 0) {
            return false;
        }
    }
    return true;
}

static void absent_table_is_zero_filled(void)
{
    void *table = NULL;

    journal_clear(storage.journal);
    CHECK_INT(q2c_cache_get_empty(cache, AT(1), &table), 0);
    CHECK_JOURNAL(storage.journal, "");
    CHECK(is_zero(table));
    cache_unpin(cache, table);
    CHECK(cache_resident(cache, AT(1)));
}

static void reused_slot_is_zeroed(void)
{
    /* every slot has held another table before */
    for (unsigned n = 10; n < 20; n++) {
        cache_touch(cache, AT(n));
    }
    for (unsigned n = 20; n < 24; n++) {
        void *table = NULL;

        MUST(q2c_cache_get_empty(cache, AT(n), &table));
        CHECK(is_zero(table));
        cache_unpin(cache, table);
    }
}

static void resident_table_keeps_its_bytes(void)
{
    void *table = NULL;

    cache_touch(cache, AT(30));
    CHECK_INT(q2c_cache_get_empty(cache, AT(30), &table), 0);
    CHECK(table_untouched(table, AT(30), TABLE));
    cache_unpin(cache, table);
}

static void table_is_written_once_marked_dirty(void)
{
    void *table = NULL;

    MUST(q2c_cache_get_empty(cache, AT(31), &table));
    CHECK_INT(q2c_cache_store(cache, table, 8, 5), 0);
    CHECK_INT(q2c_cache_mark_dirty(cache, table), 0);
    cache_unpin(cache, table);
    CHECK_INT(q2c_cache_flush(cache), 0);
    CHECK_U64(storage_peek(&storage, AT(31)), 0);
    CHECK_U64(storage_peek(&storage, AT(31) + 8), 5);
}

static void dirty_victim_is_written_first(void)
{
    q2c_cache *small = cache_new(&storage, 1, TABLE, 0);
    void *table = NULL;

    cache_dirty(small, AT(40), 4040);
    journal_clear(storage.journal);
    CHECK_INT(q2c_cache_get_empty(small, AT(41), &table), 0);
    CHECK_JOURNAL(storage.journal, "check 5000+200; write 5000+200; ");
    CHECK(is_zero(table));
    cache_unpin(small, table);
    CHECK_U64(storage_peek(&storage, AT(40)), 4040);
    cache_drop(small);
}

static void wrong_arguments_are_rejected(void)
{
    void *const untouched = &storage;
    void *table = untouched;

    CHECK_INT(q2c_cache_get_empty(NULL, AT(1), &table), -EINVAL);
    CHECK_INT(q2c_cache_get_empty(cache, AT(1), NULL), -EINVAL);
    CHECK_INT(q2c_cache_get_empty(cache, 0, &table), -EINVAL);
    memset(&storage.corruption, 0, sizeof(storage.corruption));
    CHECK_INT(q2c_cache_get_empty(cache, AT(1) + 8, &table), -EIO);
    CHECK_U64(storage.corruption.count, 1);
    CHECK_U64(storage.corruption.offset, AT(1) + 8);
    CHECK_PTR(table, untouched);
}

int main(void)
{
    test_begin();
    storage_init(&storage, 1 << 16);
    cache = cache_new(&storage, 4, TABLE, 1);
    RUN(absent_table_is_zero_filled);
    RUN(reused_slot_is_zeroed);
    RUN(resident_table_keeps_its_bytes);
    RUN(table_is_written_once_marked_dirty);
    RUN(dirty_victim_is_written_first);
    RUN(wrong_arguments_are_rejected);
    cache_drop(cache);
    storage_free(&storage);
    return test_end();
}
