/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Stackful coroutines on ucontext, and every check on who may enter and wake them. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "fiber.h"

_Noreturn void host_die(const char *format, ...)
{
    va_list args;

    fflush(stdout);
    va_start(args, format);
    fputs("testhost: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    abort();
}

/* ---- the thread's current coroutine ---- */

/*
 * A coroutine goes on in another thread after a yield. The compiler may compute a thread-local's address once per function,
 * so that it must never see the access and the switch in one function: these two are not inlined, and the empty asm keeps
 * calls to them from being merged.
 */
static _Thread_local host_co leader = { .state = CO_LEADER };
static _Thread_local host_co *current;

static __attribute__((noinline)) host_co *get_current(void)
{
    __asm__ volatile("");
    return current ? current : &leader;
}

static __attribute__((noinline)) void set_current(host_co *co)
{
    __asm__ volatile("");
    current = co;
}

host_co *host_co_self(void)
{
    return get_current();
}

bool host_in_coroutine(void)
{
    return atomic_load_explicit(&get_current()->state, memory_order_relaxed) != CO_LEADER;
}

host_context *host_co_home(host_co *co)
{
    return atomic_load(&co->home);
}

/* ---- the pool ---- */

/* Last in, first out, and shared by all threads: a pointer is in use again as soon as can be. The structs are never freed
 * while coroutines are alive, so that a stale pointer meets a state to die of and not freed memory. */
static pthread_mutex_t pool_mutex = PTHREAD_MUTEX_INITIALIZER;
static host_co *pool;
static atomic_size_t stack_size = HOST_STACK_SIZE;
static atomic_size_t stack_peak;
static atomic_bool measure;
static _Atomic uint64_t switches;
/* Orders an end before the load that misses it, and nothing else: what the host orders, ThreadSanitizer cannot complain of
 * in the library. */
static _Atomic uint64_t alive;

void host_co_set_stack_size(size_t bytes)
{
    atomic_store(&stack_size, bytes);
}

void host_co_measure_stacks(bool on)
{
    atomic_store(&measure, on);
}

size_t host_co_stack_peak(void)
{
    return atomic_load(&stack_peak);
}

uint64_t host_co_switches(void)
{
    return atomic_load_explicit(&switches, memory_order_relaxed);
}

uint64_t host_co_alive(void)
{
    return atomic_load_explicit(&alive, memory_order_acquire);
}

static host_co *pool_get(void)
{
    host_co *co;

    pthread_mutex_lock(&pool_mutex);
    co = pool;
    if (co) {
        pool = co->pool_next;
    }
    pthread_mutex_unlock(&pool_mutex);
    if (!co && !(co = calloc(1, sizeof(*co)))) {
        host_die("no memory for a coroutine");
    }
    return co;
}

static void pool_put(host_co *co)
{
    pthread_mutex_lock(&pool_mutex);
    co->pool_next = pool;
    pool = co;
    pthread_mutex_unlock(&pool_mutex);
}

void host_co_pool_drain(void)
{
    if (host_co_alive()) {
        host_die("the pool is drained while %llu coroutines are alive", (unsigned long long)host_co_alive());
    }
    while (pool) {
        host_co *co = pool;
        pool = co->pool_next;
        stack_free(&co->stack);
        free(co);
    }
}

/* ---- create, enter, yield, end ---- */

static const char *state_name(co_state state)
{
    switch (state) {
    case CO_FREE:
        return "ended";
    case CO_CREATED:
        return "not yet entered";
    case CO_RUNNING:
        return "running";
    case CO_YIELDED:
        return "waiting for the host's own lock, storage or timer";
    case CO_PARKED:
        return "parked by the library";
    case CO_LEADER:
        return "a thread's leader";
    }
    return "no coroutine";
}

/* Switch from the running coroutine back to who entered it. */
static void leave(host_co *self, co_state as, host_fn *then, void *arg)
{
    host_co *caller = self->caller;

    self->leaves_as = as;
    self->then = then;
    self->then_arg = arg;
    set_current(atomic_load_explicit(&caller->state, memory_order_relaxed) == CO_LEADER ? NULL : caller);
    fiber_switch(&self->fiber, &caller->fiber, as == CO_FREE);
    swapcontext(&self->uc, &caller->uc);
    /* entered again, perhaps by another caller in another thread */
    fiber_arrived(&self->fiber, &self->caller->fiber);
}

static void trampoline(unsigned low, unsigned high)
{
    host_co *self = (host_co *)(((uintptr_t)high << 32) | low); /* makecontext passes ints */

    fiber_arrived(&self->fiber, &self->caller->fiber);
    self->entry(self->arg);
    leave(self, CO_FREE, NULL, NULL);
    host_die("coroutine %p was entered after its end", (void *)self);
}

/* Apart, as getcontext() is a function that returns twice to the compiler. */
static __attribute__((noinline)) void prepare_context(host_co *co)
{
    uintptr_t p = (uintptr_t)co;

    getcontext(&co->uc);
    co->uc.uc_link = NULL;
    co->uc.uc_stack.ss_sp = co->stack.bottom;
    co->uc.uc_stack.ss_size = co->stack.size;
    makecontext(&co->uc, (void (*)(void))trampoline, 2, (unsigned)p, (unsigned)((uint64_t)p >> 32));
    co->uc.uc_stack.ss_size = 0; /* else AddressSanitizer forgets all it knows of the stack at each switch */
}

host_co *host_co_create(host_fn *entry, void *arg)
{
    host_co *co = pool_get();
    size_t size = atomic_load(&stack_size);

    if (atomic_load(&co->state) != CO_FREE || atomic_load(&co->queued) || atomic_load(&co->woken)) {
        host_die("coroutine %p is reused while %s", (void *)co,
               atomic_load(&co->woken) ? "a wake is on its way" : state_name(atomic_load(&co->state)));
    }
    if (co->stack.size != size) {
        stack_free(&co->stack);
        stack_alloc(&co->stack, size);
    }
    co->stack.painted = false;
    if (atomic_load(&measure)) {
        stack_paint(&co->stack);
    }
    co->entry = entry;
    co->arg = arg;
    co->caller = NULL;
    atomic_store(&co->home, NULL);
    prepare_context(co);
    fiber_begin(&co->fiber, &co->stack);
    atomic_fetch_add_explicit(&alive, 1, memory_order_relaxed);
    atomic_store(&co->state, CO_CREATED);
    return co;
}

static void note_stack(const host_co *co)
{
    size_t used, peak;

    if (!co->stack.painted) {
        return;
    }
    used = stack_used(&co->stack);
    peak = atomic_load(&stack_peak);
    while (peak < used && !atomic_compare_exchange_weak(&stack_peak, &peak, used)) {
    }
}

static void ended(host_co *co)
{
    fiber_end(&co->fiber);
    fiber_forget_frames(&co->stack);
    note_stack(co);
    atomic_store(&co->state, CO_FREE);
    /* after the store: a waker that saw RUNNING has set woken before it looked */
    if (atomic_load(&co->woken)) {
        host_die("coroutine %p ended while a wake is on its way to it", (void *)co);
    }
    pool_put(co);
    atomic_fetch_sub_explicit(&alive, 1, memory_order_release);
}

/* One switch into co and back; returns the coroutines to be entered after it. */
static host_co *switch_to(host_co *self, host_co *co)
{
    host_co *after;
    host_fn *then;
    void *then_arg;
    co_state as;

    atomic_fetch_add_explicit(&switches, 1, memory_order_relaxed);
    atomic_store(&co->home, host_context_current());
    co->caller = self;
    set_current(co);
    fiber_switch(&self->fiber, &co->fiber, false);
    swapcontext(&self->uc, &co->uc);
    fiber_arrived(&self->fiber, NULL);

    /* co is off its stack. Take all there is to know before the state says so: it may run elsewhere a moment later. */
    co->caller = NULL;
    after = co->after_head;
    co->after_head = co->after_tail = NULL;
    then = co->then;
    then_arg = co->then_arg;
    as = co->leaves_as;
    if (as == CO_FREE) {
        ended(co);
        return after;
    }
    if (as == CO_YIELDED && atomic_load(&co->woken)) {
        host_die("coroutine %p was woken, and then waited for something of the host's instead of parking", (void *)co);
    }
    atomic_store(&co->state, as);
    if (then) {
        then(then_arg);
    }
    return after;
}

/* Claim co for this thread. */
static void claim(host_co *co)
{
    co_state state = atomic_load(&co->state);

    if (atomic_load(&co->woken)) {
        if (state != CO_PARKED) {
            host_die("coroutine %p was woken but did not park: it is %s", (void *)co, state_name(state));
        }
    } else if (state != CO_CREATED && state != CO_YIELDED) {
        host_die("coroutine %p entered while it is %s", (void *)co, state_name(state));
    }
    if (!atomic_compare_exchange_strong(&co->state, &state, CO_RUNNING)) {
        host_die("coroutine %p entered twice", (void *)co);
    }
    atomic_store(&co->woken, false);
}

static void enter(host_co *co)
{
    host_co *self = get_current();
    host_co *list = co;

    co->after_next = NULL;
    while (list) {
        host_co *next = list->after_next;
        host_co *after, *last;

        list->after_next = NULL;
        claim(list);
        after = switch_to(self, list);
        if (after) {
            for (last = after; last->after_next; last = last->after_next) {
            }
            last->after_next = next;
            next = after;
        }
        list = next;
    }
}

void host_co_enter(host_co *co)
{
    if (atomic_load(&co->queued)) {
        host_die("coroutine %p entered while it is queued in a context", (void *)co);
    }
    if (atomic_load(&co->woken)) {
        host_die("coroutine %p entered while a wake is on its way to it", (void *)co);
    }
    enter(co);
}

void co_enter_queued(host_co *co)
{
    if (!atomic_exchange(&co->queued, false)) {
        host_die("coroutine %p is not queued", (void *)co);
    }
    enter(co);
}

static host_co *self_or_die(const char *what)
{
    host_co *self = get_current();

    if (atomic_load_explicit(&self->state, memory_order_relaxed) == CO_LEADER) {
        host_die("%s outside a coroutine", what);
    }
    return self;
}

void host_co_yield_then(host_fn *then, void *arg)
{
    leave(self_or_die("yield"), CO_YIELDED, then, arg);
}

void host_co_yield(void)
{
    host_co_yield_then(NULL, NULL);
}

void host_co_park(void)
{
    host_co *self = self_or_die("co_suspend");

    graph_check_park(self);
    leave(self, CO_PARKED, NULL, NULL);
}

/* ---- wake ---- */

/* The home thread: co must have parked, for it is not running anywhere else. */
static void wake_at_home(host_co *co, host_context *home, co_state state, host_run_mode mode)
{
    host_co *self = get_current();

    if (state != CO_PARKED) {
        host_die("coroutine %p woken by its own thread while it is %s", (void *)co, state_name(state));
    }
    if (mode == HOST_RUN_QUEUED) {
        host_co_schedule(home, co);
    } else if (mode == HOST_RUN_NOW || !host_in_coroutine()) {
        enter(co);
    } else {
        co->after_next = NULL;
        if (self->after_tail) {
            self->after_tail->after_next = co;
        } else {
            self->after_head = co;
        }
        self->after_tail = co;
    }
}

bool host_co_wake(host_co *co, host_run_mode mode)
{
    host_context *home;
    co_state state = atomic_load(&co->state);
    bool early;

    if (state == CO_LEADER) {
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
    early = state == CO_RUNNING;
    if (!early && state != CO_PARKED) {
        host_die("coroutine %p woken while it is %s", (void *)co, state_name(state));
    }
    if (!home) {
        host_die("coroutine %p parked in a thread that has no context", (void *)co);
    }
    host_co_schedule(home, co);
    return early;
}
