/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Wrong calls on the coroutine host return their errno and never hang. */
#include <stdatomic.h>

#include "world.h"

static q2c_storage calls;
static host_storage *storage;
static q2c_cache *cache;
static q2c_cleaner *cleaner;

static void begin(void)
{
    storage = storage_new(16, HOST_RESUME_HOME, &calls);
    cache = co_cache_new(&calls, 4);
    cleaner = cleaner_new(cache);
}

static void end(void)
{
    TURN_UNTIL(host_co_alive() == 0);
    CHECK_INT(q2c_cleaner_destroy(&cleaner), 0);
    CHECK_PTR(cleaner, NULL);
    cache_drop(cache);
    host_storage_free(storage);
}

static bool own_lock(void)
{
    return world.variant.own_lock;
}

static void start(void)
{
    CHECK_INT(q2c_cleaner_start(cleaner, world.io[0], 600 * SECOND), 0);
    EVENTUALLY(host_stats().parked == 1);
}

static void stop(void)
{
    CHECK_INT(q2c_cleaner_del_and_wait(cleaner), 0);
}

/* ---- stops with the lock in the wrong state ---- */

static void stop_with_the_lock_held(void *arg)
{
    (void)arg;
    CHECK_INT(q2c_cleaner_lock(cleaner), 0);
    if (!own_lock()) { /* the library does not know the holder of the host's own lock */
        CHECK_INT(q2c_cleaner_lock(cleaner), -EDEADLK);
        CHECK_INT(q2c_cleaner_co_del_and_wait(cleaner), -EDEADLK);
        CHECK_INT(q2c_cleaner_del_and_wait(cleaner), -EDEADLK);
    }
    CHECK_INT(q2c_cleaner_is_running(cleaner), 1);
    CHECK_INT(q2c_cleaner_unlock(cleaner), 0);
}

static void stop_without_the_lock(void *arg)
{
    (void)arg;
    if (!own_lock()) {
        CHECK_INT(q2c_cleaner_co_locked_del_and_wait(cleaner), -EPERM);
        CHECK_INT(q2c_cleaner_unlock(cleaner), -EPERM);
    }
    CHECK_INT(q2c_cleaner_is_running(cleaner), 1);
}

static void stop_fails_if_lock_state_is_wrong(void)
{
    begin();
    start();
    host_context_call(world.io[1], true, stop_with_the_lock_held, NULL);
    host_context_call(world.io[0], true, stop_with_the_lock_held, NULL);
    host_context_call(world.io[1], true, stop_without_the_lock, NULL);
    stop();
    end();
}

static atomic_bool lock_taken, release;

static void take_lock(void *arg)
{
    (void)arg;
    CHECK_INT(q2c_cleaner_lock(cleaner), 0);
    atomic_store(&lock_taken, true);
    CO_EVENTUALLY(atomic_load(&release));
    CHECK_INT(q2c_cleaner_unlock(cleaner), 0);
}

static void calls_fail_while_another_coroutine_holds_lock(void)
{
    begin();
    atomic_store(&lock_taken, false);
    atomic_store(&release, false);
    host_co_schedule(world.io[1], host_co_create(take_lock, NULL));
    EVENTUALLY(atomic_load(&lock_taken));
    if (!own_lock()) {
        CHECK_INT(q2c_cleaner_destroy(&cleaner), -EBUSY);
    }
    CHECK_INT(q2c_cleaner_unlock(cleaner), -EPERM);
    CHECK_INT(q2c_cleaner_co_locked_del_and_wait(cleaner), -EPERM);
    CHECK(cleaner != NULL);
    atomic_store(&release, true);
    TURN_UNTIL(host_co_alive() == 0);
    end();
}

/* ---- plain code ---- */

static void plain_code_lock_misuse_returns_errno(void)
{
    begin();
    start();
    CHECK_INT(q2c_cleaner_co_locked_del_and_wait(cleaner), -EPERM);
    if (own_lock()) {
        CHECK_INT(q2c_cleaner_lock(cleaner), -EPERM);
        CHECK_INT(q2c_cleaner_unlock(cleaner), -EPERM);
    } else { /* plain code may take the built-in lock */
        CHECK_INT(q2c_cleaner_lock(cleaner), 0);
        CHECK_INT(q2c_cleaner_lock(cleaner), -EDEADLK);
        CHECK_INT(q2c_cleaner_co_locked_del_and_wait(cleaner), -EPERM);
        CHECK_INT(q2c_cleaner_del_and_wait(cleaner), -EDEADLK);
        CHECK_INT(q2c_cleaner_unlock(cleaner), 0);
    }
    CHECK_INT(q2c_cleaner_is_running(cleaner), 1);
    stop();
    end();
}

