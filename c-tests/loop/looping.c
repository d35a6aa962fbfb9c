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
    q2c_error error = {.code = 0};

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
    struct pollfd fd = {.fd = q2c_loop_fd(loop), .events = POLLIN};

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
    q2c_error error = {.code = 0};

    if (q2c_cleaner_create(&loop_host, &cleaner, &error) != 0) {
        test_note("q2c_cleaner_create: %s", error.message);
    }
    REQUIRE(cleaner != NULL);
    return cleaner;
}

static void turn(void *argument)
{
    struct turner *turner = argument;
    q2c_loop *loop = loop_new();

    atomic_store(&turner->loop, loop);
    while (!atomic_load(&turner->quit)) {
        void (*job)(void *argument);

        CHECK(q2c_loop_poll(loop, -1) >= 0);
        job = atomic_load(&turner->job);
        if (job != NULL) {
            job(turner->argument);
            atomic_store(&turner->job, NULL);
        }
    }
    loop_drop(loop);
}

void turner_start(struct turner *turner)
{
    atomic_init(&turner->loop, NULL);
    atomic_init(&turner->quit, false);
    atomic_init(&turner->job, NULL);
    thread_start(&turner->thread, turn, turner);
    EVENTUALLY(atomic_load(&turner->loop) != NULL);
}

void turner_run(struct turner *turner, void (*function)(void *argument), void *argument)
{
    turner->argument = argument;
    atomic_store(&turner->job, function);
    CHECK_INT(q2c_loop_kick(turner->loop), 0);
    while (atomic_load(&turner->job) != NULL) {
        sched_yield();
    }
}

void turner_stop(struct turner *turner)
{
    atomic_store(&turner->quit, true);
    CHECK_INT(q2c_loop_kick(turner->loop), 0);
    thread_join(&turner->thread);
}
