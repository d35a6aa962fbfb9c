/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Stackful coroutines on ucontext, and the checks of when they may be entered. */
#include "coroutine.h"

#include <stdlib.h>

/* ---- the thread's current coroutine ---- */

/*
 * A coroutine may continue in another thread after a yield. The compiler may compute a
 * thread-local's address once per function, so it must never see the access and the switch in one
 * function: the functions that access one are not inlined, and the empty asm keeps calls to them
 * from being merged.
 */
static _Thread_local host_co leader = { .state = HOST_CO_LEADER };
static _Thread_local host_co *current;
static _Thread_local host_context *thread_context;

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

__attribute__((noinline)) host_context *host_co_thread_context(void)
{
    __asm__ volatile("");
    return thread_context;
}

__attribute__((noinline)) void host_co_set_thread_context(host_context *context)
{
    __asm__ volatile("");
    thread_context = context;
}

host_co *host_co_self(void)
{
    return get_current();
}

bool host_in_coroutine(void)
{
    return atomic_load_explicit(&get_current()->state, memory_order_relaxed) != HOST_CO_LEADER;
}

host_context *host_co_home(host_co *co)
{
    return atomic_load(&co->home);
}

/* ---- the pool ---- */

/*
 * Last in, first out, and shared by all threads, so that a pointer is reused as early as possible.
 * The structs are never freed while coroutines are alive: a stale pointer finds a state for which
 * the checks abort, and not freed memory.
 */
static pthread_mutex_t pool_mutex = PTHREAD_MUTEX_INITIALIZER;
static host_co *pool;
static atomic_size_t stack_size = HOST_STACK_SIZE;
static atomic_size_t stack_peak;
static atomic_bool measure;
static _Atomic uint64_t switches;
/*
 * Release on an end and acquire on the load: orders an end before the load that no longer counts
 * it, and nothing else. An order that the host makes would hide races of the library from
 * ThreadSanitizer.
 */
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

bool host_co_can_measure(void)
{
    return !host_instrumented();
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
        host_die("the pool is drained while %llu coroutines are alive",
                 (unsigned long long)host_co_alive());
    }
    while (pool) {
        host_co *co = pool;
        pool = co->pool_next;
        host_stack_free(&co->stack);
        free(co);
    }
}

/* ---- create, enter, yield, end ---- */

const char *host_co_state_name(host_co_state state)
{
    switch (state) {
    case HOST_CO_FREE:
        return "ended";
    case HOST_CO_CREATED:
        return "not yet entered";
    case HOST_CO_RUNNING:
        return "running";
    case HOST_CO_YIELDED:
        return "waiting for the host's own lock, storage or timer";
    case HOST_CO_PARKED:
        return "parked by the library";
    case HOST_CO_LEADER:
        return "a thread's leader";
    }
    return "no coroutine";
}

/* Switch from the running coroutine back to the one that entered it. */
static void leave(host_co *self, host_co_state as, host_fn *then, void *arg)
{
    host_co *caller = self->caller;

    self->leaves_as = as;
    self->then = then;
    self->then_arg = arg;
    if (atomic_load_explicit(&caller->state, memory_order_relaxed) == HOST_CO_LEADER) {
        set_current(NULL);
    } else {
        set_current(caller);
    }
    host_fiber_switch(&self->fiber, &caller->fiber, as == HOST_CO_FREE);
    swapcontext(&self->uc, &caller->uc);
    /* entered again, perhaps by another caller in another thread */
    host_fiber_arrived(&self->fiber, &self->caller->fiber);
}

static void trampoline(unsigned low, unsigned high)
{
    host_co *self = (host_co *)(((uintptr_t)high << 32) | low); /* makecontext passes ints */

    host_fiber_arrived(&self->fiber, &self->caller->fiber);
    self->entry(self->arg);
    leave(self, HOST_CO_FREE, NULL, NULL);
    host_die("coroutine %p was entered after its end", (void *)self);
}

/* Not inlined: to the compiler, getcontext() is a function that returns twice. */
static __attribute__((noinline)) void prepare_context(host_co *co)
{
    uintptr_t p = (uintptr_t)co;

    getcontext(&co->uc);
    co->uc.uc_link = NULL;
    co->uc.uc_stack.ss_sp = co->stack.bottom;
    co->uc.uc_stack.ss_size = co->stack.size;
    makecontext(&co->uc, (void (*)(void))trampoline, 2, (unsigned)p, (unsigned)((uint64_t)p >> 32));
    /* with a size, AddressSanitizer would forget all that it knows of the stack at each switch */
    co->uc.uc_stack.ss_size = 0;
}

