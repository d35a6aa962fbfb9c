/* SPDX-License-Identifier: MIT */
/*
 * The coroutine host: the QEMU-like one of c-tests/host. A worker is a stackful coroutine that
 * begins in an I/O thread's event loop; a blocking call is made in a thread of a small pool, where
 * its coroutine moves for it, and from where it goes on in any of the I/O threads. Plain code is
 * the main thread, which turns an event loop of its own.
 */
#include <errno.h>
#include <stdlib.h>
#include <time.h>

#include "host.h"
#include "runtime.h"

enum { POOL = 3 };

/* A coroutine in wait_while; on its stack. */
struct waiter {
    struct waiter *next;
    host_co *co;
    host_context *context;
};

struct runtime_coroutines {
    struct runtime rt;
    host_program *program;
    host_context *main;
    host_adapter *host;
    unsigned running; /* workers; main thread alone */
    pthread_mutex_t mutex;
    struct waiter *waiting; /* mutex */
    atomic_uint next_pool, next_io;
    host_iothread *pool[POOL];
    unsigned contexts;
    host_iothread *io[];
};

struct worker {
    struct runtime_coroutines *rt;
    void (*entry)(void *arg);
    void *arg;
};

static struct runtime_coroutines *to_coroutines(struct runtime *rt)
{
    return (struct runtime_coroutines *)rt; /* rt is the first member */
}

static const q2c_host *coroutines_host(struct runtime *rt)
{
    return host_adapter_vtable(to_coroutines(rt)->host);
}

static void *coroutines_context(struct runtime *rt, unsigned index)
{
    struct runtime_coroutines *c = to_coroutines(rt);

    return host_iothread_context(c->io[index % c->contexts]);
}

static void worker_ended(void *arg)
{
    struct runtime_coroutines *c = arg;

    c->running--;
}

static void worker_main(void *arg)
{
    struct worker *worker = arg;

    worker->entry(worker->arg);
    host_bh_schedule(worker->rt->main, worker_ended, worker->rt);
    free(worker);
}

static int coroutines_spawn(struct runtime *rt, unsigned index, void (*entry)(void *arg), void *arg)
{
    struct worker *worker = malloc(sizeof(*worker));

    if (!worker)
        return -ENOMEM;
    *worker = (struct worker){ to_coroutines(rt), entry, arg };
    worker->rt->running++;
    host_co_schedule(coroutines_context(rt, index), host_co_create(worker_main, worker));
    return 0;
}

struct ticking {
    host_timer *timer;
    uint64_t next, every;
    void (*tick)(void *arg);
    void *arg;
};

static void tick_again(void *arg)
{
    struct ticking *t = arg;

    t->tick(t->arg);
    t->next += t->every;
    host_timer_mod(t->timer, (int64_t)t->next);
}

static void coroutines_wait_workers(struct runtime *rt, uint64_t tick_ns, void (*tick)(void *arg),
                                    void *arg)
{
    struct runtime_coroutines *c = to_coroutines(rt);
    struct ticking t = {
        .next = runtime_now_ns() + tick_ns, .every = tick_ns, .tick = tick, .arg = arg
    };

    if (tick) {
        t.timer = host_timer_new(true, tick_again, &t);
        host_timer_mod(t.timer, (int64_t)t.next);
    }
    /* Not by poll-while, which nobody may be in while a worker holds the graph lock. */
    while (c->running != 0)
        host_context_poll(c->main, true);
    if (tick) {
        host_timer_del(t.timer);
        host_timer_free(t.timer);
    }
}

static void coroutines_sleep_ns(struct runtime *rt, uint64_t ns)
{
    struct timespec left = { .tv_sec = (time_t)(ns / 1000000000u),
                             .tv_nsec = (long)(ns % 1000000000u) };

    (void)rt;
    if (host_in_coroutine()) {
        host_co_sleep_ns(true, (int64_t)ns);
        return;
    }
    while (clock_nanosleep(CLOCK_MONOTONIC, 0, &left, &left) == EINTR) {
    }
}

static void unlock(void *arg)
{
    pthread_mutex_unlock(arg);
}

