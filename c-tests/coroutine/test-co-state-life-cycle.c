/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * The calls that a block driver makes for a state while an image is open, under load from
 * coroutines in three contexts: open, an open that fails, option changes with and without the lock,
 * detach and attach, invalidate, close.
 */
#include <stdatomic.h>

#include "world.h"

enum { N_L2 = 48, N_REFCOUNT = 24, LOADERS = 6, CLUSTER = 4096, SLICE = 512 };

#define MS (SECOND / 1000)

static host_storage *l2_storage, *refcount_storage;
static q2c_storage l2_calls, refcount_calls;
static q2c_state *state;
static uint64_t l2_updates[N_L2], refcount_updates[N_REFCOUNT]; /* protected by the state lock */

/* ---- load ---- */

static atomic_bool quit, quiesce;
static atomic_uint loaders, quiet, rounds;

static void update(q2c_cache *cache, size_t table_size, uint64_t n, uint64_t *count)
{
    uint64_t *table = NULL;

    if (!CHECK_INT(q2c_cache_get(cache, n * table_size, (void **)&table), 0)) {
        return;
    }
    CHECK_U64(table[1], *count);
    CHECK_U64(table[0], *count ? n : 0);
    CHECK_INT(q2c_cache_store(cache, table, 0, n), 0);
    CHECK_INT(q2c_cache_store(cache, table, 8, ++*count), 0);
    CHECK_INT(q2c_cache_mark_dirty(cache, table), 0);
    CHECK_INT(q2c_cache_put(cache, (void **)&table), 0);
}

/* The caches are borrowed from the state until its lock is released. */
static void one_request(uint64_t *random)
{
    uint64_t n = test_random(random);

    CHECK_INT(q2c_state_lock(state), 0);
    if (n % 3 == 0) {
        uint64_t block = 1 + n / 3 % (N_REFCOUNT - 1);
        update(q2c_state_refcount_cache(state), CLUSTER, block, &refcount_updates[block]);
    } else {
        uint64_t slice = 1 + n / 3 % (N_L2 - 1);
        CHECK_INT(
            q2c_cache_set_dependency(q2c_state_l2_cache(state), q2c_state_refcount_cache(state)),
            0);
        update(q2c_state_l2_cache(state), SLICE, slice, &l2_updates[slice]);
    }
    CHECK_INT(q2c_state_unlock(state), 0);
}

static void load(void *arg)
{
    uint64_t random = (uint64_t)(uintptr_t)arg;

    while (!atomic_load(&quit)) {
        if (atomic_load(&quiesce)) {
            atomic_fetch_add(&quiet, 1);
            CO_EVENTUALLY(!atomic_load(&quiesce));
            atomic_fetch_sub(&quiet, 1);
            continue;
        }
        one_request(&random);
        atomic_fetch_add(&rounds, 1);
    }
    atomic_fetch_sub(&loaders, 1);
}

static void load_begin(void)
{
    atomic_store(&quit, false);
    atomic_store(&quiesce, false);
    atomic_store(&loaders, LOADERS);
    for (int i = 0; i < LOADERS; i++) {
        host_co_schedule(world.io[i % IO_THREADS],
                         host_co_create(load, (void *)(uintptr_t)(i + 1)));
    }
}

static void drain(void)
{
    atomic_store(&quiesce, true);
    TURN_UNTIL(atomic_load(&quiet) == atomic_load(&loaders));
}

static void undrain(void)
{
    atomic_store(&quiesce, false);
    TURN_UNTIL(atomic_load(&quiet) == 0);
}

/* Waits until the load has made @more requests. */
static void let_it_run(unsigned more)
{
    unsigned until = atomic_load(&rounds) + more;
    TURN_UNTIL((int)(atomic_load(&rounds) - until) >= 0);
}

static void load_end(void)
{
    atomic_store(&quit, true);
    atomic_store(&quiesce, false);
    TURN_UNTIL(atomic_load(&loaders) == 0);
}

/* ---- open and close ---- */

static q2c_options small_caches(void)
{
    q2c_options options = { .struct_size = sizeof(options) };

    CHECK_INT(q2c_options_init(&options), 0);
    options.set =
        Q2C_OPTION_L2_CACHE_SIZE | Q2C_OPTION_REFCOUNT_CACHE_SIZE | Q2C_OPTION_L2_CACHE_ENTRY_SIZE;
    options.l2_cache_size = 8 * SLICE;
    options.l2_cache_entry_size = SLICE;
    options.refcount_cache_size = 4 * CLUSTER;
    return options;
}

