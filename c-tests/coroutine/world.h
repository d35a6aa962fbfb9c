/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * What the tests on the coroutine host begin and end with: a program with the main thread's
 * context, I/O threads and workers; a host, over which variants are run; storage that yields.
 */
#ifndef WORLD_H
#define WORLD_H

#include "host.h"
#include "test.h"

#define SECOND UINT64_C(1000000000)
#define TABLE  512
#define AT(n)  ((uint64_t)(n) * TABLE)

enum { IO_THREADS = 3, WORKERS = 2 };

/* What every test is run over. */
struct variant {
    bool own_lock;      /* the host's mutex is handed in */
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

/* Threads and contexts. The stacks of coroutines are of TESTHOST_STACK bytes, if that is in the
 * environment. */
void world_begin(void);
/* Ends them; every coroutine must have ended. */
void world_end(void);

/* A host for one variant; closed and freed by host_end(), after which no callback may come. */
void host_begin(struct variant variant);
void host_end(void);
host_adapter_stats host_stats(void);
/* Run a case once with a host of each variant, under the case's and the variant's names. */
void each_variant(const char *name, void (*test)(void));
#define EACH(test) each_variant(#test, test)

/* Storage of so many tables in memory, its requests going on as told. */
host_storage *storage_new(size_t tables, host_resume resume, q2c_storage *calls);
/* A cache of tables of TABLE bytes on world.vtable. */
q2c_cache *cache_new(const q2c_storage *calls, size_t tables);
/* Gives up what is dirty, and destroys. */
void cache_drop(q2c_cache *cache);
q2c_cleaner *cleaner_new(q2c_cache *cache);
q2c_cleaner_stats cleaner_stats(q2c_cleaner *cleaner);

/* In a coroutine: wait until it is so without keeping the thread. */
#define CO_EVENTUALLY(expression)                                                                  \
    do {                                                                                           \
    } while (!(expression) && (host_co_sleep_ns(true, 200000), true))

/* From plain code with a context: turn it until it is so. */
#define TURN_UNTIL(expression)                                                                     \
    do {                                                                                           \
    } while (!(expression) && (turn_a_little(), true))
void turn_a_little(void);

#endif
