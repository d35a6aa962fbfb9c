/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * A fair mutex and a wait queue for coroutines of any context. A waiter is in the list before it has yielded, so that it
 * may be scheduled early: always in its own home context, whose thread enters it after it yielded.
 */
#include "internal.h"

static void append(th_queue *queue, th_wait *wait)
{
    wait->next = NULL;
    *queue->tail = wait;
    queue->tail = &wait->next;
}

static th_co *take_first(th_queue *queue)
{
    th_wait *wait = queue->head;

    if (!wait) {
        return NULL;
    }
    queue->head = wait->next;
    if (!queue->head) {
        queue->tail = &queue->head;
    }
    return wait->co;
}

static void schedule_home(th_co *co)
{
    th_context *home = th_co_home(co);

    if (!home) {
        th_die("coroutine %p waits in a thread that has no context", (void *)co);
    }
    th_co_schedule(home, co);
}

void th_mutex_init(th_mutex *mutex)
{
    pthread_mutex_init(&mutex->guard, NULL);
    mutex->owner = NULL;
    th_queue_init(&mutex->waiters);
}

void th_mutex_destroy(th_mutex *mutex)
{
    if (mutex->owner) {
        th_die("mutex %p is destroyed while coroutine %p holds it", (void *)mutex, (void *)mutex->owner);
    }
    pthread_mutex_destroy(&mutex->guard);
}

void th_mutex_lock(th_mutex *mutex)
{
    th_co *self = th_co_self();
    th_wait wait = { .co = self };

    if (!th_in_coroutine()) {
        th_die("mutex %p locked outside a coroutine", (void *)mutex);
    }
    pthread_mutex_lock(&mutex->guard);
    if (mutex->owner == self) {
        th_die("mutex %p locked twice by coroutine %p", (void *)mutex, (void *)self);
    }
    if (!mutex->owner) {
        mutex->owner = self;
        pthread_mutex_unlock(&mutex->guard);
        return;
    }
    append(&mutex->waiters, &wait);
    pthread_mutex_unlock(&mutex->guard);
    th_co_yield(); /* it is ours when we are back */
}

void th_mutex_unlock(th_mutex *mutex)
{
    th_co *self = th_co_self();
    th_co *next;

    pthread_mutex_lock(&mutex->guard);
    if (mutex->owner != self || !th_in_coroutine()) {
        th_die("mutex %p unlocked by %p, locked by %p", (void *)mutex, (void *)self, (void *)mutex->owner);
    }
    next = take_first(&mutex->waiters);
    mutex->owner = next;
    pthread_mutex_unlock(&mutex->guard);
    if (next) {
        schedule_home(next);
    }
}

bool th_mutex_held_by_me(th_mutex *mutex)
{
    bool mine;

    pthread_mutex_lock(&mutex->guard);
    mine = mutex->owner == th_co_self();
    pthread_mutex_unlock(&mutex->guard);
    return mine;
}

void th_queue_init(th_queue *queue)
{
    queue->head = NULL;
    queue->tail = &queue->head;
}

void th_queue_wait(th_queue *queue, th_mutex *mutex)
{
    th_wait wait = { .co = th_co_self() };

    append(queue, &wait);
    th_mutex_unlock(mutex);
    th_co_yield();
    th_mutex_lock(mutex);
}

bool th_queue_next(th_queue *queue)
{
    th_co *co = take_first(queue);

    if (co) {
        schedule_home(co);
    }
    return co != NULL;
}
