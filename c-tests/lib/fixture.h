/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* What most cache tests begin and end with. */
#ifndef FIXTURE_H
#define FIXTURE_H

#include "storage.h"

/* The table size of tests that do not care. */
#define TABLE 512

/* The offset of the n-th table of that size. */
#define AT(n) ((uint64_t)(n) * TABLE)

/* A cache on the thread host; the test ends when there is none. */
q2c_cache *cache_new(struct storage *storage, size_t tables, size_t table_size,
                     uint32_t reserved_tables);
/* Give up what is dirty, and destroy; checks that nothing is pinned any more. */
void cache_drop(q2c_cache *cache);

/* The table at @offset, pinned; the test ends when there is none. */
void *cache_pin(q2c_cache *cache, uint64_t offset);
void cache_unpin(q2c_cache *cache, void *table);
/* Load the table, if need be, and leave it. */
void cache_touch(q2c_cache *cache, uint64_t offset);
/* Store @value in the table's first word, and leave it dirty. */
void cache_dirty(q2c_cache *cache, uint64_t offset, uint64_t value);
/* Is it there? Looks without a pin, and without use in the eyes of cleaning and eviction. */
bool cache_resident(q2c_cache *cache, uint64_t offset);
q2c_cache_stats cache_stats(q2c_cache *cache);

/* The table's word at @at (bytes). */
uint64_t table_word(const void *table, size_t at);
/* Has it the bytes that storage_init() put at @offset? */
bool table_untouched(const void *table, uint64_t offset, size_t table_size);

#endif
