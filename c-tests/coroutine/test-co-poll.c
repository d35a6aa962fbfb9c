/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* q2c_poll_until_done, q2c_poll_kick and q2c_run_until_done on the coroutine host. */
#include <stdatomic.h>

#include "world.h"

static q2c_storage calls;
static host_storage *storage;
static q2c_state *state;

static void begin(void)
{
    static const q2c_geometry geometry = { .struct_size = sizeof(geometry),
                                           .virtual_size = 1 << 26,
                                           .cluster_size = 4096,
                                           .l2_entry_size = 8 };
    q2c_state_config config = {
        .struct_size = sizeof(config),
        .host = world.vtable,
        .l2_storage = &calls,
        .geometry = &geometry,
        .context = world.io[0],
    };

    storage = storage_new(1024, HOST_RESUME_SPREAD, &calls);
    MUST(q2c_state_open(&config, &state, NULL));
}

static void end(void)
{
    CHECK_INT(q2c_state_close(&state), 0);
    TURN_UNTIL(host_co_alive() == 0);
    host_storage_free(storage);
}

/* ---- poll until done ---- */

static atomic_bool done;
static atomic_bool kicked; /* the kick has returned: until then the state must stay open */
static atomic_uint looks;

static bool is_done(void *arg)
{
    (void)arg;
    atomic_fetch_add(&looks, 1);
    return atomic_load(&done);
}

/* Runs in another thread. Waits until the poller has checked its condition and found it false. */
static void finish_later(void *arg)
{
    CO_EVENTUALLY(atomic_load(&looks) > 0);
    host_co_sleep_ns(true, 1000000);
    atomic_store(&done, true);
    CHECK_INT(q2c_poll_kick(state), 0);
    atomic_store(&kicked, true);
    (void)arg;
}

static void poll_it(void *arg)
{
    atomic_store(&looks, 0);
    atomic_store(&done, false);
    atomic_store(&kicked, false);
    host_co_schedule(world.io[2], host_co_create(finish_later, arg));
    CHECK_INT(q2c_poll_until_done(state, is_done, NULL), 0);
    CHECK(atomic_load(&done));
    EVENTUALLY(atomic_load(&kicked));
}

static void poll_until_done_returns_when_condition_holds(void)
{
    begin();
    poll_it(NULL);
    host_context_call(world.io[0], false, poll_it, NULL);
    host_context_call(world.io[1], true, poll_it, NULL);
    host_context_call(world.main, true, poll_it, NULL);
    atomic_store(&looks, 0);
    CHECK_INT(q2c_poll_until_done(state, is_done, NULL), 0); /* true already */
    CHECK_BETWEEN(atomic_load(&looks), 1, 2);
    end();
}

static void set_done(void *arg)
{
    (void)arg;
    atomic_store(&done, true);
}

/* A bottom half of the poller's own context makes the condition true. */
static void poll_until_done_dispatches_own_context(void)
{
    begin();
    atomic_store(&done, false);
    host_bh_schedule(world.main, set_done, NULL);
    CHECK_INT(q2c_poll_until_done(state, is_done, NULL), 0);
    CHECK(atomic_load(&done));
    end();
}

/* ---- run until done ---- */

struct run {
    bool was_in_coroutine;
    uint64_t word;
    int ret;
};

static void use_cache(void *arg)
{
    struct run *r = arg;
    q2c_cache *cache = q2c_state_l2_cache(state);
    uint64_t *table = NULL;

    r->was_in_coroutine = host_in_coroutine();
    CHECK_INT(q2c_state_lock(state), 0);
    r->ret = q2c_cache_get(cache, 4096, (void **)&table);
    if (r->ret == 0) {
        r->word = table[3];
        CHECK_INT(q2c_cache_put(cache, (void **)&table), 0);
    }
    CHECK_INT(q2c_state_unlock(state), 0);
}

static void run_it(void *arg)
{
    struct run *r = arg;

    r->ret = 1;
    CHECK_INT(q2c_run_until_done(state, use_cache, r), 0);
    CHECK_INT(r->ret, 0);
    CHECK(r->was_in_coroutine);
    CHECK_U64(r->word, 4711);
}

/* The run contains a load that yields, and that may continue in another thread. */
static void run_until_done_runs_in_coroutine(void)
{
    struct run r;

    begin();
    ((uint64_t *)host_storage_image(storage))[4096 / 8 + 3] = 4711;
    run_it(&r);
    CHECK_INT(q2c_cache_discard_range(q2c_state_l2_cache(state), 0, UINT64_MAX), 0);
    host_context_call(world.io[1], false, run_it, &r);
    CHECK_INT(q2c_cache_discard_range(q2c_state_l2_cache(state), 0, UINT64_MAX), 0);
    host_context_call(world.io[1], true, run_it, &r);
    end();
}

static void run_until_done_fails_if_spawn_fails(void)
{
    struct run r;

    begin();
    host_adapter_fail_spawn(world.host, ENOMEM);
    CHECK_INT(q2c_run_until_done(state, use_cache, &r), -ENOMEM);
    end();
}

/* ---- many kicks ---- */

#define KICKS host_scale_rounds(2000)

static atomic_uint asked, answered;
static unsigned expected;

static bool is_answered(void *arg)
{
    (void)arg;
    return atomic_load(&answered) >= expected;
}

static void answer(void *arg)
{
    (void)arg;
    for (unsigned i = 1; i <= KICKS; i++) {
        while (atomic_load(&asked) < i) {
            host_co_sleep_ns(true, 0);
        }
        atomic_store(&answered, i);
        CHECK_INT(q2c_poll_kick(state), 0);
    }
    atomic_store(&kicked, true);
}

static void no_kick_is_lost(void)
{
    begin();
    atomic_store(&asked, 0);
    atomic_store(&answered, 0);
    atomic_store(&kicked, false);
    host_co_schedule(world.io[2], host_co_create(answer, NULL));
    for (expected = 1; expected <= KICKS; expected++) {
        atomic_store(&asked, expected);
        if (q2c_poll_until_done(state, is_answered, NULL) != 0) {
            CHECK(false);
        }
    }
    EVENTUALLY(atomic_load(&kicked));
    CHECK_U64(atomic_load(&answered), KICKS);
    end();
}

int main(void)
{
    test_begin();
    world_begin();
    EACH(poll_until_done_returns_when_condition_holds);
    EACH(poll_until_done_dispatches_own_context);
    EACH(run_until_done_runs_in_coroutine);
    EACH(run_until_done_fails_if_spawn_fails);
    EACH(no_kick_is_lost);
    world_end();
    return test_end();
}
