/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Helpers for tests of the cleaner. */
#ifndef CLEANING_H
#define CLEANING_H

#include "fixture.h"

#define MILLISECOND UINT64_C(1000000)
#define SECOND      (1000 * MILLISECOND)
/* An interval longer than any test. */
#define FOREVER (600 * SECOND)

/* Creates a cleaner on the thread host. Ends the test if that fails. */
q2c_cleaner *cleaner_new(void);
/* Destroys the cleaner, and checks that no instance was left. */
void cleaner_drop(q2c_cleaner *cleaner);
q2c_cleaner_stats cleaner_stats(q2c_cleaner *cleaner);
/* Waits for @more passes from now on. */
void cleaner_await_passes(q2c_cleaner *cleaner, uint64_t more);

/* The stops that wait, each called as it requires: the first one with the lock held. */
struct cleaner_stop {
    const char *name;
    int (*stop)(q2c_cleaner *cleaner); /* takes and drops the lock if it needs it */
};

#define CLEANER_STOPS 3
extern const struct cleaner_stop cleaner_stops[CLEANER_STOPS];

#endif
