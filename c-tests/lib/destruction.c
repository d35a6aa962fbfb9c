/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "destruction.h"

#include <limits.h>
#include <stdio.h>
#include <unistd.h>

#include "fixture.h"

enum { NONE, L2_ON_REFCOUNTS, REFCOUNTS_ON_L2, FLUSH_WANTED, ALL, DEPENDENCIES };

static struct journal journal;
static struct storage storages[2];
static q2c_cache *caches[2]; /* L2, refcounts */

static q2c_cache *new_cache(const q2c_storage *calls, const q2c_host *host, size_t tables,
                            size_t table_size)
{
    q2c_cache_options options = { .struct_size = sizeof(options),
                                  .tables = tables,
                                  .table_size = table_size };
    q2c_cache *cache = NULL;

    MUST(q2c_cache_create(&options, calls, host, &cache, NULL));
    return cache;
}

static void begin(const q2c_host *host, bool one_storage)
{
    storage_init_shared(&storages[0], 1 << 14, one_storage ? "" : "l2:", &journal);
    storage_init_shared(&storages[1], 1 << 14, "rb:", &journal);
    for (int i = 0; i < 2; i++) {
        caches[i] = new_cache(&storages[one_storage ? 0 : i].calls, host, 4, TABLE);
    }
}

static void end(void)
{
    for (int i = 0; i < 2; i++) {
        if (caches[i] != NULL) {
            cache_drop(caches[i]);
        }
        storage_free(&storages[i]);
    }
    journal_clear(&journal);
}

static void die(void)
{
    storage_fail(&storages[0], STORAGE_ANY, 0, INT_MAX, -EIO);
    storage_fail(&storages[1], STORAGE_ANY, 0, INT_MAX, -EIO);
    journal_clear(&journal);
}

static void depend(int dependency)
{
    if (dependency == L2_ON_REFCOUNTS || dependency == ALL) {
        CHECK_INT(q2c_cache_set_dependency(caches[0], caches[1]), 0);
    }
    if (dependency == REFCOUNTS_ON_L2) {
        CHECK_INT(q2c_cache_set_dependency(caches[1], caches[0]), 0);
    }
    if (dependency == FLUSH_WANTED || dependency == ALL) {
        CHECK_INT(q2c_cache_depends_on_flush(caches[0]), 0);
        CHECK_INT(q2c_cache_depends_on_flush(caches[1]), 0);
    }
}

static void destroy_both(int first)
{
    for (int i = 0; i < 2; i++) {
        q2c_cache **cache = &caches[i == 0 ? first : 1 - first];

        CHECK_INT(q2c_cache_destroy(cache), 0);
        CHECK_PTR(*cache, NULL);
    }
}

void destruction_on_dead_storage(const q2c_host *host)
{
    for (int i = 0; i < DEPENDENCIES * 2 * 2 * 2; i++) {
        int dependency = i / 8, first = i / 4 % 2;
        bool one_storage = i / 2 % 2, cleaned = i % 2;
        q2c_cleaner *cleaner = NULL;

        begin(host, one_storage);
        if (cleaned) {
            /* a cleaner that was told of both and never runs */
            MUST(q2c_cleaner_create(host, &cleaner, NULL));
            CHECK_INT(q2c_cleaner_set_caches(cleaner, caches, 2), 0);
        }
        for (unsigned n = 1; n <= 3; n++) {
            cache_dirty(caches[0], AT(n), n);
            cache_dirty(caches[1], AT(10 + n), n);
        }
        /* one written and flushed, one written, one dirty */
        CHECK_INT(q2c_cache_flush(caches[0]), 0);
        CHECK_INT(q2c_cache_write(caches[1]), 0);
        cache_dirty(caches[0], AT(2), 7);
        cache_dirty(caches[1], AT(12), 7);
        CHECK_INT(q2c_cache_write(caches[1]), 0);
        cache_dirty(caches[0], AT(3), 8);
        cache_dirty(caches[1], AT(13), 8);
        depend(dependency);
        die();
        CHECK_INT(q2c_cache_destroy(&caches[first]), -ENOTEMPTY);
        CHECK_INT(q2c_cache_discard_range(caches[first], 0, UINT64_MAX), 0);
        CHECK_INT(q2c_cache_discard_range(caches[1 - first], 0, UINT64_MAX), 0);
        destroy_both(first);
        CHECK_JOURNAL(&journal, "");
        CHECK_INT(q2c_cleaner_destroy(&cleaner), 0);
        end();
    }
}

/* The dependent, made dirty, whose dependency was written and then destroyed. */
static q2c_cache *dependent_of_a_destroyed_cache(const q2c_host *host, int dependent)
{
    begin(host, true);
    cache_dirty(caches[dependent], AT(1), 1);
    cache_dirty(caches[1 - dependent], AT(2), 2);
    CHECK_INT(q2c_cache_set_dependency(caches[dependent], caches[1 - dependent]), 0);
    CHECK_INT(q2c_cache_write(caches[1 - dependent]), 0);
    journal_clear(&journal);
    CHECK_INT(q2c_cache_destroy(&caches[1 - dependent]), 0);
    CHECK_JOURNAL(&journal, "");
    return caches[dependent];
}

