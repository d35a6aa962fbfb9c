/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * The test host's poll_while: a kick from any thread is never lost, and the poller dispatches its
 * own context.
 */
#include <sched.h>
#include <stdatomic.h>

#include "host.h"
#include "test.h"

#define ROUNDS host_scale_rounds(100000)

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

struct exchange {
    atomic_uint asked, answered;
    unsigned expected;
};

static bool unanswered(void *arg)
{
    struct exchange *x = arg;
    return atomic_load(&x->answered) < x->expected;
}

static void answer(void *arg)
{
    struct exchange *x = arg;

    for (unsigned i = 1; i <= ROUNDS; i++) {
        while (atomic_load(&x->asked) < i) {
            sched_yield();
        }
        atomic_store(&x->answered, i);
        host_kick(program);
    }
}

static void no_kick_is_lost_under_stress(void)
{
    struct exchange x = { .expected = 0 };
    host_iothread *t;

    begin();
    t = host_iothread_new(program);
    host_bh_schedule(host_iothread_context(t), answer, &x);
    for (unsigned i = 1; i <= ROUNDS; i++) {
        x.expected = i;
        atomic_store(&x.asked, i);
        host_poll_while(program, unanswered, &x);
    }
    host_iothread_free(t);
    CHECK_U64(atomic_load(&x.answered), ROUNDS);
    end();
}

/* ---- a poller dispatches its own context, also nested ---- */

static bool is_clear(void *arg)
{
    return !*(bool *)arg;
}

static void set(void *arg)
{
    *(bool *)arg = true;
}

struct nested {
    bool outer, inner;
};

static void poll_nested(void *arg)
{
    struct nested *n = arg;

    host_bh_schedule(here, set, &n->inner);
    host_poll_while(program, is_clear, &n->inner);
    n->outer = true;
}

static void poll_while_dispatches_own_context_also_nested(void)
{
    struct nested n = { false, false };

    begin();
    host_bh_schedule(here, poll_nested, &n);
    host_poll_while(program, is_clear, &n.outer);
    CHECK(n.inner);
    end();
}

static bool never(void *arg)
{
    ++*(unsigned *)arg;
    return false;
}

static void poll_while_checks_condition_before_waiting(void)
{
    unsigned looks = 0;

    begin();
    host_poll_while(program, never, &looks);
    CHECK_U64(looks, 1);
    end();
}

struct waiter {
    atomic_bool over;
    atomic_uint looks, done;
};

static bool not_over(void *arg)
{
    struct waiter *w = arg;

    atomic_fetch_add(&w->looks, 1);
    return !atomic_load(&w->over);
}

static void wait_in_thread(void *arg)
{
    struct waiter *w = arg;

    host_poll_while(program, not_over, w);
    atomic_fetch_add(&w->done, 1);
}

static void kick_wakes_every_poller(void)
{
    struct waiter w = { .looks = 0 };
    host_iothread *t[3];
    unsigned looks;

    begin();
    for (int i = 0; i < 3; i++) {
        t[i] = host_iothread_new(program);
        host_bh_schedule(host_iothread_context(t[i]), wait_in_thread, &w);
    }
    EVENTUALLY(atomic_load(&w.looks) >= 3);
    looks = atomic_load(&w.looks);
    host_kick(program); /* nothing has changed: they check, and wait again */
    EVENTUALLY(atomic_load(&w.looks) >= looks + 3);
    CHECK_U64(atomic_load(&w.done), 0);
    atomic_store(&w.over, true);
    host_kick(program);
    EVENTUALLY(atomic_load(&w.done) == 3);
    for (int i = 0; i < 3; i++) {
        host_iothread_free(t[i]);
    }
    end();
}

static void poll_while_works_again_after_graph_unlock(void)
{
    bool done = true;

    begin();
    host_graph_wrlock(program);
    host_graph_wrunlock(program);
    host_graph_wrlock(program);
    host_kick(program);
    host_graph_wrunlock(program);
    host_poll_while(program, is_clear, &done);
    CHECK(done);
    end();
}

int main(void)
{
    test_begin();
    RUN(poll_while_checks_condition_before_waiting);
    RUN(poll_while_dispatches_own_context_also_nested);
    RUN(kick_wakes_every_poller);
    RUN(poll_while_works_again_after_graph_unlock);
    RUN(no_kick_is_lost_under_stress);
    host_co_pool_drain();
    return test_end();
}
