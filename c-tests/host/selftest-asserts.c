/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Entering or waking a coroutine in a state that forbids it aborts the process. */
#include <stdatomic.h>

#include "child.h"
#include "test.h"

static void do_no_misuse(void *arg)
{
    (void)arg;
}

static void child_without_misuse_exits_normally(void)
{
    char text[4096];

    CHECK_INT(run_child(do_no_misuse, text, sizeof(text)), 0);
    CHECK_STR(text, "");
}

/* ---- entering ---- */

static void enter_self(void *arg)
{
    (void)arg;
    host_co_enter(host_co_self());
}

static void enters_itself(void *arg)
{
    host_co_enter(host_co_create(enter_self, arg));
}

static host_co *outer;

static void enter_outer(void *arg)
{
    (void)arg;
    host_co_enter(outer);
}

static void enter_child_that_enters_outer(void *arg)
{
    (void)arg;
    host_co_enter(host_co_create(enter_outer, NULL));
}

static void enters_its_caller(void *arg)
{
    outer = host_co_create(enter_child_that_enters_outer, arg);
    host_co_enter(outer);
}

static void spin(void *arg)
{
    atomic_bool *up = arg;

    atomic_store(up, true);
    EVENTUALLY(!atomic_load(up));
}

static void entered_in_two_threads(void *arg)
{
    static atomic_bool up;
    host_co *co = host_co_create(spin, &up);

    (void)arg;
    host_co_schedule(host_iothread_context(host_iothread_new(program)), co);
    EVENTUALLY(atomic_load(&up));
    host_co_enter(co);
}

static void entered_after_its_end(void *arg)
{
    host_co *co = host_co_create(do_nothing, arg);

    host_co_enter(co);
    host_co_enter(co);
}

static void entered_while_parked(void *arg)
{
    (void)arg;
    host_co_enter(parked_here());
}

static void entered_while_queued(void *arg)
{
    host_co *co = host_co_create(do_nothing, arg);

    host_co_schedule(here, co);
    host_co_enter(co);
}

static void scheduled_twice(void *arg)
{
    host_co *co = host_co_create(do_nothing, arg);

    host_co_schedule(here, co);
    host_co_schedule(here, co);
}

static void yield_in_plain_code(void *arg)
{
    (void)arg;
    host_co_yield();
}

static void invalid_enters_abort(void)
{
    check_aborts(enters_itself, "entered while it is running");
    check_aborts(enters_its_caller, "entered while it is running");
    check_aborts(entered_in_two_threads, "entered while it is running");
    check_aborts(entered_after_its_end, "entered while it is ended");
    check_aborts(entered_while_parked, "entered while it is parked by the library");
    check_aborts(entered_while_queued, "entered while it is queued");
    check_aborts(scheduled_twice, "scheduled twice");
    check_aborts(yield_in_plain_code, "yield outside a coroutine");
}

/* ---- waking ---- */

static void wake(void *co)
{
    vt->co_wake(vt->opaque, co);
}

static void woken_twice(void *arg)
{
    void *co = parked_here();

    (void)arg;
    wake(co);
    wake(co);
}

static void wake_twice(void *co)
{
    wake(co);
    wake(co);
}

/* Runs in the coroutine, before it parks. It never returns: the second wake aborts. */
static void have_another_thread_wake_twice(void *arg, const char *callback)
{
    atomic_bool never = false;

    (void)arg;
    if (strcmp(callback, "co_suspend") != 0) {
        return;
    }
    host_bh_schedule(host_iothread_context(host_iothread_new(program)), wake_twice, host_co_self());
    EVENTUALLY(atomic_load(&never));
}

static void woken_twice_before_it_parks(void *arg)
{
    host_adapter_on_call(host, have_another_thread_wake_twice, arg);
    parked_here();
}

static void woken_while_yielded(void *arg)
{
    (void)arg;
    wake(yielded_here());
}

static void woken_by_another_thread_while_yielded(void *arg)
{
    (void)arg;
    host_context_call(host_iothread_context(host_iothread_new(program)), false, wake,
                      yielded_here());
}

static void woken_before_its_first_enter(void *arg)
{
    wake(host_co_create(do_nothing, arg));
}

static void woken_after_its_end(void *arg)
{
    host_co *co = host_co_create(do_nothing, arg);

    host_co_enter(co);
    wake(co);
}

static void wake_self(void *arg)
{
    (void)arg;
    wake(host_co_self());
}

static void woken_by_itself(void *arg)
{
    host_co_enter(host_co_create(wake_self, arg));
}

static void wake_outer(void *arg)
{
    (void)arg;
    wake(outer);
}

static void enter_child_that_wakes_outer(void *arg)
{
    (void)arg;
    host_co_enter(host_co_create(wake_outer, NULL));
}

static void woken_by_the_coroutine_it_entered(void *arg)
{
    outer = host_co_create(enter_child_that_wakes_outer, arg);
    host_co_enter(outer);
}

static void leader_woken(void *arg)
{
    (void)arg;
    wake(vt->co_self(vt->opaque));
}

/* Set after another thread has woken the coroutine, which still runs and then does not park. */
static atomic_bool woken;

static void wake_and_report(void *co)
{
    wake(co);
    atomic_store(&woken, true);
}

static void wait_for_an_early_wake(void)
{
    host_bh_schedule(host_iothread_context(host_iothread_new(program)), wake_and_report,
                     host_co_self());
    EVENTUALLY(atomic_load(&woken));
}

static void end_after_an_early_wake(void *arg)
{
    (void)arg;
    wait_for_an_early_wake();
}

static void yield_after_an_early_wake(void *arg)
{
    (void)arg;
    wait_for_an_early_wake();
    host_co_yield();
}

static void woken_but_ends(void *arg)
{
    host_co_enter(host_co_create(end_after_an_early_wake, arg));
}

static void woken_but_waits_for_storage(void *arg)
{
    host_co_enter(host_co_create(yield_after_an_early_wake, arg));
}

static void park_in_plain_code(void *arg)
{
    (void)arg;
    vt->co_suspend(vt->opaque);
}

static void invalid_wakes_abort(void)
{
    check_aborts(woken_twice, "woken twice");
    check_aborts(woken_twice_before_it_parks, "woken twice");
    check_aborts(woken_while_yielded,
                 "woken by its own thread while it is waiting for the host's own");
    check_aborts(woken_by_another_thread_while_yielded,
                 "woken while it is waiting for the host's own");
    check_aborts(woken_before_its_first_enter, "woken while it is not yet entered");
    check_aborts(woken_after_its_end, "while it is ended");
    check_aborts(woken_by_itself, "woken by its own thread while it is running");
    check_aborts(woken_by_the_coroutine_it_entered, "woken by its own thread while it is running");
    check_aborts(leader_woken, "wake of a thread's leader");
    check_aborts(woken_but_ends, "ended while a wake is on its way");
    check_aborts(woken_but_waits_for_storage,
                 "was woken, and then waited for something of the host's");
    check_aborts(park_in_plain_code, "co_suspend outside a coroutine");
}

int main(void)
{
    test_begin();
    RUN(child_without_misuse_exits_normally);
    RUN(invalid_enters_abort);
    RUN(invalid_wakes_abort);
    return test_end();
}
