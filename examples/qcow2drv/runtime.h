/* SPDX-License-Identifier: MIT */
/*
 * The runtime: what the driver and its commands need from the host they run on. The driver itself
 * knows neither threads nor coroutines: a "worker" is an OS thread on one host and a coroutine on
 * another. Any call that says "waits" may let other workers run meanwhile; the caller holds no
 * pthread mutex over it.
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
     * default order, and may be called any number of times with a lock of the runtime held. After a
     * change of what it reads, runtime_notify is called. */
    void (*wait_while)(struct runtime *rt, bool (*cond)(void *arg), void *arg);
    /* Makes every wait_while evaluate its condition again. Any thread. */
    void (*notify)(struct runtime *rt);
    /* NULL, or: runs the blocking fn(arg) in a helper thread, waits for its end and returns its
     * value. */
    int (*blocking)(struct runtime *rt, int (*fn)(void *arg), void *arg);
    /* NULL, or: between true and false nothing may poll, as under QEMU's graph write lock; a poll
     * aborts the program. The worker must not wait meanwhile. */
    void (*forbid_waits)(struct runtime *rt, bool forbid);
    /* Plain code, no worker left. */
    void (*free)(struct runtime *rt);
} runtime_ops;

struct runtime {
    const runtime_ops *ops;
    _Atomic unsigned waiters; /* in wait_while now; runtime_notify does nothing if there are none */
};

/* Makes a runtime by the name of its host ("threads", "loops", "coroutines"), with `contexts`
 * contexts. NULL with errno set: ENOTSUP = no such host in this build; ENOMEM. */
struct runtime *runtime_new(const char *host, unsigned contexts);

struct runtime *runtime_threads_new(unsigned contexts);
struct runtime *runtime_loops_new(unsigned contexts);
/* In builds with HAVE_COROUTINES. */
struct runtime *runtime_coroutines_new(unsigned contexts);

/* The names that runtime_new knows, for messages. */
const char *runtime_names(void);

/* What a waiter's condition reads has changed. Any thread. The change, this load, the waiter's
 * increment of `waiters` and its reads after it are all sequentially consistent: either this call
 * sees the waiter, or the waiter sees the change. */
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
