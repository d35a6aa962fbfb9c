/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Threads of a test, and a gate that they meet at. */
#ifndef THREADS_H
#define THREADS_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct thread {
    pthread_t id;
    atomic_int kernel_id; /* 0 until it runs */
    atomic_bool done;     /* function has returned */
    void (*function)(void *argument);
    void *argument;
};

/* Starts a thread. *@thread must not move until it is joined. */
void thread_start(struct thread *thread, void (*function)(void *argument), void *argument);
void thread_join(struct thread *thread);

/*
 * Gives the thread time to run until it waits in the kernel (or ends). A test is stronger with it,
 * but must be right without it: the thread may be seen waiting too early, or not at all.
 */
void thread_settle(struct thread *thread);

/* Closed at first. Threads wait at it until it is opened. */
struct gate {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    bool open;
    unsigned waiting;
};

#define GATE_CLOSED { .mutex = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER }

void gate_wait(struct gate *gate);
/* Waits until @waiting threads or more are at the gate. */
void gate_await(struct gate *gate, unsigned waiting);
void gate_open(struct gate *gate);

#endif
