/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* The test host's coroutines: switching, identity, recycling, stacks. */
#include <stdatomic.h>
#include <string.h>

#include "host.h"
#include "test.h"

static char trace[128];
static size_t trace_length;

static void note(char c)
{
    trace[trace_length++] = c;
    trace[trace_length] = 0;
}

static void two_steps(void *arg)
{
    const char *letters = arg;

    note(letters[0]);
    th_co_yield();
    note(letters[1]);
}

static void enter_and_yield_alternate(void)
{
    th_co *a = th_co_create(two_steps, "ab");
    th_co *b = th_co_create(two_steps, "xy");

    trace_length = 0;
    th_co_enter(a);
    note('1');
    th_co_enter(b);
    note('2');
    th_co_enter(b);
    note('3');
    th_co_enter(a);
    CHECK_STR(trace, "a1x2y3b");
    CHECK_U64(th_co_alive(), 0);
}

static void nested_step(void *arg)
{
    th_co *inner = th_co_create(two_steps, "ab");

    (void)arg;
    th_co_enter(inner);
    note('-');
    th_co_yield(); /* back to plain code, not to the inner one */
    note('=');
    th_co_enter(inner);
}

static void a_coroutine_enters_another(void)
{
    th_co *outer = th_co_create(nested_step, NULL);

    trace_length = 0;
    th_co_enter(outer);
    note('.');
    th_co_enter(outer);
    CHECK_STR(trace, "a-.=b");
}

static th_co *seen_self;
static bool seen_inside;

static void look(void *arg)
{
    (void)arg;
    seen_self = th_co_self();
    seen_inside = th_in_coroutine();
}

static void self_is_a_leader_in_plain_code(void)
{
    th_program *program = th_program_new();
    th_iothread *t = th_iothread_new(program);
    th_co *leader = th_co_self();
    th_co *co;

    CHECK(leader != NULL);
    CHECK(!th_in_coroutine());
    co = th_co_create(look, NULL);
    th_co_enter(co);
    CHECK_PTR(seen_self, co);
    CHECK(seen_inside);
    CHECK_PTR(th_co_self(), leader);
    th_call(th_iothread_context(t), false, look, NULL);
    CHECK(seen_self != NULL && seen_self != leader);
    CHECK(!seen_inside);
    th_iothread_free(t);
    th_program_free(program);
}

static void ended_coroutines_are_recycled_at_once(void)
{
    th_co *first = th_co_create(look, NULL);
    th_co *second;

    th_co_enter(first);
    second = th_co_create(look, NULL);
    CHECK_PTR(second, first);
    th_co_enter(second);
    CHECK_PTR(seen_self, second);
}

/* ---- across threads ---- */

struct ping_pong {
    th_context *contexts[2];
    unsigned rounds, in_place, kept_leader;
};

static void ping_pong(void *arg)
{
    struct ping_pong *p = arg;
    th_co *self = th_co_self();

    for (unsigned i = 0; i < p->rounds; i++) {
        th_context *to = p->contexts[i % 2];
        th_co_move(to);
        p->in_place += th_context_current() == to && th_co_home(self) == to;
        p->kept_leader += th_co_self() == self && th_in_coroutine();
    }
}

static void a_coroutine_moves_between_threads(void)
{
    th_program *program = th_program_new();
    th_context *here = th_context_new(program);
    th_iothread *a = th_iothread_new(program), *b = th_iothread_new(program);
    struct ping_pong p = {.contexts = {th_iothread_context(a), th_iothread_context(b)}, .rounds = 20000};

    th_call(here, true, ping_pong, &p);
    CHECK_U64(p.in_place, p.rounds);
    CHECK_U64(p.kept_leader, p.rounds);
    th_iothread_free(a);
    th_iothread_free(b);
    th_context_free(here);
    th_program_free(program);
}

/* ---- stacks ---- */

static void use_stack(void *arg)
{
    volatile char room[20 * 1024];

    memset((char *)room, 1, sizeof(room));
    *(char *)arg = room[sizeof(room) / 2];
}

static void small_stacks_hold_what_they_say(void)
{
    char result = 0;

    th_co_set_stack_size(TH_STACK_SIZE_SMALL);
    th_co_measure_stacks(true);
    th_co_enter(th_co_create(use_stack, &result));
    th_co_measure_stacks(false);
    th_co_set_stack_size(TH_STACK_SIZE);
    CHECK_INT(result, 1);
    if (th_co_stacks_measurable()) {
        CHECK_BETWEEN(th_co_stack_peak(), 20 * 1024, TH_STACK_SIZE_SMALL);
    }
}

static void switches_are_counted(void)
{
    uint64_t before = th_co_switches();
    th_co *co = th_co_create(two_steps, "ab");

    trace_length = 0;
    th_co_enter(co);
    th_co_enter(co);
    CHECK_U64(th_co_switches() - before, 2);
}

static void many_at_once(void)
{
    enum { N = 1000 };
    static th_co *all[N];

    for (int i = 0; i < N; i++) {
        all[i] = th_co_create(look, NULL);
    }
    CHECK_U64(th_co_alive(), N);
    for (int i = N - 1; i >= 0; i--) {
        th_co_enter(all[i]);
    }
    CHECK_U64(th_co_alive(), 0);
    th_co_pool_drain();
    th_co_enter(th_co_create(look, NULL));
    CHECK(seen_inside);
}

int main(void)
{
    test_begin();
    RUN(enter_and_yield_alternate);
    RUN(a_coroutine_enters_another);
    RUN(self_is_a_leader_in_plain_code);
    RUN(ended_coroutines_are_recycled_at_once);
    RUN(a_coroutine_moves_between_threads);
    RUN(small_stacks_hold_what_they_say);
    RUN(switches_are_counted);
    RUN(many_at_once);
    th_co_pool_drain();
    return test_end();
}
