/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Included before tests that ask for the default host and its only context. With it, their caches
 * and cleaners are on the event loop host, and the cleaners live in a loop that another thread
 * runs. Cases and expected results stay the same.
 */
#ifndef ON_LOOP_H
#define ON_LOOP_H

#include <qcow2cache-dl.h>

/* The event loop host in place of NULL. */
const q2c_host *on_loop_host(const q2c_host *host);
/* The loop in place of NULL. The first call starts its thread, which ends with the program. */
void *on_loop_context(void *context);

#define q2c_cache_create(options, storage, host, cache, error)                                     \
    q2c_cache_create(options, storage, on_loop_host(host), cache, error)
#define q2c_cleaner_create(host, cleaner, error)                                                   \
    q2c_cleaner_create(on_loop_host(host), cleaner, error)
#define q2c_cleaner_start(cleaner, context, interval_ns)                                           \
    q2c_cleaner_start(cleaner, on_loop_context(context), interval_ns)

#endif
