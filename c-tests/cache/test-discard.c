/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* q2c_cache_discard_offset and q2c_cache_discard_range: drop immediately, dirty or not. */
#include "fixture.h"
#include "threads.h"

static struct storage storage;
static q2c_cache *cache;

static void set_on_disk(uint64_t offset, uint64_t value)
{
    memcpy(storage.data + offset, &value, sizeof(value));
}

static void clean_table_is_dropped(void)
{
    cache_touch(cache, AT(1));
    CHECK_INT(q2c_cache_discard_offset(cache, AT(1)), 0);
    CHECK(!cache_resident(cache, AT(1)));
    CHECK_U64(cache_stats(cache).resident_tables, 0);
}

static void discarded_dirty_table_is_never_written(void)
{
    cache_dirty(cache, AT(2), 2);
    journal_clear(storage.journal);
    CHECK_INT(q2c_cache_discard_offset(cache, AT(2)), 0);
    CHECK_U64(cache_stats(cache).dirty_tables, 0);
    CHECK_INT(q2c_cache_write(cache), 0);
    CHECK_JOURNAL(storage.journal, "");
    CHECK(storage_untouched(&storage, AT(2), TABLE));
}

static void absent_table_is_no_error(void)
{
    journal_clear(storage.journal);
    CHECK_INT(q2c_cache_discard_offset(cache, AT(3)), 0);
    CHECK_JOURNAL(storage.journal, "");
}

static void discarded_counter_counts_dropped_tables(void)
{
    uint64_t before = cache_stats(cache).discarded;

    cache_touch(cache, AT(1));
    cache_touch(cache, AT(2));
    CHECK_INT(q2c_cache_discard_offset(cache, AT(1)), 0);
    CHECK_INT(q2c_cache_discard_offset(cache, AT(1)), 0);
    CHECK_INT(q2c_cache_discard_range(cache, AT(2), TABLE), 0);
    CHECK_U64(cache_stats(cache).discarded - before, 2);
}

static void pinned_reader_keeps_the_old_bytes(void)
{
    void *old = cache_pin(cache, AT(4));
    void *new;

    CHECK_INT(q2c_cache_discard_offset(cache, AT(4)), 0);
    CHECK(!cache_resident(cache, AT(4)));
    /* the reader keeps its bytes; the next get reads storage again */
    set_on_disk(AT(4), 44);
    new = cache_pin(cache, AT(4));
    CHECK(new != old);
    CHECK_U64(table_word(new, 0), 44);
    CHECK(table_untouched(old, AT(4), TABLE));
    cache_unpin(cache, old);
    CHECK(cache_resident(cache, AT(4)));
    CHECK_U64(table_word(new, 0), 44);
    cache_unpin(cache, new);
}

static void slot_becomes_free_at_the_last_put(void)
{
    q2c_cache *small = cache_new(&storage, 1, TABLE, 0);
    void *first = cache_pin(small, AT(5));
    void *second = cache_pin(small, AT(5));
    void *table = NULL;

    CHECK_INT(q2c_cache_discard_offset(small, AT(5)), 0);
    CHECK_INT(q2c_cache_get(small, AT(6), &table), -EBUSY);
    cache_unpin(small, first);
    CHECK_INT(q2c_cache_get(small, AT(6), &table), -EBUSY);
    cache_unpin(small, second);
    CHECK_INT(q2c_cache_get(small, AT(6), &table), 0);
    CHECK(table_untouched(table, AT(6), TABLE));
    cache_unpin(small, table);
    cache_drop(small);
}

static void changes_under_a_pin_are_lost(void)
{
    void *table;

    cache_dirty(cache, AT(7), 6);
    table = cache_pin(cache, AT(7));
    CHECK_INT(q2c_cache_discard_offset(cache, AT(7)), 0);
    CHECK_U64(cache_stats(cache).dirty_tables, 0);
    CHECK_INT(q2c_cache_store(cache, table, 0, 7), 0);
    CHECK_INT(q2c_cache_mark_dirty(cache, table), 0);
    cache_unpin(cache, table);
    journal_clear(storage.journal);
    CHECK_INT(q2c_cache_write(cache), 0);
    CHECK_JOURNAL(storage.journal, "");
    CHECK(storage_untouched(&storage, AT(7), TABLE));
    CHECK_U64(cache_stats(cache).dirty_tables, 0);
}

static void destroy_is_busy_while_a_discarded_table_is_pinned(void)
{
    q2c_cache *small = cache_new(&storage, 2, TABLE, 0);
    void *table = cache_pin(small, AT(8));

    CHECK_INT(q2c_cache_discard_offset(small, AT(8)), 0);
    CHECK_INT(q2c_cache_destroy(&small), -EBUSY);
    cache_unpin(small, table);
    CHECK_INT(q2c_cache_destroy(&small), 0);
}

