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
int64_t th_clock_now(th_program *program)
{
    int64_t stopped_at = atomic_load(&program->clock_stopped_at);

    return stopped_at >= 0 ? stopped_at : real_now() + atomic_load(&program->clock_offset);
}

void th_clock_stop(th_program *program)
{
    pthread_mutex_lock(&program->mutex);
    atomic_store(&program->clock_stopped_at, th_clock_now(program));
    pthread_mutex_unlock(&program->mutex);
}

void th_clock_resume(th_program *program)
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

void th_clock_step(th_program *program, uint64_t ns)
{
    int64_t at;

    pthread_mutex_lock(&program->mutex);
    at = atomic_load(&program->clock_stopped_at);
    if (at < 0) {
        th_die("a running clock is stepped");
    }
    atomic_store(&program->clock_stopped_at, at + (int64_t)ns);
    pthread_mutex_unlock(&program->mutex);
    program_notify_all(program, false);
}

void th_clock_set_firing(th_program *program, bool firing)
{
    atomic_store(&program->timers_fire, firing);
    program_notify_all(program, false);
}

/* ---- timers ---- */

struct th_timer {
    th_context *context;
    bool realtime;
    bool armed;
    int64_t deadline;
    void (*cb)(void *arg);
    void *arg;
    th_timer *next;
};

static void check_thread(th_timer *timer, const char *what)
{
    if (timer->context != th_context_current()) {
        th_die("timer %p: %s outside its home thread", (void *)timer, what);
    }
}

th_timer *th_timer_new(bool realtime, void (*cb)(void *arg), void *arg)
{
    th_timer *timer = calloc(1, sizeof(*timer));
    th_context *context = th_context_current();

    if (!context) {
        th_die("a timer is made in a thread that has no context");
    }
    if (!timer) {
        th_die("no memory for a timer");
    }
    *timer = (th_timer){ .context = context, .realtime = realtime, .cb = cb, .arg = arg };
    context->timers_alive++;
    return timer;
}

static void disarm(th_timer *timer)
{
    timer_list *list = &timer->context->timers[timer->realtime];
    th_timer **p;

    if (!timer->armed) {
        return;
    }
    for (p = &list->head; *p != timer; p = &(*p)->next) {
    }
    *p = timer->next;
    list->n--;
    timer->armed = false;
}

void th_timer_mod(th_timer *timer, int64_t deadline_ns)
{
    timer_list *list = &timer->context->timers[timer->realtime];
    th_timer **p;

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

void th_timer_del(th_timer *timer)
{
    check_thread(timer, "del");
    disarm(timer);
}

void th_timer_free(th_timer *timer)
{
    check_thread(timer, "free");
    disarm(timer);
    timer->context->timers_alive--;
    free(timer);
}

static int64_t list_now(th_context *context, bool realtime)
{
    return realtime ? real_now() : th_clock_now(context->program);
}

bool timers_run(th_context *context)
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
            th_timer *timer = list->head;
            disarm(timer);
            timer->cb(timer->arg); /* may free it */
            any = true;
        }
    }
    return any;
}

int64_t timers_timeout(th_context *context)
{
    int64_t timeout = -1;

    for (int realtime = 0; realtime < 2; realtime++) {
        th_timer *first = context->timers[realtime].head;
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

typedef struct sleep_arg { th_co *co; th_timer *timer; int64_t deadline; } sleep_arg;

static void sleep_over(void *arg)
{
    sleep_arg *s = arg;

    th_timer_free(s->timer);
    th_co_enter(s->co);
}

static void sleep_begin(void *arg)
{
    sleep_arg *s = arg;
    th_timer_mod(s->timer, s->deadline);
}

void th_co_sleep_ns(bool realtime, int64_t ns)
{
    th_context *context = th_context_current();
    sleep_arg s = { .co = th_co_self() };

    s.timer = th_timer_new(realtime, sleep_over, &s);
    s.deadline = list_now(context, realtime) + ns;
    th_co_yield_then(sleep_begin, &s);
}
