/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Layer 6. The things that a QEMU process has one of: the list of its contexts, the virtual clock,
 * the graph lock.
 */
#ifndef TESTHOST_PROGRAM_H
#define TESTHOST_PROGRAM_H
#include "coroutine.h"
#include "notifier.h"

typedef struct host_program host_program;

host_program *host_program_new(void);
/* Dies if a context of it is left. */
void host_program_free(host_program *program);

/* The program's virtual clock, ns. It begins at 1 s and runs. Any thread. */
int64_t host_clock_now(host_program *program);
void host_clock_stop(host_program *program);
void host_clock_resume(host_program *program);
/* Moves a stopped clock. */
void host_clock_step(host_program *program, uint64_t ns);
/*
 * false: timers on the virtual clock never fire, whatever its time (as in QEMU's command line
 * tools). Any thread.
 */
void host_clock_set_firing(host_program *program, bool firing);

/*
 * While the graph is locked for writing host_poll_while() dies, in every thread, and the holder may
 * not park. One holder.
 */
void host_graph_wrlock(host_program *program);
void host_graph_wrunlock(host_program *program);

/* ---- for the layers above -------------------------------------------------------------------- */

/* A context as the program sees it: something to notify. */
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
/* Frees @kept with the program: a late use of it finds a closed object and not freed memory. */
void host_program_keep(host_program *program, host_kept *kept);
void host_program_notify(host_program *program, bool polling_only);
/* Counts @member as one that polls (n = 1), or no longer (n = -1). */
void host_program_polls(host_program *program, host_member *member, int n);
/* The coroutine or leader that has locked the graph for writing, or NULL. */
host_co *host_graph_writer(host_program *program);

#endif
