/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Layer 6. What a QEMU process has exactly one of: the list of its contexts, the virtual clock, the
 * graph lock.
 */
#ifndef TESTHOST_PROGRAM_H
#define TESTHOST_PROGRAM_H
#include "coroutine.h"
#include "notifier.h"

typedef struct host_program host_program;

host_program *host_program_new(void);
/* Aborts if a context of the program is left. */
void host_program_free(host_program *program);

/* The time on the program's virtual clock, in ns. It starts at 1 s, running. Any thread. */
int64_t host_clock_now(host_program *program);
void host_clock_stop(host_program *program);
void host_clock_resume(host_program *program);
/* Moves the stopped clock forward. */
void host_clock_step(host_program *program, uint64_t ns);
/*
 * Sets whether timers on the virtual clock fire. With false they never do, whatever the time, as in
 * QEMU's command line tools. Any thread.
 */
void host_clock_set_firing(host_program *program, bool firing);

/*
 * Locks and unlocks the graph for writing. Meanwhile host_poll_while() aborts in every thread, and
 * the holder must not park. There is one holder at most.
 */
void host_graph_wrlock(host_program *program);
void host_graph_wrunlock(host_program *program);

/* ---- for the layers above -------------------------------------------------------------------- */

/* A context as the program sees it: an object to notify. */
typedef struct host_member {
    struct host_member *next;
    host_notifier notifier;
    atomic_int polling; /* nested host_poll_while(); changed with the program's mutex held */
} host_member;

/* An object that is freed with the program. */
typedef struct host_kept {
    struct host_kept *next;
    void (*dispose)(struct host_kept *kept);
} host_kept;

struct host_program {
    pthread_mutex_t mutex; /* members, their polling, kept */
    host_member *members;
    _Atomic int64_t clock_stopped_at; /* -1: runs */
    _Atomic int64_t clock_offset;     /* clock - CLOCK_MONOTONIC while it runs */
    atomic_bool timers_fire;
    _Atomic(host_co *) graph_writer;
    host_kept *kept;
};

void host_program_add(host_program *program, host_member *member);
void host_program_remove(host_program *program, host_member *member);
/* Frees @kept with the program, so that a late use of it finds a closed object, not freed memory.
 */
void host_program_keep(host_program *program, host_kept *kept);
/* Notifies all members, or only those that poll. */
void host_program_notify(host_program *program, bool polling_only);
/* Adds @n, 1 or -1, to the number of polls that @member is in. */
void host_program_polls(host_program *program, host_member *member, int n);
/* The coroutine or leader that has locked the graph for writing, or NULL. */
host_co *host_graph_writer(host_program *program);

#endif
