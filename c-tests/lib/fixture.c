/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "fixture.h"

q2c_cache *cache_new(struct storage *storage, size_t tables, size_t table_size,
                     uint32_t reserved_tables)
{
    q2c_cache_options options = {
        .struct_size = sizeof(options),
        .tables = tables,
        .table_size = table_size,
        .kind = 7,
        .reserved_tables = reserved_tables,
    };
    q2c_cache *cache = NULL;
    q2c_error error = { .code = 0 };

    if (q2c_cache_create(&options, &storage->calls, NULL, &cache, &error) != 0) {
        test_note("q2c_cache_create: %s", error.message);
    }
    REQUIRE(cache != NULL);
    return cache;
}

void cache_drop(q2c_cache *cache)
{
    CHECK_INT(q2c_cache_discard_range(cache, 0, UINT64_MAX), 0);
    CHECK_INT(q2c_cache_destroy(&cache), 0);
    CHECK_PTR(cache, NULL);
}

void *cache_pin(q2c_cache *cache, uint64_t offset)
{
    void *table = NULL;

    MUST(q2c_cache_get(cache, offset, &table));
    REQUIRE(table != NULL);
    return table;
}

void cache_unpin(q2c_cache *cache, void *table)
{
    CHECK_INT(q2c_cache_put(cache, &table), 0);
    CHECK_PTR(table, NULL);
}

void cache_touch(q2c_cache *cache, uint64_t offset)
{
    cache_unpin(cache, cache_pin(cache, offset));
}

void cache_dirty(q2c_cache *cache, uint64_t offset, uint64_t value)
{
    void *table = cache_pin(cache, offset);

    CHECK_INT(q2c_cache_store(cache, table, 0, value), 0);
    CHECK_INT(q2c_cache_mark_dirty(cache, table), 0);
    cache_unpin(cache, table);
}

bool cache_resident(q2c_cache *cache, uint64_t offset)
{
    void *table = NULL;
    int found = q2c_cache_is_table_offset(cache, offset, &table);

    CHECK_BETWEEN(found, 0, 1);
    CHECK((found == 1) == (table != NULL));
    return found == 1;
}

q2c_cache_stats cache_stats(q2c_cache *cache)
{
    q2c_cache_stats stats = { .struct_size = sizeof(stats) };

    MUST(q2c_cache_get_stats(cache, &stats));
    return stats;
}

uint64_t table_word(const void *table, size_t at)
{
    uint64_t word;

    memcpy(&word, (const char *)table + at, sizeof(word));
    return word;
}

bool table_untouched(const void *table, uint64_t offset, size_t table_size)
{
    for (size_t at = 0; at < table_size; at += 8) {
        if (table_word(table, at) != storage_word(offset + at)) {
            return false;
        }
    }
    return true;
}
