/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * The fixture of the tests on the coroutine host: a program with the main thread's context, I/O
 * threads and workers; a host adapter for each variant; storage that yields.
 */
#ifndef WORLD_H
#define WORLD_H

#include "fixture.h"
#include "host.h"

#define SECOND UINT64_C(1000000000)

enum { IO_THREADS = 3, WORKERS = 2 };

/* Every test runs once with each variant. */
struct variant {
    bool own_lock;      /* the state lock is the host's mutex */
    host_run_mode mode; /* of wakes and spawns in the home thread */
};

struct world {
    host_program *program;
    host_context *main; /* of the main thread */
    host_iothread *io_threads[IO_THREADS], *worker_threads[WORKERS];
    host_context *io[IO_THREADS], *workers[WORKERS];
    struct variant variant;
    host_adapter *host;
    const q2c_host *vtable;
};

extern struct world world;

/*
 * Makes the threads and contexts. If TESTHOST_STACK is in the environment, it is the stack size of
 * coroutines in bytes.
 */
void world_begin(void);
/* Waits until every coroutine has ended, and ends the threads and contexts. */
void world_end(void);

/* Makes an adapter for one variant. host_end() closes and frees it; later callbacks abort. */
void host_begin(struct variant variant);
void host_end(void);
host_adapter_stats host_stats(void);
/* Runs a case once with an adapter of each variant. The TAP name is the case's and the variant's.
 */
void each_variant(const char *name, void (*test)(void));
#define EACH(test) each_variant(#test, test)

/* Storage in memory for @tables tables. Its requests continue in the context that @resume says. */
host_storage *storage_new(size_t tables, host_resume resume, q2c_storage *calls);
/* A cache of tables of TABLE bytes on world.vtable. */
q2c_cache *co_cache_new(const q2c_storage *calls, size_t tables);
q2c_cleaner *cleaner_new(q2c_cache *cache);
q2c_cleaner_stats cleaner_stats(q2c_cleaner *cleaner);

/* In a coroutine: waits until the expression is true, without blocking the thread. */
#define CO_EVENTUALLY(expression)                                                                  \
    do {                                                                                           \
    } while (!(expression) && (host_co_sleep_ns(true, 200000), true))

/* In plain code of a thread with a context: polls the context until the expression is true. */
#define TURN_UNTIL(expression)                                                                     \
    do {                                                                                           \
    } while (!(expression) && (turn_a_little(), true))
void turn_a_little(void);

#endif
