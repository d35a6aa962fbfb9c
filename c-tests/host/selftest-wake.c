/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Parking and waking through the vtable: early wakes, and what a wake or a spawn in the home thread does. */
#include <sched.h>
#include <stdatomic.h>

#include "host.h"
#include "test.h"

#define HAMMER th_rounds(100000)

static th_program *program;
static th_context *here;
static th_host *host;
static const q2c_host *vt;

static void begin(th_mode wake, th_mode spawn)
{
    th_host_config config = {.wake = wake, .spawn = spawn};

    program = config.program = th_program_new();
    here = th_context_new(program);
    host = th_host_new(&config);
    vt = th_host_vtable(host);
}

static th_host_stats end(void)
{
    th_host_stats stats;

    th_host_get_stats(host, &stats);
    th_host_free(host);
    th_context_free(here);
    th_program_free(program);
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

/* What two coroutines do in their home thread, and plain code after them. */
static const char *run_mode(th_mode mode)
{
    void *co = NULL, *child = NULL;

    begin(mode, mode);
    trace_length = 0;
    th_co_enter(th_co_create(sleeper, &co));
    th_co_enter(th_co_create(waker, &co));
    th_context_poll(here, false);
    note(' ');
    th_co_enter(th_co_create(sleeper, &co));
    vt->co_wake(vt->opaque, co);
    note('.');
    th_context_poll(here, false);
    note(' ');
    th_co_enter(th_co_create(spawner, &child));
    th_context_poll(here, false);
    vt->co_wake(vt->opaque, *(void **)child);
    th_context_poll(here, false);
    CHECK_U64(end().early_wakes, 0);
    return trace;
}

static void wake_and_spawn_in_the_home_thread(void)
{
    CHECK_STR(run_mode(TH_QUEUE), "s()w s.w <>sw");
    CHECK_STR(run_mode(TH_NOW), "s(w) sw. <s>w");
    CHECK_STR(run_mode(TH_AFTER), "s()w sw. <>sw");
}

/* ---- early wakes ---- */

/* The library's parker, in short. */
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

static void wake_before_yield_hammered(void)
{
    struct parker p = {.rounds = HAMMER};
    th_host_stats stats;
    th_iothread *t;

    begin(TH_NOW, TH_NOW);
    t = th_iothread_new(program);
    th_co_schedule(th_iothread_context(t), th_co_create(park_often, &p));
    for (unsigned i = 0; i < HAMMER;) {
        if (wake_if_parked(&p)) {
            i++;
        } else {
            sched_yield();
        }
    }
    th_iothread_free(t);
    stats = end();
    CHECK_U64(atomic_load(&p.rounds_done), HAMMER);
    CHECK_U64(stats.wakes, HAMMER);
    CHECK_U64(stats.yields, HAMMER);
    test_note("%u wakes, %" PRIu64 " of them before the yield", HAMMER, stats.early_wakes);
}

static th_context *other;

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

/* In the coroutine, between its announcement and its yield: have another thread wake it, and wait until that is over. */
static void in_the_window(void *arg, const char *callback)
{
    if (strcmp(callback, "co_suspend") != 0) {
        return;
    }
    atomic_store(&wake_came, false);
    th_bh_schedule(other, wake_in_window, arg);
    atomic_store(&window_open, true);
    EVENTUALLY(atomic_load(&wake_came));
    atomic_store(&window_open, false);
}

static void every_wake_comes_before_its_yield(void)
{
    struct parker p = {.rounds = 50};
    th_host_stats stats;
    th_iothread *t;

    for (th_mode mode = TH_QUEUE; mode < TH_MODES; mode++) {
        atomic_store(&p.rounds_done, 0);
        begin(mode, mode);
        t = th_iothread_new(program);
        other = th_iothread_context(t);
        th_host_on_call(host, in_the_window, &p);
        th_call(here, true, park_often, &p);
        th_iothread_free(t);
        stats = end();
        CHECK_U64(atomic_load(&p.rounds_done), p.rounds);
        CHECK_U64(stats.early_wakes, p.rounds);
    }
}

/* ---- a wake from two threads at once: the parker lets one through ---- */

struct racers { struct parker *p; atomic_uint woken; };

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

static void two_wakers_and_one_sleeper(void)
{
    struct parker p = {.rounds = HAMMER / 10};
    struct racers r = {.p = &p};
    th_iothread *t[3];

    begin(TH_QUEUE, TH_QUEUE);
    for (int i = 0; i < 3; i++) {
        t[i] = th_iothread_new(program);
    }
    th_bh_schedule(th_iothread_context(t[0]), race_to_wake, &r);
    th_bh_schedule(th_iothread_context(t[1]), race_to_wake, &r);
    th_call(th_iothread_context(t[2]), true, park_often, &p);
    for (int i = 0; i < 3; i++) {
        th_iothread_free(t[i]);
    }
    CHECK_U64(end().wakes, p.rounds);
    CHECK_U64(atomic_load(&r.woken), p.rounds);
}

int main(void)
{
    test_begin();
    RUN(wake_and_spawn_in_the_home_thread);
    RUN(every_wake_comes_before_its_yield);
    RUN(wake_before_yield_hammered);
    RUN(two_wakers_and_one_sleeper);
    th_co_pool_drain();
    return test_end();
}
