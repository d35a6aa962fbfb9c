/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* The loop inside a plain epoll loop, next to another descriptor of the program. */
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "looping.h"

static q2c_loop *loop;
static q2c_cleaner *cleaner;
static int epoll, own_fd;
static uint64_t own_events;

static void watch(int fd)
{
    struct epoll_event event = { .events = EPOLLIN, .data.fd = fd };

    REQUIRE(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0);
}

/* One turn of the program's loop. */
static void turn(void)
{
    int64_t timeout_ns = loop_timeout(loop);
    /* rounded up; otherwise it would spin until the timer is due */
    int timeout_ms = timeout_ns < 0 ? -1 : (int)((timeout_ns + 999999) / 1000000);
    struct epoll_event events[2];
    int n = epoll_wait(epoll, events, 2, timeout_ms);

    REQUIRE(n >= 0);
    for (int i = 0; i < n; i++) {
        uint64_t value;

        if (events[i].data.fd == own_fd) {
            REQUIRE(read(own_fd, &value, sizeof(value)) == sizeof(value));
            own_events += value;
        }
    }
    CHECK(q2c_loop_dispatch(loop) >= 0);
}

static void write_own(void *argument)
{
    uint64_t one = 1;

    for (unsigned i = 0; i < 50; i++) {
        REQUIRE(write(own_fd, &one, sizeof(one)) == sizeof(one));
        sched_yield();
    }
    (void)argument;
}

static void epoll_serves_the_loop_and_another_descriptor(void)
{
    struct thread thread;

    own_events = 0;
    CHECK_INT(q2c_cleaner_start(cleaner, loop, MILLISECOND), 0);
    thread_start(&thread, write_own, NULL);
    while (cleaner_stats(cleaner).passes < 5 || own_events < 50) {
        turn();
    }
    thread_join(&thread);
    CHECK_U64(own_events, 50);
    CHECK_INT(q2c_cleaner_del_and_wait(cleaner), 0);
}

static void start_it(void *argument)
{
    CHECK_INT(q2c_cleaner_start(argument, loop, MILLISECOND), 0);
}

/* The loop waits without a limit when another thread starts a cleaner in it. */
static void start_in_another_thread_makes_the_loop_readable(void)
{
    struct thread thread;

    CHECK_INT(loop_timeout(loop), -1);
    thread_start(&thread, start_it, cleaner);
    EVENTUALLY((turn(), cleaner_stats(cleaner).passes >= 8));
    thread_join(&thread);
    CHECK_INT(q2c_cleaner_del_and_wait(cleaner), 0);
    loop_settle(loop);
    CHECK_INT(loop_timeout(loop), -1);
}

static void stop_it(void *argument)
{
    const struct cleaner_stop *how = argument;

    CHECK_INT(how->stop(cleaner), 0);
}

/* A stop returns whether the home thread runs the loop or does something else. */
static void stops_from_another_thread_return(void)
{
    for (unsigned i = 0; i < 2 * CLEANER_STOPS; i++) {
        struct thread thread;

        CHECK_INT(q2c_cleaner_start(cleaner, loop, FOREVER), 0);
        loop_settle(loop);
        thread_start(&thread, stop_it, (void *)(uintptr_t)&cleaner_stops[i % CLEANER_STOPS]);
        if (i < CLEANER_STOPS) {
            while (cleaner_stats(cleaner).instances > 0) {
                CHECK(q2c_loop_poll(loop, (int64_t)MILLISECOND) >= 0);
            }
        }
        thread_join(&thread);
    }
}

int main(void)
{
    test_begin();
    loop = loop_new();
    cleaner = loop_cleaner_new();
    epoll = epoll_create1(EPOLL_CLOEXEC);
    own_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    REQUIRE(epoll >= 0 && own_fd >= 0);
    watch(own_fd);
    watch(q2c_loop_fd(loop));
    RUN(epoll_serves_the_loop_and_another_descriptor);
    RUN(start_in_another_thread_makes_the_loop_readable);
    RUN(stops_from_another_thread_return);
    close(own_fd);
    close(epoll);
    cleaner_drop(cleaner);
    loop_drop(loop);
    return test_end();
}
