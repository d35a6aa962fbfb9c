/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* The test host's poll-while: a kick from any thread is never lost, and it dispatches what it
 * should. */
#include <sched.h>
#include <stdatomic.h>

#include "host.h"
#include "test.h"

#define HAMMER host_scale_rounds(100000)

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

    for (unsigned i = 1; i <= HAMMER; i++) {
        while (atomic_load(&x->asked) < i) {
            sched_yield();
        }
        atomic_store(&x->answered, i);
        host_kick(program);
    }
}

static void kick_hammered(void)
{
    struct exchange x = { .expected = 0 };
    host_iothread *t;

    begin();
    t = host_iothread_new(program);
    host_bh_schedule(host_iothread_context(t), answer, &x);
    for (unsigned i = 1; i <= HAMMER; i++) {
        x.expected = i;
        atomic_store(&x.asked, i);
        host_poll_while(program, unanswered, &x);
    }
    host_iothread_free(t);
    CHECK_U64(atomic_load(&x.answered), HAMMER);
    end();
}

/* ---- it turns its own context, nested too ---- */

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

static void it_turns_its_own_context(void)
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

static void it_looks_before_it_waits(void)
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

static void a_kick_reaches_every_poller(void)
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
    host_kick(program); /* nothing changed: they look, and wait on */
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

static void the_graph_lock_has_one_holder(void)
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
    RUN(it_looks_before_it_waits);
    RUN(it_turns_its_own_context);
    RUN(a_kick_reaches_every_poller);
    RUN(the_graph_lock_has_one_holder);
    RUN(kick_hammered);
    host_co_pool_drain();
    return test_end();
}
