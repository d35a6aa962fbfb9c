/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Event loop contexts, one per thread: a list of things to run, timers, and an eventfd to wait on. */
#include <poll.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"

static _Thread_local host_context *current_context;

/* Not inlined: see get_current() in coroutine.c. */
__attribute__((noinline)) host_context *host_context_current(void)
{
    __asm__ volatile("");
    return current_context;
}

static __attribute__((noinline)) void set_current_context(host_context *context)
{
    __asm__ volatile("");
    current_context = context;
}

/* ---- programs ---- */

host_program *host_program_new(void)
{
    host_program *program = calloc(1, sizeof(*program));

    if (!program) {
        host_die("no memory for a program");
    }
    pthread_mutex_init(&program->mutex, NULL);
    atomic_store(&program->clock_stopped_at, -1);
    atomic_store(&program->clock_offset, INT64_C(1000000000) - real_now());
    atomic_store(&program->timers_fire, true);
    return program;
}

void host_program_free(host_program *program)
{
    if (program->contexts) {
        host_die("the program ends while a context of it is left");
    }
    for (host_adapter *h = program->closed_hosts; h; h = host_dispose(h)) {
    }
    pthread_mutex_destroy(&program->mutex);
    free(program);
}

/* ---- contexts ---- */

host_context *host_context_new(host_program *program)
{
    host_context *context = calloc(1, sizeof(*context));

    if (host_context_current()) {
        host_die("this thread has a context already");
    }
    if (!context || (context->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) < 0) {
        host_die("no memory or file descriptor for a context");
    }
    context->program = program;
    context->thread = pthread_self();
    context->tail = &context->head;
    pthread_mutex_init(&context->mutex, NULL);
    set_current_context(context);
    pthread_mutex_lock(&program->mutex);
    context->next = program->contexts;
    program->contexts = context;
    pthread_mutex_unlock(&program->mutex);
    return context;
}

void host_context_free(host_context *context)
{
    host_context **p;

    if (context != host_context_current()) {
        host_die("context %p is freed outside its thread", (void *)context);
    }
    pthread_mutex_lock(&context->program->mutex);
    for (p = &context->program->contexts; *p != context; p = &(*p)->next) {
    }
    *p = context->next;
    pthread_mutex_unlock(&context->program->mutex);
    if (context->head || context->timers_alive) {
        host_die("context %p is freed with %zu things to run and %zu timers", (void *)context, context->n_items,
               context->timers_alive);
    }
    set_current_context(NULL);
    close(context->fd);
    pthread_mutex_destroy(&context->mutex);
    free(context);
}

host_program *host_context_program(host_context *context)
{
    return context->program;
}

/*
 * The exchange pairs with the one in wait_for_something(): either it finds the flag down, and the write ends the wait, or
 * what was done before it is seen by the thread that takes the flag down.
 */
void context_notify(host_context *context)
{
    uint64_t one = 1;

    if (!atomic_exchange(&context->notified, true)) {
        if (write(context->fd, &one, sizeof(one)) != sizeof(one)) {
            host_die("cannot write an eventfd");
        }
    }
}

void program_notify_all(host_program *program, bool polling_only)
{
    pthread_mutex_lock(&program->mutex);
    for (host_context *c = program->contexts; c; c = c->next) {
        if (!polling_only || atomic_load(&c->polling)) {
            context_notify(c);
        }
    }
    pthread_mutex_unlock(&program->mutex);
}

/* ---- the list ---- */

static void push(host_context *context, host_item *item)
{
    item->next = NULL;
    pthread_mutex_lock(&context->mutex);
    *context->tail = item;
    context->tail = &item->next;
    context->n_items++;
    /* with the lock held: once it is dropped the item may run, and end the context */
    context_notify(context);
    pthread_mutex_unlock(&context->mutex);
}

static host_item *pop(host_context *context)
{
    host_item *item;

    pthread_mutex_lock(&context->mutex);
    item = context->head;
    if (item) {
        context->head = item->next;
        context->n_items--;
        if (!context->head) {
            context->tail = &context->head;
        }
    }
    pthread_mutex_unlock(&context->mutex);
    return item;
}

void host_bh_schedule(host_context *context, host_fn *fn, void *arg)
{
    host_item *item = calloc(1, sizeof(*item));

    if (!item) {
        host_die("no memory for a bottom half");
    }
    item->fn = fn;
    item->arg = arg;
    push(context, item);
}

void host_co_schedule(host_context *context, host_co *co)
{
    if (atomic_load(&co->state) == CO_LEADER) {
        host_die("a thread's leader %p cannot be scheduled", (void *)co);
    }
    if (atomic_exchange(&co->queued, true)) {
        host_die("coroutine %p scheduled twice", (void *)co);
    }
    co->item.co = co;
    push(context, &co->item);
}

static void run_item(host_item *item)
{
    if (item->co) {
        co_enter_queued(item->co);
    } else {
        host_fn *fn = item->fn;
        void *arg = item->arg;
        free(item);
        fn(arg);
    }
}

