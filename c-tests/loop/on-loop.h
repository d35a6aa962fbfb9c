/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Put in front of the tests of the cleaner, which ask for the default host and its one context: their cleaners then live in
 * an event loop that another thread turns. The cases are the same, and so is what they expect.
 */
#ifndef ON_LOOP_H
#define ON_LOOP_H

#include <qcow2cache-dl.h>

/* NULL: the event loop host. */
const q2c_host *on_loop_host(const q2c_host *host);
/* NULL: the loop, whose thread comes with the first call and goes with the program. */
void *on_loop_context(void *context);

#define q2c_cleaner_create(host, cleaner, error) q2c_cleaner_create(on_loop_host(host), cleaner, error)
#define q2c_cleaner_start(cleaner, context, interval_ns) q2c_cleaner_start(cleaner, on_loop_context(context), interval_ns)

#endif