static int open_state(void)
{
    static const q2c_geometry geometry = { .struct_size = sizeof(geometry),
                                           .virtual_size = 1 << 30,
                                           .cluster_size = CLUSTER,
                                           .l2_entry_size = 8 };
    q2c_options options = small_caches();
    q2c_state_config config = {
        .struct_size = sizeof(config),
        .host = world.vtable,
        .l2_storage = &l2_calls,
        .refcount_storage = &refcount_calls,
        .l2_kind = 1,
        .refcount_kind = 2,
        .geometry = &geometry,
        .options = &options,
        .clean_interval_ns = MS,
        .context = world.io[0],
    };
    q2c_error error;

    return q2c_state_open(&config, &state, &error);
}

static void open_it(void *arg)
{
    *(int *)arg = open_state();
}

static void close_it(void *arg)
{
    *(int *)arg = q2c_state_close(&state);
}

static void storage_begin(host_resume resume)
{
    l2_storage = storage_new(N_L2, resume, &l2_calls);
    refcount_storage = storage_new(N_REFCOUNT * CLUSTER / TABLE, resume, &refcount_calls);
    memset(l2_updates, 0, sizeof(l2_updates));
    memset(refcount_updates, 0, sizeof(refcount_updates));
}

static void check_image(host_storage *storage, size_t table_size, const uint64_t *updates,
                        uint64_t n)
{
    const char *image = host_storage_image(storage);

    for (uint64_t i = 1; i < n; i++) {
        uint64_t words[2];
        memcpy(words, image + i * table_size, sizeof(words));
        CHECK_U64(words[0], updates[i] ? i : 0);
        CHECK_U64(words[1], updates[i]);
    }
}

static void check_images(void)
{
    check_image(l2_storage, SLICE, l2_updates, N_L2);
    check_image(refcount_storage, CLUSTER, refcount_updates, N_REFCOUNT);
}

static void begin(void)
{
    storage_begin(HOST_RESUME_MIXED);
    MUST(open_state());
    load_begin();
    let_it_run(50);
}

/* Closes in a coroutine or in plain code of the main thread, and checks the images. */
static void end(bool in_coroutine)
{
    int ret = 1;

    load_end();
    host_context_call(world.main, in_coroutine, close_it, &ret);
    CHECK_INT(ret, 0);
    CHECK_PTR(state, NULL);
    check_images();
    CHECK_U64(host_stats().timers_alive, 0);
    TURN_UNTIL(host_co_alive() == 0);
    host_storage_free(l2_storage);
    host_storage_free(refcount_storage);
}

static q2c_cleaner_stats cleaning(void)
{
    return cleaner_stats(q2c_state_cleaner(state));
}

static size_t resident(q2c_cache *cache)
{
    q2c_cache_stats stats = { .struct_size = sizeof(stats) };

    CHECK_INT(q2c_cache_get_stats(cache, &stats), 0);
    return stats.resident_tables;
}

static void state_opens_cleans_and_closes(void)
{
    begin();
    drain();
    CHECK_INT(q2c_cache_flush(q2c_state_refcount_cache(state)), 0);
    CHECK_INT(q2c_cache_flush(q2c_state_l2_cache(state)), 0);
    TURN_UNTIL(resident(q2c_state_l2_cache(state)) == 0 &&
               resident(q2c_state_refcount_cache(state)) == 0);
    CHECK(cleaning().tables_cleaned > 0);
    undrain();
    let_it_run(20);
    end(false);
}

static void state_opens_and_closes_in_coroutines(void)
{
    int ret = 1;

    storage_begin(HOST_RESUME_HOME);
    host_context_call(world.io[1], true, open_it, &ret);
    CHECK_INT(ret, 0);
    load_begin();
    let_it_run(50);
    end(true);
}

/* ---- an open that fails ---- */

static void open_leaves_nothing_if_cleaner_cannot_start(void)
{
    q2c_state *const untouched = (q2c_state *)&world;

    storage_begin(HOST_RESUME_HOME);
    state = untouched;
    host_adapter_fail_spawn(world.host, EAGAIN);
    CHECK_INT(open_state(), -EAGAIN);
    CHECK_PTR(state, untouched);
    CHECK_U64(host_stats().spawned_alive, 0);
    host_adapter_close(world.host); /* aborts on a later callback */
    host_storage_free(l2_storage);
    host_storage_free(refcount_storage);
}

