/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* The virtual clock, and timers on it and on real time. Timers belong to one context and are touched in its thread alone. */
#include <stdlib.h>
#include <time.h>

#include "internal.h"

int64_t real_now(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

/* ---- the clock ---- */

/* A reader that finds the clock running uses the offset that was stored before clock_stopped_at said so. */
int64_t host_clock_now(host_program *program)
{
    int64_t stopped_at = atomic_load(&program->clock_stopped_at);

    return stopped_at >= 0 ? stopped_at : real_now() + atomic_load(&program->clock_offset);
}

void host_clock_stop(host_program *program)
{
    pthread_mutex_lock(&program->mutex);
    atomic_store(&program->clock_stopped_at, host_clock_now(program));
    pthread_mutex_unlock(&program->mutex);
}

void host_clock_resume(host_program *program)
{
    int64_t at;

    pthread_mutex_lock(&program->mutex);
    at = atomic_load(&program->clock_stopped_at);
    if (at >= 0) {
        atomic_store(&program->clock_offset, at - real_now());
        atomic_store(&program->clock_stopped_at, -1);
    }
    pthread_mutex_unlock(&program->mutex);
    program_notify_all(program, false);
}

void host_clock_step(host_program *program, uint64_t ns)
{
    int64_t at;

    pthread_mutex_lock(&program->mutex);
    at = atomic_load(&program->clock_stopped_at);
    if (at < 0) {
        host_die("a running clock is stepped");
    }
    atomic_store(&program->clock_stopped_at, at + (int64_t)ns);
    pthread_mutex_unlock(&program->mutex);
    program_notify_all(program, false);
}

void host_clock_set_firing(host_program *program, bool firing)
{
    atomic_store(&program->timers_fire, firing);
    program_notify_all(program, false);
}

/* ---- timers ---- */

struct host_timer {
    host_context *context;
    bool realtime;
    bool armed;
    int64_t deadline;
    void (*cb)(void *arg);
    void *arg;
    host_timer *next;
};

static void check_thread(host_timer *timer, const char *what)
{
    if (timer->context != host_context_current()) {
        host_die("timer %p: %s outside its home thread", (void *)timer, what);
    }
}

host_timer *host_timer_new(bool realtime, void (*cb)(void *arg), void *arg)
{
    host_timer *timer = calloc(1, sizeof(*timer));
    host_context *context = host_context_current();

    if (!context) {
        host_die("a timer is made in a thread that has no context");
    }
    if (!timer) {
        host_die("no memory for a timer");
    }
    *timer = (host_timer){ .context = context, .realtime = realtime, .cb = cb, .arg = arg };
    context->timers_alive++;
    return timer;
}

static void disarm(host_timer *timer)
{
    timer_list *list = &timer->context->timers[timer->realtime];
    host_timer **p;

    if (!timer->armed) {
        return;
    }
    for (p = &list->head; *p != timer; p = &(*p)->next) {
    }
    *p = timer->next;
    list->n--;
    timer->armed = false;
}

void host_timer_mod(host_timer *timer, int64_t deadline_ns)
{
    timer_list *list = &timer->context->timers[timer->realtime];
    host_timer **p;

    check_thread(timer, "mod");
    disarm(timer);
    timer->deadline = deadline_ns;
    for (p = &list->head; *p && (*p)->deadline <= deadline_ns; p = &(*p)->next) {
    }
    timer->next = *p;
    *p = timer;
    list->n++;
    timer->armed = true;
}

void host_timer_del(host_timer *timer)
{
    check_thread(timer, "del");
    disarm(timer);
}

void host_timer_free(host_timer *timer)
{
    check_thread(timer, "free");
    disarm(timer);
    timer->context->timers_alive--;
    free(timer);
}

static int64_t list_now(host_context *context, bool realtime)
{
    return realtime ? real_now() : host_clock_now(context->program);
}

bool timers_run(host_context *context)
{
    bool any = false;

    for (int realtime = 0; realtime < 2; realtime++) {
        timer_list *list = &context->timers[realtime];
        int64_t now = list_now(context, realtime);
        size_t n = list->n; /* one that re-arms itself for now waits for the next round */

        if (!realtime && !atomic_load(&context->program->timers_fire)) {
            continue;
        }
        while (n-- && list->head && list->head->deadline <= now) {
            host_timer *timer = list->head;
            disarm(timer);
            timer->cb(timer->arg); /* may free it */
            any = true;
        }
    }
    return any;
}

int64_t timers_timeout(host_context *context)
{
    int64_t timeout = -1;

    for (int realtime = 0; realtime < 2; realtime++) {
        host_timer *first = context->timers[realtime].head;
        int64_t left;

        if (!first || (!realtime && !atomic_load(&context->program->timers_fire))) {
            continue;
        }
        left = first->deadline - list_now(context, realtime);
        if (left > 0 && !realtime && atomic_load(&context->program->clock_stopped_at) >= 0) {
            continue; /* until the clock is moved, which notifies us */
        }
        left = left > 0 ? left : 0;
        timeout = timeout < 0 || left < timeout ? left : timeout;
    }
    return timeout;
}

/* ---- sleeping ---- */

typedef struct sleep_arg { host_co *co; host_timer *timer; int64_t deadline; } sleep_arg;

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
    s.deadline = list_now(context, realtime) + ns;
    host_co_yield_then(sleep_begin, &s);
}
