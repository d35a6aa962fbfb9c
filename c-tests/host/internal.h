/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* What the host's files share. */
#ifndef TESTHOST_INTERNAL_H
#define TESTHOST_INTERNAL_H
#include <pthread.h>
#include <stdatomic.h>
#include <ucontext.h>

#include "host.h"

/* ---- coroutines ---- */

/*
 * A coroutine's state. Who moves it:
 *
 *   FREE -> CREATED             host_co_create, out of the pool
 *   CREATED, YIELDED -> RUNNING an enter by the host
 *   PARKED -> RUNNING           an enter that follows host_co_wake
 *   RUNNING -> YIELDED, PARKED, FREE   the enterer, once the coroutine is off its stack
 *
 * Every other attempt is a bug of the caller and dies.
 */
typedef enum co_state { CO_FREE, CO_CREATED, CO_RUNNING, CO_YIELDED, CO_PARKED, CO_LEADER } co_state;

typedef struct host_stack {
    char *map;                  /* guard page, then the stack */
    size_t map_size;
    char *bottom;
    size_t size;
    bool painted;
    unsigned valgrind_id;
} host_stack;

/* What the sanitizers must be told about a stack at each switch. */
typedef struct host_fiber {
    void *fake_stack;
    const void *bottom;
    size_t size;
    void *tsan;
} host_fiber;

/* Something to run in a context: a coroutine, or a function. */
typedef struct host_item {
    struct host_item *next;
    host_co *co;
    host_fn *fn;
    void *arg;
} host_item;

struct host_co {
    ucontext_t uc;
    host_fiber fiber;
    host_stack stack;
    host_fn *entry;
    void *arg;
    _Atomic co_state state;
    _Atomic(host_context *) home;
    host_co *caller;              /* who entered; set while running */
    co_state leaves_as;         /* what the enterer moves the state to */
    host_fn *then;                /* runs after that */
    void *then_arg;
    atomic_bool woken;          /* host_co_wake came, its enter did not yet */
    atomic_bool queued;         /* item is in a context's list */
    host_item item;
    host_co *after_head, *after_tail, *after_next; /* HOST_RUN_AFTER: to enter when this one leaves; home thread only */
    host_co *pool_next;
};

void stack_alloc(host_stack *stack, size_t size);
void stack_free(host_stack *stack);
void stack_paint(host_stack *stack);
size_t stack_used(const host_stack *stack);

/* Run a queued coroutine, whoever queued it. */
void co_enter_queued(host_co *co);

/* ---- programs and contexts ---- */

typedef struct timer_list { host_timer *head; size_t n; } timer_list;

struct host_context {
    host_program *program;
    host_context *next;           /* program->contexts */
    pthread_t thread;
    int fd;                     /* eventfd */
    atomic_bool notified;       /* fd was written, its reader did not look at the list since */
    atomic_int polling;         /* nested host_poll_while(); changed with program->mutex held */
    pthread_mutex_t mutex;      /* the list */
    host_item *head, **tail;
    size_t n_items;
    timer_list timers[2];       /* virtual, real time; home thread only */
    size_t timers_alive;
};

struct host_program {
    pthread_mutex_t mutex;      /* contexts, polling */
    host_context *contexts;
    _Atomic int64_t clock_stopped_at; /* -1: runs */
    _Atomic int64_t clock_offset;     /* clock - CLOCK_MONOTONIC while it runs */
    atomic_bool timers_fire;
    _Atomic(host_co *) graph_writer;
    host_adapter *closed_hosts;      /* kept to the program's end, so that a late call meets a closed host and not freed memory */
};

/* Free one of closed_hosts; returns the next. */
host_adapter *host_dispose(host_adapter *host);

void context_notify(host_context *context);
void program_notify_all(host_program *program, bool polling_only);
/* Turn the calling thread's context until cond is false; without the checks of host_poll_while(). */
void poll_unchecked(host_context *context, bool (*cond)(void *arg), void *arg);
/* Dies if the coroutine that is about to park holds the graph's write lock. */
void graph_check_park(host_co *self);

/* ---- timers ---- */
bool timers_run(host_context *context);
/* ns until the next one is due; -1: none, or its clock stands still. */
int64_t timers_timeout(host_context *context);
int64_t real_now(void);

#endif
