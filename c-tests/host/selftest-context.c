/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* The test host's event loops: bottom halves, cross-thread scheduling, clocks and timers. */
#include <stdatomic.h>
#include <time.h>

#include "host.h"
#include "test.h"

#define MS INT64_C(1000000)

static th_program *program;
static th_context *here;

static void begin(void)
{
    program = th_program_new();
    here = th_context_new(program);
}

static void end(void)
{
    th_context_free(here);
    th_program_free(program);
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
    th_bh_schedule(here, note, "n");
}

static void bottom_halves_run_in_order(void)
{
    begin();
    trace_length = 0;
    CHECK(!th_context_poll(here, false));
    th_bh_schedule(here, note, "a");
    th_bh_schedule(here, note_and_schedule, "b");
    th_bh_schedule(here, note, "c");
    CHECK(th_context_poll(here, false));
    CHECK_STR(trace, "abc"); /* one added by one that runs waits for the next round */
    CHECK(th_context_poll(here, true));
    CHECK_STR(trace, "abcn");
    CHECK(!th_context_poll(here, false));
    end();
}

struct counted { atomic_uint n; th_context *context; unsigned wrong; };

static void count_here(void *arg)
{
    struct counted *c = arg;

    c->wrong += th_context_current() != c->context;
    atomic_fetch_add(&c->n, 1);
}

static void bottom_halves_of_another_thread_all_come(void)
{
    enum { N = 20000 };
    struct counted c = {.n = 0};
    th_iothread *t;

    begin();
    t = th_iothread_new(program);
    c.context = th_iothread_context(t);
    for (int i = 0; i < N; i++) {
        th_bh_schedule(c.context, count_here, &c);
    }
    th_iothread_free(t); /* runs what is ready first */
    CHECK_U64(atomic_load(&c.n), N);
    CHECK_U64(c.wrong, 0);
    end();
}

static void inside(void *arg)
{
    *(int *)arg = th_in_coroutine() ? 1 : 2;
}

static void calls_run_in_a_coroutine_or_plain(void)
{
    int result = 0;
    th_iothread *t;

    begin();
    t = th_iothread_new(program);
    th_call(th_iothread_context(t), true, inside, &result);
    CHECK_INT(result, 1);
    th_call(th_iothread_context(t), false, inside, &result);
    CHECK_INT(result, 2);
    th_call(here, true, inside, &result);
    CHECK_INT(result, 1);
    th_call(here, false, inside, &result);
    CHECK_INT(result, 2);
    th_iothread_free(t);
    end();
}

/* ---- timers ---- */

static void timers_fire_in_order_of_deadline(void)
{
    th_timer *a, *b, *c, *d;
    int64_t now;

    begin();
    th_clock_stop(program);
    now = th_clock_now(program);
    trace_length = 0;
    trace[0] = 0;
    a = th_timer_new(false, (void (*)(void *))note, "a");
    b = th_timer_new(false, (void (*)(void *))note, "b");
    c = th_timer_new(false, (void (*)(void *))note, "c");
    d = th_timer_new(false, (void (*)(void *))note, "d");
    th_timer_mod(a, now + 30);
    th_timer_mod(b, now + 10);
    th_timer_mod(c, now + 20);
    th_timer_mod(d, now + 20);
    th_clock_step(program, 9);
    th_context_poll(here, false);
    CHECK_STR(trace, "");
    th_clock_step(program, 1);
    th_context_poll(here, true);
    CHECK_STR(trace, "b");
    th_timer_del(d);
    th_timer_mod(b, now + 40);
    th_clock_step(program, 100);
    th_context_poll(here, true);
    CHECK_STR(trace, "bcab");
    th_context_poll(here, false);
    CHECK_STR(trace, "bcab"); /* once each */
    th_timer_free(a);
    th_timer_free(b);
    th_timer_free(c);
    th_timer_free(d);
    end();
}

static int64_t real_clock(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000 * MS + ts.tv_nsec;
}

