/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Parking and waking through the callback table: early wakes, and when a coroutine runs that is
 * woken or spawned in its home thread.
 */
#include <sched.h>
#include <stdatomic.h>

#include "host.h"
#include "test.h"

#define ROUNDS host_scale_rounds(100000)

static host_program *program;
static host_context *here;
static host_adapter *host;
static const q2c_host *vt;

static void begin(host_run_mode wake, host_run_mode spawn)
{
    host_adapter_config config = { .wake = wake, .spawn = spawn };

    program = config.program = host_program_new();
    here = host_context_new(program);
    host = host_adapter_new(&config);
    vt = host_adapter_vtable(host);
}

static host_adapter_stats end(void)
{
    host_adapter_stats stats;

    host_adapter_get_stats(host, &stats);
    host_adapter_free(host);
    host_context_free(here);
    host_program_free(program);
    return stats;
}

/* ---- the modes ---- */

static char trace[32];
static size_t trace_length;

static void note(char c)
{
    trace[trace_length++] = c;
    trace[trace_length] = 0;
}

static void sleeper(void *arg)
{
    void **co = arg;

    note('s');
    *co = vt->co_self(vt->opaque);
    vt->co_suspend(vt->opaque);
    note('w');
}

static void waker(void *arg)
{
    void **co = arg;

    note('(');
    vt->co_wake(vt->opaque, *co);
    note(')');
}

static void spawner(void *arg)
{
    static void *child;

    note('<');
    vt->co_spawn(vt->opaque, NULL, sleeper, &child);
    note('>');
    *(void **)arg = &child;
}

/*
 * A trace of a wake from a coroutine, a wake from plain code and a spawn, all in the home thread,
 * with a space between them. s: the sleeper runs, w: it was woken; ( ) < >: begin and end of the
 * waker and the spawner.
 */
static const char *run_mode(host_run_mode mode)
{
    void *co = NULL, *child = NULL;

    begin(mode, mode);
    trace_length = 0;
    host_co_enter(host_co_create(sleeper, &co));
    host_co_enter(host_co_create(waker, &co));
    host_context_poll(here, false);
    note(' ');
    host_co_enter(host_co_create(sleeper, &co));
    vt->co_wake(vt->opaque, co);
    note('.');
    host_context_poll(here, false);
    note(' ');
    host_co_enter(host_co_create(spawner, &child));
    host_context_poll(here, false);
    vt->co_wake(vt->opaque, *(void **)child);
    host_context_poll(here, false);
    CHECK_U64(end().early_wakes, 0);
    return trace;
}

static void run_mode_decides_when_woken_or_spawned_coroutine_runs(void)
{
    CHECK_STR(run_mode(HOST_RUN_QUEUED), "s()w s.w <>sw");
    CHECK_STR(run_mode(HOST_RUN_NOW), "s(w) sw. <s>w");
    CHECK_STR(run_mode(HOST_RUN_AFTER), "s()w sw. <>sw");
}

/* ---- early wakes ---- */

/* A short form of the library's parker. */
enum { RUNNING, PARKED, NOTIFIED };

struct parker {
    atomic_int state;
    void *co;
    atomic_uint rounds_done;
    unsigned rounds;
};

static void park_often(void *arg)
{
    struct parker *p = arg;

    p->co = vt->co_self(vt->opaque);
    for (unsigned i = 0; i < p->rounds; i++) {
        atomic_store(&p->state, PARKED);
        vt->co_suspend(vt->opaque);
        if (atomic_exchange(&p->state, RUNNING) == NOTIFIED) {
            atomic_fetch_add(&p->rounds_done, 1);
        }
    }
}

static bool wake_if_parked(struct parker *p)
{
    int parked = PARKED;

    if (!atomic_compare_exchange_strong(&p->state, &parked, NOTIFIED)) {
        return false;
    }
    vt->co_wake(vt->opaque, p->co);
    return true;
}

