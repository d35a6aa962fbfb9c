/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Storage that fails: the call returns the error of storage unchanged, dirty tables stay dirty, and
 * the next call succeeds.
 */
#include "fixture.h"

static struct storage storage;
static q2c_cache *cache;

static void *const untouched = &storage;

static void open_cache(size_t tables)
{
    storage_init(&storage, 1 << 16);
    cache = cache_new(&storage, tables, TABLE, 0);
}

static void close_cache(void)
{
    cache_drop(cache);
    storage_free(&storage);
}

static void failed_load_leaves_the_slot_free(void)
{
    static const int errors[] = { -EIO, -ENOSPC, -ENOMEM, -EINTR, -EAGAIN, -1234 };
    void *table = untouched;

    open_cache(1);
    for (size_t i = 0; i < sizeof(errors) / sizeof(errors[0]); i++) {
        storage_fail(&storage, STORAGE_READ, 0, 1, errors[i]);
        CHECK_INT(q2c_cache_get(cache, AT(i + 1), &table), errors[i]);
        CHECK_PTR(table, untouched);
        storage_heal(&storage);
        CHECK(!cache_resident(cache, AT(i + 1)));
        CHECK_U64(cache_stats(cache).pinned_tables, 0);
        CHECK_U64(cache_stats(cache).resident_tables, 0);
        cache_touch(cache, AT(i + 1));
        CHECK_INT(q2c_cache_discard_offset(cache, AT(i + 1)), 0);
    }
    close_cache();
}

static void failed_write_leaves_the_table_dirty(void)
{
    static const int errors[] = { -EIO, -ENOSPC, -EROFS, -EINTR, -1234 };

    open_cache(4);
    for (size_t i = 0; i < sizeof(errors) / sizeof(errors[0]); i++) {
        cache_dirty(cache, AT(1), i + 1);
        storage_fail(&storage, STORAGE_WRITE, 0, 1, errors[i]);
        CHECK_INT(q2c_cache_write(cache), errors[i]);
        CHECK_U64(cache_stats(cache).dirty_tables, 1);
        storage_heal(&storage);
        CHECK_INT(q2c_cache_write(cache), 0);
        CHECK_U64(cache_stats(cache).dirty_tables, 0);
        CHECK_U64(storage_peek(&storage, AT(1)), i + 1);
    }
    close_cache();
}

static void failed_joined_write_leaves_all_its_tables_dirty(void)
{
    open_cache(4);
    for (unsigned n = 1; n <= 3; n++) {
        cache_dirty(cache, AT(n), n);
    }
    storage_fail(&storage, STORAGE_WRITE, 0, 1, -EIO);
    CHECK_INT(q2c_cache_flush(cache), -EIO);
    CHECK_U64(cache_stats(cache).dirty_tables, 3);
    storage_heal(&storage);
    CHECK_INT(q2c_cache_flush(cache), 0);
    for (unsigned n = 1; n <= 3; n++) {
        CHECK_U64(storage_peek(&storage, AT(n)), n);
    }
    close_cache();
}

static void failed_write_does_not_stop_the_others(void)
{
    open_cache(4);
    cache_dirty(cache, AT(1), 1);
    cache_dirty(cache, AT(5), 5);
    cache_dirty(cache, AT(9), 9);
    storage_fail(&storage, STORAGE_WRITE, 0, 1, -EIO);
    CHECK_INT(q2c_cache_write(cache), -EIO);
    storage_heal(&storage);
    CHECK_U64(cache_stats(cache).dirty_tables, 1);
    CHECK_U64(storage_peek(&storage, AT(5)), 5);
    CHECK_U64(storage_peek(&storage, AT(9)), 9);
    CHECK_INT(q2c_cache_write(cache), 0);
    CHECK_U64(storage_peek(&storage, AT(1)), 1);
    close_cache();
}

static void enospc_is_returned_over_later_errors(void)
{
    open_cache(4);
    cache_dirty(cache, AT(1), 1);
    cache_dirty(cache, AT(5), 5);
    cache_dirty(cache, AT(9), 9);
    storage_fail(&storage, STORAGE_WRITE, 0, 1, -ENOSPC);
    storage_fail(&storage, STORAGE_WRITE, 1, 2, -EIO);
    CHECK_INT(q2c_cache_write(cache), -ENOSPC);
    CHECK_U64(cache_stats(cache).dirty_tables, 3);
    storage_heal(&storage);
    CHECK_INT(q2c_cache_flush(cache), 0);
    close_cache();
}

