/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* The test host's coroutines: switching, identity, reuse, stacks. */
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
    host_co_yield();
    note(letters[1]);
}

static void enter_and_yield_alternate(void)
{
    host_co *a = host_co_create(two_steps, "ab");
    host_co *b = host_co_create(two_steps, "xy");

    trace_length = 0;
    host_co_enter(a);
    note('1');
    host_co_enter(b);
    note('2');
    host_co_enter(b);
    note('3');
    host_co_enter(a);
    CHECK_STR(trace, "a1x2y3b");
    CHECK_U64(host_co_alive(), 0);
}

static void nested_step(void *arg)
{
    host_co *inner = host_co_create(two_steps, "ab");

    (void)arg;
    host_co_enter(inner);
    note('-');
    host_co_yield(); /* returns to plain code, not to the inner coroutine */
    note('=');
    host_co_enter(inner);
}

static void coroutine_enters_another_coroutine(void)
{
    host_co *outer = host_co_create(nested_step, NULL);

    trace_length = 0;
    host_co_enter(outer);
    note('.');
    host_co_enter(outer);
    CHECK_STR(trace, "a-.=b");
}

static host_co *seen_self;
static bool seen_inside;

static void look(void *arg)
{
    (void)arg;
    seen_self = host_co_self();
    seen_inside = host_in_coroutine();
}

static void self_in_plain_code_is_the_thread_leader(void)
{
    host_program *program = host_program_new();
    host_iothread *t = host_iothread_new(program);
    host_co *leader = host_co_self();
    host_co *co;

    CHECK(leader != NULL);
    CHECK(!host_in_coroutine());
    co = host_co_create(look, NULL);
    host_co_enter(co);
    CHECK_PTR(seen_self, co);
    CHECK(seen_inside);
    CHECK_PTR(host_co_self(), leader);
    host_context_call(host_iothread_context(t), false, look, NULL);
    CHECK(seen_self != NULL && seen_self != leader);
    CHECK(!seen_inside);
    host_iothread_free(t);
    host_program_free(program);
}

static void ended_coroutine_is_reused_by_next_create(void)
{
    host_co *first = host_co_create(look, NULL);
    host_co *second;

    host_co_enter(first);
    second = host_co_create(look, NULL);
    CHECK_PTR(second, first);
    host_co_enter(second);
    CHECK_PTR(seen_self, second);
}

/* ---- across threads ---- */

struct ping_pong {
    host_context *contexts[2];
    unsigned rounds, in_place, kept_leader;
};

static void ping_pong(void *arg)
{
    struct ping_pong *p = arg;
    host_co *self = host_co_self();

    for (unsigned i = 0; i < p->rounds; i++) {
        host_context *to = p->contexts[i % 2];
        host_co_move(to);
        p->in_place += host_context_current() == to && host_co_home(self) == to;
        p->kept_leader += host_co_self() == self && host_in_coroutine();
    }
}

static void coroutine_moves_between_threads(void)
{
    host_program *program = host_program_new();
    host_context *here = host_context_new(program);
    host_iothread *a = host_iothread_new(program), *b = host_iothread_new(program);
    struct ping_pong p = { .contexts = { host_iothread_context(a), host_iothread_context(b) },
                           .rounds = 20000 };

    host_context_call(here, true, ping_pong, &p);
    CHECK_U64(p.in_place, p.rounds);
    CHECK_U64(p.kept_leader, p.rounds);
    host_iothread_free(a);
    host_iothread_free(b);
    host_context_free(here);
    host_program_free(program);
}

/* ---- stacks ---- */

static void use_stack(void *arg)
{
    volatile char room[20 * 1024];

    memset((char *)room, 1, sizeof(room));
    *(char *)arg = room[sizeof(room) / 2];
}

static void small_stack_holds_20_kib(void)
{
    char result = 0;

    host_co_set_stack_size(HOST_STACK_SIZE_SMALL);
    host_co_measure_stacks(true);
    host_co_enter(host_co_create(use_stack, &result));
    host_co_measure_stacks(false);
    host_co_set_stack_size(HOST_STACK_SIZE);
    CHECK_INT(result, 1);
    if (host_co_can_measure()) {
        CHECK_BETWEEN(host_co_stack_peak(), 20 * 1024, HOST_STACK_SIZE_SMALL);
    }
}

static void each_enter_counts_one_switch(void)
{
    uint64_t before = host_co_switches();
    host_co *co = host_co_create(two_steps, "ab");

    trace_length = 0;
    host_co_enter(co);
    host_co_enter(co);
    CHECK_U64(host_co_switches() - before, 2);
}

static void thousand_coroutines_are_alive_together(void)
{
    enum { N = 1000 };
    static host_co *all[N];

    for (int i = 0; i < N; i++) {
        all[i] = host_co_create(look, NULL);
    }
    CHECK_U64(host_co_alive(), N);
    for (int i = N - 1; i >= 0; i--) {
        host_co_enter(all[i]);
    }
    CHECK_U64(host_co_alive(), 0);
    host_co_pool_drain();
    host_co_enter(host_co_create(look, NULL));
    CHECK(seen_inside);
}

int main(void)
{
    test_begin();
    RUN(enter_and_yield_alternate);
    RUN(coroutine_enters_another_coroutine);
    RUN(self_in_plain_code_is_the_thread_leader);
    RUN(ended_coroutine_is_reused_by_next_create);
    RUN(coroutine_moves_between_threads);
    RUN(small_stack_holds_20_kib);
    RUN(each_enter_counts_one_switch);
    RUN(thousand_coroutines_are_alive_together);
    host_co_pool_drain();
    return test_end();
}
