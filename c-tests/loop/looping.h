/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Event loops for tests: run by hand, or in a separate thread. */
#ifndef LOOPING_H
#define LOOPING_H

#include "image.h"
#include "threads.h"

extern const q2c_host loop_host;

/* Creates a loop whose home is the calling thread. Ends the test if that fails. */
q2c_loop *loop_new(void);
/* Home thread. Frees the loop, and checks that nothing lives in it. */
void loop_drop(q2c_loop *loop);
/* Is the descriptor readable now? */
bool loop_is_readable(q2c_loop *loop);
int64_t loop_timeout(q2c_loop *loop);
/* Home thread. Dispatches until the loop can only wait. */
void loop_settle(q2c_loop *loop);
/* A cleaner on the event loop host. */
q2c_cleaner *loop_cleaner_new(void);

/* A thread that creates a loop and runs it until it is stopped. It runs jobs between turns. */
struct turner {
    struct thread thread;
    _Atomic(q2c_loop *) loop; /* NULL until it is created */
    atomic_bool quit;
    pthread_mutex_t mutex; /* guards the rest */
    pthread_cond_t done;
    void (*job)(void *argument); /* NULL: no job, or the last one has ended */
    void *argument;
};

void turner_start(struct turner *turner);
/*
 * Runs function(argument) in the turner's thread, between two turns of its loop, and waits for its
 * end. One caller at a time.
 */
void turner_run(struct turner *turner, void (*function)(void *argument), void *argument);
/* The two parts of turner_run(), so that several turners can run jobs at the same time. */
void turner_send(struct turner *turner, void (*function)(void *argument), void *argument);
void turner_await(struct turner *turner);
/* Ends the thread, which frees its loop. */
void turner_stop(struct turner *turner);

#endif