void destruction_leaves_a_flush_behind(const q2c_host *host)
{
    static const char flush_then_write[] = "flush; check 200+200; write 200+200; ";

    for (int dependent = 0; dependent < 2; dependent++) {
        q2c_cache *cache = dependent_of_a_destroyed_cache(host, dependent);

        CHECK_INT(q2c_cache_write(cache), 0);
        CHECK_JOURNAL(&journal, flush_then_write);
        /* once */
        cache_dirty(cache, AT(1), 3);
        journal_clear(&journal);
        CHECK_INT(q2c_cache_write(cache), 0);
        CHECK_JOURNAL(&journal, "check 200+200; write 200+200; ");
        end();

        /* an eviction is a write, too */
        cache = dependent_of_a_destroyed_cache(host, dependent);
        for (unsigned n = 3; n <= 6; n++) {
            cache_dirty(cache, AT(n), n);
        }
        CHECK_INT(strncmp(journal_text(&journal),
                          "read 600+200; read 800+200; read a00+200; "
                          "flush; check",
                          54),
                  0);
        end();

        /* a new cache in the place of the old one changes nothing */
        cache = dependent_of_a_destroyed_cache(host, dependent);
        caches[1 - dependent] = new_cache(&storages[0].calls, host, 4, TABLE);
        CHECK_INT(q2c_cache_write(cache), 0);
        CHECK_JOURNAL(&journal, flush_then_write);
        end();
    }
}

void destruction_hands_over_what_is_not_stable(const q2c_host *host)
{
    for (int dependent = 0; dependent < 2; dependent++) {
        q2c_cache *cache = dependent_of_a_destroyed_cache(host, dependent);

        /* The flush that fails may have lost the destroyed cache's table: no later flush helps. */
        storage_fail(&storages[0], STORAGE_FLUSH, 0, 1, -EREMOTEIO);
        CHECK_INT(q2c_cache_write(cache), -EREMOTEIO);
        CHECK_INT(q2c_cache_write(cache), -EREMOTEIO);
        CHECK_INT(q2c_cache_flush(cache), -EREMOTEIO);
        CHECK_JOURNAL(&journal, "flush -> -121; ");
        CHECK_INT(cache_stats(cache).flush_error, -EREMOTEIO);
        CHECK_U64(cache_stats(cache).lost, 1);
        CHECK_U64(cache_stats(cache).dirty_tables, 1);
        /* until its tables are given up */
        CHECK_INT(q2c_cache_discard_range(cache, 0, UINT64_MAX), 0);
        CHECK_INT(cache_stats(cache).flush_error, 0);
        CHECK_INT(q2c_cache_flush(cache), 0);
        end();

        /* an unstable cache that is destroyed leaves its dependent unstable */
        begin(host, true);
        cache_dirty(caches[1 - dependent], AT(1), 1);
        CHECK_INT(q2c_cache_write(caches[1 - dependent]), 0);
        for (unsigned n = 2; n <= 5; n++) {
            cache_touch(caches[1 - dependent], AT(n)); /* table 1 is evicted */
        }
        storage_fail(&storages[0], STORAGE_FLUSH, 0, 1, -ENOMEDIUM);
        CHECK_INT(q2c_cache_flush(caches[1 - dependent]), -ENOMEDIUM);
        CHECK_INT(q2c_cache_flush(caches[dependent]), 0);
        cache_dirty(caches[dependent], AT(6), 6);
        CHECK_INT(q2c_cache_set_dependency(caches[dependent], caches[1 - dependent]), 0);
        CHECK_INT(q2c_cache_destroy(&caches[1 - dependent]), 0);
        journal_clear(&journal);
        CHECK_INT(q2c_cache_write(caches[dependent]), -ENOMEDIUM);
        CHECK_INT(q2c_cache_flush(caches[dependent]), -ENOMEDIUM);
        CHECK_JOURNAL(&journal, "");
        end();
    }
}

static size_t resident_bytes(void)
{
    unsigned long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");

    REQUIRE(file != NULL);
    CHECK_INT(fscanf(file, "%*s %lu", &pages), 1);
    fclose(file);
    return pages * (size_t)sysconf(_SC_PAGESIZE);
}

void destruction_frees_the_memory(const q2c_host *host)
{
    enum { TABLES = 4096, TABLE_SIZE = 4096, ALL_TABLES = TABLES * TABLE_SIZE };
    struct storage storage;
    q2c_cleaner *cleaner = NULL;
    q2c_cache *cache;
    size_t before;

    storage_init(&storage, 1 << 14);
    cache = new_cache(&storage.calls, host, TABLES, TABLE_SIZE);
    MUST(q2c_cleaner_create(host, &cleaner, NULL));
    CHECK_INT(q2c_cleaner_set_caches(cleaner, &cache, 1), 0);
    for (unsigned n = 1; n <= TABLES; n++) {
        void *table = NULL;

        MUST(q2c_cache_get_empty(cache, n * (uint64_t)TABLE_SIZE, &table));
        MUST(q2c_cache_put(cache, &table));
    }
    before = resident_bytes();
    CHECK(before > ALL_TABLES);
    CHECK_INT(q2c_cache_destroy(&cache), 0);
    CHECK(resident_bytes() < before - ALL_TABLES * 9 / 10);
    CHECK_INT(q2c_cleaner_destroy(&cleaner), 0);
    storage_free(&storage);
}