/*
 * A driver that creates cache and cleaner itself. Its open fails with the lock held, after it has
 * started the cleaner.
 */
static void fail_after_cleaner_start(void *arg)
{
    q2c_cache *cache = co_cache_new(&l2_calls, 4);
    q2c_cleaner *cleaner = cleaner_new(cache);
    void *table = NULL;

    (void)arg;
    CHECK_INT(q2c_cleaner_lock(cleaner), 0);
    CHECK_INT(q2c_cache_get(cache, SLICE, &table), 0);
    CHECK_INT(q2c_cache_put(cache, &table), 0);
    CHECK_INT(q2c_cleaner_start(cleaner, world.io[0], 1), 0);
    CHECK_INT(q2c_cleaner_co_locked_del_and_wait(cleaner), 0);
    CHECK_INT(q2c_cache_destroy(&cache), 0);
    CHECK_INT(q2c_cleaner_unlock(cleaner), 0);
    CHECK_INT(q2c_cleaner_destroy(&cleaner), 0);
}

static void cleaner_stops_with_lock_held_when_driver_open_fails(void)
{
    storage_begin(HOST_RESUME_HOME);
    for (int i = 0; i < 50; i++) {
        host_context_call(world.io[i % IO_THREADS], true, fail_after_cleaner_start, NULL);
    }
    host_adapter_close(world.host);
    host_storage_free(l2_storage);
    host_storage_free(refcount_storage);
}

/* ---- option changes ---- */

static q2c_update *prepared(unsigned i)
{
    q2c_options options = small_caches();
    q2c_update *update_options = NULL;
    q2c_error error;

    options.l2_cache_size = (8 + i % 5) * SLICE;
    CHECK_INT(q2c_update_options_prepare(state, &options, NULL, (1 + i % 2) * MS, &update_options,
                                         &error),
              0);
    return update_options;
}

static void check_applied(unsigned i)
{
    q2c_cache_stats stats = { .struct_size = sizeof(stats) };

    CHECK_INT(q2c_cache_get_stats(q2c_state_l2_cache(state), &stats), 0);
    CHECK_U64(stats.tables, 8 + i % 5);
    CHECK_U64(cleaning().interval_ns, (1 + i % 2) * MS);
}

/* Runs in a coroutine, while requests queue for the lock. */
static void change_options_locked(void *arg)
{
    unsigned i = *(unsigned *)arg;
    q2c_update *update_options;

    CHECK_INT(q2c_state_lock(state), 0);
    update_options = prepared(i);
    CHECK_INT(q2c_update_options_commit(state, &update_options, true), 0);
    CHECK_PTR(update_options, NULL);
    check_applied(i);
    CHECK_INT(q2c_state_unlock(state), 0);
}

static void options_commit_with_lock_held(void)
{
    begin();
    for (unsigned i = 0; i < 20; i++) {
        host_context_call(i % 2 ? world.io[0] : world.io[1], true, change_options_locked, &i);
        let_it_run(5);
    }
    CHECK_INT(q2c_cleaner_is_running(q2c_state_cleaner(state)), 1);
    end(false);
}

/* Runs in plain code with requests drained, as the commit of a reopen does. */
static void options_commit_without_lock_while_drained(void)
{
    begin();
    for (unsigned i = 0; i < 20; i++) {
        q2c_update *update_options;
        drain();
        update_options = prepared(i);
        CHECK_INT(q2c_update_options_commit(state, &update_options, false), 0);
        CHECK_PTR(update_options, NULL);
        check_applied(i);
        undrain();
        let_it_run(5);
    }
    end(true);
}

static void aborted_update_changes_nothing(void)
{
    q2c_cache_stats stats = { .struct_size = sizeof(stats) };
    q2c_update *update_options;

    begin();
    drain();
    update_options = prepared(3);
    CHECK_INT(q2c_update_options_abort(state, &update_options), 0);
    CHECK_PTR(update_options, NULL);
    CHECK_INT(q2c_cache_get_stats(q2c_state_l2_cache(state), &stats), 0);
    CHECK_U64(stats.tables, 8);
    CHECK_U64(cleaning().interval_ns, MS);
    undrain();
    end(false);
}

/* ---- detach and attach ---- */

static _Atomic(host_context *) seen_in;

/* Records the context in which the cleaner makes its timers. */
static void record_timer_context(void *arg, const char *callback)
{
    (void)arg;
    if (strcmp(callback, "timer_new") == 0) {
        atomic_store(&seen_in, host_context_current());
    }
}