/* What is in the list now, not what that adds to it. */
static bool run_list(host_context *context)
{
    bool any = false;
    host_item *item;
    size_t n;

    pthread_mutex_lock(&context->mutex);
    n = context->n_items;
    pthread_mutex_unlock(&context->mutex);
    while (n-- && (item = pop(context))) {
        run_item(item);
        any = true;
    }
    return any;
}

static void wait_for_something(host_context *context)
{
    int64_t timeout = timers_timeout(context);
    struct timespec ts = { .tv_sec = timeout / 1000000000, .tv_nsec = timeout % 1000000000 };
    struct pollfd pfd = { .fd = context->fd, .events = POLLIN };
    uint64_t n;

    if (ppoll(&pfd, 1, timeout < 0 ? NULL : &ts, NULL) == 1) {
        if (read(context->fd, &n, sizeof(n)) != sizeof(n)) {
            host_die("an eventfd that was readable cannot be read");
        }
        atomic_exchange(&context->notified, false); /* pairs with context_notify() */
    }
}

bool host_context_poll(host_context *context, bool wait)
{
    bool any;

    if (context != host_context_current() || host_in_coroutine()) {
        host_die("context %p is polled %s", (void *)context, host_in_coroutine() ? "in a coroutine" : "outside its thread");
    }
    any = run_list(context);
    any |= timers_run(context);
    if (!any && wait) {
        wait_for_something(context);
        any = run_list(context);
        any |= timers_run(context);
    }
    return any;
}

/* ---- moving ---- */

typedef struct move { host_context *to; host_co *co; } move;

static void move_now(void *arg)
{
    move *m = arg;
    host_co_schedule(m->to, m->co);
}

void host_co_move(host_context *context)
{
    move m = { context, host_co_self() };

    if (context != host_context_current()) {
        host_co_yield_then(move_now, &m);
    }
}

/* ---- threads ---- */

struct host_iothread {
    host_program *program;
    host_context *context;
    pthread_t thread;
    bool stop;
    pthread_mutex_t mutex;
    pthread_cond_t started;
};

static void *iothread_main(void *arg)
{
    host_iothread *t = arg;
    host_context *context = host_context_new(t->program);

    pthread_mutex_lock(&t->mutex);
    t->context = context;
    pthread_cond_signal(&t->started);
    pthread_mutex_unlock(&t->mutex);
    while (!t->stop) {
        host_context_poll(context, true);
    }
    while (host_context_poll(context, false)) {
    }
    host_context_free(context);
    return NULL;
}

host_iothread *host_iothread_new(host_program *program)
{
    host_iothread *t = calloc(1, sizeof(*t));

    if (!t) {
        host_die("no memory for a thread");
    }
    t->program = program;
    pthread_mutex_init(&t->mutex, NULL);
    pthread_cond_init(&t->started, NULL);
    if (pthread_create(&t->thread, NULL, iothread_main, t)) {
        host_die("cannot create a thread");
    }
    pthread_mutex_lock(&t->mutex);
    while (!t->context) {
        pthread_cond_wait(&t->started, &t->mutex);
    }
    pthread_mutex_unlock(&t->mutex);
    return t;
}

host_context *host_iothread_context(host_iothread *iothread)
{
    return iothread->context;
}

static void stop_thread(void *arg)
{
    host_iothread *t = arg;
    t->stop = true; /* in its own thread */
}

void host_iothread_free(host_iothread *iothread)
{
    host_bh_schedule(iothread->context, stop_thread, iothread);
    pthread_join(iothread->thread, NULL);
    pthread_mutex_destroy(&iothread->mutex);
    pthread_cond_destroy(&iothread->started);
    free(iothread);
}

/* ---- calls into a context ---- */

typedef struct call {
    host_fn *fn;
    void *arg;
    host_context *from;           /* NULL: the caller blocks */
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    bool done;
} call;

static bool call_unfinished(void *arg)
{
    call *c = arg;
    bool done;

    pthread_mutex_lock(&c->mutex);
    done = c->done;
    pthread_mutex_unlock(&c->mutex);
    return !done;
}

static void call_run(void *arg)
{
    call *c = arg;
    host_context *from = c->from;

    c->fn(c->arg);
    pthread_mutex_lock(&c->mutex);
    c->done = true;
    if (from) {
        context_notify(from);
    }
    pthread_cond_signal(&c->cond);
    pthread_mutex_unlock(&c->mutex); /* the last touch: the caller frees it */
}

void host_context_call(host_context *context, bool in_coroutine, host_fn *fn, void *arg)
{
    call c = { .fn = fn, .arg = arg, .from = host_context_current() };

    if (host_in_coroutine()) {
        host_die("host_context_call in a coroutine");
    }
    pthread_mutex_init(&c.mutex, NULL);
    pthread_cond_init(&c.cond, NULL);
    if (in_coroutine) {
        host_co_schedule(context, host_co_create(call_run, &c));
    } else {
        host_bh_schedule(context, call_run, &c);
    }
    if (c.from) {
        poll_unchecked(c.from, call_unfinished, &c);
    } else {
        pthread_mutex_lock(&c.mutex);
        while (!c.done) {
            pthread_cond_wait(&c.cond, &c.mutex);
        }
        pthread_mutex_unlock(&c.mutex);
    }
    pthread_mutex_destroy(&c.mutex);
    pthread_cond_destroy(&c.cond);
}
