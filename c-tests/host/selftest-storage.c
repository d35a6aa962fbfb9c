/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * The test host's storage: where a request's coroutine continues, faults, held requests, and
 * callers that block.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "host.h"
#include "test.h"

enum { WORKERS = 2, SIZE = 64 * 1024, REQUESTS = 200 };

static host_program *program;
static host_context *here;
static host_iothread *workers[WORKERS], *elsewhere;
static host_context *worker_contexts[WORKERS], *spread[2];
static host_storage *storage;
static q2c_storage calls;

static void begin(host_resume resume, int fd, int64_t delay_ns)
{
    host_storage_config config = { .fd = fd,
                                   .size = SIZE,
                                   .resume = resume,
                                   .workers = worker_contexts,
                                   .n_workers = WORKERS,
                                   .spread = spread,
                                   .n_spread = 2,
                                   .delay_ns = delay_ns };

    program = host_program_new();
    here = host_context_new(program);
    for (int i = 0; i < WORKERS; i++) {
        workers[i] = host_iothread_new(program);
        worker_contexts[i] = host_iothread_context(workers[i]);
    }
    elsewhere = host_iothread_new(program);
    spread[0] = host_iothread_context(elsewhere);
    spread[1] = here;
    storage = host_storage_new(&config);
    host_storage_fill(storage, &calls);
}

static void end(void)
{
    for (int i = 0; i < WORKERS; i++) {
        host_iothread_free(workers[i]);
    }
    host_iothread_free(elsewhere);
    host_storage_free(storage);
    host_context_free(here);
    host_program_free(program);
}

static int request(bool write, uint64_t offset, void *buf, size_t n)
{
    struct iovec iov[2] = { { buf, n / 2 }, { (char *)buf + n / 2, n - n / 2 } };

    return (write ? calls.pwritev : calls.preadv)(calls.opaque, 0, offset, iov, 2);
}

struct job {
    unsigned good, home, worker, spread;
    uint64_t at;
};

static void run_requests(void *arg)
{
    struct job *j = arg;

    for (unsigned i = 0; i < REQUESTS; i++) {
        uint64_t out[2] = { i, ~(uint64_t)i }, in[2] = { 0, 0 };
        host_context *before = host_context_current(), *after;
        bool ok = request(true, j->at, out, sizeof(out)) >= 0 &&
                  request(false, j->at, in, sizeof(in)) >= 0 && calls.flush(calls.opaque) >= 0;
        after = host_context_current();
        j->good += ok && in[0] == out[0] && in[1] == out[1];
        j->home += after == before;
        j->worker += after == worker_contexts[0] || after == worker_contexts[1];
        j->spread += after == spread[0] || after == spread[1];
    }
}

static struct job run_job(host_resume resume)
{
    struct job j = { .at = 4096 };

    begin(resume, -1, 0);
    host_context_call(here, true, run_requests, &j);
    end();
    CHECK_U64(j.good, REQUESTS);
    return j;
}

static void request_continues_in_configured_context(void)
{
    struct job j;

    j = run_job(HOST_RESUME_INLINE);
    CHECK_U64(j.home, REQUESTS);
    j = run_job(HOST_RESUME_HOME);
    CHECK_U64(j.home, REQUESTS);
    j = run_job(HOST_RESUME_WORKER);
    CHECK_U64(j.worker, REQUESTS);
    j = run_job(HOST_RESUME_SPREAD);
    CHECK_U64(j.spread, REQUESTS);
    CHECK_BETWEEN(j.home, 1, REQUESTS - 1);
    j = run_job(HOST_RESUME_MIXED);
    CHECK_BETWEEN(j.worker, 1, REQUESTS - 1);
    CHECK_BETWEEN(j.spread, 1, REQUESTS - 1);
}

static void plain_code_request_blocks(void)
{
    struct job j = { .at = 0 };
    host_storage_stats stats;

    begin(HOST_RESUME_WORKER, -1, 0);
    run_requests(&j);
    CHECK_U64(j.good, REQUESTS);
    CHECK_U64(j.home, REQUESTS);
    host_storage_get_stats(storage, &stats);
    CHECK_U64(stats.reads, REQUESTS);
    CHECK_U64(stats.writes, REQUESTS);
    CHECK_U64(stats.flushes, REQUESTS);
    CHECK_U64(stats.yields, 0);
    end();
}

