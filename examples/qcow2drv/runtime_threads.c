/* SPDX-License-Identifier: MIT */
/* The thread host: a worker is a POSIX thread, a wait parks it. */
#include <errno.h>
#include <stdlib.h>
#include <time.h>

#include "runtime_threads.h"

struct worker {
    struct worker *next;
    struct runtime_threads *rt;
    pthread_t thread;
    void (*entry)(void *arg);
    void *arg;
};

static struct runtime_threads *to_threads(struct runtime *rt)
{
    return (struct runtime_threads *)rt; /* rt is the first member */
}

static const q2c_host *threads_host(struct runtime *rt)
{
    (void)rt;
    return NULL;
}

static void *threads_context(struct runtime *rt, unsigned index)
{
    (void)rt;
    (void)index;
    return NULL; /* all cleaners share the library's one background thread */
}

static void *worker_main(void *arg)
{
    struct worker *worker = arg;
    struct runtime_threads *t = worker->rt;

    worker->entry(worker->arg);
    pthread_mutex_lock(&t->mutex);
    t->running--;
    pthread_cond_broadcast(&t->changed);
    pthread_mutex_unlock(&t->mutex);
    return NULL;
}

int runtime_threads_spawn(struct runtime *rt, unsigned index, void (*entry)(void *arg), void *arg)
{
    struct runtime_threads *t = to_threads(rt);
    struct worker *worker = calloc(1, sizeof(*worker));
    int r;

    (void)index;
    if (!worker)
        return -ENOMEM;
    worker->rt = t;
    worker->entry = entry;
    worker->arg = arg;
    pthread_mutex_lock(&t->mutex);
    t->running++;
    pthread_mutex_unlock(&t->mutex);
    r = pthread_create(&worker->thread, NULL, worker_main, worker);
    if (r != 0) {
        pthread_mutex_lock(&t->mutex);
        t->running--;
        pthread_mutex_unlock(&t->mutex);
        free(worker);
        return -r;
    }
    worker->next = t->workers;
    t->workers = worker;
    return 0;
}

static void wait_until(struct runtime_threads *t, uint64_t deadline_ns)
{
    struct timespec when = {
        .tv_sec = (time_t)(deadline_ns / 1000000000u),
        .tv_nsec = (long)(deadline_ns % 1000000000u),
    };

    pthread_cond_timedwait(&t->changed, &t->mutex, &when);
}

void runtime_threads_wait_workers(struct runtime *rt, uint64_t tick_ns, void (*tick)(void *arg),
                                  void *arg)
{
    struct runtime_threads *t = to_threads(rt);
    uint64_t next = runtime_now_ns() + tick_ns;

    pthread_mutex_lock(&t->mutex);
    while (t->running != 0) {
        if (!tick) {
            pthread_cond_wait(&t->changed, &t->mutex);
            continue;
        }
        wait_until(t, next);
        if (runtime_now_ns() >= next) {
            next += tick_ns;
            pthread_mutex_unlock(&t->mutex);
            tick(arg);
            pthread_mutex_lock(&t->mutex);
        }
    }
    pthread_mutex_unlock(&t->mutex);

    while (t->workers) {
        struct worker *worker = t->workers;

        t->workers = worker->next;
        pthread_join(worker->thread, NULL);
        free(worker);
    }
}

void runtime_threads_sleep_ns(struct runtime *rt, uint64_t ns)
{
    struct timespec left = { .tv_sec = (time_t)(ns / 1000000000u),
                             .tv_nsec = (long)(ns % 1000000000u) };

    (void)rt;
    while (clock_nanosleep(CLOCK_MONOTONIC, 0, &left, &left) == EINTR) {
    }
}

void runtime_threads_wait_while(struct runtime *rt, bool (*cond)(void *arg), void *arg)
{
    struct runtime_threads *t = to_threads(rt);

    atomic_fetch_add(&rt->waiters, 1);
    pthread_mutex_lock(&t->mutex);
    while (cond(arg))
        pthread_cond_wait(&t->changed, &t->mutex);
    pthread_mutex_unlock(&t->mutex);
    atomic_fetch_sub(&rt->waiters, 1);
}

void runtime_threads_notify(struct runtime *rt)
{
    struct runtime_threads *t = to_threads(rt);

    pthread_mutex_lock(&t->mutex);
    pthread_cond_broadcast(&t->changed);
    pthread_mutex_unlock(&t->mutex);
}

void runtime_threads_destroy(struct runtime_threads *t)
{
    pthread_cond_destroy(&t->changed);
    pthread_mutex_destroy(&t->mutex);
}

static void threads_free(struct runtime *rt)
{
    struct runtime_threads *t = to_threads(rt);

    runtime_threads_destroy(t);
    free(t);
}

static const runtime_ops threads_ops = {
    .name = "threads",
    .host = threads_host,
    .context = threads_context,
    RUNTIME_THREADS_WORKERS,
    .free = threads_free,
};

void runtime_threads_init(struct runtime_threads *t, const runtime_ops *ops)
{
    pthread_condattr_t attr;

    t->rt.ops = ops;
    pthread_mutex_init(&t->mutex, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&t->changed, &attr);
    pthread_condattr_destroy(&attr);
}

struct runtime *runtime_threads_new(unsigned contexts)
{
    struct runtime_threads *t = calloc(1, sizeof(*t));

    (void)contexts;
    if (!t) {
        errno = ENOMEM;
        return NULL;
    }
    runtime_threads_init(t, &threads_ops);
    return &t->rt;
}
