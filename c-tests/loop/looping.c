/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "looping.h"

#include <poll.h>

const q2c_host loop_host = {
    .struct_size = sizeof(loop_host),
    .kind = Q2C_HOST_EVENT_LOOP,
};

q2c_loop *loop_new(void)
{
    q2c_loop *loop = NULL;
    q2c_error error = { .code = 0 };

    if (q2c_loop_new(&loop, &error) != 0) {
        test_note("q2c_loop_new: %s", error.message);
    }
    REQUIRE(loop != NULL);
    return loop;
}

void loop_drop(q2c_loop *loop)
{
    CHECK_INT(q2c_loop_free(&loop), 0);
    CHECK_PTR(loop, NULL);
}

bool loop_is_readable(q2c_loop *loop)
{
    struct pollfd fd = { .fd = q2c_loop_fd(loop), .events = POLLIN };

    REQUIRE(fd.fd >= 0);
    return poll(&fd, 1, 0) == 1 && (fd.revents & POLLIN) != 0;
}

int64_t loop_timeout(q2c_loop *loop)
{
    int64_t timeout = -2;

    MUST(q2c_loop_timeout_ns(loop, &timeout));
    return timeout;
}

void loop_settle(q2c_loop *loop)
{
    while (loop_is_readable(loop) || loop_timeout(loop) == 0) {
        CHECK(q2c_loop_dispatch(loop) >= 0);
    }
}

q2c_cleaner *loop_cleaner_new(void)
{
    q2c_cleaner *cleaner = NULL;
    q2c_error error = { .code = 0 };

    if (q2c_cleaner_create(&loop_host, &cleaner, &error) != 0) {
        test_note("q2c_cleaner_create: %s", error.message);
    }
    REQUIRE(cleaner != NULL);
    return cleaner;
}

static void do_job(struct turner *turner)
{
    void (*job)(void *argument);

    pthread_mutex_lock(&turner->mutex);
    job = turner->job;
    pthread_mutex_unlock(&turner->mutex);
    if (job != NULL) {
        job(turner->argument);
        pthread_mutex_lock(&turner->mutex);
        turner->job = NULL;
        pthread_cond_signal(&turner->done);
        pthread_mutex_unlock(&turner->mutex);
    }
}

static void turn(void *argument)
{
    struct turner *turner = argument;
    q2c_loop *loop = loop_new();

    atomic_store(&turner->loop, loop);
    while (!atomic_load(&turner->quit)) {
        CHECK(q2c_loop_poll(loop, -1) >= 0);
        do_job(turner);
    }
    loop_drop(loop);
}

void turner_start(struct turner *turner)
{
    atomic_init(&turner->loop, NULL);
    atomic_init(&turner->quit, false);
    MUST(pthread_mutex_init(&turner->mutex, NULL));
    MUST(pthread_cond_init(&turner->done, NULL));
    turner->job = NULL;
    thread_start(&turner->thread, turn, turner);
    EVENTUALLY(atomic_load(&turner->loop) != NULL);
}

void turner_send(struct turner *turner, void (*function)(void *argument), void *argument)
{
    pthread_mutex_lock(&turner->mutex);
    turner->argument = argument;
    turner->job = function;
    /* Under the mutex: the job may be the last one, after which the loop is freed. */
    MUST(q2c_loop_kick(turner->loop));
    pthread_mutex_unlock(&turner->mutex);
}

void turner_await(struct turner *turner)
{
    pthread_mutex_lock(&turner->mutex);
    while (turner->job != NULL) {
        pthread_cond_wait(&turner->done, &turner->mutex);
    }
    pthread_mutex_unlock(&turner->mutex);
}

void turner_run(struct turner *turner, void (*function)(void *argument), void *argument)
{
    turner_send(turner, function, argument);
    turner_await(turner);
}

static void quit(void *argument)
{
    atomic_store(&((struct turner *)argument)->quit, true);
}

void turner_stop(struct turner *turner)
{
    turner_send(turner, quit, turner);
    thread_join(&turner->thread);
    pthread_cond_destroy(&turner->done);
    pthread_mutex_destroy(&turner->mutex);
}
