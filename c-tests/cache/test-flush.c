/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * q2c_cache_write, q2c_cache_flush and q2c_cache_flush_storage: the first two write in offset
 * order, join neighbours and write each table once.
 */
#include <stdio.h>

#include "fixture.h"
#include "threads.h"

static struct storage storage;

/* The journal without its checks: the library may mix them with the writes in any order. */
static const char *without_checks(struct journal *journal)
{
    static char result[4096];
    const char *entry = journal_text(journal);
    const char *end;

    result[0] = '\0';
    for (; (end = strstr(entry, "; ")) != NULL; entry = end + 2) {
        if (strncmp(entry, "check ", 6) != 0) {
            strncat(result, entry, (size_t)(end - entry) + 2);
        }
    }
    return result;
}

static void dirty_each(q2c_cache *cache, const unsigned *tables, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        cache_dirty(cache, AT(tables[i]), 1000 + tables[i]);
    }
    journal_clear(storage.journal);
}

static void check_written(const unsigned *tables, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        CHECK_U64(storage_peek(&storage, AT(tables[i])), 1000 + tables[i]);
        CHECK(storage_untouched(&storage, AT(tables[i]) + 8, TABLE - 8));
    }
}

static void write_does_not_flush_the_storage(void)
{
    static const unsigned tables[] = { 3 };
    q2c_cache *cache = cache_new(&storage, 16, TABLE, 1);

    dirty_each(cache, tables, 1);
    CHECK_INT(q2c_cache_write(cache), 0);
    CHECK_JOURNAL(storage.journal, "check 600+200; write 600+200; ");
    CHECK_INT(q2c_cache_write(cache), 0);
    CHECK_JOURNAL(storage.journal, "check 600+200; write 600+200; ");
    check_written(tables, 1);
    cache_drop(cache);
}

static void flush_flushes_the_storage(void)
{
    static const unsigned tables[] = { 4 };
    q2c_cache *cache = cache_new(&storage, 16, TABLE, 1);

    dirty_each(cache, tables, 1);
    CHECK_INT(q2c_cache_flush(cache), 0);
    CHECK_JOURNAL(storage.journal, "check 800+200; write 800+200; flush; ");
    check_written(tables, 1);
    cache_drop(cache);
}

static void written_tables_are_flushed_by_the_next_flush(void)
{
    static const unsigned tables[] = { 5 };
    q2c_cache *cache = cache_new(&storage, 16, TABLE, 1);

    dirty_each(cache, tables, 1);
    CHECK_INT(q2c_cache_write(cache), 0);
    journal_clear(storage.journal);
    CHECK_INT(q2c_cache_flush(cache), 0);
    CHECK_JOURNAL(storage.journal, "flush; ");
    cache_drop(cache);
}

static void clean_tables_are_not_written(void)
{
    q2c_cache *cache = cache_new(&storage, 16, TABLE, 1);

    for (unsigned n = 1; n < 10; n++) {
        cache_touch(cache, AT(n));
    }
    journal_clear(storage.journal);
    CHECK_INT(q2c_cache_write(cache), 0);
    CHECK_JOURNAL(storage.journal, "");
    CHECK_INT(q2c_cache_flush(cache), 0);
    CHECK_STR(without_checks(storage.journal), "flush; ");
    cache_drop(cache);
}

static void tables_are_written_in_offset_order(void)
{
    static const unsigned tables[] = { 40, 10, 30, 20, 50, 12 };
    q2c_cache *cache = cache_new(&storage, 16, TABLE, 1);

    dirty_each(cache, tables, 6);
    CHECK_INT(q2c_cache_write(cache), 0);
    CHECK_STR(without_checks(storage.journal),
              "write 1400+200; write 1800+200; write 2800+200; write 3c00+200; write 5000+200; "
              "write 6400+200; ");
    check_written(tables, 6);
    cache_drop(cache);
}

