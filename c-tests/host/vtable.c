/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* The q2c_host callbacks over this host, with counters, and checks on what the library may call when. */
#include <errno.h>
#include <sched.h>
#include <stdlib.h>

#include "internal.h"

struct th_host {
    th_host *next_closed;
    th_host_config config;
    q2c_host vtable;
    th_mutex mutex;
    atomic_bool closed;
    atomic_int fail_spawn;
    _Atomic(th_on_call *) on_call;
    void *on_call_arg;
    _Atomic uint64_t yields, wakes, early_wakes, spawns, locks, polls, kicks, timers, late_kicks;
    _Atomic uint64_t timers_alive, parked, spawned_alive;
};

/* Counters order nothing between their callers: what the host orders, ThreadSanitizer cannot complain of in the library. */
static void add(_Atomic uint64_t *counter)
{
    atomic_fetch_add_explicit(counter, 1, memory_order_relaxed);
}

static uint64_t take(_Atomic uint64_t *counter)
{
    return atomic_fetch_sub_explicit(counter, 1, memory_order_release);
}

static th_host *called(void *opaque, const char *callback)
{
    th_host *h = opaque;
    th_on_call *on_call;

    if (atomic_load(&h->closed)) {
        th_die("%s called after the host was closed", callback);
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
    return th_in_coroutine();
}

static void *cb_co_self(void *opaque)
{
    called(opaque, "co_self");
    return th_co_self();
}

static void cb_co_suspend(void *opaque)
{
    th_host *h = called(opaque, "co_suspend");

    if (!th_in_coroutine()) {
        th_die("co_suspend outside a coroutine");
    }
    add(&h->yields);
    add(&h->parked);
    th_co_park();
    take(&h->parked);
    if (atomic_load(&h->closed)) {
        th_die("a wake came after the host was closed");
    }
}

/* A wake is the last thing that holds the woken one back: what it wakes may close the host before this returns. */
static void cb_co_wake(void *opaque, void *co)
{
    th_host *h = called(opaque, "co_wake");
    th_co *target = co;

    if (!target) {
        th_die("co_wake of NULL");
    }
    add(&h->wakes);
    if (atomic_load(&target->state) == CO_RUNNING) {
        add(&h->early_wakes);
    }
    th_co_wake(target, h->config.wake);
}

typedef struct spawned { th_host *host; void (*entry)(void *arg); void *arg; } spawned;

static void spawned_entry(void *arg)
{
    spawned s = *(spawned *)arg;

    free(arg);
    s.entry(s.arg);
    take(&s.host->spawned_alive);
}

static int cb_co_spawn(void *opaque, void *context, void (*entry)(void *arg), void *arg)
{
    th_host *h = called(opaque, "co_spawn");
    th_context *here = th_context_current();
    th_context *home = context ? context : here;
    int error = atomic_load(&h->fail_spawn) ? atomic_exchange(&h->fail_spawn, 0) : 0;
    spawned *s;
    th_co *co;

    if (!home || home->program != h->config.program) {
        th_die("co_spawn in a thread that has no context of this program");
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
    co = th_co_create(spawned_entry, s);
    if (home == here && (h->config.spawn == TH_NOW || (h->config.spawn == TH_AFTER && !th_in_coroutine()))) {
        th_co_enter(co);
    } else {
        th_co_schedule(home, co);
    }
    return 0;
}

/* ---- the host's own lock ---- */

static void cb_lock(void *opaque)
{
    th_host *h = called(opaque, "lock");

    if (!th_in_coroutine()) {
        th_die("lock outside a coroutine");
    }
    add(&h->locks);
    th_mutex_lock(&h->mutex);
}

static void cb_unlock(void *opaque)
{
    th_host *h = called(opaque, "unlock");
    th_mutex_unlock(&h->mutex);
}

/* ---- clock and timers ---- */

static int64_t cb_now_ns(void *opaque)
{
    th_host *h = called(opaque, "now_ns");
    return th_clock_now(h->config.program);
}

static void *cb_timer_new(void *opaque, void (*cb)(void *arg), void *arg)
{
    th_host *h = called(opaque, "timer_new");

    add(&h->timers);
    add(&h->timers_alive);
    return th_timer_new(false, cb, arg);
}

static void cb_timer_mod(void *opaque, void *timer, int64_t deadline_ns)
{
    called(opaque, "timer_mod");
    th_timer_mod(timer, deadline_ns);
}

static void cb_timer_del(void *opaque, void *timer)
{
    called(opaque, "timer_del");
    th_timer_del(timer);
}

static void cb_timer_free(void *opaque, void *timer)
{
    th_host *h = called(opaque, "timer_free");

    th_timer_free(timer);
    if (take(&h->timers_alive) == 0) {
        th_die("more timers freed than made");
    }
}

/* ---- polling ---- */

static void cb_poll_while(void *opaque, bool (*cond)(void *arg), void *arg)
{
    th_host *h = called(opaque, "poll_while");

    add(&h->polls);
    th_poll_while(h->config.program, cond, arg);
}

static void cb_kick(void *opaque)
{
    th_host *h = opaque;

    if (atomic_load(&h->closed) && h->config.late_kick_ok) {
        add(&h->late_kicks);
    } else {
        called(opaque, "kick");
    }
    add(&h->kicks);
    th_kick(h->config.program);
}

/* ---- the object ---- */

th_host *th_host_new(const th_host_config *config)
{
    th_host *h = calloc(1, sizeof(*h));

    if (!h) {
        th_die("no memory for a host");
    }
    h->config = *config;
    th_mutex_init(&h->mutex);
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

const q2c_host *th_host_vtable(th_host *host)
{
    return &host->vtable;
}

th_mutex *th_host_mutex(th_host *host)
{
    return &host->mutex;
}

void th_host_fail_spawn(th_host *host, int error)
{
    atomic_store(&host->fail_spawn, error);
}

void th_host_on_call(th_host *host, th_on_call *fn, void *arg)
{
    if (fn) {
        host->on_call_arg = arg;
    }
    atomic_store(&host->on_call, fn);
}

void th_host_close(th_host *host)
{
    if (atomic_load(&host->parked) || atomic_load(&host->timers_alive) || host->mutex.owner) {
        th_die("the host is closed with %llu coroutines parked, %llu timers alive and its lock %s",
               (unsigned long long)atomic_load(&host->parked), (unsigned long long)atomic_load(&host->timers_alive),
               host->mutex.owner ? "held" : "free");
    }
    atomic_store(&host->closed, true);
}

void th_host_free(th_host *host)
{
    if (!atomic_load(&host->closed)) {
        th_host_close(host);
    }
    while (atomic_load(&host->spawned_alive)) {
        if (!th_context_current() || !th_context_poll(th_context_current(), false)) {
            sched_yield();
        }
    }
    th_mutex_destroy(&host->mutex);
    pthread_mutex_lock(&host->config.program->mutex);
    host->next_closed = host->config.program->closed_hosts;
    host->config.program->closed_hosts = host;
    pthread_mutex_unlock(&host->config.program->mutex);
}

th_host *host_dispose(th_host *host)
{
    th_host *next = host->next_closed;

    free(host);
    return next;
}

void th_host_get_stats(th_host *host, th_host_stats *stats)
{
    *stats = (th_host_stats){
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
