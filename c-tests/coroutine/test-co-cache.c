/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * The cache, used from coroutines in several contexts, on storage that yields in the middle of a
 * request and may continue the coroutine in another thread.
 */
#include <stdatomic.h>

#include "world.h"

/* ---- load ---- */

enum { TABLES = 64, SLOTS = 8, PER_CONTEXT = 4, ROUNDS = 150 };

static q2c_storage calls;
static host_storage *storage;
static q2c_cache *cache;
static q2c_cleaner *cleaner;
static uint64_t updates[TABLES]; /* protected by the state lock */
static atomic_uint running;

static uint64_t word(const void *table, size_t index)
{
    return __atomic_load_n((const uint64_t *)table + index, __ATOMIC_ACQUIRE);
}

/* Word 0 is the table's offset after its first update. Word 1 counts its updates. */
static void check_tag(const void *table, uint64_t n)
{
    uint64_t tag = word(table, 0);

    CHECK(tag == AT(n) || tag == 0);
}

static void update(uint64_t n)
{
    void *table = NULL;

    CHECK_INT(q2c_cleaner_lock(cleaner), 0);
    if (CHECK_INT(q2c_cache_get(cache, AT(n), &table), 0)) {
        check_tag(table, n);
        CHECK_U64(word(table, 1), updates[n]);
        updates[n]++;
        CHECK_INT(q2c_cache_store(cache, table, 0, AT(n)), 0);
        CHECK_INT(q2c_cache_store(cache, table, 8, updates[n]), 0);
        CHECK_INT(q2c_cache_mark_dirty(cache, table), 0);
        CHECK_INT(q2c_cache_put(cache, &table), 0);
    }
    CHECK_INT(q2c_cleaner_unlock(cleaner), 0);
}

static void look(uint64_t n)
{
    void *table = NULL;
    uint64_t tag = 0;
    int ret = q2c_cache_read(cache, AT(n), 0, &tag, 8);

    if (ret == 0) {
        CHECK(tag == AT(n) || tag == 0);
        return;
    }
    CHECK_INT(ret, -EAGAIN);
    ret = q2c_cache_get_unlocked(cache, AT(n), &table);
    if (ret == 0) {
        check_tag(table, n);
        host_co_sleep_ns(true, 1000); /* pinned during a wait of the host */
        check_tag(table, n);
        CHECK_INT(q2c_cache_put(cache, &table), 0);
    } else {
        CHECK_INT(ret, -EAGAIN);
    }
}

static void load(void *arg)
{
    uint64_t random = (uint64_t)(uintptr_t)arg * 7919 + 1;

    for (int i = 0; i < ROUNDS; i++) {
        uint64_t n = 1 + test_random(&random) % (TABLES - 1);
        switch (test_random(&random) % 10) {
        case 0:
            CHECK_INT(q2c_cleaner_lock(cleaner), 0);
            CHECK_INT(q2c_cache_flush(cache), 0);
            CHECK_INT(q2c_cleaner_unlock(cleaner), 0);
            break;
        case 1:
            CHECK(q2c_cache_clean_unused(cache) >= 0);
            break;
        case 2:
        case 3:
        case 4:
            look(n);
            break;
        default:
            update(n);
        }
    }
    atomic_fetch_sub(&running, 1);
}

static void finish(void *arg)
{
    (void)arg;
    CHECK_INT(q2c_cleaner_co_del_and_wait(cleaner), 0);
    CHECK_INT(q2c_cleaner_lock(cleaner), 0);
    CHECK_INT(q2c_cache_flush(cache), 0);
    CHECK_INT(q2c_cleaner_unlock(cleaner), 0);
}

static void check_image(void)
{
    const uint64_t *image = host_storage_image(storage);

    for (uint64_t n = 1; n < TABLES; n++) {
        const uint64_t *table = image + AT(n) / 8;
        CHECK_U64(table[0], updates[n] ? AT(n) : 0);
        CHECK_U64(table[1], updates[n]);
    }
}

static void begin(size_t slots, host_resume resume)
{
    storage = storage_new(TABLES, resume, &calls);
    cache = co_cache_new(&calls, slots);
    cleaner = cleaner_new(cache);
}

static void end(void)
{
    CHECK_INT(q2c_cleaner_destroy(&cleaner), 0);
    cache_drop(cache);
    host_storage_free(storage);
}

static void cache_and_image_stay_consistent_under_load(void)
{
    q2c_cache_stats stats = { .struct_size = sizeof(stats) };
    host_storage_stats requests;

    memset(updates, 0, sizeof(updates));
    begin(SLOTS, HOST_RESUME_MIXED);
    CHECK_INT(q2c_cleaner_start(cleaner, world.io[0], SECOND / 1000), 0);
    atomic_store(&running, IO_THREADS * PER_CONTEXT);
    for (int i = 0; i < IO_THREADS * PER_CONTEXT; i++) {
        host_co_schedule(world.io[i % IO_THREADS],
                         host_co_create(load, (void *)(uintptr_t)(i + 1)));
    }
    TURN_UNTIL(atomic_load(&running) == 0);
    host_context_call(world.io[1], true, finish, NULL);
    check_image();
    CHECK_INT(q2c_cache_get_stats(cache, &stats), 0);
    CHECK(stats.evictions > 0 && stats.write_backs > 0);
    CHECK_U64(stats.pinned_tables, 0);
    host_storage_get_stats(storage, &requests);
    CHECK(requests.yields > 0 && requests.moved > 0);
    end();
}

