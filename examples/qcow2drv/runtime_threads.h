/* SPDX-License-Identifier: MIT */
/* Workers that are POSIX threads: the thread host whole, and what the event loop host has of it. */
#ifndef QCOW2DRV_RUNTIME_THREADS_H
#define QCOW2DRV_RUNTIME_THREADS_H

#include <pthread.h>

#include "runtime.h"

struct worker;

struct runtime_threads {
    struct runtime rt;
    pthread_mutex_t mutex;
    pthread_cond_t changed; /* a condition of wait_while may have changed, or a worker has ended */
    struct worker *workers; /* plain code alone */
    unsigned running;
};

void runtime_threads_init(struct runtime_threads *t, const runtime_ops *ops);
void runtime_threads_destroy(struct runtime_threads *t);

/* Operations as in runtime_ops. */
int runtime_threads_spawn(struct runtime *rt, unsigned index, void (*entry)(void *arg), void *arg);
void runtime_threads_wait_workers(struct runtime *rt, uint64_t tick_ns, void (*tick)(void *arg),
                                  void *arg);
void runtime_threads_sleep_ns(struct runtime *rt, uint64_t ns);
void runtime_threads_wait_while(struct runtime *rt, bool (*cond)(void *arg), void *arg);
void runtime_threads_notify(struct runtime *rt);

/* For an runtime_ops: what is about workers. They may block. */
#define RUNTIME_THREADS_WORKERS                                                                    \
    .spawn = runtime_threads_spawn, .wait_workers = runtime_threads_wait_workers,                  \
    .sleep_ns = runtime_threads_sleep_ns, .wait_while = runtime_threads_wait_while,                \
    .notify = runtime_threads_notify, .blocking = NULL

#endif