static void file_storage_keeps_written_data(void)
{
    int fd = memfd_create("image", MFD_CLOEXEC);
    struct job j = { .at = 1 << 20 };
    uint64_t last = 0, beyond = 1;

    REQUIRE(fd >= 0);
    begin(HOST_RESUME_MIXED, fd, 0);
    host_context_call(here, true, run_requests, &j);
    CHECK_U64(j.good, REQUESTS);
    REQUIRE(pread(fd, &last, 8, 1 << 20) == 8);
    CHECK_U64(last, REQUESTS - 1);
    CHECK_INT(request(false, 2 << 20, &beyond, 8), 0);
    CHECK_U64(beyond, 0);
    end();
    close(fd);
}

static void nth_request_fails_once(void)
{
    uint64_t word = 1;

    begin(HOST_RESUME_INLINE, -1, 0);
    host_storage_fail_at(storage, 2, ENOSPC);
    CHECK_INT(request(true, 0, &word, 8), 0);
    CHECK_INT(request(true, 0, &word, 8), -ENOSPC);
    CHECK_INT(request(true, 0, &word, 8), 0);
    CHECK_INT(request(true, SIZE - 4, &word, 8), -EIO);
    end();
}

struct reader {
    atomic_int done;
    uint64_t at;
};

static void read_one(void *arg)
{
    struct reader *r = arg;
    uint64_t word;

    request(false, r->at, &word, 8);
    atomic_fetch_add(&r->done, 1);
}

static void *read_one_plain(void *arg)
{
    read_one(arg);
    return NULL;
}

static void held_requests_wait_for_release(void)
{
    struct reader r = { .at = 512 };
    pthread_t thread;

    begin(HOST_RESUME_HOME, -1, 0);
    host_storage_hold(storage);
    host_co_schedule(spread[0], host_co_create(read_one, &r));
    host_co_schedule(spread[0], host_co_create(read_one, &r));
    REQUIRE(pthread_create(&thread, NULL, read_one_plain, &r) == 0);
    EVENTUALLY(host_storage_held(storage) == 3);
    CHECK_INT(atomic_load(&r.done), 0);
    host_storage_release(storage);
    EVENTUALLY(atomic_load(&r.done) == 3);
    CHECK_U64(host_storage_held(storage), 0);
    pthread_join(thread, NULL);
    end();
}

static void set(void *arg)
{
    *(bool *)arg = true;
}

static int64_t real_clock(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

static void delayed_requests_do_not_block_their_thread(void)
{
    enum { N = 50, DELAY = 20 * 1000 * 1000 };
    struct reader r[N];
    host_storage_stats stats;
    int64_t start;
    bool free_meanwhile = false;

    begin(HOST_RESUME_HOME, -1, DELAY);
    start = real_clock();
    for (int i = 0; i < N; i++) {
        r[i] = (struct reader){ .at = (uint64_t)i * 512 };
        host_co_enter(host_co_create(read_one, &r[i]));
    }
    host_storage_get_stats(storage, &stats);
    CHECK_U64(stats.yields, N);
    host_context_call(here, false, set, &free_meanwhile);
    CHECK(free_meanwhile);
    for (int i = 0; i < N; i++) {
        while (atomic_load(&r[i].done) == 0) {
            host_context_poll(here, true);
        }
    }
    CHECK(real_clock() - start >= DELAY);
    CHECK_U64(host_co_alive(), 0);
    end();
}

int main(void)
{
    test_begin();
    RUN(request_continues_in_configured_context);
    RUN(plain_code_request_blocks);
    RUN(file_storage_keeps_written_data);
    RUN(nth_request_fails_once);
    RUN(held_requests_wait_for_release);
    RUN(delayed_requests_do_not_block_their_thread);
    host_co_pool_drain();
    return test_end();
}
