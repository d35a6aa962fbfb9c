/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* q2c_cache_get and q2c_cache_put: hits, misses, pins, and pointers that are no tables. */
#include "fixture.h"

static struct storage storage;
static q2c_cache *cache;

static void *const untouched = &storage;

static void miss_reads_the_table_once(void)
{
    void *table = NULL;

    journal_clear(storage.journal);
    CHECK_INT(q2c_cache_get(cache, AT(3), &table), 0);
    CHECK_JOURNAL(storage.journal, "read 600+200; ");
    CHECK(table_untouched(table, AT(3), TABLE));
    CHECK_U64(cache_stats(cache).pinned_tables, 1);
    CHECK_INT(q2c_cache_put(cache, &table), 0);
    CHECK_PTR(table, NULL);
    CHECK_U64(cache_stats(cache).pinned_tables, 0);
}

static void hit_does_no_io(void)
{
    void *table;

    cache_touch(cache, AT(3));
    journal_clear(storage.journal);
    table = cache_pin(cache, AT(3));
    CHECK_JOURNAL(storage.journal, "");
    CHECK(table_untouched(table, AT(3), TABLE));
    cache_unpin(cache, table);
}

static void pins_of_one_table_share_its_memory(void)
{
    void *first = cache_pin(cache, AT(1));
    void *second = cache_pin(cache, AT(1));
    void *third = NULL;

    CHECK_PTR(second, first);
    CHECK_U64(cache_stats(cache).pinned_tables, 1);
    cache_unpin(cache, first);
    CHECK_U64(cache_stats(cache).pinned_tables, 1);
    cache_unpin(cache, second);
    CHECK_U64(cache_stats(cache).pinned_tables, 0);
    third = first;
    CHECK_INT(q2c_cache_put(cache, &third), -EINVAL);
    CHECK_PTR(third, first);
}

static void pinned_tables_never_move(void)
{
    void *table = cache_pin(cache, AT(1));

    for (unsigned n = 2; n < 40; n++) {
        cache_touch(cache, AT(n));
    }
    CHECK(table_untouched(table, AT(1), TABLE));
    CHECK(cache_resident(cache, AT(1)));
    cache_unpin(cache, table);
}

static void tables_are_aligned_and_do_not_overlap(void)
{
    uintptr_t tables[4];

    for (unsigned n = 0; n < 4; n++) {
        tables[n] = (uintptr_t)cache_pin(cache, AT(n + 1));
        CHECK_U64(tables[n] % TABLE, 0);
    }
    for (unsigned n = 0; n < 4; n++) {
        for (unsigned m = 0; m < n; m++) {
            CHECK((tables[n] < tables[m] ? tables[m] - tables[n] : tables[n] - tables[m]) >= TABLE);
        }
        cache_unpin(cache, (void *)tables[n]);
    }
}

static void null_arguments_are_rejected(void)
{
    void *table = NULL;

    journal_clear(storage.journal);
    CHECK_INT(q2c_cache_get(cache, AT(9), NULL), -EINVAL);
    CHECK_INT(q2c_cache_get(NULL, AT(9), &table), -EINVAL);
    CHECK_JOURNAL(storage.journal, "");
    CHECK_PTR(table, NULL);
    CHECK_INT(q2c_cache_put(cache, NULL), -EINVAL);
    CHECK_INT(q2c_cache_put(cache, &table), -EINVAL);
    CHECK_INT(q2c_cache_put(NULL, &table), -EINVAL);
}

static void offset_0_is_rejected_as_an_argument(void)
{
    void *table = untouched;
    unsigned corruptions = storage.corruption.count;

    journal_clear(storage.journal);
    CHECK_INT(q2c_cache_get(cache, 0, &table), -EINVAL);
    CHECK_PTR(table, untouched);
    CHECK_JOURNAL(storage.journal, "");
    CHECK_U64(storage.corruption.count, corruptions);
}

static void unaligned_offset_is_reported_as_corruption(void)
{
    static const uint64_t offsets[] = {
        1, 8, TABLE - 1, TABLE + 256, UINT64_MAX, (1ull << 62) + 8
    };
    void *table = untouched;

    journal_clear(storage.journal);
    for (size_t i = 0; i < sizeof(offsets) / sizeof(offsets[0]); i++) {
        memset(&storage.corruption, 0, sizeof(storage.corruption));
        CHECK_INT(q2c_cache_get(cache, offsets[i], &table), -EIO);
        CHECK_U64(storage.corruption.count, 1);
        CHECK_INT(storage.corruption.reason, Q2C_CORRUPTION_UNALIGNED_OFFSET);
        CHECK_INT(storage.corruption.kind, 7);
        CHECK_U64(storage.corruption.offset, offsets[i]);
        CHECK(storage.corruption.message[0] != '\0');
    }
    CHECK_PTR(table, untouched);
    CHECK_JOURNAL(storage.journal, "");
}