static void a_stopped_clock_stands_still(void)
{
    int64_t at;
    th_timer *timer, *real;

    begin();
    trace_length = 0;
    trace[0] = 0;
    timer = th_timer_new(false, (void (*)(void *))note, "v");
    real = th_timer_new(true, (void (*)(void *))note, "r");
    th_clock_stop(program);
    at = th_clock_now(program);
    th_timer_mod(timer, at + 5 * MS);
    th_timer_mod(real, real_clock() + 20 * MS);
    while (trace_length == 0) {
        th_context_poll(here, true);
    }
    CHECK_STR(trace, "r"); /* 20 ms went by outside */
    CHECK_INT(th_clock_now(program), at);
    th_clock_resume(program);
    CHECK_BETWEEN(th_clock_now(program), at, at + 1000 * MS);
    while (trace_length == 1) {
        th_context_poll(here, true);
    }
    CHECK_STR(trace, "rv");
    CHECK(th_clock_now(program) >= at + 5 * MS);
    th_timer_free(timer);
    th_timer_free(real);
    end();
}

static void timers_may_be_kept_from_firing(void)
{
    th_timer *timer;

    begin();
    trace_length = 0;
    trace[0] = 0;
    timer = th_timer_new(false, (void (*)(void *))note, "v");
    th_clock_set_firing(program, false);
    th_timer_mod(timer, th_clock_now(program) - 1);
    CHECK(!th_context_poll(here, false));
    th_clock_set_firing(program, true);
    CHECK(th_context_poll(here, true));
    CHECK_STR(trace, "v");
    th_timer_free(timer);
    end();
}

struct rearm { th_timer *timer; unsigned n; };

static void rearm(void *arg)
{
    struct rearm *r = arg;

    r->n++;
    th_timer_mod(r->timer, th_clock_now(program));
}

static void a_timer_that_rearms_itself_for_now_starves_nobody(void)
{
    struct rearm r = {.n = 0};

    begin();
    th_clock_stop(program);
    r.timer = th_timer_new(false, rearm, &r);
    th_timer_mod(r.timer, 0);
    for (unsigned i = 1; i <= 3; i++) {
        CHECK(th_context_poll(here, false));
        CHECK_U64(r.n, i);
    }
    th_timer_free(r.timer);
    end();
}

struct sleeper { int64_t ns, woke_at; bool home; };

static void sleep_once(void *arg)
{
    struct sleeper *s = arg;
    th_context *before = th_context_current();

    th_co_sleep_ns(false, s->ns);
    s->woke_at = th_clock_now(program);
    s->home = th_context_current() == before;
}

static void coroutines_sleep_on_a_clock_stepped_from_another_thread(void)
{
    struct sleeper s[3] = {{.ns = 3}, {.ns = 1}, {.ns = 2}};
    th_iothread *t;
    int64_t start;

    begin();
    th_clock_stop(program);
    start = th_clock_now(program);
    t = th_iothread_new(program);
    for (int i = 0; i < 3; i++) {
        th_co_schedule(th_iothread_context(t), th_co_create(sleep_once, &s[i]));
    }
    while (th_co_alive()) {
        th_clock_step(program, 1);
        test_pause();
    }
    for (int i = 0; i < 3; i++) {
        CHECK(s[i].home);
        CHECK(s[i].woke_at >= start + s[i].ns);
    }
    th_iothread_free(t);
    end();
}

int main(void)
{
    test_begin();
    RUN(bottom_halves_run_in_order);
    RUN(bottom_halves_of_another_thread_all_come);
    RUN(calls_run_in_a_coroutine_or_plain);
    RUN(timers_fire_in_order_of_deadline);
    RUN(a_stopped_clock_stands_still);
    RUN(timers_may_be_kept_from_firing);
    RUN(a_timer_that_rearms_itself_for_now_starves_nobody);
    RUN(coroutines_sleep_on_a_clock_stepped_from_another_thread);
    th_co_pool_drain();
    return test_end();
}
