/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Layer 4. Stackful coroutines: create, enter, yield.
 *
 * *Plain code* is code outside any coroutine. The *home* of a coroutine is the context whose thread
 * entered it last. *Parked* means suspended by the library, through the adapter's co_suspend. A
 * coroutine that yielded for a reason of the host (its mutex, its storage) is *yielded*, and the
 * library must not wake it.
 */
#ifndef TESTHOST_COROUTINE_H
#define TESTHOST_COROUTINE_H
#include <ucontext.h>

#include "fiber.h"

typedef struct host_co host_co;           /* a coroutine, or a thread's leader */
typedef struct host_context host_context; /* an event loop, see context.h; only declared here */

/*
 * Sets the stack size of coroutines created from now on, in bytes, a multiple of the page size. A
 * guard page lies below each stack. Any thread.
 */
void host_co_set_stack_size(size_t bytes);
/* Makes new stacks be filled with a pattern, for host_co_stack_peak(). Any thread. */
void host_co_measure_stacks(bool on);
/*
 * The deepest use of a coroutine stack so far, in bytes, of coroutines that have ended since
 * measuring was switched on.
 */
size_t host_co_stack_peak(void);
/*
 * Whether that peak is meaningful. It is not under a sanitizer or valgrind, which change how much
 * stack is used.
 */
bool host_co_can_measure(void);

/*
 * Makes a coroutine that will run entry(arg). It is freed when entry returns; then the next create
 * may return the same pointer. Any thread.
 */
host_co *host_co_create(host_fn *entry, void *arg);
/*
 * Runs @co, created or yielded, in this thread until it yields or ends. Its home becomes this
 * thread's context.
 */
void host_co_enter(host_co *co);
/*
 * Returns control to the code that entered the running coroutine. Call it in a coroutine. It may
 * return in another thread: keep nothing of the thread (a lock, the address of errno or of another
 * thread-local variable) across it.
 */
void host_co_yield(void);
/*
 * Yields as host_co_yield() does. Once the coroutine is off its stack and any thread may enter it,
 * then(arg) runs in the plain code or in the coroutine that entered this one.
 */
void host_co_yield_then(host_fn *then, void *arg);
/*
 * The running coroutine; in plain code the thread's leader, which is never NULL and can be neither
 * entered nor woken.
 */
host_co *host_co_self(void);
bool host_in_coroutine(void);
/* The home of @co; NULL before it is entered for the first time. Any thread. */
host_context *host_co_home(host_co *co);
/*
 * The number of switches into coroutines in this process: one wait and its end are one switch. Any
 * thread.
 */
uint64_t host_co_switches(void);
/* Coroutines created and not yet ended, in the whole process. */
uint64_t host_co_alive(void);
/* Unmaps the stacks of ended coroutines and forgets the coroutines. No coroutine may be alive. */
void host_co_pool_drain(void);

/* ---- for the layers above -------------------------------------------------------------------- */

/*
 * A coroutine's state, and the code that changes it:
 *
 *   FREE -> CREATED             host_co_create, out of the pool
 *   CREATED, YIELDED -> RUNNING an enter by the host
 *   PARKED -> RUNNING           an enter that follows host_co_wake
 *   RUNNING -> YIELDED, PARKED, FREE   the enterer, once the coroutine is off its stack
 *
 * Every other change is a bug of the caller and aborts.
 */
typedef enum host_co_state {
    HOST_CO_FREE,
    HOST_CO_CREATED,
    HOST_CO_RUNNING,
    HOST_CO_YIELDED,
    HOST_CO_PARKED,
    HOST_CO_LEADER,
} host_co_state;

/* A place in a context's list of things to run: a coroutine, or a function. */
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
    _Atomic host_co_state state;
    _Atomic(host_context *) home;
    host_co *caller;         /* the coroutine or leader that entered it; set while running */
    host_co_state leaves_as; /* what the enterer moves the state to */
    host_fn *then;           /* runs after that */
    void *then_arg;
    atomic_bool woken;  /* host_co_wake was called; its enter is still to come */
    atomic_bool queued; /* item is in a context's list */
    host_item item;
    /* coroutines to enter when this one leaves its stack; home thread only */
    host_co *after_head, *after_tail, *after_next;
    host_co *pool_next;
};

/* For messages. */
const char *host_co_state_name(host_co_state state);
/* The running coroutine. In plain code, aborts with "<what> outside a coroutine". */
host_co *host_co_self_or_die(const char *what);
/* Leaves the running coroutine's stack, parked, without the checks of host_co_park(). */
void host_co_leave_parked(host_co *self);
/* Enters a coroutine that was queued. */
void host_co_enter_queued(host_co *co);
/* Enters a coroutine that was woken. */
void host_co_enter_woken(host_co *co);
/* Makes the woken @co be entered as soon as @self, which runs, yields or ends. */
void host_co_enter_after(host_co *self, host_co *co);

/*
 * The calling thread's context, which becomes the home of each coroutine that the thread enters.
 * context.c sets it. It is kept here, so this layer needs only the name of the type.
 */
host_context *host_co_thread_context(void);
void host_co_set_thread_context(host_context *context);

#endif
