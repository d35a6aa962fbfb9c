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
 *   FREE -> CREATED             th_co_create, out of the pool
 *   CREATED, YIELDED -> RUNNING an enter by the host
 *   PARKED -> RUNNING           an enter that follows th_co_wake
 *   RUNNING -> YIELDED, PARKED, FREE   the enterer, once the coroutine is off its stack
 *
 * Every other attempt is a bug of the caller and dies.
 */
typedef enum co_state { CO_FREE, CO_CREATED, CO_RUNNING, CO_YIELDED, CO_PARKED, CO_LEADER } co_state;

typedef struct th_stack {
    char *map;                  /* guard page, then the stack */
    size_t map_size;
    char *bottom;
    size_t size;
    bool painted;
    unsigned valgrind_id;
} th_stack;

/* What the sanitizers must be told about a stack at each switch. */
typedef struct th_fiber {
    void *fake_stack;
    const void *bottom;
    size_t size;
    void *tsan;
} th_fiber;

/* Something to run in a context: a coroutine, or a function. */
typedef struct th_item {
    struct th_item *next;
    th_co *co;
    th_fn *fn;
    void *arg;
} th_item;

struct th_co {
    ucontext_t uc;
    th_fiber fiber;
    th_stack stack;
    th_fn *entry;
    void *arg;
    _Atomic co_state state;
    _Atomic(th_context *) home;
    th_co *caller;              /* who entered; set while running */
    co_state leaves_as;         /* what the enterer moves the state to */
    th_fn *then;                /* runs after that */
    void *then_arg;
    atomic_bool woken;          /* th_co_wake came, its enter did not yet */
    atomic_bool queued;         /* item is in a context's list */
    th_item item;
    th_co *after_head, *after_tail, *after_next; /* TH_AFTER: to enter when this one leaves; home thread only */
    th_co *pool_next;
};

void stack_alloc(th_stack *stack, size_t size);
void stack_free(th_stack *stack);
void stack_paint(th_stack *stack);
size_t stack_used(const th_stack *stack);

/* Run a queued coroutine, whoever queued it. */
void co_enter_queued(th_co *co);

/* ---- programs and contexts ---- */

typedef struct timer_list { th_timer *head; size_t n; } timer_list;

struct th_context {
    th_program *program;
    th_context *next;           /* program->contexts */
    pthread_t thread;
    int fd;                     /* eventfd */
    atomic_bool notified;       /* fd was written, its reader did not look at the list since */
    atomic_int polling;         /* nested th_poll_while(); changed with program->mutex held */
    pthread_mutex_t mutex;      /* the list */
    th_item *head, **tail;
    size_t n_items;
    timer_list timers[2];       /* virtual, real time; home thread only */
    size_t timers_alive;
};

struct th_program {
    pthread_mutex_t mutex;      /* contexts, polling */
    th_context *contexts;
    _Atomic int64_t clock_stopped_at; /* -1: runs */
    _Atomic int64_t clock_offset;     /* clock - CLOCK_MONOTONIC while it runs */
    atomic_bool timers_fire;
    _Atomic(th_co *) graph_writer;
    th_host *closed_hosts;      /* kept to the program's end, so that a late call meets a closed host and not freed memory */
};

/* Free one of closed_hosts; returns the next. */
th_host *host_dispose(th_host *host);

void context_notify(th_context *context);
void program_notify_all(th_program *program, bool polling_only);
/* Turn the calling thread's context until cond is false; without the checks of th_poll_while(). */
void poll_unchecked(th_context *context, bool (*cond)(void *arg), void *arg);
/* Dies if the coroutine that is about to park holds the graph's write lock. */
void graph_check_park(th_co *self);

/* ---- timers ---- */
bool timers_run(th_context *context);
/* ns until the next one is due; -1: none, or its clock stands still. */
int64_t timers_timeout(th_context *context);
int64_t real_now(void);

#endif
