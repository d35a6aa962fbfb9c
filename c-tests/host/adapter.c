/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "adapter.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>

struct host_adapter {
    host_kept kept; /* first: what the program frees */
    host_adapter_config config;
    q2c_host vtable;
    host_co_mutex mutex;
    atomic_bool closed;
    atomic_int fail_spawn;
    _Atomic(host_on_call *) on_call;
    void *on_call_arg;
    _Atomic uint64_t yields, wakes, early_wakes, spawns, locks, polls, kicks, timers, late_kicks;
    _Atomic uint64_t timers_alive, parked, spawned_alive;
};

/*
 * Counters order nothing between their callers: an order that the host makes would hide races of
 * the library from ThreadSanitizer.
 */
static void add(_Atomic uint64_t *counter)
{
    atomic_fetch_add_explicit(counter, 1, memory_order_relaxed);
}

static uint64_t take(_Atomic uint64_t *counter)
{
    return atomic_fetch_sub_explicit(counter, 1, memory_order_release);
}

static host_adapter *called(void *opaque, const char *callback)
{
    host_adapter *h = opaque;
    host_on_call *on_call;

    if (atomic_load(&h->closed)) {
        host_die("%s called after the host was closed", callback);
    }
    on_call = atomic_load(&h->on_call);
    if (on_call) {
        on_call(h->on_call_arg, callback);
    }
    return h;
}

/* ---- coroutines ---- */

static bool cb_in_coroutine(void *opaque)
{
    called(opaque, "in_coroutine");
    return host_in_coroutine();
}

static void *cb_co_self(void *opaque)
{
    called(opaque, "co_self");
    return host_co_self();
}

static void cb_co_suspend(void *opaque)
{
    host_adapter *h = called(opaque, "co_suspend");

    if (!host_in_coroutine()) {
        host_die("co_suspend outside a coroutine");
    }
    add(&h->yields);
    add(&h->parked);
    host_co_park();
    take(&h->parked);
    if (atomic_load(&h->closed)) {
        host_die("a wake came after the host was closed");
    }
}

/* The coroutine that this wakes may close the host before the wake returns. */
static void cb_co_wake(void *opaque, void *co)
{
    host_adapter *h = called(opaque, "co_wake");
    host_co *target = co;

    if (!target) {
        host_die("co_wake of NULL");
    }
    add(&h->wakes);
    if (atomic_load(&target->state) == HOST_CO_RUNNING) {
        add(&h->early_wakes);
    }
    host_co_wake(target, h->config.wake);
}

typedef struct spawned {
    host_adapter *host;
    void (*entry)(void *arg);
    void *arg;
} spawned;

static void spawned_entry(void *arg)
{
    spawned s = *(spawned *)arg;

    free(arg);
    s.entry(s.arg);
    take(&s.host->spawned_alive);
}

static int cb_co_spawn(void *opaque, void *context, void (*entry)(void *arg), void *arg)
{
    host_adapter *h = called(opaque, "co_spawn");
    host_context *here = host_context_current();
    host_context *home = context ? context : here;
    int error = atomic_load(&h->fail_spawn) ? atomic_exchange(&h->fail_spawn, 0) : 0;
    spawned *s;
    host_co *co;

    if (!home || home->program != h->config.program) {
        host_die("co_spawn in a thread that has no context of this program");
    }
    if (error) {
        return -error;
    }
    if (!(s = malloc(sizeof(*s)))) {
        return -ENOMEM;
    }
    *s = (spawned){ h, entry, arg };
    add(&h->spawns);
    add(&h->spawned_alive);
    co = host_co_create(spawned_entry, s);
    if (home == here && (h->config.spawn == HOST_RUN_NOW ||
                         (h->config.spawn == HOST_RUN_AFTER && !host_in_coroutine()))) {
        host_co_enter(co);
    } else {
        host_co_schedule(home, co);
    }
    return 0;
}

/* ---- the host's own lock ---- */

static void cb_lock(void *opaque)
{
    host_adapter *h = called(opaque, "lock");

    if (!host_in_coroutine()) {
        host_die("lock outside a coroutine");
    }
    add(&h->locks);
    host_co_mutex_lock(&h->mutex);
}

static void cb_unlock(void *opaque)
{
    host_adapter *h = called(opaque, "unlock");
    host_co_mutex_unlock(&h->mutex);
}

/* ---- clock and timers ---- */

static int64_t cb_now_ns(void *opaque)
{
    host_adapter *h = called(opaque, "now_ns");
    return host_clock_now(h->config.program);
}

