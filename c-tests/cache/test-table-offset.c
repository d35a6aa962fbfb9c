/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* q2c_cache_is_table_offset, and q2c_cache_discard of the table that it returned. */
#include "fixture.h"
#include "threads.h"

static struct storage storage;

static void absent_and_resident_tables_are_told_apart(void)
{
    q2c_cache *cache = cache_new(&storage, 4, TABLE, 1);
    void *table = &storage;
    void *pinned;

    CHECK_INT(q2c_cache_is_table_offset(cache, AT(1), &table), 0);
    CHECK_PTR(table, NULL);
    pinned = cache_pin(cache, AT(1));
    CHECK_INT(q2c_cache_is_table_offset(cache, AT(1), &table), 1);
    CHECK_PTR(table, pinned);
    cache_unpin(cache, pinned);
    journal_clear(storage.journal);
    CHECK_INT(q2c_cache_is_table_offset(cache, AT(1), &table), 1);
    CHECK_PTR(table, pinned);
    CHECK_U64(cache_stats(cache).pinned_tables, 0);
    CHECK_JOURNAL(storage.journal, "");
    cache_drop(cache);
}

static void found_table_is_not_pinned(void)
{
    q2c_cache *cache = cache_new(&storage, 1, TABLE, 0);
    void *table = NULL;

    cache_touch(cache, AT(1));
    CHECK_INT(q2c_cache_is_table_offset(cache, AT(1), &table), 1);
    CHECK_INT(q2c_cache_put(cache, &(void *){ table }), -EINVAL);
    cache_touch(cache, AT(2));
    CHECK_INT(q2c_cache_is_table_offset(cache, AT(1), &table), 0);
    CHECK_PTR(table, NULL);
    cache_drop(cache);
}

static q2c_cache *loading;

static void load_table_3(void *argument)
{
    (void)argument;
    cache_touch(loading, AT(3));
}

static void loading_table_is_absent(void)
{
    int hold = storage_hold(&storage, STORAGE_READ, AT(3));
    struct thread thread;

    loading = cache_new(&storage, 2, TABLE, 0);
    thread_start(&thread, load_table_3, NULL);
    storage_await_held(&storage, hold, 1);
    CHECK(!cache_resident(loading, AT(3)));
    storage_release(&storage, hold);
    thread_join(&thread);
    CHECK(cache_resident(loading, AT(3)));
    cache_drop(loading);
}

static void discard_drops_the_table(void)
{
    q2c_cache *cache = cache_new(&storage, 4, TABLE, 1);
    void *table = NULL;

    cache_dirty(cache, AT(4), 4);
    CHECK_INT(q2c_cache_is_table_offset(cache, AT(4), &table), 1);
    journal_clear(storage.journal);
    CHECK_INT(q2c_cache_discard(cache, AT(4), table), 0);
    CHECK(!cache_resident(cache, AT(4)));
    CHECK_INT(q2c_cache_flush(cache), 0);
    CHECK(storage_untouched(&storage, AT(4), TABLE));
    cache_drop(cache);
}

static void discard_is_stale_after_the_slot_was_reused(void)
{
    q2c_cache *cache = cache_new(&storage, 1, TABLE, 0);
    void *table = NULL;

    cache_touch(cache, AT(5));
    CHECK_INT(q2c_cache_is_table_offset(cache, AT(5), &table), 1);
    cache_touch(cache, AT(6));
    CHECK_INT(q2c_cache_discard(cache, AT(5), table), -ESTALE);
    CHECK(cache_resident(cache, AT(6)));
    cache_drop(cache);
}

static void discard_keeps_the_bytes_under_a_pin(void)
{
    q2c_cache *cache = cache_new(&storage, 2, TABLE, 0);
    void *pinned = cache_pin(cache, AT(7));

    CHECK_INT(q2c_cache_discard(cache, AT(7), pinned), 0);
    CHECK(!cache_resident(cache, AT(7)));
    CHECK(table_untouched(pinned, AT(7), TABLE));
    cache_unpin(cache, pinned);
    cache_drop(cache);
}

/* A question about an offset does not say that the image is damaged. */
static void unaligned_offset_has_no_table(void)
{
    q2c_cache *cache = cache_new(&storage, 4, TABLE, 1);
    void *table = &storage;
    void *pinned = cache_pin(cache, AT(8));

    memset(&storage.corruption, 0, sizeof(storage.corruption));
    CHECK_INT(q2c_cache_is_table_offset(cache, AT(8) + 8, &table), 0);
    CHECK_PTR(table, NULL);
    CHECK_INT(q2c_cache_discard(cache, AT(8) + 8, pinned), -ESTALE);
    CHECK_U64(storage.corruption.count, 0);
    CHECK(cache_resident(cache, AT(8)));
    cache_unpin(cache, pinned);
    cache_drop(cache);
}

static void wrong_arguments_are_rejected(void)
{
    q2c_cache *cache = cache_new(&storage, 4, TABLE, 1);
    void *table = &storage;
    char *pinned = cache_pin(cache, AT(8));

    CHECK_INT(q2c_cache_is_table_offset(NULL, AT(8), &table), -EINVAL);
    CHECK_INT(q2c_cache_is_table_offset(cache, AT(8), NULL), -EINVAL);
    CHECK_INT(q2c_cache_is_table_offset(cache, 0, &table), -EINVAL);
    CHECK_PTR(table, &storage);

    CHECK_INT(q2c_cache_discard(NULL, AT(8), pinned), -EINVAL);
    CHECK_INT(q2c_cache_discard(cache, AT(8), NULL), -EINVAL);
    CHECK_INT(q2c_cache_discard(cache, AT(8), &storage), -EINVAL);
    CHECK_INT(q2c_cache_discard(cache, AT(8), pinned + 8), -EINVAL);
    CHECK_INT(q2c_cache_discard(cache, 0, pinned), -EINVAL);
    CHECK(cache_resident(cache, AT(8)));
    cache_unpin(cache, pinned);
    cache_drop(cache);
}

int main(void)
{
    test_begin();
    storage_init(&storage, 1 << 16);
    RUN(absent_and_resident_tables_are_told_apart);
    RUN(found_table_is_not_pinned);
    RUN(loading_table_is_absent);
    RUN(discard_drops_the_table);
    RUN(discard_is_stale_after_the_slot_was_reused);
    RUN(discard_keeps_the_bytes_under_a_pin);
    RUN(wrong_arguments_are_rejected);
    RUN(unaligned_offset_has_no_table);
    storage_free(&storage);
    return test_end();
}
