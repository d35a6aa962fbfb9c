/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "context.h"

#include <stdlib.h>

host_context *host_context_current(void)
{
    return host_co_thread_context();
}

host_context *host_context_new(host_program *program)
{
    host_context *context = calloc(1, sizeof(*context));

    if (host_context_current()) {
        host_die("this thread has a context already");
    }
    if (!context || !host_notifier_init(&context->member.notifier)) {
        host_die("no memory or file descriptor for a context");
    }
    context->program = program;
    context->tail = &context->head;
    pthread_mutex_init(&context->mutex, NULL);
    host_timer_group_init(&context->timers, program);
    host_co_set_thread_context(context);
    host_program_add(program, &context->member);
    return context;
}

void host_context_free(host_context *context)
{
    if (context != host_context_current()) {
        host_die("context %p is freed outside its thread", (void *)context);
    }
    host_program_remove(context->program, &context->member);
    if (context->head || context->timers.alive) {
        host_die("context %p is freed with %zu things to run and %zu timers", (void *)context,
                 context->n_items, context->timers.alive);
    }
    host_co_set_thread_context(NULL);
    host_notifier_destroy(&context->member.notifier);
    pthread_mutex_destroy(&context->mutex);
    free(context);
}

host_program *host_context_program(host_context *context)
{
    return context->program;
}

/* ---- the list ---- */

static void push(host_context *context, host_item *item)
{
    item->next = NULL;
    pthread_mutex_lock(&context->mutex);
    *context->tail = item;
    context->tail = &item->next;
    context->n_items++;
    /* with the mutex held: once it is released, the item may run and end the context */
    host_notifier_set(&context->member.notifier);
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
    if (atomic_load(&co->state) == HOST_CO_LEADER) {
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
        host_co_enter_queued(item->co);
    } else {
        host_fn *fn = item->fn;
        void *arg = item->arg;
        free(item);
        fn(arg);
    }
}

/* Runs the items that are in the list now. Items that these add wait for the next round. */
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

bool host_context_poll(host_context *context, bool wait)
{
    bool any;

    if (context != host_context_current() || host_in_coroutine()) {
        host_die("context %p is polled %s", (void *)context,
                 host_in_coroutine() ? "in a coroutine" : "outside its thread");
    }
    any = run_list(context);
    any |= host_timer_group_run(&context->timers);
    if (!any && wait) {
        host_notifier_wait(&context->member.notifier, host_timer_group_timeout(&context->timers));
        any = run_list(context);
        any |= host_timer_group_run(&context->timers);
    }
    return any;
}

/* ---- moving ---- */

typedef struct move {
    host_context *to;
    host_co *co;
} move;

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

/* ---- timers ---- */

host_timer *host_timer_new(bool realtime, void (*cb)(void *arg), void *arg)
{
    host_context *context = host_context_current();

    if (!context) {
        host_die("a timer is made in a thread that has no context");
    }
    return host_timer_group_add(&context->timers, realtime, cb, arg);
}

typedef struct sleep_arg {
    host_co *co;
    host_timer *timer;
    int64_t deadline;
} sleep_arg;

static void sleep_over(void *arg)
{
    sleep_arg *s = arg;

    host_timer_free(s->timer);
    host_co_enter(s->co);
}

static void sleep_begin(void *arg)
{
    sleep_arg *s = arg;
    host_timer_mod(s->timer, s->deadline);
}

void host_co_sleep_ns(bool realtime, int64_t ns)
{
    host_context *context = host_context_current();
    sleep_arg s = { .co = host_co_self() };

    s.timer = host_timer_new(realtime, sleep_over, &s);
    s.deadline = host_timer_group_now(&context->timers, realtime) + ns;
    host_co_yield_then(sleep_begin, &s);
}