/* ---- waiting for the load of another caller ---- */

struct getter {
    uint64_t offset;
    void *table;
    atomic_int result;
};

static void get(void *arg)
{
    struct getter *g = arg;

    g->table = NULL;
    atomic_store(&g->result, q2c_cache_get_unlocked(cache, g->offset, &g->table));
}

static void getters_begin(struct getter *g, int n, bool same)
{
    for (int i = 0; i < n; i++) {
        g[i].offset = same ? AT(5) : AT(5 + i);
        atomic_store(&g[i].result, 1);
        host_co_schedule(world.io[i % IO_THREADS], host_co_create(get, &g[i]));
    }
}

static void getters_end(struct getter *g, int n)
{
    for (int i = 0; i < n; i++) {
        TURN_UNTIL(atomic_load(&g[i].result) != 1);
        CHECK_INT(atomic_load(&g[i].result), 0);
        CHECK_INT(q2c_cache_put(cache, &g[i].table), 0);
    }
    TURN_UNTIL(host_co_alive() == 0);
}

/* Runs in another thread, while the main thread polls inside the library. */
static void release_when_all_wait(void *arg)
{
    uint64_t parked = *(uint64_t *)arg;

    CO_EVENTUALLY(host_stats().parked == parked && host_stats().polls > 0);
    host_storage_release(storage);
}

static void coroutines_and_plain_code_share_one_load(void)
{
    struct getter g[5], plain = { .offset = AT(5) };
    uint64_t parked = 4;
    host_storage_stats requests;

    begin(SLOTS, HOST_RESUME_HOME);
    host_storage_hold(storage);
    getters_begin(g, 1, true);
    TURN_UNTIL(host_storage_held(storage) == 1);
    getters_begin(g + 1, 4, true);
    TURN_UNTIL(host_stats().parked == 4);
    host_co_schedule(world.io[2], host_co_create(release_when_all_wait, &parked));
    get(&plain); /* polls until done */
    CHECK_INT(atomic_load(&plain.result), 0);
    getters_end(g, 5);
    CHECK_INT(q2c_cache_put(cache, &plain.table), 0);
    host_storage_get_stats(storage, &requests);
    CHECK_U64(requests.reads, 1);
    end();
}

static void different_tables_load_in_parallel(void)
{
    struct getter g[6];

    begin(SLOTS, HOST_RESUME_WORKER);
    host_storage_hold(storage);
    getters_begin(g, 6, false);
    TURN_UNTIL(host_storage_held(storage) == 6);
    CHECK_U64(host_storage_held(storage), 6);
    host_storage_release(storage);
    getters_end(g, 6);
    end();
}

static void failed_load_fails_its_waiters_or_is_retried(void)
{
    struct getter g[4];
    int failed = 0;

    begin(SLOTS, HOST_RESUME_SPREAD);
    host_storage_hold(storage);
    host_storage_fail_at(storage, 1, EIO);
    getters_begin(g, 1, true);
    TURN_UNTIL(host_storage_held(storage) == 1);
    getters_begin(g + 1, 3, true);
    TURN_UNTIL(host_stats().parked == 3);
    host_storage_release(storage);
    for (int i = 0; i < 4; i++) {
        int ret;
        TURN_UNTIL((ret = atomic_load(&g[i].result)) != 1);
        failed += ret == -EIO;
        CHECK(ret == 0 || ret == -EIO);
        if (ret == 0) {
            CHECK_INT(q2c_cache_put(cache, &g[i].table), 0);
        }
    }
    CHECK_BETWEEN(failed, 1, 4);
    TURN_UNTIL(host_co_alive() == 0);
    getters_begin(g, 1, true);
    getters_end(g, 1);
    end();
}

/* ---- faults ---- */

static void dirty_then_flush_without_space(void *arg)
{
    (void)arg;
    update(3);
    update(4);
    host_storage_fail_at(storage, 1, ENOSPC);
    CHECK_INT(q2c_cleaner_lock(cleaner), 0);
    CHECK_INT(q2c_cache_flush(cache), -ENOSPC);
    CHECK_INT(q2c_cache_flush(cache), 0);
    CHECK_INT(q2c_cleaner_unlock(cleaner), 0);
}

static void failed_flush_loses_no_data(void)
{
    memset(updates, 0, sizeof(updates));
    begin(SLOTS, HOST_RESUME_SPREAD);
    host_context_call(world.io[0], true, dirty_then_flush_without_space, NULL);
    check_image();
    end();
}

int main(void)
{
    test_begin();
    world_begin();
    EACH(coroutines_and_plain_code_share_one_load);
    EACH(different_tables_load_in_parallel);
    EACH(failed_load_fails_its_waiters_or_is_retried);
    EACH(failed_flush_loses_no_data);
    EACH(cache_and_image_stay_consistent_under_load);
    world_end();
    return test_end();
}
