/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * q2c_cache_clean_unused: drops the tables that were not used since the previous pass, and releases
 * their memory.
 */
#include <sys/mman.h>
#include <unistd.h>

#include "fixture.h"
#include "threads.h"

#define TABLES 16

static struct storage storage;
static q2c_cache *cache;
static size_t table_size; /* one page, because the kernel reclaims whole pages */

static uint64_t at(unsigned n)
{
    return n * (uint64_t)table_size;
}

static void open_cache(void)
{
    cache = cache_new(&storage, TABLES, table_size, 1);
}

static void second_pass_drops_tables_not_used_since_the_first(void)
{
    open_cache();
    for (unsigned n = 1; n <= TABLES; n++) {
        cache_touch(cache, at(n));
    }
    CHECK_INT(q2c_cache_clean_unused(cache), 0);
    cache_touch(cache, at(3));
    CHECK_INT(q2c_cache_clean_unused(cache), TABLES - 1);
    for (unsigned n = 1; n <= TABLES; n++) {
        CHECK(cache_resident(cache, at(n)) == (n == 3));
    }
    CHECK_INT(q2c_cache_clean_unused(cache), 1);
    CHECK_INT(q2c_cache_clean_unused(cache), 0);
    CHECK_U64(cache_stats(cache).cleaned, TABLES);
    CHECK_U64(cache_stats(cache).resident_tables, 0);
    cache_drop(cache);
}

static void every_kind_of_access_keeps_a_table(void)
{
    uint64_t word;
    void *table = NULL;

    open_cache();
    for (unsigned n = 1; n <= 6; n++) {
        cache_touch(cache, at(n));
    }
    CHECK_INT(q2c_cache_clean_unused(cache), 0);
    cache_touch(cache, at(1));
    CHECK_INT(q2c_cache_get_unlocked(cache, at(2), &table), 0);
    cache_unpin(cache, table);
    CHECK_INT(q2c_cache_try_get(cache, at(3), &table), 0);
    cache_unpin(cache, table);
    CHECK_INT(q2c_cache_get_empty(cache, at(4), &table), 0);
    cache_unpin(cache, table);
    CHECK_INT(q2c_cache_read(cache, at(5), 0, &word, 8), 0);
    CHECK_INT(q2c_cache_clean_unused(cache), 1);
    for (unsigned n = 1; n <= 6; n++) {
        CHECK(cache_resident(cache, at(n)) == (n != 6));
    }
    cache_drop(cache);
}

static void clean_keeps_dirty_and_pinned_tables(void)
{
    void *pinned;

    open_cache();
    cache_dirty(cache, at(41), 1);
    pinned = cache_pin(cache, at(2));
    cache_touch(cache, at(3));
    journal_clear(storage.journal);
    CHECK_INT(q2c_cache_clean_unused(cache), 0);
    CHECK_INT(q2c_cache_clean_unused(cache), 1);
    CHECK_INT(q2c_cache_clean_unused(cache), 0);
    CHECK_JOURNAL(storage.journal, "");
    CHECK(cache_resident(cache, at(41)));
    CHECK(cache_resident(cache, at(2)));
    CHECK(table_untouched(pinned, at(2), table_size));
    cache_unpin(cache, pinned);
    CHECK_INT(q2c_cache_flush(cache), 0);
    CHECK_U64(storage_peek(&storage, at(41)), 1);
    /* neither is dirty or pinned any more: two passes drop both */
    CHECK_INT(q2c_cache_clean_unused(cache) + q2c_cache_clean_unused(cache), 2);
    cache_drop(cache);
}

static void get_table_5(void *argument)
{
    (void)argument;
    cache_touch(cache, at(5));
}

static void clean_keeps_loading_tables(void)
{
    int hold = storage_hold(&storage, STORAGE_READ, at(5));
    struct thread thread;

    open_cache();
    thread_start(&thread, get_table_5, NULL);
    storage_await_held(&storage, hold, 1);
    CHECK_INT(q2c_cache_clean_unused(cache), 0);
    CHECK_INT(q2c_cache_clean_unused(cache), 0);
    storage_release(&storage, hold);
    thread_join(&thread);
    CHECK(cache_resident(cache, at(5)));
    cache_drop(cache);
}

static void write_all(void *argument)
{
    (void)argument;
    CHECK_INT(q2c_cache_write(cache), 0);
}

static void clean_keeps_tables_during_write_back(void)
{
    int hold = storage_hold(&storage, STORAGE_WRITE, at(46));
    struct thread thread;

    open_cache();
    cache_dirty(cache, at(46), 66);
    thread_start(&thread, write_all, NULL);
    storage_await_held(&storage, hold, 1);
    CHECK_INT(q2c_cache_clean_unused(cache), 0);
    CHECK_INT(q2c_cache_clean_unused(cache), 0);
    storage_release(&storage, hold);
    thread_join(&thread);
    CHECK(cache_resident(cache, at(46)));
    CHECK_U64(storage_peek(&storage, at(46)), 66);
    cache_drop(cache);
}

