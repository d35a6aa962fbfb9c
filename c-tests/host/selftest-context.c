/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* The test host's event loops: bottom halves, cross-thread scheduling, clocks and timers. */
#include <stdatomic.h>
#include <time.h>

#include "host.h"
#include "test.h"

#define MS INT64_C(1000000)

static host_program *program;
static host_context *here;

static void begin(void)
{
    program = host_program_new();
    here = host_context_new(program);
}

static void end(void)
{
    host_context_free(here);
    host_program_free(program);
}

/* ---- bottom halves ---- */

static char trace[64];
static size_t trace_length;

static void note(void *arg)
{
    trace[trace_length++] = *(const char *)arg;
    trace[trace_length] = 0;
}

static void note_and_schedule(void *arg)
{
    note(arg);
    host_bh_schedule(here, note, "n");
}

static void bottom_halves_run_in_order(void)
{
    begin();
    trace_length = 0;
    CHECK(!host_context_poll(here, false));
    host_bh_schedule(here, note, "a");
    host_bh_schedule(here, note_and_schedule, "b");
    host_bh_schedule(here, note, "c");
    CHECK(host_context_poll(here, false));
    CHECK_STR(trace, "abc"); /* what a bottom half adds runs in the next round */
    CHECK(host_context_poll(here, true));
    CHECK_STR(trace, "abcn");
    CHECK(!host_context_poll(here, false));
    end();
}

struct counted {
    atomic_uint n;
    host_context *context;
    unsigned wrong;
};

static void count_here(void *arg)
{
    struct counted *c = arg;

    c->wrong += host_context_current() != c->context;
    atomic_fetch_add(&c->n, 1);
}

static void bottom_halves_from_another_thread_all_run(void)
{
    enum { N = 20000 };
    struct counted c = { .n = 0 };
    host_iothread *t;

    begin();
    t = host_iothread_new(program);
    c.context = host_iothread_context(t);
    for (int i = 0; i < N; i++) {
        host_bh_schedule(c.context, count_here, &c);
    }
    host_iothread_free(t); /* first runs what is ready */
    CHECK_U64(atomic_load(&c.n), N);
    CHECK_U64(c.wrong, 0);
    end();
}

static void inside(void *arg)
{
    *(int *)arg = host_in_coroutine() ? 1 : 2;
}

static void context_call_runs_in_coroutine_or_plain_code(void)
{
    int result = 0;
    host_iothread *t;

    begin();
    t = host_iothread_new(program);
    host_context_call(host_iothread_context(t), true, inside, &result);
    CHECK_INT(result, 1);
    host_context_call(host_iothread_context(t), false, inside, &result);
    CHECK_INT(result, 2);
    host_context_call(here, true, inside, &result);
    CHECK_INT(result, 1);
    host_context_call(here, false, inside, &result);
    CHECK_INT(result, 2);
    host_iothread_free(t);
    end();
}

/* ---- timers ---- */

static void timers_fire_in_order_of_deadline(void)
{
    host_timer *a, *b, *c, *d;
    int64_t now;

    begin();
    host_clock_stop(program);
    now = host_clock_now(program);
    trace_length = 0;
    trace[0] = 0;
    a = host_timer_new(false, (void (*)(void *))note, "a");
    b = host_timer_new(false, (void (*)(void *))note, "b");
    c = host_timer_new(false, (void (*)(void *))note, "c");
    d = host_timer_new(false, (void (*)(void *))note, "d");
    host_timer_mod(a, now + 30);
    host_timer_mod(b, now + 10);
    host_timer_mod(c, now + 20);
    host_timer_mod(d, now + 20);
    host_clock_step(program, 9);
    host_context_poll(here, false);
    CHECK_STR(trace, "");
    host_clock_step(program, 1);
    host_context_poll(here, true);
    CHECK_STR(trace, "b");
    host_timer_del(d);
    host_timer_mod(b, now + 40);
    host_clock_step(program, 100);
    host_context_poll(here, true);
    CHECK_STR(trace, "bcab");
    host_context_poll(here, false);
    CHECK_STR(trace, "bcab"); /* each fires once */
    host_timer_free(a);
    host_timer_free(b);
    host_timer_free(c);
    host_timer_free(d);
    end();
}

