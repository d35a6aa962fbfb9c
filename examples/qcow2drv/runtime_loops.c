/* SPDX-License-Identifier: MIT */
/* The event loop host: each context is an I/O thread that turns a loop of the library's, in which
 * cleaners live; workers are threads beside them, so that an image is used from all while its
 * cleaner lives in one. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime_threads.h"

struct io_thread {
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    int result;     /* 1: not known yet; else q2c_loop_new's */
    q2c_loop *loop; /* made and freed by the thread, its home */
    atomic_bool quit;
    bool kicked; /* for the last time */
};

struct runtime_loops {
    struct runtime_threads threads; /* first */
    q2c_host host;
    unsigned contexts;
    struct io_thread io[];
};

static struct runtime_loops *to_loops(struct runtime *rt)
{
    return (struct runtime_loops *)rt;
}

static void *io_main(void *arg)
{
    struct io_thread *io = arg;
    q2c_loop *loop = NULL;
    int r = q2c_loop_new(&loop, NULL);

    pthread_mutex_lock(&io->mutex);
    io->loop = loop;
    io->result = r;
    pthread_cond_signal(&io->changed);
    pthread_mutex_unlock(&io->mutex);
    if (r < 0)
        return NULL;
    while (!atomic_load(&io->quit))
        q2c_loop_poll(loop, -1);
    pthread_mutex_lock(&io->mutex);
    while (!io->kicked)
        pthread_cond_wait(&io->changed, &io->mutex);
    pthread_mutex_unlock(&io->mutex);
    r = q2c_loop_free(&loop);
    if (r < 0) {
        fprintf(stderr, "qcow2drv: an event loop is still lived in: %s\n", strerror(-r));
        abort();
    }
    return NULL;
}

static int io_start(struct io_thread *io)
{
    int r;

    pthread_mutex_init(&io->mutex, NULL);
    pthread_cond_init(&io->changed, NULL);
    io->result = 1;
    r = -pthread_create(&io->thread, NULL, io_main, io);
    if (r == 0) {
        pthread_mutex_lock(&io->mutex);
        while (io->result > 0)
            pthread_cond_wait(&io->changed, &io->mutex);
        r = io->result;
        pthread_mutex_unlock(&io->mutex);
        if (r < 0)
            pthread_join(io->thread, NULL);
    }
    if (r < 0) {
        pthread_cond_destroy(&io->changed);
        pthread_mutex_destroy(&io->mutex);
    }
    return r;
}

static void io_stop(struct io_thread *io)
{
    atomic_store(&io->quit, true);
    q2c_loop_kick(io->loop);
    /* Only now may it free the loop, which the kick has used. */
    pthread_mutex_lock(&io->mutex);
    io->kicked = true;
    pthread_cond_signal(&io->changed);
    pthread_mutex_unlock(&io->mutex);
    pthread_join(io->thread, NULL);
    pthread_cond_destroy(&io->changed);
    pthread_mutex_destroy(&io->mutex);
}

static const q2c_host *loops_host(struct runtime *rt)
{
    return &to_loops(rt)->host;
}

static void *loops_context(struct runtime *rt, unsigned index)
{
    struct runtime_loops *l = to_loops(rt);

    return l->io[index % l->contexts].loop;
}

static void loops_free(struct runtime *rt)
{
    struct runtime_loops *l = to_loops(rt);

    for (unsigned i = 0; i < l->contexts; i++)
        io_stop(&l->io[i]);
    runtime_threads_destroy(&l->threads);
    free(l);
}

static const runtime_ops loops_ops = {
    .name = "loops",
    .host = loops_host,
    .context = loops_context,
    RUNTIME_THREADS_WORKERS,
    .free = loops_free,
};

struct runtime *runtime_loops_new(unsigned contexts)
{
    struct runtime_loops *l;

    if (contexts == 0)
        contexts = 1;
    l = calloc(1, sizeof(*l) + contexts * sizeof(l->io[0]));
    if (!l) {
        errno = ENOMEM;
        return NULL;
    }
    runtime_threads_init(&l->threads, &loops_ops);
    l->host = (q2c_host){ .struct_size = sizeof(l->host), .kind = Q2C_HOST_EVENT_LOOP };
    while (l->contexts < contexts) {
        int r = io_start(&l->io[l->contexts]);

        if (r < 0) {
            loops_free(&l->threads.rt);
            errno = -r;
            return NULL;
        }
        l->contexts++;
    }
    return &l->threads.rt;
}
