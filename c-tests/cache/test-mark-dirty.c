/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* q2c_cache_mark_dirty: works on pinned tables only, and the mark is never lost. */
#include "fixture.h"
#include "threads.h"

static struct storage storage;
static q2c_cache *cache;

static void dirty_tables_are_written(void)
{
    void *table = cache_pin(cache, AT(1));
    uint64_t value = 17;

    memcpy(table, &value, sizeof(value));
    CHECK_INT(q2c_cache_mark_dirty(cache, table), 0);
    CHECK_INT(q2c_cache_mark_dirty(cache, table), 0);
    CHECK_U64(cache_stats(cache).dirty_tables, 1);
    cache_unpin(cache, table);
    journal_clear(storage.journal);
    CHECK_INT(q2c_cache_write(cache), 0);
    CHECK_JOURNAL(storage.journal, "check 200+200; write 200+200; ");
    CHECK_U64(storage_peek(&storage, AT(1)), 17);
    CHECK_U64(cache_stats(cache).dirty_tables, 0);
}

static void pinned_tables_are_written_too(void)
{
    void *table = cache_pin(cache, AT(2));

    CHECK_INT(q2c_cache_store(cache, table, 0, 18), 0);
    CHECK_INT(q2c_cache_mark_dirty(cache, table), 0);
    CHECK_INT(q2c_cache_write(cache), 0);
    CHECK_U64(storage_peek(&storage, AT(2)), 18);
    cache_unpin(cache, table);
}

static void wrong_arguments_are_rejected(void)
{
    q2c_cache *other = cache_new(&storage, 2, TABLE, 0);
    char *table = cache_pin(cache, AT(3));
    void *foreign = cache_pin(other, AT(3));

    CHECK_INT(q2c_cache_mark_dirty(NULL, table), -EINVAL);
    CHECK_INT(q2c_cache_mark_dirty(cache, NULL), -EINVAL);
    CHECK_INT(q2c_cache_mark_dirty(cache, foreign), -EINVAL);
    CHECK_INT(q2c_cache_mark_dirty(cache, table + 8), -EINVAL);
    CHECK_INT(q2c_cache_mark_dirty(cache, &storage), -EINVAL);
    cache_unpin(other, foreign);
    cache_unpin(cache, table);
    CHECK_INT(q2c_cache_mark_dirty(cache, table), -EINVAL); /* not pinned any more */
    CHECK_U64(cache_stats(cache).dirty_tables, 0);
    CHECK_U64(cache_stats(other).dirty_tables, 0);
    cache_drop(other);
}

static int write_result;

static void write_all(void *argument)
{
    (void)argument;
    write_result = q2c_cache_write(cache);
}

static void table_dirtied_during_its_write_back_stays_dirty(void)
{
    int hold = storage_hold(&storage, STORAGE_WRITE, AT(4));
    struct thread thread;
    void *table;

    cache_dirty(cache, AT(4), 1);
    thread_start(&thread, write_all, NULL);
    storage_await_held(&storage, hold, 1);
    table = cache_pin(cache, AT(4));
    CHECK_INT(q2c_cache_store(cache, table, 8, 2), 0);
    CHECK_INT(q2c_cache_mark_dirty(cache, table), 0);
    cache_unpin(cache, table);
    storage_release(&storage, hold);
    thread_join(&thread);
    CHECK_INT(write_result, 0);
    CHECK_U64(cache_stats(cache).dirty_tables, 1);
    CHECK_INT(q2c_cache_flush(cache), 0);
    CHECK_U64(cache_stats(cache).dirty_tables, 0);
    CHECK_U64(storage_peek(&storage, AT(4)), 1);
    CHECK_U64(storage_peek(&storage, AT(4) + 8), 2);
}

static void table_dirtied_during_a_failed_write_stays_dirty(void)
{
    int hold = storage_hold(&storage, STORAGE_WRITE, AT(5));
    struct thread thread;

    cache_dirty(cache, AT(5), 1);
    storage_fail(&storage, STORAGE_WRITE, 0, 1, -EIO);
    thread_start(&thread, write_all, NULL);
    storage_await_held(&storage, hold, 1);
    cache_dirty(cache, AT(5), 2);
    storage_release(&storage, hold);
    thread_join(&thread);
    storage_heal(&storage);
    CHECK_INT(write_result, -EIO);
    CHECK_U64(cache_stats(cache).dirty_tables, 1);
    CHECK_INT(q2c_cache_flush(cache), 0);
    CHECK_U64(storage_peek(&storage, AT(5)), 2);
}

int main(void)
{
    test_begin();
    storage_init(&storage, 1 << 16);
    cache = cache_new(&storage, 4, TABLE, 1);
    RUN(dirty_tables_are_written);
    RUN(pinned_tables_are_written_too);
    RUN(wrong_arguments_are_rejected);
    RUN(table_dirtied_during_its_write_back_stays_dirty);
    RUN(table_dirtied_during_a_failed_write_stays_dirty);
    cache_drop(cache);
    storage_free(&storage);
    return test_end();
}