static void plain_code_waits_for_lock_held_by_coroutine(void)
{
    begin();
    atomic_store(&release, false);
    if (own_lock()) {
        CHECK_INT(q2c_cleaner_lock(cleaner), -EPERM);
    } else {
        /* runs in this thread, so only a poll lets it continue */
        host_co_enter(host_co_create(take_lock, NULL));
        CHECK_INT(q2c_cleaner_destroy(&cleaner), -EBUSY);
        atomic_store(&release, true);
        CHECK_INT(q2c_cleaner_lock(cleaner), 0);
        CHECK_INT(q2c_cleaner_unlock(cleaner), 0);
    }
    end();
}

/* ---- stops inside the cleaner's coroutine ---- */

static atomic_int from_inside[3];
static atomic_bool tried;

static void stop_from_inside(void *arg, const char *callback)
{
    (void)arg;
    (void)callback;
    if (host_context_current() != world.io[0] || !host_in_coroutine() ||
        cleaner_stats(cleaner).passes == 0 || atomic_exchange(&tried, true)) {
        return;
    }
    atomic_store(&from_inside[0], q2c_cleaner_co_del_and_wait(cleaner));
    atomic_store(&from_inside[1], q2c_cleaner_del_and_wait(cleaner));
    atomic_store(&from_inside[2], q2c_cleaner_co_locked_del_and_wait(cleaner));
}

static void stop_inside_cleaner_returns_edeadlk(void)
{
    begin();
    atomic_store(&tried, false);
    for (int i = 0; i < 3; i++) {
        atomic_store(&from_inside[i], 0);
    }
    start();
    host_adapter_on_call(world.host, stop_from_inside, NULL);
    host_clock_step(world.program, 600 * SECOND);
    EVENTUALLY(atomic_load(&tried) && atomic_load(&from_inside[2]));
    host_adapter_on_call(world.host, NULL, NULL);
    CHECK_INT(atomic_load(&from_inside[0]), -EDEADLK);
    CHECK_INT(atomic_load(&from_inside[1]), -EDEADLK);
    CHECK(atomic_load(&from_inside[2]) == -EDEADLK || atomic_load(&from_inside[2]) == -EPERM);
    CHECK_INT(q2c_cleaner_is_running(cleaner), 1);
    stop();
    end();
}

/* ---- starts ---- */

static void second_start_returns_ealready(void)
{
    begin();
    start();
    CHECK_INT(q2c_cleaner_start(cleaner, world.io[0], SECOND), -EALREADY);
    CHECK_INT(q2c_cleaner_start(cleaner, world.io[1], SECOND), -EALREADY);
    CHECK_U64(cleaner_stats(cleaner).interval_ns, 600 * SECOND);
    CHECK_U64(cleaner_stats(cleaner).instances, 1);
    stop();
    end();
}

static void start_fails_if_spawn_fails(void)
{
    begin();
    host_adapter_fail_spawn(world.host, ENOMEM);
    CHECK_INT(q2c_cleaner_start(cleaner, world.io[0], SECOND), -ENOMEM);
    CHECK_U64(cleaner_stats(cleaner).instances, 0);
    CHECK_U64(cleaner_stats(cleaner).starts, 0);
    CHECK_INT(q2c_cleaner_is_running(cleaner), 0);
    stop(); /* there is no instance */
    start();
    stop();
    end();
}

/* A NULL context means the current one. */
static void start_here(void *arg)
{
    (void)arg;
    CHECK_INT(q2c_cleaner_start(cleaner, NULL, 600 * SECOND), 0);
}

static void start_with_null_uses_current_context(void)
{
    begin();
    host_context_call(world.io[1], true, start_here, NULL);
    EVENTUALLY(host_stats().parked == 1);
    stop();
    host_context_call(world.io[2], false, start_here, NULL);
    EVENTUALLY(host_stats().parked == 1);
    stop();
    CHECK_U64(cleaner_stats(cleaner).starts, 2);
    end();
}

/* ---- destroying objects in use ---- */

