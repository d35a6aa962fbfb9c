/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * A waiter is in the list before it has yielded, so it may be scheduled before it has left its
 * stack. That is safe because it is scheduled in its home context only: the home thread enters it
 * after it has yielded.
 */
#include "co_mutex.h"

static void append(host_co_queue *queue, host_co_waiter *wait)
{
    wait->next = NULL;
    *queue->tail = wait;
    queue->tail = &wait->next;
}

static host_co *take_first(host_co_queue *queue)
{
    host_co_waiter *wait = queue->head;

    if (!wait) {
        return NULL;
    }
    queue->head = wait->next;
    if (!queue->head) {
        queue->tail = &queue->head;
    }
    return wait->co;
}

static void schedule_home(host_co *co)
{
    host_context *home = host_co_home(co);

    if (!home) {
        host_die("coroutine %p waits in a thread that has no context", (void *)co);
    }
    host_co_schedule(home, co);
}

void host_co_mutex_init(host_co_mutex *mutex)
{
    pthread_mutex_init(&mutex->guard, NULL);
    mutex->owner = NULL;
    host_co_queue_init(&mutex->waiters);
}

void host_co_mutex_destroy(host_co_mutex *mutex)
{
    if (mutex->owner) {
        host_die("mutex %p is destroyed while coroutine %p holds it", (void *)mutex,
                 (void *)mutex->owner);
    }
    pthread_mutex_destroy(&mutex->guard);
}

void host_co_mutex_lock(host_co_mutex *mutex)
{
    host_co *self = host_co_self();
    host_co_waiter wait = { .co = self };

    if (!host_in_coroutine()) {
        host_die("mutex %p locked outside a coroutine", (void *)mutex);
    }
    pthread_mutex_lock(&mutex->guard);
    if (mutex->owner == self) {
        host_die("mutex %p locked twice by coroutine %p", (void *)mutex, (void *)self);
    }
    if (!mutex->owner) {
        mutex->owner = self;
        pthread_mutex_unlock(&mutex->guard);
        return;
    }
    append(&mutex->waiters, &wait);
    pthread_mutex_unlock(&mutex->guard);
    host_co_yield(); /* the unlock has made this coroutine the owner */
}

void host_co_mutex_unlock(host_co_mutex *mutex)
{
    host_co *self = host_co_self();
    host_co *next;

    pthread_mutex_lock(&mutex->guard);
    if (mutex->owner != self || !host_in_coroutine()) {
        host_die("mutex %p unlocked by %p, locked by %p", (void *)mutex, (void *)self,
                 (void *)mutex->owner);
    }
    next = take_first(&mutex->waiters);
    mutex->owner = next;
    pthread_mutex_unlock(&mutex->guard);
    if (next) {
        schedule_home(next);
    }
}

bool host_co_mutex_held(host_co_mutex *mutex)
{
    bool mine;

    pthread_mutex_lock(&mutex->guard);
    mine = mutex->owner == host_co_self();
    pthread_mutex_unlock(&mutex->guard);
    return mine;
}

void host_co_queue_init(host_co_queue *queue)
{
    queue->head = NULL;
    queue->tail = &queue->head;
}

void host_co_queue_wait(host_co_queue *queue, host_co_mutex *mutex)
{
    host_co_waiter wait = { .co = host_co_self() };

    append(queue, &wait);
    host_co_mutex_unlock(mutex);
    host_co_yield();
    host_co_mutex_lock(mutex);
}

bool host_co_queue_next(host_co_queue *queue)
{
    host_co *co = take_first(queue);

    if (co) {
        schedule_home(co);
    }
    return co != NULL;
}