static void failed_storage_flush_is_repeated(void)
{
    open_cache(4);
    cache_dirty(cache, AT(1), 1);
    storage_fail(&storage, STORAGE_FLUSH, 0, 1, -ENOSPC);
    CHECK_INT(q2c_cache_flush(cache), -ENOSPC);
    storage_heal(&storage);
    /* the flush may have lost the table: it is written again */
    CHECK_U64(cache_stats(cache).dirty_tables, 1);
    CHECK_U64(cache_stats(cache).redirtied, 1);
    journal_clear(storage.journal);
    CHECK_INT(q2c_cache_flush(cache), 0);
    CHECK_JOURNAL(storage.journal, "check 200+200; write 200+200; flush; ");
    CHECK_U64(cache_stats(cache).lost, 0);
    close_cache();
}

static void refused_check_leaves_only_that_table_dirty(void)
{
    static const int errors[] = { -EIO, -EACCES };

    for (size_t i = 0; i < 2; i++) {
        open_cache(8);
        for (unsigned n = 1; n <= 5; n++) {
            cache_dirty(cache, AT(n), n);
        }
        storage_fail(&storage, STORAGE_CHECK, 2, 1, errors[i]);
        CHECK_INT(q2c_cache_flush(cache), errors[i]);
        CHECK_U64(storage_count(&storage, STORAGE_CHECK), 5);
        CHECK_U64(cache_stats(cache).dirty_tables, 1);
        for (unsigned n = 1; n <= 5; n++) {
            CHECK_U64(storage_peek(&storage, AT(n)), n == 3 ? storage_word(AT(3)) : n);
        }
        CHECK_U64(storage_count(&storage, STORAGE_WRITE), 2);
        storage_heal(&storage);
        CHECK_INT(q2c_cache_flush(cache), 0);
        CHECK_U64(storage_peek(&storage, AT(3)), 3);
        close_cache();
    }
}

/* A get must write its victim back first. Each callback of that write-back fails in turn. */
static void eviction_fails_when_the_victim_cannot_be_written(void)
{
    static const int ops[] = { STORAGE_CHECK, STORAGE_WRITE };
    void *table = untouched;

    for (size_t i = 0; i < 2; i++) {
        open_cache(1);
        cache_dirty(cache, AT(1), 1);
        storage_fail(&storage, ops[i], 0, 1, -ENOSPC);
        CHECK_INT(q2c_cache_get(cache, AT(2), &table), -ENOSPC);
        CHECK_PTR(table, untouched);
        CHECK(cache_resident(cache, AT(1)));
        CHECK(!cache_resident(cache, AT(2)));
        CHECK_U64(cache_stats(cache).dirty_tables, 1);
        CHECK_U64(storage_count(&storage, STORAGE_READ), 1);
        storage_heal(&storage);
        cache_touch(cache, AT(2));
        CHECK_U64(storage_peek(&storage, AT(1)), 1);
        close_cache();
    }
}

static void load_fails_after_its_victim_was_written(void)
{
    void *table = untouched;

    open_cache(1);
    cache_dirty(cache, AT(1), 1);
    storage_fail(&storage, STORAGE_READ, 0, 1, -EIO);
    CHECK_INT(q2c_cache_get(cache, AT(2), &table), -EIO);
    storage_heal(&storage);
    CHECK_U64(cache_stats(cache).dirty_tables, 0);
    CHECK_U64(storage_peek(&storage, AT(1)), 1);
    cache_touch(cache, AT(2));
    close_cache();
}

/* A sequence that calls every callback. Returns the first error. */
static int sequence(q2c_cache *other)
{
    static const unsigned tables[] = { 1, 2, 5, 7, 8, 1 };
    void *table = NULL;
    int result = 0;

    for (size_t i = 0; i < sizeof(tables) / sizeof(tables[0]) && result == 0; i++) {
        result = q2c_cache_get(cache, AT(tables[i]), &table);
        if (result == 0) {
            CHECK_INT(q2c_cache_store(cache, table, 0, tables[i]), 0);
            CHECK_INT(q2c_cache_mark_dirty(cache, table), 0);
            CHECK_INT(q2c_cache_put(cache, &table), 0);
        }
        if (i == 2 && result == 0) {
            result = q2c_cache_set_dependency(cache, other);
        }
        if (i == 4) {
            CHECK_INT(q2c_cache_depends_on_flush(other), 0);
        }
    }
    return result != 0 ? result : q2c_cache_flush(cache);
}

