/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Event loops of the tests: one turned by hand, or one that lives in a thread of its own. */
#ifndef LOOPING_H
#define LOOPING_H

#include "image.h"
#include "threads.h"

extern const q2c_host loop_host;

/* In the calling thread; the test ends when there is none. */
q2c_loop *loop_new(void);
/* Home thread. Checks that nothing lives in it. */
void loop_drop(q2c_loop *loop);
/* Is the descriptor readable now? */
bool loop_is_readable(q2c_loop *loop);
int64_t loop_timeout(q2c_loop *loop);
/* Home thread: until there is nothing to do but to wait. */
void loop_settle(q2c_loop *loop);
/* A cleaner on the event loop host. */
q2c_cleaner *loop_cleaner_new(void);

/* A thread that makes a loop and turns it until it is stopped; it does what it is told in between. */
struct turner {
    struct thread thread;
    _Atomic(q2c_loop *) loop; /* NULL until it is there */
    atomic_bool quit;
    pthread_mutex_t mutex; /* what follows */
    pthread_cond_t done;
    void (*job)(void *argument); /* NULL: none is asked for, or the last one has ended */
    void *argument;
};

void turner_start(struct turner *turner);
/* Runs function(argument) in the turner's thread, between two turns, and waits for its end. One caller at a time. */
void turner_run(struct turner *turner, void (*function)(void *argument), void *argument);
/* The same in two parts: several turners can be sent at once. */
void turner_send(struct turner *turner, void (*function)(void *argument), void *argument);
void turner_await(struct turner *turner);
/* Frees the loop. */
void turner_stop(struct turner *turner);

#endif