static void range_drops_every_overlapping_table(void)
{
    static const struct {
        uint64_t offset, bytes;
        unsigned first, last; /* tables of 10 .. 17 that are dropped; none if first > last */
    } ranges[] = {
        { AT(12), 3 * TABLE, 12, 14 },  { AT(12) + 1, 1, 12, 12 }, { AT(13) - 1, 2, 12, 13 },
        { AT(11) + 8, TABLE, 11, 12 },  { AT(14), 0, 1, 0 },       { AT(14) + 8, 0, 1, 0 },
        { AT(18), UINT64_MAX, 1, 0 },   { 0, AT(10), 1, 0 },       { 0, AT(10) + 1, 10, 10 },
        { AT(15), UINT64_MAX, 15, 17 }, { 0, UINT64_MAX, 10, 17 },
    };

    for (size_t i = 0; i < sizeof(ranges) / sizeof(ranges[0]); i++) {
        for (unsigned n = 10; n <= 17; n++) {
            cache_dirty(cache, AT(n), n);
        }
        CHECK_INT(q2c_cache_discard_range(cache, ranges[i].offset, ranges[i].bytes), 0);
        for (unsigned n = 10; n <= 17; n++) {
            bool gone = ranges[i].first <= n && n <= ranges[i].last;

            if (!CHECK(cache_resident(cache, AT(n)) == !gone)) {
                test_note("    table %u with the range of line %zu", n, i);
            }
        }
        CHECK_INT(q2c_cache_discard_range(cache, 0, UINT64_MAX), 0);
        CHECK_U64(cache_stats(cache).dirty_tables, 0);
    }
    CHECK(storage_untouched(&storage, AT(10), 8 * TABLE));
}

static void write_all(void *argument)
{
    (void)argument;
    CHECK_INT(q2c_cache_write(cache), 0);
}

static void discard_20(void *argument)
{
    (void)argument;
    CHECK_INT(q2c_cache_discard_offset(cache, AT(20)), 0);
}

static void discard_during_a_write_back_is_final(void)
{
    int hold = storage_hold(&storage, STORAGE_WRITE, AT(20));
    struct thread writer, discarder;

    cache_dirty(cache, AT(20), 20);
    thread_start(&writer, write_all, NULL);
    storage_await_held(&storage, hold, 1);
    thread_start(&discarder, discard_20, NULL);
    thread_settle(&discarder);
    storage_release(&storage, hold);
    thread_join(&discarder);
    thread_join(&writer);
    CHECK(!cache_resident(cache, AT(20)));
    /* a later flush does not overwrite newer bytes in storage */
    set_on_disk(AT(20), 2020);
    CHECK_INT(q2c_cache_flush(cache), 0);
    CHECK_U64(storage_peek(&storage, AT(20)), 2020);
    CHECK_U64(cache_stats(cache).dirty_tables, 0);
}

static void get_21(void *argument)
{
    void *table = NULL;

    (void)argument;
    if (CHECK_INT(q2c_cache_get(cache, AT(21), &table), 0)) {
        cache_unpin(cache, table);
    }
}

static void discard_during_a_load_drops_the_old_bytes(void)
{
    int hold = storage_hold(&storage, STORAGE_READ | STORAGE_LATE, AT(21));
    struct thread loader;
    void *table;

    thread_start(&loader, get_21, NULL);
    storage_await_held(&storage, hold, 1);
    /* the load has copied the old bytes already */
    CHECK_INT(q2c_cache_discard_offset(cache, AT(21)), 0);
    set_on_disk(AT(21), 2121);
    storage_release(&storage, hold);
    thread_join(&loader);
    table = cache_pin(cache, AT(21));
    CHECK_U64(table_word(table, 0), 2121);
    cache_unpin(cache, table);
}

static void wrong_arguments_are_rejected(void)
{
    CHECK_INT(q2c_cache_discard_offset(NULL, AT(1)), -EINVAL);
    CHECK_INT(q2c_cache_discard_range(NULL, 0, UINT64_MAX), -EINVAL);
    CHECK_INT(q2c_cache_discard_offset(cache, 0), -EINVAL);
}

/* A question about an offset does not say that the image is damaged. */
static void unaligned_offset_has_no_table(void)
{
    cache_touch(cache, AT(1));
    memset(&storage.corruption, 0, sizeof(storage.corruption));
    CHECK_INT(q2c_cache_discard_offset(cache, AT(1) + 8), 0);
    CHECK_INT(q2c_cache_discard_offset(cache, AT(1) + TABLE / 2), 0);
    CHECK_U64(storage.corruption.count, 0);
    CHECK(cache_resident(cache, AT(1)));
}

int main(void)
{
    test_begin();
    storage_init(&storage, 1 << 16);
    cache = cache_new(&storage, 8, TABLE, 1);
    RUN(clean_table_is_dropped);
    RUN(discarded_dirty_table_is_never_written);
    RUN(absent_table_is_no_error);
    RUN(discarded_counter_counts_dropped_tables);
    RUN(pinned_reader_keeps_the_old_bytes);
    RUN(slot_becomes_free_at_the_last_put);
    RUN(changes_under_a_pin_are_lost);
    RUN(destroy_is_busy_while_a_discarded_table_is_pinned);
    RUN(range_drops_every_overlapping_table);
    RUN(discard_during_a_write_back_is_final);
    RUN(discard_during_a_load_drops_the_old_bytes);
    RUN(wrong_arguments_are_rejected);
    RUN(unaligned_offset_has_no_table);
    cache_drop(cache);
    storage_free(&storage);
    return test_end();
}