host_co *host_co_create(host_fn *entry, void *arg)
{
    host_co *co = pool_get();
    size_t size = atomic_load(&stack_size);

    if (atomic_load(&co->state) != HOST_CO_FREE || atomic_load(&co->queued) ||
        atomic_load(&co->woken)) {
        host_die("coroutine %p is reused while %s", (void *)co,
                 atomic_load(&co->woken) ? "a wake is on its way"
                                         : host_co_state_name(atomic_load(&co->state)));
    }
    if (co->stack.size != size) {
        host_stack_free(&co->stack);
        host_stack_alloc(&co->stack, size);
    }
    co->stack.painted = false;
    if (atomic_load(&measure)) {
        host_stack_paint(&co->stack);
    }
    co->entry = entry;
    co->arg = arg;
    co->caller = NULL;
    atomic_store(&co->home, NULL);
    prepare_context(co);
    host_fiber_begin(&co->fiber, &co->stack);
    atomic_fetch_add_explicit(&alive, 1, memory_order_relaxed);
    atomic_store(&co->state, HOST_CO_CREATED);
    return co;
}

static void note_stack(const host_co *co)
{
    size_t used, peak;

    if (!co->stack.painted) {
        return;
    }
    used = host_stack_used(&co->stack);
    peak = atomic_load(&stack_peak);
    while (peak < used && !atomic_compare_exchange_weak(&stack_peak, &peak, used)) {
    }
}

static void ended(host_co *co)
{
    host_fiber_end(&co->fiber);
    host_fiber_forget_frames(&co->stack);
    note_stack(co);
    atomic_store(&co->state, HOST_CO_FREE);
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
    host_co_state as;

    atomic_fetch_add_explicit(&switches, 1, memory_order_relaxed);
    atomic_store(&co->home, host_co_thread_context());
    co->caller = self;
    set_current(co);
    host_fiber_switch(&self->fiber, &co->fiber, false);
    swapcontext(&self->uc, &co->uc);
    host_fiber_arrived(&self->fiber, NULL);

    /*
     * co is off its stack. Read all its fields before the state says so: from then on another
     * thread may run it.
     */
    co->caller = NULL;
    after = co->after_head;
    co->after_head = co->after_tail = NULL;
    then = co->then;
    then_arg = co->then_arg;
    as = co->leaves_as;
    if (as == HOST_CO_FREE) {
        ended(co);
        return after;
    }
    if (as == HOST_CO_YIELDED && atomic_load(&co->woken)) {
        host_die("coroutine %p was woken, and then waited for something of the host's instead of "
                 "parking",
                 (void *)co);
    }
    atomic_store(&co->state, as);
    if (then) {
        then(then_arg);
    }
    return after;
}

/* Claims co for this thread. Aborts if it must not be entered, or if another thread claims it. */
static void claim(host_co *co)
{
    host_co_state state = atomic_load(&co->state);

    if (atomic_load(&co->woken)) {
        if (state != HOST_CO_PARKED) {
            host_die("coroutine %p was woken but did not park: it is %s", (void *)co,
                     host_co_state_name(state));
        }
    } else if (state != HOST_CO_CREATED && state != HOST_CO_YIELDED) {
        host_die("coroutine %p entered while it is %s", (void *)co, host_co_state_name(state));
    }
    if (!atomic_compare_exchange_strong(&co->state, &state, HOST_CO_RUNNING)) {
        host_die("coroutine %p entered twice", (void *)co);
    }
    atomic_store(&co->woken, false);
}

/* Enter co, then the coroutines that were woken to run after it, and those that run after them. */
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

void host_co_enter_queued(host_co *co)
{
    if (!atomic_exchange(&co->queued, false)) {
        host_die("coroutine %p is not queued", (void *)co);
    }
    enter(co);
}

host_co *host_co_self_or_die(const char *what)
{
    host_co *self = get_current();

    if (atomic_load_explicit(&self->state, memory_order_relaxed) == HOST_CO_LEADER) {
        host_die("%s outside a coroutine", what);
    }
    return self;
}

void host_co_yield_then(host_fn *then, void *arg)
{
    leave(host_co_self_or_die("yield"), HOST_CO_YIELDED, then, arg);
}

void host_co_yield(void)
{
    host_co_yield_then(NULL, NULL);
}

void host_co_leave_parked(host_co *self)
{
    leave(self, HOST_CO_PARKED, NULL, NULL);
}

void host_co_enter_woken(host_co *co)
{
    enter(co);
}

void host_co_enter_after(host_co *self, host_co *co)
{
    co->after_next = NULL;
    if (self->after_tail) {
        self->after_tail->after_next = co;
    } else {
        self->after_head = co;
    }
    self->after_tail = co;
}
