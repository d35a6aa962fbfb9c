/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "wake.h"

static void check_graph_lock(host_co *self)
{
    host_context *context = host_context_current();

    if (context && host_graph_writer(context->program) == self) {
        host_die("coroutine %p parks while it holds the graph's write lock", (void *)self);
    }
}

void host_co_park(void)
{
    host_co *self = host_co_self_or_die("co_suspend");

    check_graph_lock(self);
    host_co_leave_parked(self);
}

/* In the home thread. co must have parked, since no other thread can be running it. */
static void wake_at_home(host_co *co, host_context *home, host_co_state state, host_run_mode mode)
{
    if (state != HOST_CO_PARKED) {
        host_die("coroutine %p woken by its own thread while it is %s", (void *)co,
                 host_co_state_name(state));
    }
    if (mode == HOST_RUN_QUEUED) {
        host_co_schedule(home, co);
    } else if (mode == HOST_RUN_NOW || !host_in_coroutine()) {
        host_co_enter_woken(co);
    } else {
        host_co_enter_after(host_co_self(), co);
    }
}

bool host_co_wake(host_co *co, host_run_mode mode)
{
    host_context *home;
    host_co_state state = atomic_load(&co->state);
    bool early;

    if (state == HOST_CO_LEADER) {
        host_die("wake of a thread's leader %p: plain code does not park", (void *)co);
    }
    if (atomic_exchange(&co->woken, true)) {
        host_die("coroutine %p woken twice", (void *)co);
    }
    state = atomic_load(&co->state);
    home = atomic_load(&co->home);
    if (home && home == host_context_current()) {
        wake_at_home(co, home, state, mode);
        return false;
    }
    early = state == HOST_CO_RUNNING;
    if (!early && state != HOST_CO_PARKED) {
        host_die("coroutine %p woken while it is %s", (void *)co, host_co_state_name(state));
    }
    if (!home) {
        host_die("coroutine %p parked in a thread that has no context", (void *)co);
    }
    host_co_schedule(home, co);
    return early;
}