static bool in_memory(const void *page)
{
    unsigned char state = 0;

    MUST(mincore((void *)(uintptr_t)page, table_size, &state));
    return (state & 1) != 0;
}

static void clean_releases_memory_to_the_kernel(void)
{
    void *tables[TABLES];

    open_cache();
    CHECK_U64(cache_stats(cache).resident_bytes, 0);
    for (unsigned n = 0; n < TABLES; n++) {
        tables[n] = cache_pin(cache, at(n + 1));
        CHECK(in_memory(tables[n]));
    }
    CHECK_U64(cache_stats(cache).resident_bytes, TABLES * table_size);
    for (unsigned n = 0; n < TABLES; n++) {
        cache_unpin(cache, tables[n]);
    }
    CHECK_INT(q2c_cache_clean_unused(cache), 0);
    CHECK_INT(q2c_cache_clean_unused(cache), TABLES);
    CHECK_U64(cache_stats(cache).resident_bytes, 0);
    for (unsigned n = 0; n < TABLES; n++) {
        CHECK(!in_memory(tables[n]));
    }
    /* the slots can be used again */
    for (unsigned n = 1; n <= TABLES; n++) {
        void *table = cache_pin(cache, at(n));

        CHECK(table_untouched(table, at(n), table_size));
        cache_unpin(cache, table);
    }
    cache_drop(cache);
}

static void clean_releases_whole_pages_of_small_tables(void)
{
    size_t count = 8 * table_size / TABLE;

    cache = cache_new(&storage, count, TABLE, 1);
    for (unsigned n = 1; n <= count; n++) {
        cache_touch(cache, AT(n));
    }
    CHECK_U64(cache_stats(cache).resident_bytes, 8 * table_size);
    CHECK_INT(q2c_cache_clean_unused(cache), 0);
    CHECK_INT(q2c_cache_clean_unused(cache), (int)count);
    CHECK_U64(cache_stats(cache).resident_bytes, 0);
    for (unsigned n = 1; n <= count; n++) {
        void *table = cache_pin(cache, AT(n));

        CHECK(table_untouched(table, AT(n), TABLE));
        cache_unpin(cache, table);
    }
    cache_drop(cache);
}

#define USERS  3
#define ROUNDS 400
static atomic_uint users;

static void use_tables(void *argument)
{
    uint64_t state = 1 + (uintptr_t)argument;

    for (unsigned i = 0; i < ROUNDS; i++) {
        unsigned n = 1 + (unsigned)(test_random(&state) % (2 * TABLES));
        void *table = NULL;
        int result = q2c_cache_get(cache, at(n), &table);

        CHECK_INT(result, 0);
        if (result == 0) {
            CHECK(table_untouched(table, at(n), table_size));
            cache_unpin(cache, table);
        }
    }
    atomic_fetch_sub(&users, 1);
}

static void clean_runs_while_other_threads_use_tables(void)
{
    struct thread threads[USERS];
    uint64_t cleaned = 0;

    open_cache();
    atomic_store(&users, USERS);
    for (uintptr_t i = 0; i < USERS; i++) {
        thread_start(&threads[i], use_tables, (void *)i);
    }
    while (atomic_load(&users) > 0) {
        int result = q2c_cache_clean_unused(cache);

        CHECK_BETWEEN(result, 0, TABLES);
        cleaned += (uint64_t)result;
        sched_yield();
    }
    for (unsigned i = 0; i < USERS; i++) {
        thread_join(&threads[i]);
    }
    CHECK_U64(cache_stats(cache).cleaned, cleaned);
    cache_drop(cache);
}

static void wrong_arguments_are_rejected(void)
{
    CHECK_INT(q2c_cache_clean_unused(NULL), -EINVAL);
}

int main(void)
{
    test_begin();
    table_size = (size_t)sysconf(_SC_PAGESIZE);
    storage_init(&storage, 4 * TABLES * table_size);
    RUN(second_pass_drops_tables_not_used_since_the_first);
    RUN(every_kind_of_access_keeps_a_table);
    RUN(clean_keeps_dirty_and_pinned_tables);
    RUN(clean_keeps_loading_tables);
    RUN(clean_keeps_tables_during_write_back);
    RUN(clean_releases_memory_to_the_kernel);
    RUN(clean_releases_whole_pages_of_small_tables);
    RUN(clean_runs_while_other_threads_use_tables);
    RUN(wrong_arguments_are_rejected);
    storage_free(&storage);
    return test_end();
}
