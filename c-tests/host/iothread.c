/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "iothread.h"

#include <stdlib.h>

/* ---- threads ---- */

struct host_iothread {
    host_program *program;
    host_context *context;
    pthread_t thread;
    bool stop;
    pthread_mutex_t mutex;
    pthread_cond_t started;
};

static void *iothread_main(void *arg)
{
    host_iothread *t = arg;
    host_context *context = host_context_new(t->program);

    pthread_mutex_lock(&t->mutex);
    t->context = context;
    pthread_cond_signal(&t->started);
    pthread_mutex_unlock(&t->mutex);
    while (!t->stop) {
        host_context_poll(context, true);
    }
    while (host_context_poll(context, false)) {
    }
    host_context_free(context);
    return NULL;
}

host_iothread *host_iothread_new(host_program *program)
{
    host_iothread *t = calloc(1, sizeof(*t));

    if (!t) {
        host_die("no memory for a thread");
    }
    t->program = program;
    pthread_mutex_init(&t->mutex, NULL);
    pthread_cond_init(&t->started, NULL);
    if (pthread_create(&t->thread, NULL, iothread_main, t)) {
        host_die("cannot create a thread");
    }
    pthread_mutex_lock(&t->mutex);
    while (!t->context) {
        pthread_cond_wait(&t->started, &t->mutex);
    }
    pthread_mutex_unlock(&t->mutex);
    return t;
}

host_context *host_iothread_context(host_iothread *iothread)
{
    return iothread->context;
}

static void stop_thread(void *arg)
{
    host_iothread *t = arg;
    t->stop = true; /* in its own thread */
}

void host_iothread_free(host_iothread *iothread)
{
    host_bh_schedule(iothread->context, stop_thread, iothread);
    pthread_join(iothread->thread, NULL);
    pthread_mutex_destroy(&iothread->mutex);
    pthread_cond_destroy(&iothread->started);
    free(iothread);
}

/* ---- calls into a context ---- */

typedef struct call {
    host_fn *fn;
    void *arg;
    host_context *from; /* NULL: the caller blocks */
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    bool done;
} call;

static bool call_unfinished(void *arg)
{
    call *c = arg;
    bool done;

    pthread_mutex_lock(&c->mutex);
    done = c->done;
    pthread_mutex_unlock(&c->mutex);
    return !done;
}

static void call_run(void *arg)
{
    call *c = arg;
    host_context *from = c->from;

    c->fn(c->arg);
    pthread_mutex_lock(&c->mutex);
    c->done = true;
    if (from) {
        host_notifier_set(&from->member.notifier);
    }
    pthread_cond_signal(&c->cond);
    pthread_mutex_unlock(&c->mutex); /* the last access: the caller frees it */
}

void host_context_call(host_context *context, bool in_coroutine, host_fn *fn, void *arg)
{
    call c = { .fn = fn, .arg = arg, .from = host_context_current() };

    if (host_in_coroutine()) {
        host_die("host_context_call in a coroutine");
    }
    pthread_mutex_init(&c.mutex, NULL);
    pthread_cond_init(&c.cond, NULL);
    if (in_coroutine) {
        host_co_schedule(context, host_co_create(call_run, &c));
    } else {
        host_bh_schedule(context, call_run, &c);
    }
    if (c.from) {
        host_poll_unchecked(c.from, call_unfinished, &c);
    } else {
        pthread_mutex_lock(&c.mutex);
        while (!c.done) {
            pthread_cond_wait(&c.cond, &c.mutex);
        }
        pthread_mutex_unlock(&c.mutex);
    }
    pthread_mutex_destroy(&c.mutex);
    pthread_cond_destroy(&c.cond);
}
