/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "timer.h"

#include <stdlib.h>

struct host_timer {
    host_timer_group *group;
    bool realtime;
    bool armed;
    int64_t deadline;
    void (*cb)(void *arg);
    void *arg;
    host_timer *next;
};

static void check_thread(host_timer *timer, const char *what)
{
    if (!pthread_equal(timer->group->thread, pthread_self())) {
        host_die("timer %p: %s outside its home thread", (void *)timer, what);
    }
}

void host_timer_group_init(host_timer_group *group, host_program *program)
{
    *group = (host_timer_group){ .program = program, .thread = pthread_self() };
}

host_timer *host_timer_group_add(host_timer_group *group, bool realtime, void (*cb)(void *arg),
                                 void *arg)
{
    host_timer *timer = calloc(1, sizeof(*timer));

    if (!timer) {
        host_die("no memory for a timer");
    }
    *timer = (host_timer){ .group = group, .realtime = realtime, .cb = cb, .arg = arg };
    group->alive++;
    return timer;
}

static void disarm(host_timer *timer)
{
    host_timer_list *list = &timer->group->lists[timer->realtime];
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
    host_timer_list *list = &timer->group->lists[timer->realtime];
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
    timer->group->alive--;
    free(timer);
}

int64_t host_timer_group_now(host_timer_group *group, bool realtime)
{
    return realtime ? host_real_now() : host_clock_now(group->program);
}

bool host_timer_group_run(host_timer_group *group)
{
    bool any = false;

    for (int realtime = 0; realtime < 2; realtime++) {
        host_timer_list *list = &group->lists[realtime];
        int64_t now = host_timer_group_now(group, realtime);
        size_t n = list->n; /* a timer that re-arms itself for now runs in the next round */

        if (!realtime && !atomic_load(&group->program->timers_fire)) {
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

int64_t host_timer_group_timeout(host_timer_group *group)
{
    int64_t timeout = -1;

    for (int realtime = 0; realtime < 2; realtime++) {
        host_timer *first = group->lists[realtime].head;
        int64_t left;

        if (!first || (!realtime && !atomic_load(&group->program->timers_fire))) {
            continue;
        }
        left = first->deadline - host_timer_group_now(group, realtime);
        if (left > 0 && !realtime && atomic_load(&group->program->clock_stopped_at) >= 0) {
            continue; /* not due until the clock is moved, which notifies the context */
        }
        left = left > 0 ? left : 0;
        timeout = timeout < 0 || left < timeout ? left : timeout;
    }
    return timeout;
}