/*
 * Runs the sequence while the n-th storage call fails, and expects that error. Then runs it without
 * faults, and expects everything that it writes. Returns whether a call failed.
 */
static bool sweep_one(int error, int nth)
{
    q2c_cache *other;
    int result;
    bool failed;

    open_cache(3);
    other = cache_new(&storage, 2, TABLE, 0);
    cache_dirty(other, AT(20), 20);
    storage_fail(&storage, STORAGE_ANY, nth, 1, error);
    result = sequence(other);
    failed = result != 0;
    if (failed) {
        CHECK_INT(result, error);
    }
    storage_heal(&storage);
    CHECK_U64(cache_stats(cache).pinned_tables, 0);
    for (unsigned i = 0; i < 2; i++) {
        q2c_cache *unstable = i == 0 ? cache : other;

        if (cache_stats(unstable).flush_error != 0) {
            /* A table was written and evicted before the flush that failed. */
            CHECK_INT(cache_stats(unstable).flush_error, error);
            CHECK_INT(q2c_cache_flush(unstable), error);
            CHECK_INT(q2c_cache_discard_range(unstable, 0, UINT64_MAX), 0);
            if (unstable == other) {
                cache_dirty(other, AT(20), 20);
            }
        }
    }
    CHECK_INT(sequence(other), 0);
    CHECK_U64(cache_stats(cache).dirty_tables, 0);
    for (unsigned n = 1; n <= 8; n++) {
        bool written = n == 1 || n == 2 || n == 5 || n == 7 || n == 8;

        CHECK_U64(storage_peek(&storage, AT(n)), written ? n : storage_word(AT(n)));
    }
    CHECK_INT(q2c_cache_flush(other), 0);
    CHECK_U64(storage_peek(&storage, AT(20)), 20);
    cache_drop(other);
    close_cache();
    return failed;
}

static void sequence_recovers_from_a_failure_of_each_call(void)
{
    static const int errors[] = { -EIO, -ENOSPC };

    for (size_t i = 0; i < 2; i++) {
        int nth = 0;

        while (sweep_one(errors[i], nth)) {
            nth++;
        }
        CHECK_BETWEEN(nth, 15, 60); /* the number of calls that could fail */
    }
}

/* Every storage call fails: each function returns the error, and no dirty table is dropped. */
static void dirty_tables_survive_storage_that_always_fails(void)
{
    void *table = untouched;

    open_cache(2);
    cache_dirty(cache, AT(1), 1);
    cache_dirty(cache, AT(2), 2);
    storage_fail(&storage, STORAGE_ANY, 0, 1000, -EIO);
    for (int i = 0; i < 3; i++) {
        CHECK_INT(q2c_cache_write(cache), -EIO);
        CHECK_INT(q2c_cache_flush(cache), -EIO);
        CHECK_INT(q2c_cache_empty(cache), -EIO);
        CHECK_INT(q2c_cache_get(cache, AT(3), &table), -EIO);
        CHECK_INT(q2c_cache_get_empty(cache, AT(3), &table), -EIO);
        CHECK_INT(q2c_cache_destroy(&cache), -ENOTEMPTY);
    }
    CHECK_U64(cache_stats(cache).dirty_tables, 2);
    storage_heal(&storage);
    CHECK_INT(q2c_cache_empty(cache), 0);
    CHECK_U64(storage_peek(&storage, AT(1)), 1);
    CHECK_U64(storage_peek(&storage, AT(2)), 2);
    close_cache();
}

int main(void)
{
    test_begin();
    RUN(failed_load_leaves_the_slot_free);
    RUN(failed_write_leaves_the_table_dirty);
    RUN(failed_joined_write_leaves_all_its_tables_dirty);
    RUN(failed_write_does_not_stop_the_others);
    RUN(enospc_is_returned_over_later_errors);
    RUN(failed_storage_flush_is_repeated);
    RUN(refused_check_leaves_only_that_table_dirty);
    RUN(eviction_fails_when_the_victim_cannot_be_written);
    RUN(load_fails_after_its_victim_was_written);
    RUN(sequence_recovers_from_a_failure_of_each_call);
    RUN(dirty_tables_survive_storage_that_always_fails);
    return test_end();
}