static void neighbouring_tables_are_joined(void)
{
    static const unsigned tables[] = { 7, 5, 6, 9, 10, 4 };
    q2c_cache *cache = cache_new(&storage, 16, TABLE, 1);
    q2c_cache_stats stats;

    dirty_each(cache, tables, 6);
    CHECK_INT(q2c_cache_flush(cache), 0);
    CHECK_STR(without_checks(storage.journal), "write 800+800; write 1200+400; flush; ");
    check_written(tables, 6);
    stats = cache_stats(cache);
    CHECK_U64(stats.write_backs, 6);
    CHECK_U64(stats.writes, 2);
    cache_drop(cache);
}

static void clean_neighbours_are_not_joined(void)
{
    static const unsigned tables[] = { 11, 13 };
    q2c_cache *cache = cache_new(&storage, 16, TABLE, 1);

    cache_touch(cache, AT(12));
    dirty_each(cache, tables, 2);
    CHECK_INT(q2c_cache_write(cache), 0);
    CHECK_STR(without_checks(storage.journal), "write 1600+200; write 1a00+200; ");
    cache_drop(cache);
}

static void max_iov_limits_joining(void)
{
    static const unsigned tables[] = { 20, 21, 22, 23, 24 };
    q2c_cache *cache;

    storage.calls.max_iov = 2;
    cache = cache_new(&storage, 16, TABLE, 1);
    dirty_each(cache, tables, 5);
    CHECK_INT(q2c_cache_write(cache), 0);
    CHECK_STR(without_checks(storage.journal), "write 2800+400; write 2c00+400; write 3000+200; ");
    check_written(tables, 5);
    cache_drop(cache);
    storage.calls.max_iov = 0;
}

static void max_iov_1_joins_nothing(void)
{
    static const unsigned tables[] = { 30, 31, 32 };
    q2c_cache *cache;

    storage.calls.max_iov = 1;
    cache = cache_new(&storage, 16, TABLE, 1);
    dirty_each(cache, tables, 3);
    CHECK_INT(q2c_cache_write(cache), 0);
    CHECK_STR(without_checks(storage.journal), "write 3c00+200; write 3e00+200; write 4000+200; ");
    check_written(tables, 3);
    cache_drop(cache);
    storage.calls.max_iov = 0;
}

static void up_to_1024_tables_are_joined_by_default(void)
{
    q2c_cache *cache = cache_new(&storage, 1100, TABLE, 1);
    unsigned before;

    for (unsigned n = 100; n < 1130; n++) {
        cache_dirty(cache, AT(n), n);
    }
    before = storage_count(&storage, STORAGE_WRITE);
    CHECK_INT(q2c_cache_flush(cache), 0);
    CHECK_U64(storage_count(&storage, STORAGE_WRITE) - before, 2);
    for (unsigned n = 100; n < 1130; n++) {
        CHECK_U64(storage_peek(&storage, AT(n)), n);
    }
    cache_drop(cache);
}

static void each_table_is_checked_once(void)
{
    static const unsigned tables[] = { 2, 3, 8, 9, 15 };
    q2c_cache *cache = cache_new(&storage, 16, TABLE, 1);
    unsigned before = storage_count(&storage, STORAGE_CHECK);
    const char *text;
    char check[32];

    dirty_each(cache, tables, 5);
    CHECK_INT(q2c_cache_flush(cache), 0);
    CHECK_U64(storage_count(&storage, STORAGE_CHECK) - before, 5);
    CHECK_INT(storage_last_kind(&storage, STORAGE_CHECK), 7);
    text = journal_text(storage.journal);
    for (size_t i = 0; i < 5; i++) {
        snprintf(check, sizeof(check), "check %" PRIx64 "+200;", AT(tables[i]));
        CHECK_CONTAINS(text, check);
    }
    cache_drop(cache);
}

static void wrong_arguments_are_rejected(void)
{
    CHECK_INT(q2c_cache_write(NULL), -EINVAL);
    CHECK_INT(q2c_cache_flush(NULL), -EINVAL);
}