static int64_t real_clock(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000 * MS + ts.tv_nsec;
}

static void stopped_clock_does_not_advance(void)
{
    int64_t at;
    host_timer *timer, *real;

    begin();
    trace_length = 0;
    trace[0] = 0;
    timer = host_timer_new(false, (void (*)(void *))note, "v");
    real = host_timer_new(true, (void (*)(void *))note, "r");
    host_clock_stop(program);
    at = host_clock_now(program);
    host_timer_mod(timer, at + 5 * MS);
    host_timer_mod(real, real_clock() + 20 * MS);
    while (trace_length == 0) {
        host_context_poll(here, true);
    }
    CHECK_STR(trace, "r"); /* 20 ms of real time have passed */
    CHECK_INT(host_clock_now(program), at);
    host_clock_resume(program);
    CHECK_BETWEEN(host_clock_now(program), at, at + 1000 * MS);
    while (trace_length == 1) {
        host_context_poll(here, true);
    }
    CHECK_STR(trace, "rv");
    CHECK(host_clock_now(program) >= at + 5 * MS);
    host_timer_free(timer);
    host_timer_free(real);
    end();
}

static void timers_do_not_fire_while_firing_is_off(void)
{
    host_timer *timer;

    begin();
    trace_length = 0;
    trace[0] = 0;
    timer = host_timer_new(false, (void (*)(void *))note, "v");
    host_clock_set_firing(program, false);
    host_timer_mod(timer, host_clock_now(program) - 1);
    CHECK(!host_context_poll(here, false));
    host_clock_set_firing(program, true);
    CHECK(host_context_poll(here, true));
    CHECK_STR(trace, "v");
    host_timer_free(timer);
    end();
}

struct rearm {
    host_timer *timer;
    unsigned n;
};

static void rearm(void *arg)
{
    struct rearm *r = arg;

    r->n++;
    host_timer_mod(r->timer, host_clock_now(program));
}

static void self_rearming_timer_fires_once_per_round(void)
{
    struct rearm r = { .n = 0 };

    begin();
    host_clock_stop(program);
    r.timer = host_timer_new(false, rearm, &r);
    host_timer_mod(r.timer, 0);
    for (unsigned i = 1; i <= 3; i++) {
        CHECK(host_context_poll(here, false));
        CHECK_U64(r.n, i);
    }
    host_timer_free(r.timer);
    end();
}

struct sleeper {
    int64_t ns, woke_at;
    bool home;
};

static void sleep_once(void *arg)
{
    struct sleeper *s = arg;
    host_context *before = host_context_current();

    host_co_sleep_ns(false, s->ns);
    s->woke_at = host_clock_now(program);
    s->home = host_context_current() == before;
}

static void sleep_follows_clock_stepped_by_another_thread(void)
{
    struct sleeper s[3] = { { .ns = 3 }, { .ns = 1 }, { .ns = 2 } };
    host_iothread *t;
    int64_t start;

    begin();
    host_clock_stop(program);
    start = host_clock_now(program);
    t = host_iothread_new(program);
    for (int i = 0; i < 3; i++) {
        host_co_schedule(host_iothread_context(t), host_co_create(sleep_once, &s[i]));
    }
    while (host_co_alive()) {
        host_clock_step(program, 1);
        test_pause();
    }
    for (int i = 0; i < 3; i++) {
        CHECK(s[i].home);
        CHECK(s[i].woke_at >= start + s[i].ns);
    }
    host_iothread_free(t);
    end();
}

int main(void)
{
    test_begin();
    RUN(bottom_halves_run_in_order);
    RUN(bottom_halves_from_another_thread_all_run);
    RUN(context_call_runs_in_coroutine_or_plain_code);
    RUN(timers_fire_in_order_of_deadline);
    RUN(stopped_clock_does_not_advance);
    RUN(timers_do_not_fire_while_firing_is_off);
    RUN(self_rearming_timer_fires_once_per_round);
    RUN(sleep_follows_clock_stepped_by_another_thread);
    host_co_pool_drain();
    return test_end();
}