static void corruption_callback_is_optional(void)
{
    q2c_cache *quiet;
    void *table = untouched;

    storage.calls.corruption = NULL;
    quiet = cache_new(&storage, 2, TABLE, 0);
    CHECK_INT(q2c_cache_get(quiet, 8, &table), -EIO);
    CHECK_PTR(table, untouched);
    cache_drop(quiet);
}

static void offsets_near_the_end_do_not_overflow(void)
{
    void *table = untouched;
    uint64_t last = UINT64_MAX - (TABLE - 1);

    /* nothing overflows; storage gets the offset and rejects it as beyond its end */
    CHECK_INT(q2c_cache_get(cache, last, &table), -ENXIO);
    CHECK_INT(q2c_cache_get(cache, last - TABLE, &table), -ENXIO);
    CHECK_INT(q2c_cache_get(cache, (uint64_t)INT64_MAX + 1, &table), -ENXIO);
    CHECK_PTR(table, untouched);
}

static void put_rejects_foreign_pointers(void)
{
    q2c_cache *other = cache_new(&storage, 4, TABLE, 0);
    char local[TABLE];
    void *table = cache_pin(cache, AT(1));
    void *foreign = cache_pin(other, AT(1));
    void *wrong[] = { local,    foreign, (char *)table + 8, (char *)table - 1, (void *)UINTPTR_MAX,
                      (void *)8 };

    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        void *pointer = wrong[i];

        CHECK_INT(q2c_cache_put(cache, &pointer), -EINVAL);
        CHECK_PTR(pointer, wrong[i]);
    }
    CHECK_U64(cache_stats(cache).pinned_tables, 1);
    CHECK_U64(cache_stats(other).pinned_tables, 1);
    cache_unpin(other, foreign);
    cache_unpin(cache, table);
    cache_drop(other);
}

static void put_rejects_slots_never_pinned(void)
{
    q2c_cache *fresh = cache_new(&storage, 4, TABLE, 0);
    char *table = cache_pin(fresh, AT(1));
    void *pointer;

    /* whichever slot it took, its neighbours were never in use or do not exist */
    pointer = table + TABLE;
    CHECK_INT(q2c_cache_put(fresh, &pointer), -EINVAL);
    pointer = table - TABLE;
    CHECK_INT(q2c_cache_put(fresh, &pointer), -EINVAL);
    cache_unpin(fresh, table);
    cache_drop(fresh);
}

static void get_is_busy_when_all_tables_are_pinned(void)
{
    void *tables[4];
    void *table = untouched;

    for (unsigned n = 0; n < 4; n++) {
        tables[n] = cache_pin(cache, AT(n + 1));
    }
    journal_clear(storage.journal);
    CHECK_INT(q2c_cache_get(cache, AT(9), &table), -EBUSY);
    CHECK_PTR(table, untouched);
    CHECK_INT(q2c_cache_get_empty(cache, AT(9), &table), -EBUSY);
    CHECK_PTR(table, untouched);
    CHECK_JOURNAL(storage.journal, "");
    /* a resident table can still be pinned */
    CHECK_INT(q2c_cache_get(cache, AT(4), &table), 0);
    CHECK_PTR(table, tables[3]);
    cache_unpin(cache, table);
    cache_unpin(cache, tables[0]);
    cache_touch(cache, AT(9));
    for (unsigned n = 1; n < 4; n++) {
        CHECK(table_untouched(tables[n], AT(n + 1), TABLE));
        cache_unpin(cache, tables[n]);
    }
}

int main(void)
{
    test_begin();
    storage_init(&storage, 1 << 16);
    cache = cache_new(&storage, 4, TABLE, 1);
    RUN(miss_reads_the_table_once);
    RUN(hit_does_no_io);
    RUN(pins_of_one_table_share_its_memory);
    RUN(pinned_tables_never_move);
    RUN(tables_are_aligned_and_do_not_overlap);
    RUN(null_arguments_are_rejected);
    RUN(offset_0_is_rejected_as_an_argument);
    RUN(unaligned_offset_is_reported_as_corruption);
    RUN(corruption_callback_is_optional);
    RUN(offsets_near_the_end_do_not_overflow);
    RUN(put_rejects_foreign_pointers);
    RUN(put_rejects_slots_never_pinned);
    RUN(get_is_busy_when_all_tables_are_pinned);
    cache_drop(cache);
    storage_free(&storage);
    return test_end();
}
