/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* What a pass does: it cleans the configured caches at the interval and never calls storage. */
#include <unistd.h>

#include "cleaning.h"

static struct storage storage;
static size_t table_size; /* a page */

static uint64_t at(unsigned n)
{
    return n * (uint64_t)table_size;
}

static void fill(q2c_cache *cache, unsigned tables)
{
    for (unsigned n = 1; n <= tables; n++) {
        cache_touch(cache, at(n));
    }
}

static void pass_drops_unused_tables_of_every_cache(void)
{
    q2c_cleaner *cleaner = cleaner_new();
    q2c_cache *caches[] = { cache_new(&storage, 8, table_size, 1),
                            cache_new(&storage, 4, table_size, 2) };

    fill(caches[0], 8);
    fill(caches[1], 4);
    cache_dirty(caches[1], at(2), 2);
    journal_clear(storage.journal);
    CHECK_INT(q2c_cleaner_set_caches(cleaner, caches, 2), 0);
    CHECK_INT(q2c_cleaner_start(cleaner, NULL, MILLISECOND), 0);
    EVENTUALLY(cleaner_stats(cleaner).tables_cleaned == 11);
    cleaner_await_passes(cleaner, 3);
    CHECK_INT(q2c_cleaner_del_and_wait(cleaner), 0);
    CHECK_U64(cleaner_stats(cleaner).tables_cleaned, 11);
    CHECK_U64(cache_stats(caches[0]).cleaned, 8);
    CHECK_U64(cache_stats(caches[0]).resident_bytes, 0);
    CHECK_U64(cache_stats(caches[1]).cleaned, 3);
    CHECK(cache_resident(caches[1], at(2)));
    CHECK_JOURNAL(storage.journal, "");
    cleaner_drop(cleaner);
    cache_drop(caches[0]);
    cache_drop(caches[1]);
}

static void set_caches_applies_at_the_next_start(void)
{
    q2c_cleaner *cleaner = cleaner_new();
    q2c_cache *first = cache_new(&storage, 4, table_size, 1);
    q2c_cache *second = cache_new(&storage, 4, table_size, 1);

    fill(second, 4);
    CHECK_INT(q2c_cleaner_set_caches(cleaner, &first, 1), 0);
    CHECK_INT(q2c_cleaner_start(cleaner, NULL, MILLISECOND), 0);
    CHECK_INT(q2c_cleaner_set_caches(cleaner, &second, 1), 0);
    cleaner_await_passes(cleaner, 4);
    CHECK_U64(cache_stats(second).cleaned, 0);
    CHECK_INT(q2c_cleaner_del_and_wait(cleaner), 0);
    CHECK_INT(q2c_cleaner_start(cleaner, NULL, MILLISECOND), 0);
    EVENTUALLY(cache_stats(second).cleaned == 4);
    CHECK_INT(q2c_cleaner_del_and_wait(cleaner), 0);
    cleaner_drop(cleaner);
    cache_drop(first);
    cache_drop(second);
}

static void instance_keeps_its_caches_alive(void)
{
    q2c_cleaner *cleaner = cleaner_new();
    q2c_cache *cache = cache_new(&storage, 4, table_size, 1);

    fill(cache, 4);
    CHECK_INT(q2c_cleaner_set_caches(cleaner, &cache, 1), 0);
    CHECK_INT(q2c_cleaner_start(cleaner, NULL, MILLISECOND), 0);
    CHECK_INT(q2c_cache_destroy(&cache), 0);
    cleaner_await_passes(cleaner, 4);
    CHECK_INT(q2c_cleaner_del_and_wait(cleaner), 0);
    cleaner_drop(cleaner);
}

static void cleaner_without_caches_only_sleeps(void)
{
    q2c_cleaner *cleaner = cleaner_new();

    CHECK_INT(q2c_cleaner_start(cleaner, NULL, MILLISECOND), 0);
    cleaner_await_passes(cleaner, 3);
    CHECK_INT(q2c_cleaner_del_and_wait(cleaner), 0);
    CHECK_U64(cleaner_stats(cleaner).tables_cleaned, 0);
    cleaner_drop(cleaner);
}

static void pass_keeps_pinned_tables(void)
{
    q2c_cleaner *cleaner = cleaner_new();
    q2c_cache *cache = cache_new(&storage, 4, table_size, 1);
    void *pinned = cache_pin(cache, at(1));

    cache_touch(cache, at(2));
    CHECK_INT(q2c_cleaner_set_caches(cleaner, &cache, 1), 0);
    CHECK_INT(q2c_cleaner_start(cleaner, NULL, MILLISECOND), 0);
    EVENTUALLY(!cache_resident(cache, at(2)));
    cleaner_await_passes(cleaner, 3);
    CHECK(table_untouched(pinned, at(1), table_size));
    CHECK(cache_resident(cache, at(1)));
    cache_unpin(cache, pinned);
    EVENTUALLY(!cache_resident(cache, at(1)));
    CHECK_INT(q2c_cleaner_del_and_wait(cleaner), 0);
    cleaner_drop(cleaner);
    cache_drop(cache);
}

static void no_pass_runs_after_a_stop(void)
{
    q2c_cleaner *cleaner = cleaner_new();
    q2c_cache *cache = cache_new(&storage, 4, table_size, 1);

    CHECK_INT(q2c_cleaner_set_caches(cleaner, &cache, 1), 0);
    for (unsigned round = 0; round < 30; round++) {
        CHECK_INT(q2c_cleaner_start(cleaner, NULL, 1), 0);
        cleaner_await_passes(cleaner, 1);
        CHECK_INT(cleaner_stops[round % CLEANER_STOPS].stop(cleaner), 0);
        fill(cache, 4);
        test_pause();
        test_pause();
        CHECK_U64(cache_stats(cache).resident_tables, 4);
    }
    cleaner_drop(cleaner);
    cache_drop(cache);
}

int main(void)
{
    test_begin();
    table_size = (size_t)sysconf(_SC_PAGESIZE);
    storage_init(&storage, 16 * table_size);
    RUN(pass_drops_unused_tables_of_every_cache);
    RUN(set_caches_applies_at_the_next_start);
    RUN(instance_keeps_its_caches_alive);
    RUN(cleaner_without_caches_only_sleeps);
    RUN(pass_keeps_pinned_tables);
    RUN(no_pass_runs_after_a_stop);
    storage_free(&storage);
    return test_end();
}
