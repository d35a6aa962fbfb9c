/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Layer 13. Storage whose requests yield the coroutine in the middle, and may continue it in
 * another thread.
 */
#ifndef TESTHOST_CO_STORAGE_H
#define TESTHOST_CO_STORAGE_H
#include "context.h"

#include "qcow2cache.h"

typedef struct host_storage host_storage;

typedef enum host_resume {
    HOST_RESUME_INLINE, /* requests are done in the call; nothing yields */
    HOST_RESUME_HOME,   /* the coroutine yields in the request and continues in its home */
    HOST_RESUME_WORKER, /* it continues in the worker that did the request */
    HOST_RESUME_SPREAD, /* it continues in one of the contexts in @spread, at random */
    HOST_RESUME_MIXED,  /* each of these, at random */
    HOST_RESUMES
} host_resume;

typedef struct host_storage_config {
    int fd;      /* the image's file, borrowed; below 0: the image is in memory */
    size_t size; /* bytes of the image in memory, zero at first */
    host_resume resume;
    host_context *const *workers; /* do the requests of coroutines; if none, their home does */
    size_t n_workers;
    host_context *const *spread; /* for HOST_RESUME_SPREAD and MIXED */
    size_t n_spread;
    int64_t delay_ns; /* real time per request of a coroutine */
    uint64_t seed;
} host_storage_config;

typedef struct host_storage_stats {
    uint64_t reads, writes, flushes, yields;
    uint64_t moved; /* requests after which the coroutine was in another context */
} host_storage_stats;

/*
 * A call from plain code blocks until the request is done. Two requests in flight on the same
 * bytes, one of them a write, are the caller's bug and abort.
 */
host_storage *host_storage_new(const host_storage_config *config);
/* Aborts if a request is in flight. */
void host_storage_free(host_storage *storage);
/* Fills the library's callback table. Leaves pre_write_check and corruption NULL and max_iov 0. */
void host_storage_fill(host_storage *storage, q2c_storage *callbacks);
/* The image in memory, NULL for a file. Access it only while no request is in flight. */
void *host_storage_image(host_storage *storage);
/* Makes the @n-th request from now (1 = the next) fail with -@error, once. 0: none. Any thread. */
void host_storage_fail_at(host_storage *storage, uint64_t n, int error);
/* Holds requests: those that begin from now on stay in flight until the release. Any thread. */
void host_storage_hold(host_storage *storage);
void host_storage_release(host_storage *storage);
/* The number of requests held now. Any thread. */
size_t host_storage_held(host_storage *storage);
void host_storage_get_stats(host_storage *storage, host_storage_stats *stats);

#endif
