/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Wrong use of the lock, timers, polling, storage and stacks ends the process. A callback after
 * host_adapter_close() does, too.
 */
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/wait.h>

#include "child.h"
#include "test.h"

/* ---- lock ---- */

static void lock_in_plain_code(void *arg)
{
    (void)arg;
    vt->lock(vt->opaque);
}

static void lock_it(void *arg)
{
    (void)arg;
    vt->lock(vt->opaque);
}

static void unlock_it(void *arg)
{
    (void)arg;
    vt->unlock(vt->opaque);
}

static void lock_it_twice(void *arg)
{
    lock_it(arg);
    lock_it(arg);
}

static void locked_twice(void *arg)
{
    host_co_enter(host_co_create(lock_it_twice, arg));
}

static void lock_and_yield(void *arg)
{
    lock_it(arg);
    host_co_yield();
}

static void unlocked_by_another(void *arg)
{
    host_co_enter(host_co_create(lock_and_yield, arg));
    host_co_enter(host_co_create(unlock_it, arg));
}

static void unlocked_in_plain_code(void *arg)
{
    host_co_enter(host_co_create(lock_and_yield, arg));
    unlock_it(arg);
}

static void unlocked_without_a_lock(void *arg)
{
    host_co_enter(host_co_create(unlock_it, arg));
}

static void lock_misuse_aborts(void)
{
    check_aborts(lock_in_plain_code, "lock outside a coroutine");
    check_aborts(locked_twice, "locked twice");
    check_aborts(unlocked_by_another, "unlocked by");
    check_aborts(unlocked_in_plain_code, "unlocked by");
    check_aborts(unlocked_without_a_lock, "unlocked by");
}

/* ---- timers ---- */

static void mod_it(void *timer)
{
    vt->timer_mod(vt->opaque, timer, 1);
}

static void del_it(void *timer)
{
    vt->timer_del(vt->opaque, timer);
}

static void free_it(void *timer)
{
    vt->timer_free(vt->opaque, timer);
}

static void call_in_another_thread(host_fn *fn)
{
    host_context_call(host_iothread_context(host_iothread_new(program)), false, fn,
                      vt->timer_new(vt->opaque, do_nothing, NULL));
}

static void timer_modified_in_another_thread(void *arg)
{
    (void)arg;
    call_in_another_thread(mod_it);
}

static void timer_deleted_in_another_thread(void *arg)
{
    (void)arg;
    call_in_another_thread(del_it);
}

static void timer_freed_in_another_thread(void *arg)
{
    (void)arg;
    call_in_another_thread(free_it);
}

static void context_ends_with_a_timer(void *arg)
{
    vt->timer_new(vt->opaque, do_nothing, arg);
    host_context_free(here);
}

static void timer_misuse_aborts(void)
{
    check_aborts(timer_modified_in_another_thread, "mod outside its home thread");
    check_aborts(timer_deleted_in_another_thread, "del outside its home thread");
    check_aborts(timer_freed_in_another_thread, "free outside its home thread");
    check_aborts(context_ends_with_a_timer, "1 timers");
}

/* ---- polling ---- */

static bool always_false(void *arg)
{
    (void)arg;
    return false;
}

static void poll_it(void *arg)
{
    vt->poll_while(vt->opaque, always_false, arg);
}

static void poll_in_a_coroutine(void *arg)
{
    host_co_enter(host_co_create(poll_it, arg));
}

static void poll_under_the_graph_lock(void *arg)
{
    host_graph_wrlock(program);
    poll_it(arg);
}

static void poll_in_another_thread_under_the_graph_lock(void *arg)
{
    host_graph_wrlock(program);
    host_context_call(host_iothread_context(host_iothread_new(program)), false, poll_it, arg);
}

static void lock_graph_and_park(void *arg)
{
    (void)arg;
    host_graph_wrlock(program);
    vt->co_suspend(vt->opaque);
}

