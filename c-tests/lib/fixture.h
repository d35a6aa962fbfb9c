/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Set-up and tear-down of most cache tests, and short forms of frequent calls. */
#ifndef FIXTURE_H
#define FIXTURE_H

#include "storage.h"

/* The table size of tests that do not depend on it. */
#define TABLE 512

/* The offset of the n-th table of that size. */
#define AT(n) ((uint64_t)(n) * TABLE)

/* Creates a cache on the thread host. Ends the test if that fails. */
q2c_cache *cache_new(struct storage *storage, size_t tables, size_t table_size,
                     uint32_t reserved_tables);
/* Discards all tables and destroys the cache. Checks that no table is pinned any more. */
void cache_drop(q2c_cache *cache);

/* Pins the table at @offset and returns it. Ends the test if that fails. */
void *cache_pin(q2c_cache *cache, uint64_t offset);
void cache_unpin(q2c_cache *cache, void *table);
/* Pins and unpins the table, which loads it if it is absent. */
void cache_touch(q2c_cache *cache, uint64_t offset);
/* Stores @value in the table's first word, and marks the table dirty. */
void cache_dirty(q2c_cache *cache, uint64_t offset, uint64_t value);
/* Is the table resident? Does not pin it; cleaning and eviction do not count this as a use. */
bool cache_resident(q2c_cache *cache, uint64_t offset);
q2c_cache_stats cache_stats(q2c_cache *cache);

/* The table's word at byte @at. */
uint64_t table_word(const void *table, size_t at);
/* Does the table have the bytes that storage_init() put at @offset? */
bool table_untouched(const void *table, uint64_t offset, size_t table_size);

#endif