static void no_wake_is_lost_racing_with_park(void)
{
    struct parker p = { .rounds = ROUNDS };
    host_adapter_stats stats;
    host_iothread *t;

    begin(HOST_RUN_NOW, HOST_RUN_NOW);
    t = host_iothread_new(program);
    host_co_schedule(host_iothread_context(t), host_co_create(park_often, &p));
    for (unsigned i = 0; i < ROUNDS;) {
        if (wake_if_parked(&p)) {
            i++;
        } else {
            sched_yield();
        }
    }
    host_iothread_free(t);
    stats = end();
    CHECK_U64(atomic_load(&p.rounds_done), ROUNDS);
    CHECK_U64(stats.wakes, ROUNDS);
    CHECK_U64(stats.yields, ROUNDS);
    test_note("%u wakes, %" PRIu64 " of them early", ROUNDS, stats.early_wakes);
}

static host_context *other;

static void wake_it(void *arg)
{
    wake_if_parked(arg);
}

static atomic_bool window_open, wake_came;

static void wake_in_window(void *arg)
{
    struct parker *p = arg;

    EVENTUALLY(atomic_load(&window_open));
    wake_it(p);
    atomic_store(&wake_came, true);
}

/*
 * Runs in the coroutine, after it announced that it parks and before it yields: has another thread
 * wake it, and waits until that wake has returned.
 */
static void have_another_thread_wake_early(void *arg, const char *callback)
{
    if (strcmp(callback, "co_suspend") != 0) {
        return;
    }
    atomic_store(&wake_came, false);
    host_bh_schedule(other, wake_in_window, arg);
    atomic_store(&window_open, true);
    EVENTUALLY(atomic_load(&wake_came));
    atomic_store(&window_open, false);
}

static void early_wake_is_not_lost(void)
{
    struct parker p = { .rounds = 50 };
    host_adapter_stats stats;
    host_iothread *t;

    for (host_run_mode mode = HOST_RUN_QUEUED; mode < HOST_RUN_MODES; mode++) {
        atomic_store(&p.rounds_done, 0);
        begin(mode, mode);
        t = host_iothread_new(program);
        other = host_iothread_context(t);
        host_adapter_on_call(host, have_another_thread_wake_early, &p);
        host_context_call(here, true, park_often, &p);
        host_iothread_free(t);
        stats = end();
        CHECK_U64(atomic_load(&p.rounds_done), p.rounds);
        CHECK_U64(stats.early_wakes, p.rounds);
    }
}

/* ---- two threads try to wake: the parker lets one through ---- */

struct racers {
    struct parker *p;
    atomic_uint woken;
};

static void race_to_wake(void *arg)
{
    struct racers *r = arg;

    while (atomic_load(&r->p->rounds_done) < r->p->rounds) {
        if (wake_if_parked(r->p)) {
            atomic_fetch_add(&r->woken, 1);
        } else {
            sched_yield();
        }
    }
}

static void only_one_of_two_racing_wakers_wakes(void)
{
    struct parker p = { .rounds = ROUNDS / 10 };
    struct racers r = { .p = &p };
    host_iothread *t[3];

    begin(HOST_RUN_QUEUED, HOST_RUN_QUEUED);
    for (int i = 0; i < 3; i++) {
        t[i] = host_iothread_new(program);
    }
    host_bh_schedule(host_iothread_context(t[0]), race_to_wake, &r);
    host_bh_schedule(host_iothread_context(t[1]), race_to_wake, &r);
    host_context_call(host_iothread_context(t[2]), true, park_often, &p);
    for (int i = 0; i < 3; i++) {
        host_iothread_free(t[i]);
    }
    CHECK_U64(end().wakes, p.rounds);
    CHECK_U64(atomic_load(&r.woken), p.rounds);
}

int main(void)
{
    test_begin();
    RUN(run_mode_decides_when_woken_or_spawned_coroutine_runs);
    RUN(early_wake_is_not_lost);
    RUN(no_wake_is_lost_racing_with_park);
    RUN(only_one_of_two_racing_wakers_wakes);
    host_co_pool_drain();
    return test_end();
}
