/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* q2c_cache_get_stats: what each number counts. */
#include "fixture.h"

static struct storage storage;
static q2c_cache *cache;

static void new_cache_has_zero_counters(void)
{
    q2c_cache_stats stats = cache_stats(cache);

    CHECK_U64(stats.struct_size, sizeof(stats));
    CHECK_U64(stats.tables, 4);
    CHECK_U64(stats.table_size, TABLE);
    CHECK_U64(stats.hits + stats.misses + stats.loads + stats.evictions, 0);
    CHECK_U64(stats.write_backs + stats.writes + stats.cleaned + stats.discarded, 0);
    CHECK_U64(stats.resident_tables + stats.dirty_tables + stats.pinned_tables, 0);
    CHECK_U64(stats.resident_bytes, 0);
    CHECK(stats.metadata_bytes > 0);
}

static void hits_misses_and_loads_are_counted(void)
{
    q2c_cache_stats before = cache_stats(cache);
    q2c_cache_stats after;
    void *table = NULL;
    uint64_t word;

    cache_touch(cache, AT(1));                             /* miss */
    cache_touch(cache, AT(1));                             /* hit */
    CHECK_INT(q2c_cache_try_get(cache, AT(1), &table), 0); /* hit */
    cache_unpin(cache, table);
    CHECK_INT(q2c_cache_get_unlocked(cache, AT(1), &table), 0); /* hit */
    cache_unpin(cache, table);
    CHECK_INT(q2c_cache_get_unlocked(cache, AT(2), &table), 0); /* miss */
    cache_unpin(cache, table);
    CHECK_INT(q2c_cache_read(cache, AT(2), 0, &word, 8), 0); /* not counted */
    after = cache_stats(cache);
    CHECK_U64(after.hits - before.hits, 3);
    CHECK_U64(after.misses - before.misses, 2);
    CHECK_U64(after.loads - before.loads, 2);
    CHECK_U64(after.resident_tables, 2);
}

static void failed_load_is_not_counted(void)
{
    q2c_cache_stats before = cache_stats(cache);
    q2c_cache_stats after;

    storage_fail(&storage, STORAGE_READ, 0, 1, -EIO);
    CHECK_INT(q2c_cache_get(cache, AT(30), &(void *){ NULL }), -EIO);
    storage_heal(&storage);
    after = cache_stats(cache);
    CHECK_U64(after.loads - before.loads, 0);
    CHECK_U64(after.resident_tables, before.resident_tables);
    CHECK_U64(after.pinned_tables, 0);
}

static void pins_are_counted_by_table(void)
{
    void *first = cache_pin(cache, AT(1));
    void *again = cache_pin(cache, AT(1));
    void *second = cache_pin(cache, AT(2));

    CHECK_U64(cache_stats(cache).pinned_tables, 2);
    cache_unpin(cache, first);
    CHECK_U64(cache_stats(cache).pinned_tables, 2);
    cache_unpin(cache, again);
    CHECK_U64(cache_stats(cache).pinned_tables, 1);
    cache_unpin(cache, second);
    CHECK_U64(cache_stats(cache).pinned_tables, 0);
}

static void write_backs_and_writes_are_counted(void)
{
    q2c_cache_stats before = cache_stats(cache);
    q2c_cache_stats after;

    cache_dirty(cache, AT(1), 1);
    cache_dirty(cache, AT(2), 1);
    CHECK_U64(cache_stats(cache).dirty_tables, 2);
    CHECK_INT(q2c_cache_flush(cache), 0);
    after = cache_stats(cache);
    CHECK_U64(after.write_backs - before.write_backs, 2);
    CHECK_U64(after.writes - before.writes, 1);
    CHECK_U64(after.dirty_tables, 0);
    CHECK_U64(after.resident_tables, 2);
}

static void evictions_are_counted(void)
{
    q2c_cache_stats before = cache_stats(cache);
    q2c_cache_stats after;

    for (unsigned n = 10; n < 20; n++) {
        cache_touch(cache, AT(n));
    }
    after = cache_stats(cache);
    CHECK_U64(after.resident_tables, 4);
    CHECK_U64(after.evictions - before.evictions, before.resident_tables + 10 - 4);
}

static void cleaned_and_discarded_tables_are_counted(void)
{
    q2c_cache_stats before = cache_stats(cache);
    q2c_cache_stats after;
    int cleaned;

    CHECK_INT(q2c_cache_discard_offset(cache, AT(19)), 0);
    cleaned = q2c_cache_clean_unused(cache);
    cleaned += q2c_cache_clean_unused(cache);
    CHECK_INT(cleaned, 3);
    after = cache_stats(cache);
    CHECK_U64(after.cleaned - before.cleaned, 3);
    CHECK_U64(after.discarded - before.discarded, 1);
    CHECK_U64(after.evictions - before.evictions, 0);
    CHECK_U64(after.resident_tables, 0);
}

static void struct_sizes_are_checked(void)
{
    struct {
        q2c_cache_stats stats;
        uint64_t tail[2];
    } longer = { .tail = { 0x1111, 0x2222 } };

    longer.stats.struct_size = sizeof(longer);
    CHECK_INT(q2c_cache_get_stats(cache, &longer.stats), 0);
    CHECK_U64(longer.stats.tables, 4);
    CHECK_U64(longer.tail[1], 0x2222);
    longer.stats.tables = 99;
    longer.stats.struct_size = 0;
    CHECK_INT(q2c_cache_get_stats(cache, &longer.stats), -EINVAL);
    longer.stats.struct_size = sizeof(size_t);
    CHECK_INT(q2c_cache_get_stats(cache, &longer.stats), -EINVAL);
    longer.stats.struct_size = sizeof(longer.stats) - 1;
    CHECK_INT(q2c_cache_get_stats(cache, &longer.stats), -EINVAL);
    CHECK_U64(longer.stats.tables, 99);
}

static void wrong_arguments_are_rejected(void)
{
    q2c_cache_stats stats = { .struct_size = sizeof(stats) };

    CHECK_INT(q2c_cache_get_stats(NULL, &stats), -EINVAL);
    CHECK_INT(q2c_cache_get_stats(cache, NULL), -EINVAL);
}

int main(void)
{
    test_begin();
    storage_init(&storage, 1 << 16);
    cache = cache_new(&storage, 4, TABLE, 1);
    RUN(new_cache_has_zero_counters);
    RUN(hits_misses_and_loads_are_counted);
    RUN(failed_load_is_not_counted);
    RUN(pins_are_counted_by_table);
    RUN(write_backs_and_writes_are_counted);
    RUN(evictions_are_counted);
    RUN(cleaned_and_discarded_tables_are_counted);
    RUN(struct_sizes_are_checked);
    RUN(wrong_arguments_are_rejected);
    cache_drop(cache);
    storage_free(&storage);
    return test_end();
}
