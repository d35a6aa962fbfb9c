/* SPDX-License-Identifier: MIT */
/* Workers that are POSIX threads: the thread host whole, and what the event loop host has of it. */
#ifndef QCOW2DRV_RUNTIME_THREADS_H
#define QCOW2DRV_RUNTIME_THREADS_H

#include <pthread.h>

#include "runtime.h"

struct worker;

struct rt_threads {
    struct rt rt;
    pthread_mutex_t mutex;
    pthread_cond_t changed; /* a condition of wait_while may have changed, or a worker has ended */
    struct worker *workers; /* plain code alone */
    unsigned running;
};

void rt_threads_init(struct rt_threads *t, const rt_ops *ops);
void rt_threads_destroy(struct rt_threads *t);

/* Operations as in rt_ops. */
int rt_threads_spawn(struct rt *rt, unsigned index, void (*entry)(void *arg), void *arg);
void rt_threads_wait_workers(struct rt *rt, uint64_t tick_ns, void (*tick)(void *arg), void *arg);
void rt_threads_sleep_ns(struct rt *rt, uint64_t ns);
void rt_threads_wait_while(struct rt *rt, bool (*cond)(void *arg), void *arg);
void rt_threads_notify(struct rt *rt);

/* For an rt_ops: what is about workers. They may block. */
#define RT_THREADS_WORKERS                                                                                             \
    .spawn = rt_threads_spawn, .wait_workers = rt_threads_wait_workers, .sleep_ns = rt_threads_sleep_ns,               \
    .wait_while = rt_threads_wait_while, .notify = rt_threads_notify, .blocking = NULL

#endif
