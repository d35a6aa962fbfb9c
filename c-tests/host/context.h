/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Layer 8. Event loops, one per thread: QEMU's AioContext. Each has a list of things to run (bottom
 * halves and coroutines), timers, and a notifier to wait on.
 */
#ifndef TESTHOST_CONTEXT_H
#define TESTHOST_CONTEXT_H
#include "timer.h"

/*
 * A context for the calling thread, which must not have one. The thread runs it by
 * host_context_poll() or host_poll_while().
 */
host_context *host_context_new(host_program *program);
/* Home thread. Aborts if an item to run or a timer is left in it. */
void host_context_free(host_context *context);
/* The calling thread's context, or NULL. */
host_context *host_context_current(void);
host_program *host_context_program(host_context *context);
/*
 * Runs the items and timers that are ready. If none is ready and @wait is set, waits first; the
 * wait may end early. Plain code in the home thread. Returns true if something ran.
 */
bool host_context_poll(host_context *context, bool wait);

/* Calls fn(arg) once, in plain code in the context's thread. Any thread. */
void host_bh_schedule(host_context *context, host_fn *fn, void *arg);
/*
 * Enters @co, created or yielded, in the context's thread. Any thread; aborts if it is queued
 * already. Unless the context is its home, @co must have yielded before (host_co_yield_then).
 */
void host_co_schedule(host_context *context, host_co *co);
/* Moves the running coroutine to another context, and returns in its thread. */
void host_co_move(host_context *context);

/*
 * A timer of the calling thread's context, on the virtual clock, or on CLOCK_MONOTONIC if
 * @realtime.
 * @cb runs in plain code. See timer.h for the rest.
 */
host_timer *host_timer_new(bool realtime, void (*cb)(void *arg), void *arg);
/* Suspends the running coroutine for @ns. It continues in the same context. */
void host_co_sleep_ns(bool realtime, int64_t ns);

/* ---- for the layers above -------------------------------------------------------------------- */

struct host_context {
    host_program *program;
    host_member member;    /* of program; its notifier ends a wait of this context */
    pthread_mutex_t mutex; /* the list: head, tail, n_items */
    host_item *head, **tail;
    size_t n_items;
    host_timer_group timers; /* home thread only */
};

#endif