/* Makes both calls with the graph locked for writing: neither may wait. */
static void detach_and_attach(host_context *to)
{
    q2c_cleaner_stats stats;
    uint64_t passes;

    host_graph_wrlock(world.program);
    CHECK_INT(q2c_state_detach_context(state), 0);
    CHECK_INT(q2c_cleaner_is_running(q2c_state_cleaner(state)), 0);
    CHECK_INT(q2c_state_detach_context(state), 0);
    CHECK_INT(q2c_state_attach_context(state, to), 0);
    CHECK_INT(q2c_state_attach_context(state, to), -EALREADY);
    host_graph_wrunlock(world.program);
    stats = cleaning();
    CHECK_U64(stats.interval_ns, MS);
    TURN_UNTIL(cleaning().instances == 1); /* the old instance has ended */
    atomic_store(&seen_in, NULL);
    passes = cleaning().passes;
    TURN_UNTIL(cleaning().passes >= passes + 2 && atomic_load(&seen_in));
    CHECK_PTR(atomic_load(&seen_in), to);
}

static void detach_never_waits_and_keeps_interval(void)
{
    begin();
    host_adapter_on_call(world.host, record_timer_context, NULL);
    for (int i = 1; i <= 6; i++) {
        detach_and_attach(world.io[i % IO_THREADS]);
        let_it_run(5);
    }
    host_adapter_on_call(world.host, NULL, NULL);
    end(false);
}

static void state_closes_while_detached(void)
{
    begin();
    host_graph_wrlock(world.program);
    CHECK_INT(q2c_state_detach_context(state), 0);
    host_graph_wrunlock(world.program);
    end(false);
}

/* ---- invalidate ---- */

static void invalidate_it(void *arg)
{
    *(int *)arg = q2c_state_invalidate(state);
}

/* Changes the image as another process would. */
static void change_image(void)
{
    char *image = host_storage_image(l2_storage);

    for (uint64_t i = 1; i < N_L2; i++) {
        uint64_t words[2] = { i, l2_updates[i] + 1000 };
        memcpy(image + i * SLICE, words, sizeof(words));
        l2_updates[i] += 1000;
    }
}

static void invalidate_rereads_all_tables(void)
{
    begin();
    for (int i = 0; i < 6; i++) {
        int ret = 1;
        drain();
        CHECK_INT(q2c_cache_flush(q2c_state_refcount_cache(state)), 0);
        CHECK_INT(q2c_cache_flush(q2c_state_l2_cache(state)), 0);
        change_image();
        host_context_call(i % 2 ? world.main : world.io[0], i % 2 == 0, invalidate_it, &ret);
        CHECK_INT(ret, 0);
        CHECK_INT(q2c_cleaner_is_running(q2c_state_cleaner(state)), 1);
        CHECK_U64(cleaning().interval_ns, MS);
        undrain();
        let_it_run(20);
    }
    end(false);
}

/* ---- a close that fails ---- */

static void failed_close_can_be_retried(void)
{
    begin();
    load_end();
    CHECK_INT(q2c_state_detach_context(state), 0);
    CHECK_INT(q2c_state_lock(state), world.variant.own_lock ? -EPERM : 0);
    update(q2c_state_l2_cache(state), SLICE, 5, &l2_updates[5]);
    CHECK_INT(q2c_state_unlock(state), world.variant.own_lock ? -EPERM : 0);
    host_storage_fail_at(l2_storage, 1, ENOSPC);
    CHECK_INT(q2c_state_close(&state), -ENOSPC);
    CHECK(state != NULL);
    CHECK_INT(q2c_cleaner_is_running(q2c_state_cleaner(state)), 0);
    end(false);
}

int main(void)
{
    test_begin();
    world_begin();
    EACH(state_opens_cleans_and_closes);
    EACH(state_opens_and_closes_in_coroutines);
    EACH(open_leaves_nothing_if_cleaner_cannot_start);
    EACH(cleaner_stops_with_lock_held_when_driver_open_fails);
    EACH(options_commit_with_lock_held);
    EACH(options_commit_without_lock_while_drained);
    EACH(aborted_update_changes_nothing);
    EACH(detach_never_waits_and_keeps_interval);
    EACH(state_closes_while_detached);
    EACH(invalidate_rereads_all_tables);
    EACH(failed_close_can_be_retried);
    world_end();
    return test_end();
}
