/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Four threads change tables of a much too small cache while others write back and clean. */
#include "fixture.h"
#include "threads.h"

#define WORKERS 4
#define TABLES  48 /* on disk, from AT(1) on */
#define SLOTS   12
#define ROUNDS  1500

static struct storage storage;
static q2c_cache *cache;
/* Like a driver's state lock, held for gets that may write back, for writes and for flushes. */
static pthread_mutex_t state_lock = PTHREAD_MUTEX_INITIALIZER;
static atomic_uint working;

struct worker {
    struct thread thread;
    unsigned number;
    uint64_t counts[TABLES + 1]; /* expected value of its word in each table */
};

static struct worker workers[WORKERS];

static void *get(uint64_t offset)
{
    void *table = NULL;
    int result = q2c_cache_try_get(cache, offset, &table);

    if (result == -EAGAIN) {
        result = q2c_cache_get_unlocked(cache, offset, &table);
    }
    if (result == -EAGAIN) {
        pthread_mutex_lock(&state_lock);
        result = q2c_cache_get(cache, offset, &table);
        pthread_mutex_unlock(&state_lock);
    }
    CHECK_INT(result, 0);
    return table;
}

/* Each worker counts up its own word of a table. The last word of a table never changes. */
static void work(void *argument)
{
    struct worker *worker = argument;
    uint64_t state = worker->number + 1;

    for (unsigned i = 0; i < ROUNDS; i++) {
        unsigned n = 1 + (unsigned)(test_random(&state) % TABLES);
        uint64_t word = 0;
        void *table = get(AT(n));

        if (table == NULL) {
            continue;
        }
        CHECK_U64(table_word(table, worker->number * 8), worker->counts[n]);
        CHECK_U64(table_word(table, TABLE - 8), storage_word(AT(n) + TABLE - 8));
        if (test_random(&state) % 2 == 0) {
            worker->counts[n]++;
            CHECK_INT(q2c_cache_store(cache, table, worker->number * 8, worker->counts[n]), 0);
            CHECK_INT(q2c_cache_mark_dirty(cache, table), 0);
        }
        CHECK_INT(q2c_cache_put(cache, &table), 0);
        if (q2c_cache_read(cache, AT(n), worker->number * 8, &word, 8) == 0) {
            CHECK_U64(word, worker->counts[n]);
        }
    }
    atomic_fetch_sub(&working, 1);
}

static void clean(void *argument)
{
    (void)argument;
    while (atomic_load(&working) > 0) {
        CHECK(q2c_cache_clean_unused(cache) >= 0);
        test_pause();
    }
}

static void write_back(void *argument)
{
    unsigned round = 0;

    (void)argument;
    while (atomic_load(&working) > 0) {
        int result;

        pthread_mutex_lock(&state_lock);
        result = ++round % 4 == 0 ? q2c_cache_flush(cache) : q2c_cache_write(cache);
        pthread_mutex_unlock(&state_lock);
        CHECK_INT(result, 0);
        test_pause();
    }
}

static void no_change_is_lost_under_eviction_and_cleaning(void)
{
    struct thread cleaner, writer;

    for (uint64_t n = 1; n <= TABLES; n++) {
        memset(storage.data + AT(n), 0, WORKERS * sizeof(uint64_t));
    }
    atomic_store(&working, WORKERS);
    for (unsigned i = 0; i < WORKERS; i++) {
        workers[i].number = i;
        thread_start(&workers[i].thread, work, &workers[i]);
    }
    thread_start(&cleaner, clean, NULL);
    thread_start(&writer, write_back, NULL);
    for (unsigned i = 0; i < WORKERS; i++) {
        thread_join(&workers[i].thread);
    }
    thread_join(&cleaner);
    thread_join(&writer);
    CHECK_INT(q2c_cache_flush(cache), 0);
    CHECK_U64(cache_stats(cache).dirty_tables, 0);
    CHECK_U64(cache_stats(cache).pinned_tables, 0);
    for (unsigned n = 1; n <= TABLES; n++) {
        for (unsigned i = 0; i < WORKERS; i++) {
            CHECK_U64(storage_peek(&storage, AT(n) + i * 8), workers[i].counts[n]);
        }
        CHECK(storage_untouched(&storage, AT(n) + WORKERS * 8, TABLE - WORKERS * 8));
    }
    CHECK(cache_stats(cache).evictions > 0);
}

int main(void)
{
    test_begin();
    storage_init(&storage, AT(TABLES + 1));
    cache = cache_new(&storage, SLOTS, TABLE, 2);
    RUN(no_change_is_lost_under_eviction_and_cleaning);
    cache_drop(cache);
    storage_free(&storage);
    return test_end();
}
