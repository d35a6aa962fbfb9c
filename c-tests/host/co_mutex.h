/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Layer 10. A mutex and a wait queue for coroutines of any context: QEMU's CoMutex and CoQueue. */
#ifndef TESTHOST_CO_MUTEX_H
#define TESTHOST_CO_MUTEX_H
#include "context.h"

typedef struct host_co_waiter {
    struct host_co_waiter *next;
    host_co *co;
} host_co_waiter;
typedef struct host_co_queue {
    host_co_waiter *head, **tail;
} host_co_queue;
typedef struct host_co_mutex {
    pthread_mutex_t guard; /* held over a few instructions, never across a yield */
    host_co *owner;
    host_co_queue waiters;
} host_co_mutex;

/*
 * The mutex is fair: an unlock passes it to the coroutine that has waited longest, and schedules
 * that one in its home context. Lock and unlock it in the same coroutine; init and destroy it
 * anywhere.
 */
void host_co_mutex_init(host_co_mutex *mutex);
void host_co_mutex_destroy(host_co_mutex *mutex);
void host_co_mutex_lock(host_co_mutex *mutex);
void host_co_mutex_unlock(host_co_mutex *mutex);
/* Whether the running coroutine holds it. */
bool host_co_mutex_held(host_co_mutex *mutex);

/* The mutex given to host_co_queue_wait() protects the queue. */
void host_co_queue_init(host_co_queue *queue);
void host_co_queue_wait(host_co_queue *queue, host_co_mutex *mutex);
/* Wakes the coroutine that has waited longest. Returns false if there is none. */
bool host_co_queue_next(host_co_queue *queue);

#endif
