/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* q2c_cache_try_get: a hit, or -EAGAIN without a wait. */
#include "fixture.h"
#include "threads.h"

static struct storage storage;
static q2c_cache *cache;

static void *const untouched = &storage;

static void absent_table_is_eagain(void)
{
    void *table = untouched;

    journal_clear(storage.journal);
    CHECK_INT(q2c_cache_try_get(cache, AT(1), &table), -EAGAIN);
    CHECK_PTR(table, untouched);
    CHECK_JOURNAL(storage.journal, "");
}

static void resident_table_is_a_hit(void)
{
    void *table = NULL;
    void *again;

    cache_touch(cache, AT(2));
    journal_clear(storage.journal);
    CHECK_INT(q2c_cache_try_get(cache, AT(2), &table), 0);
    CHECK(table_untouched(table, AT(2), TABLE));
    CHECK_U64(cache_stats(cache).pinned_tables, 1);
    again = cache_pin(cache, AT(2));
    CHECK_PTR(again, table);
    cache_unpin(cache, again);
    cache_unpin(cache, table);
    CHECK_JOURNAL(storage.journal, "");
}

static void dirty_tables_are_hits(void)
{
    void *table = NULL;

    cache_dirty(cache, AT(3), 33);
    CHECK_INT(q2c_cache_try_get(cache, AT(3), &table), 0);
    CHECK_U64(table_word(table, 0), 33);
    cache_unpin(cache, table);
}

static void load_table_4(void *argument)
{
    (void)argument;
    cache_touch(cache, AT(4));
}

static void try_get_does_not_wait_for_a_load(void)
{
    int hold = storage_hold(&storage, STORAGE_READ, AT(4));
    struct thread thread;
    void *table = untouched;

    thread_start(&thread, load_table_4, NULL);
    storage_await_held(&storage, hold, 1);
    CHECK_INT(q2c_cache_try_get(cache, AT(4), &table), -EAGAIN);
    CHECK_PTR(table, untouched);
    storage_release(&storage, hold);
    thread_join(&thread);
    CHECK_INT(q2c_cache_try_get(cache, AT(4), &table), 0);
    cache_unpin(cache, table);
}

static void write_all(void *argument)
{
    (void)argument;
    CHECK_INT(q2c_cache_write(cache), 0);
}

static void table_is_a_hit_during_its_write_back(void)
{
    int hold = storage_hold(&storage, STORAGE_WRITE, AT(5));
    struct thread thread;
    void *table = NULL;

    cache_dirty(cache, AT(5), 55);
    thread_start(&thread, write_all, NULL);
    storage_await_held(&storage, hold, 1);
    CHECK_INT(q2c_cache_try_get(cache, AT(5), &table), 0);
    CHECK_U64(table_word(table, 0), 55);
    cache_unpin(cache, table);
    storage_release(&storage, hold);
    thread_join(&thread);
}

static void wrong_arguments_are_rejected(void)
{
    void *table = untouched;

    CHECK_INT(q2c_cache_try_get(NULL, AT(1), &table), -EINVAL);
    CHECK_INT(q2c_cache_try_get(cache, AT(1), NULL), -EINVAL);
    CHECK_INT(q2c_cache_try_get(cache, 0, &table), -EINVAL);
    memset(&storage.corruption, 0, sizeof(storage.corruption));
    CHECK_INT(q2c_cache_try_get(cache, AT(1) + 16, &table), -EIO);
    CHECK_U64(storage.corruption.count, 1);
    CHECK_PTR(table, untouched);
}

int main(void)
{
    test_begin();
    storage_init(&storage, 1 << 16);
    cache = cache_new(&storage, 8, TABLE, 1);
    RUN(absent_table_is_eagain);
    RUN(resident_table_is_a_hit);
    RUN(dirty_tables_are_hits);
    RUN(try_get_does_not_wait_for_a_load);
    RUN(table_is_a_hit_during_its_write_back);
    RUN(wrong_arguments_are_rejected);
    cache_drop(cache);
    storage_free(&storage);
    return test_end();
}
