/* SPDX-License-Identifier: MIT */
/*
 * What the driver and its commands need of the place they run in. The driver itself knows neither
 * threads nor coroutines: a "worker" below is an OS thread on one host and a coroutine on another,
 * and any call that says "waits" may let other workers run meanwhile. No pthread mutex is held by
 * the caller over such a call.
 *
 * Plain code = the thread that called runtime_new, outside of any worker.
 */
#ifndef QCOW2DRV_RUNTIME_H
#define QCOW2DRV_RUNTIME_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include <qcow2cache.h>

struct runtime;

typedef struct runtime_ops {
    const char *name;
    /* The host table to hand to the library; NULL = threads. */
    const q2c_host *(*host)(struct runtime *rt);
    /* Context number `index`, modulo how many there are: where a cleaner can run. */
    void *(*context)(struct runtime *rt, unsigned index);
    /* Starts entry(arg) as a worker of context `index`. Plain code. 0 or -errno. */
    int (*spawn)(struct runtime *rt, unsigned index, void (*entry)(void *arg), void *arg);
    /* Plain code: waits until every worker has ended; calls tick (may be NULL) about every tick_ns
     * meanwhile. */
    void (*wait_workers)(struct runtime *rt, uint64_t tick_ns, void (*tick)(void *arg), void *arg);
    /* Worker or plain code: waits. Contexts go on working. */
    void (*sleep_ns)(struct runtime *rt, uint64_t ns);
    /* Worker or plain code: waits until cond(arg) is false. cond reads atomics alone, in the
     * default order, and may be called with a lock of the runtime held, any number of times. Who
     * changes what it reads calls runtime_notify afterwards. */
    void (*wait_while)(struct runtime *rt, bool (*cond)(void *arg), void *arg);
    /* Any thread: everybody in wait_while looks at the condition again. */
    void (*notify)(struct runtime *rt);
    /* NULL, or: runs the blocking fn(arg) where it harms nobody, waits for its end and returns its
     * value. */
    int (*blocking)(struct runtime *rt, int (*fn)(void *arg), void *arg);
    /* NULL, or: from true to false nobody may poll, as under a graph write lock; the program aborts
     * if somebody does. The worker must not wait meanwhile. */
    void (*forbid_waits)(struct runtime *rt, bool forbid);
    /* Plain code, no worker left. */
    void (*free)(struct runtime *rt);
} runtime_ops;

struct runtime {
    const runtime_ops *ops;
    _Atomic unsigned
        waiters; /* in wait_while now: runtime_notify costs nothing when there are none */
};

/* A runtime by the name of its host ("threads", "loops", "coroutines"), with `contexts` contexts;
 * NULL with errno set: ENOTSUP = no such host in this build, ENOMEM. */
struct runtime *runtime_new(const char *host, unsigned contexts);

struct runtime *runtime_threads_new(unsigned contexts);
struct runtime *runtime_loops_new(unsigned contexts);
/* In builds with HAVE_COROUTINES. */
struct runtime *runtime_coroutines_new(unsigned contexts);

/* The names runtime_new knows, for messages. */
const char *runtime_names(void);

/* Any thread: what a waiter's condition reads has changed. The change, this load, the waiter's
 * increment of `waiters` and its reads after it are all sequentially consistent: either we see the
 * waiter, or it the change. */
static inline void runtime_notify(struct runtime *rt)
{
    if (atomic_load(&rt->waiters) != 0)
        rt->ops->notify(rt);
}

static inline int runtime_blocking(struct runtime *rt, int (*fn)(void *arg), void *arg)
{
    return rt->ops->blocking ? rt->ops->blocking(rt, fn, arg) : fn(arg);
}

/* CLOCK_MONOTONIC in nanoseconds. */
uint64_t runtime_now_ns(void);

#endif
