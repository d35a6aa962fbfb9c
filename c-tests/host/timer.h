/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Layer 7. Timers on the virtual clock and on real time. They belong to a group, as in QEMU's
 * QEMUTimerListGroup: each context has one, and only its thread touches it.
 */
#ifndef TESTHOST_TIMER_H
#define TESTHOST_TIMER_H
#include "program.h"

typedef struct host_timer host_timer;

/*
 * Call all timer functions in the thread of the timer's context. host_timer_new() is in context.h.
 */
/* Makes the timer fire once, at @deadline_ns. Replaces an earlier deadline. */
void host_timer_mod(host_timer *timer, int64_t deadline_ns);
void host_timer_del(host_timer *timer);
void host_timer_free(host_timer *timer);

/* ---- for the layers above -------------------------------------------------------------------- */

typedef struct host_timer_list {
    host_timer *head;
    size_t n;
} host_timer_list;

typedef struct host_timer_group {
    host_program *program;
    pthread_t thread;
    host_timer_list lists[2]; /* virtual, real time; by deadline */
    size_t alive;
} host_timer_group;

/* Call it in the thread that the group is for. */
void host_timer_group_init(host_timer_group *group, host_program *program);
host_timer *host_timer_group_add(host_timer_group *group, bool realtime, void (*cb)(void *arg),
                                 void *arg);
/* The time on the clock of a timer of that kind. */
int64_t host_timer_group_now(host_timer_group *group, bool realtime);
/* Runs the timers that are due. Returns true if there were any. */
bool host_timer_group_run(host_timer_group *group);
/* ns until the next timer is due; -1 if there is none, or if its clock stands still. */
int64_t host_timer_group_timeout(host_timer_group *group);

#endif