static void destroy_returns_ebusy_while_in_use(void)
{
    void *table = NULL;

    begin();
    start();
    CHECK_INT(q2c_cleaner_destroy(&cleaner), -EBUSY);
    CHECK(cleaner != NULL);
    CHECK_INT(q2c_cache_get(cache, AT(1), &table), 0);
    CHECK_INT(q2c_cache_destroy(&cache), -EBUSY);
    CHECK(cache != NULL);
    CHECK_INT(q2c_cache_put(cache, &table), 0);
    stop();
    end();
}

static void get_and_hold(void *arg)
{
    void *table = NULL;

    CHECK_INT(q2c_cache_get_unlocked(cache, AT(1), &table), 0);
    CHECK_INT(q2c_cache_put(cache, &table), 0);
    atomic_store((atomic_bool *)arg, true);
}

static void cache_destroy_returns_ebusy_during_load(void)
{
    atomic_bool done = false;

    begin();
    host_storage_hold(storage);
    host_co_schedule(world.io[1], host_co_create(get_and_hold, &done));
    EVENTUALLY(host_storage_held(storage) == 1);
    CHECK_INT(q2c_cache_destroy(&cache), -EBUSY);
    host_storage_release(storage);
    EVENTUALLY(atomic_load(&done));
    end();
}

/* ---- incomplete hosts ---- */

static void check_refused(q2c_host host)
{
    q2c_cache_options options = { .struct_size = sizeof(options),
                                  .tables = 4,
                                  .table_size = TABLE };
    q2c_error error = { .code = 0 };
    q2c_cleaner *no_cleaner = NULL;
    q2c_cache *no_cache = NULL;

    CHECK_INT(q2c_cleaner_create(&host, &no_cleaner, &error), -EINVAL);
    CHECK_INT(error.code, EINVAL);
    CHECK(error.message[0] != 0);
    CHECK_PTR(no_cleaner, NULL);
    CHECK_INT(q2c_cache_create(&options, &calls, &host, &no_cache, NULL), -EINVAL);
    CHECK_PTR(no_cache, NULL);
}

#define WITHOUT(member)                                                                            \
    do {                                                                                           \
        q2c_host host = *world.vtable;                                                             \
        host.member = NULL;                                                                        \
        check_refused(host);                                                                       \
    } while (0)

static void incomplete_host_is_refused(void)
{
    q2c_host odd;

    begin();
    WITHOUT(in_coroutine);
    WITHOUT(co_self);
    WITHOUT(co_suspend);
    WITHOUT(co_wake);
    WITHOUT(co_spawn);
    WITHOUT(now_ns);
    WITHOUT(timer_new);
    WITHOUT(timer_mod);
    WITHOUT(timer_del);
    WITHOUT(timer_free);
    WITHOUT(poll_while);
    WITHOUT(kick);
    if (own_lock()) { /* both or neither */
        WITHOUT(lock);
        WITHOUT(unlock);
    }
    odd = *world.vtable;
    odd.struct_size = offsetof(q2c_host, opaque);
    check_refused(odd);
    odd = *world.vtable;
    odd.kind = 77;
    check_refused(odd);
    end();
}

/* The library keeps its own copy of the callback table. */
static void callback_table_is_copied(void)
{
    q2c_host host = *world.vtable;
    q2c_cleaner *copied = NULL;

    begin();
    CHECK_INT(q2c_cleaner_create(&host, &copied, NULL), 0);
    memset(&host, 0xff, sizeof(host));
    CHECK_INT(q2c_cleaner_start(copied, world.io[0], 600 * SECOND), 0);
    CHECK_INT(q2c_cleaner_del_and_wait(copied), 0);
    CHECK_INT(q2c_cleaner_destroy(&copied), 0);
    end();
}

int main(void)
{
    test_begin();
    world_begin();
    host_clock_stop(world.program);
    EACH(stop_fails_if_lock_state_is_wrong);
    EACH(calls_fail_while_another_coroutine_holds_lock);
    EACH(plain_code_lock_misuse_returns_errno);
    EACH(plain_code_waits_for_lock_held_by_coroutine);
    EACH(stop_inside_cleaner_returns_edeadlk);
    EACH(second_start_returns_ealready);
    EACH(start_fails_if_spawn_fails);
    EACH(start_with_null_uses_current_context);
    EACH(destroy_returns_ebusy_while_in_use);
    EACH(cache_destroy_returns_ebusy_during_load);
    EACH(incomplete_host_is_refused);
    EACH(callback_table_is_copied);
    world_end();
    return test_end();
}