static void flush_of_storage_writes_nothing_and_counts_for_all_caches(void)
{
    q2c_cache *cache = cache_new(&storage, 4, TABLE, 0);
    q2c_cache *other = cache_new(&storage, 2, TABLE, 0);

    cache_dirty(cache, AT(1), 1);
    CHECK_INT(q2c_cache_depends_on_flush(other), 0);
    journal_clear(storage.journal);
    CHECK_INT(q2c_cache_flush_storage(cache), 0);
    CHECK_JOURNAL(storage.journal, "flush; ");
    CHECK_U64(cache_stats(cache).dirty_tables, 1);
    cache_dirty(other, AT(2), 2);
    journal_clear(storage.journal);
    CHECK_INT(q2c_cache_write(other), 0);
    CHECK_JOURNAL(storage.journal, "check 400+200; write 400+200; ");
    /* a failure counts for all, too */
    CHECK_INT(q2c_cache_write(cache), 0);
    storage_fail(&storage, STORAGE_FLUSH, 0, 1, -EREMOTEIO);
    CHECK_INT(q2c_cache_flush_storage(cache), -EREMOTEIO);
    CHECK_U64(cache_stats(cache).redirtied, 1);
    CHECK_U64(cache_stats(other).redirtied, 1);
    CHECK_INT(q2c_cache_flush_storage(NULL), -EINVAL);
    cache_drop(other);
    cache_drop(cache);
}

static void flush_storage(void *argument)
{
    CHECK_INT(q2c_cache_flush_storage(argument), 0);
}

/* The first one flushes. The others wait for it, and then share one flush. */
static void flushes_of_storage_at_the_same_time_are_shared(void)
{
    enum { THREADS = 6, ROUNDS = 50 };
    q2c_cache *cache = cache_new(&storage, 4, TABLE, 0);
    bool shared = false;

    for (int round = 0; round < ROUNDS && !shared; round++) {
        unsigned before = storage_count(&storage, STORAGE_FLUSH), flushes;
        int hold = storage_hold(&storage, STORAGE_FLUSH, STORAGE_ANYWHERE);
        struct thread threads[THREADS];

        thread_start(&threads[0], flush_storage, cache);
        storage_await_held(&storage, hold, 1);
        for (int i = 1; i < THREADS; i++) {
            thread_start(&threads[i], flush_storage, cache);
        }
        for (int i = 1; i < THREADS; i++) {
            thread_settle(&threads[i]);
        }
        CHECK_U64(storage_count(&storage, STORAGE_FLUSH), before + 1);
        storage_release(&storage, hold);
        for (int i = 0; i < THREADS; i++) {
            thread_join(&threads[i]);
        }
        flushes = storage_count(&storage, STORAGE_FLUSH) - before;
        CHECK_BETWEEN(flushes, 2, THREADS);
        shared = flushes == 2; /* a thread that came late made a third */
    }
    CHECK(shared);
    cache_drop(cache);
}

int main(void)
{
    test_begin();
    storage_init(&storage, 1 << 20);
    RUN(write_does_not_flush_the_storage);
    RUN(flush_flushes_the_storage);
    RUN(written_tables_are_flushed_by_the_next_flush);
    RUN(clean_tables_are_not_written);
    RUN(tables_are_written_in_offset_order);
    RUN(neighbouring_tables_are_joined);
    RUN(clean_neighbours_are_not_joined);
    RUN(max_iov_limits_joining);
    RUN(max_iov_1_joins_nothing);
    RUN(up_to_1024_tables_are_joined_by_default);
    RUN(each_table_is_checked_once);
    RUN(wrong_arguments_are_rejected);
    RUN(flush_of_storage_writes_nothing_and_counts_for_all_caches);
    RUN(flushes_of_storage_at_the_same_time_are_shared);
    storage_free(&storage);
    return test_end();
}
