/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "seams.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "test.h"

/*
 * The states of `word`: NONE → a seam (armed) → HELD → RELEASED → NONE, or from HELD to a seam
 * again. The held thread waits until another thread changes HELD. Only the held thread ends
 * RELEASED.
 */
enum { HELD = SEAMS, RELEASED };

static atomic_int word;
static atomic_uint to_skip, given_back;
static atomic_int waiting;
static void (*_Atomic to_call)(void);
static _Thread_local bool cleans_not;
static pthread_mutex_t call_mutex = PTHREAD_MUTEX_INITIALIZER;

void seam_thread_cleans(bool cleans)
{
    cleans_not = !cleans;
}

void seam_hold(enum seam seam, unsigned skip)
{
    REQUIRE(atomic_load(&word) == SEAM_NONE);
    atomic_store(&to_skip, skip);
    atomic_store(&word, (int)seam);
}

void seam_move(enum seam seam, unsigned skip)
{
    REQUIRE(atomic_load(&word) == HELD);
    atomic_store(&to_skip, skip);
    atomic_store(&word, (int)seam);
}

void seam_call(enum seam seam, void (*function)(void))
{
    atomic_store(&to_call, function);
    seam_hold(seam, 0);
}

bool seam_is_held(void)
{
    return atomic_load(&word) == HELD;
}

void seam_release(void)
{
    int seen = atomic_load(&word);

    while (seen != SEAM_NONE && seen != RELEASED &&
           !atomic_compare_exchange_weak(&word, &seen, seen == HELD ? RELEASED : SEAM_NONE)) {
    }
    EVENTUALLY(atomic_load(&word) == SEAM_NONE);
}

static void pass(enum seam seam)
{
    int armed = (int)seam;
    int released = RELEASED;
    void (*function)(void);

    if (cleans_not || atomic_load(&word) != armed) {
        return;
    }
    if (atomic_load(&to_skip) > 0) {
        atomic_fetch_sub(&to_skip, 1);
        return;
    }
    if (!atomic_compare_exchange_strong(&word, &armed, HELD)) {
        return;
    }
    function = atomic_exchange(&to_call, NULL);
    if (function != NULL) {
        pthread_mutex_lock(&call_mutex);
        function();
        pthread_mutex_unlock(&call_mutex);
        atomic_store(&word, SEAM_NONE);
        return;
    }
    while (atomic_load(&word) == HELD) {
        test_pause();
    }
    atomic_compare_exchange_strong(&word, &released, SEAM_NONE);
}

void seam_await_calls(void)
{
    pthread_mutex_lock(&call_mutex);
    pthread_mutex_unlock(&call_mutex);
}

enum seam_wait seam_waits(void)
{
    return (enum seam_wait)atomic_load(&waiting);
}

unsigned seam_given_back(void)
{
    return atomic_load(&given_back);
}

/* ---- the library's calls ---- */

int ppoll(struct pollfd *fds, nfds_t count, const struct timespec *limit, const sigset_t *mask)
{
    struct timespec left = { .tv_sec = 0 };
    enum seam_wait kind = SEAM_WAITS;
    long ready;
    int error;

    pass(SEAM_WAIT);
    if (limit != NULL) {
        left = *limit; /* the kernel writes to it */
        kind = left.tv_sec != 0 || left.tv_nsec != 0 ? SEAM_WAITS_FOR_TIMER : SEAM_NOT_WAITING;
    }
    if (!cleans_not) {
        atomic_store(&waiting, (int)kind);
    }
    ready = syscall(SYS_ppoll, fds, count, limit != NULL ? &left : NULL, mask, 8UL);
    error = errno;
    if (!cleans_not) {
        atomic_store(&waiting, SEAM_NOT_WAITING);
    }
    pass(SEAM_WOKEN);
    errno = error;
    return (int)ready;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    if (clock == CLOCK_MONOTONIC) {
        pass(SEAM_CLOCK);
    }
    return (int)syscall(SYS_clock_gettime, clock, now);
}

int madvise(void *address, size_t bytes, int advice)
{
    if (advice == MADV_DONTNEED && !cleans_not) {
        pass(SEAM_GIVE_BACK);
        atomic_fetch_add(&given_back, 1);
    }
    return (int)syscall(SYS_madvise, address, bytes, advice);
}