static void *cb_timer_new(void *opaque, void (*cb)(void *arg), void *arg)
{
    host_adapter *h = called(opaque, "timer_new");

    add(&h->timers);
    add(&h->timers_alive);
    return host_timer_new(false, cb, arg);
}

static void cb_timer_mod(void *opaque, void *timer, int64_t deadline_ns)
{
    called(opaque, "timer_mod");
    host_timer_mod(timer, deadline_ns);
}

static void cb_timer_del(void *opaque, void *timer)
{
    called(opaque, "timer_del");
    host_timer_del(timer);
}

static void cb_timer_free(void *opaque, void *timer)
{
    host_adapter *h = called(opaque, "timer_free");

    host_timer_free(timer);
    if (take(&h->timers_alive) == 0) {
        host_die("more timers freed than made");
    }
}

/* ---- polling ---- */

static void cb_poll_while(void *opaque, bool (*cond)(void *arg), void *arg)
{
    host_adapter *h = called(opaque, "poll_while");

    add(&h->polls);
    host_poll_while(h->config.program, cond, arg);
}

static void cb_kick(void *opaque)
{
    host_adapter *h = opaque;

    if (atomic_load(&h->closed) && h->config.late_kick_ok) {
        add(&h->late_kicks);
    } else {
        called(opaque, "kick");
    }
    add(&h->kicks);
    host_kick(h->config.program);
}

/* ---- the object ---- */

static void dispose(host_kept *kept)
{
    free(kept);
}

host_adapter *host_adapter_new(const host_adapter_config *config)
{
    host_adapter *h = calloc(1, sizeof(*h));

    if (!h) {
        host_die("no memory for a host");
    }
    h->config = *config;
    h->kept.dispose = dispose;
    host_co_mutex_init(&h->mutex);
    h->vtable = (q2c_host){
        .struct_size = sizeof(h->vtable),
        .kind = Q2C_HOST_COROUTINES,
        .opaque = h,
        .in_coroutine = cb_in_coroutine,
        .co_self = cb_co_self,
        .co_suspend = cb_co_suspend,
        .co_wake = cb_co_wake,
        .co_spawn = cb_co_spawn,
        .lock = config->own_lock ? cb_lock : NULL,
        .unlock = config->own_lock ? cb_unlock : NULL,
        .now_ns = cb_now_ns,
        .timer_new = cb_timer_new,
        .timer_mod = cb_timer_mod,
        .timer_del = cb_timer_del,
        .timer_free = cb_timer_free,
        .poll_while = cb_poll_while,
        .kick = cb_kick,
    };
    return h;
}

const q2c_host *host_adapter_vtable(host_adapter *host)
{
    return &host->vtable;
}

host_co_mutex *host_adapter_mutex(host_adapter *host)
{
    return &host->mutex;
}

void host_adapter_fail_spawn(host_adapter *host, int error)
{
    atomic_store(&host->fail_spawn, error);
}

void host_adapter_on_call(host_adapter *host, host_on_call *fn, void *arg)
{
    if (fn) {
        host->on_call_arg = arg;
    }
    atomic_store(&host->on_call, fn);
}

void host_adapter_close(host_adapter *host)
{
    if (atomic_load(&host->parked) || atomic_load(&host->timers_alive) || host->mutex.owner) {
        host_die(
            "the host is closed with %llu coroutines parked, %llu timers alive and its lock %s",
            (unsigned long long)atomic_load(&host->parked),
            (unsigned long long)atomic_load(&host->timers_alive),
            host->mutex.owner ? "held" : "free");
    }
    atomic_store(&host->closed, true);
}

void host_adapter_free(host_adapter *host)
{
    if (!atomic_load(&host->closed)) {
        host_adapter_close(host);
    }
    while (atomic_load(&host->spawned_alive)) {
        if (!host_context_current() || !host_context_poll(host_context_current(), false)) {
            sched_yield();
        }
    }
    host_co_mutex_destroy(&host->mutex);
    host_program_keep(host->config.program, &host->kept);
}

void host_adapter_get_stats(host_adapter *host, host_adapter_stats *stats)
{
    *stats = (host_adapter_stats){
        .yields = atomic_load(&host->yields),
        .wakes = atomic_load(&host->wakes),
        .early_wakes = atomic_load(&host->early_wakes),
        .spawns = atomic_load(&host->spawns),
        .locks = atomic_load(&host->locks),
        .polls = atomic_load(&host->polls),
        .kicks = atomic_load(&host->kicks),
        .timers = atomic_load(&host->timers),
        .late_kicks = atomic_load(&host->late_kicks),
        .timers_alive = atomic_load(&host->timers_alive),
        .parked = atomic_load(&host->parked),
        .spawned_alive = atomic_load(&host->spawned_alive),
    };
}