static void coroutines_wait_while(struct runtime *rt, bool (*cond)(void *arg), void *arg)
{
    struct runtime_coroutines *c = to_coroutines(rt);

    atomic_fetch_add(&rt->waiters, 1);
    if (!host_in_coroutine()) {
        host_poll_while(c->program, cond, arg);
    } else {
        pthread_mutex_lock(&c->mutex);
        while (cond(arg)) {
            struct waiter waiter = { c->waiting, host_co_self(), host_context_current() };

            c->waiting = &waiter;
            /* Nobody finds it in the list before it is off its stack. */
            host_co_yield_then(unlock, &c->mutex);
            pthread_mutex_lock(&c->mutex);
        }
        pthread_mutex_unlock(&c->mutex);
    }
    atomic_fetch_sub(&rt->waiters, 1);
}

static void coroutines_notify(struct runtime *rt)
{
    struct runtime_coroutines *c = to_coroutines(rt);
    struct waiter *waiting;

    pthread_mutex_lock(&c->mutex);
    waiting = c->waiting;
    c->waiting = NULL;
    pthread_mutex_unlock(&c->mutex);
    while (waiting) {
        struct waiter waiter = *waiting; /* gone as soon as it is scheduled */

        waiting = waiter.next;
        host_co_schedule(waiter.context, waiter.co);
    }
    host_kick(c->program);
}

static int coroutines_blocking(struct runtime *rt, int (*fn)(void *arg), void *arg)
{
    struct runtime_coroutines *c = to_coroutines(rt);
    int r;

    if (!host_in_coroutine())
        return fn(arg);
    host_co_move(host_iothread_context(c->pool[atomic_fetch_add(&c->next_pool, 1) % POOL]));
    r = fn(arg);
    host_co_move(coroutines_context(rt, atomic_fetch_add(&c->next_io, 1)));
    return r;
}

static void coroutines_forbid_waits(struct runtime *rt, bool forbid)
{
    struct runtime_coroutines *c = to_coroutines(rt);

    if (forbid)
        host_graph_wrlock(c->program);
    else
        host_graph_wrunlock(c->program);
}

static void coroutines_free(struct runtime *rt)
{
    struct runtime_coroutines *c = to_coroutines(rt);

    host_adapter_free(c->host);
    for (unsigned i = 0; i < c->contexts; i++)
        host_iothread_free(c->io[i]);
    for (unsigned i = 0; i < POOL; i++)
        host_iothread_free(c->pool[i]);
    host_context_free(c->main);
    host_program_free(c->program);
    host_co_pool_drain();
    pthread_mutex_destroy(&c->mutex);
    free(c);
}

static const runtime_ops coroutines_ops = {
    .name = "coroutines",
    .host = coroutines_host,
    .context = coroutines_context,
    .spawn = coroutines_spawn,
    .wait_workers = coroutines_wait_workers,
    .sleep_ns = coroutines_sleep_ns,
    .wait_while = coroutines_wait_while,
    .notify = coroutines_notify,
    .blocking = coroutines_blocking,
    .forbid_waits = coroutines_forbid_waits,
    .free = coroutines_free,
};

struct runtime *runtime_coroutines_new(unsigned contexts)
{
    struct runtime_coroutines *c;

    if (contexts == 0)
        contexts = 1;
    c = calloc(1, sizeof(*c) + contexts * sizeof(c->io[0]));
    if (!c) {
        errno = ENOMEM;
        return NULL;
    }
    c->rt.ops = &coroutines_ops;
    c->contexts = contexts;
    pthread_mutex_init(&c->mutex, NULL);
    c->program = host_program_new();
    c->main = host_context_new(c->program);
    for (unsigned i = 0; i < contexts; i++)
        c->io[i] = host_iothread_new(c->program);
    for (unsigned i = 0; i < POOL; i++)
        c->pool[i] = host_iothread_new(c->program);
    c->host = host_adapter_new(&(host_adapter_config){
        .program = c->program, .wake = HOST_RUN_AFTER, .spawn = HOST_RUN_AFTER });
    return &c->rt;
}