static void park_under_the_graph_lock(void *arg)
{
    host_co_enter(host_co_create(lock_graph_and_park, arg));
}

static void polling_misuse_aborts(void)
{
    check_aborts(poll_in_a_coroutine, "poll_while in a coroutine");
    check_aborts(poll_under_the_graph_lock, "poll_while while the graph is locked for writing");
    check_aborts(poll_in_another_thread_under_the_graph_lock,
                 "poll_while while the graph is locked for writing");
    check_aborts(park_under_the_graph_lock, "parks while it holds the graph's write lock");
}

/* ---- after the close, and a close too early ---- */

static void call_after_close(void *arg)
{
    host_adapter_close(host);
    (void)arg;
    vt->now_ns(vt->opaque);
}

static void kick_after_close(void *arg)
{
    host_adapter_close(host);
    (void)arg;
    vt->kick(vt->opaque);
}

static void close_with_a_timer(void *arg)
{
    vt->timer_new(vt->opaque, do_nothing, arg);
    host_adapter_close(host);
}

static void close_with_a_coroutine_parked(void *arg)
{
    (void)arg;
    parked_here();
    host_adapter_close(host);
}

static void close_with_the_lock_held(void *arg)
{
    host_co_enter(host_co_create(lock_it, arg));
    host_adapter_close(host);
}

static void adapter_close_misuse_aborts(void)
{
    check_aborts(call_after_close, "now_ns called after the host was closed");
    check_aborts(kick_after_close, "kick called after the host was closed");
    check_aborts(close_with_a_timer, "closed with 0 coroutines parked, 1 timers alive");
    check_aborts(close_with_a_coroutine_parked, "closed with 1 coroutines parked");
    check_aborts(close_with_the_lock_held, "its lock held");
}

/* ---- storage ---- */

static q2c_storage calls;

static void write_it(void *arg)
{
    static char bytes[16];
    struct iovec iov = { bytes, sizeof(bytes) };

    calls.pwritev(calls.opaque, 0, *(uint64_t *)arg, &iov, 1);
}

static void overlapping_requests(void *arg)
{
    host_storage_config config = { .fd = -1, .size = 4096, .resume = HOST_RESUME_HOME };
    uint64_t at[3] = { 16, 32, 24 };

    (void)arg;
    host_storage_fill(host_storage_new(&config), &calls);
    for (int i = 0; i < 3; i++) {
        fprintf(stderr, "request %d ", i);
        host_co_enter(host_co_create(write_it, &at[i]));
    }
}

static void overlapping_requests_abort(void)
{
#ifdef __SANITIZE_THREAD__
    /* ThreadSanitizer finds these; the storage does not check */
    CHECK(overlapping_requests != NULL);
#else
    check_aborts(overlapping_requests,
                 "request 2 testhost: storage: a write of 16 bytes at 24 while a write");
#endif
}

/* ---- stacks ---- */

static int recurse(int depth)
{
    volatile char room[1024];

    room[0] = (char)depth;
    return depth ? recurse(depth - 1) + room[0] : 0;
}

static void overflow(void *arg)
{
    *(int *)arg = recurse(64);
}

static void overflow_small_stack(void *arg)
{
    int result;

    (void)arg;
    host_co_set_stack_size(HOST_STACK_SIZE_SMALL);
    signal(SIGSEGV, SIG_DFL); /* a sanitizer's handler would need stack, too */
    host_co_enter(host_co_create(overflow, &result));
}

static void stack_overflow_hits_guard_page(void)
{
    char text[4096];
    int status = run_child(overflow_small_stack, text, sizeof(text));

    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
}

int main(void)
{
    test_begin();
    RUN(lock_misuse_aborts);
    RUN(timer_misuse_aborts);
    RUN(polling_misuse_aborts);
    RUN(adapter_close_misuse_aborts);
    RUN(overlapping_requests_abort);
    RUN(stack_overflow_hits_guard_page);
    return test_end();
}
