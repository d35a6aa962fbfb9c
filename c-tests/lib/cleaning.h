/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* What the tests of the cleaner share. */
#ifndef CLEANING_H
#define CLEANING_H

#include "fixture.h"

#define MILLISECOND UINT64_C(1000000)
#define SECOND (1000 * MILLISECOND)
/* An interval that no test lives to see the end of. */
#define FOREVER (600 * SECOND)

/* A cleaner on the thread host; the test ends when there is none. */
q2c_cleaner *cleaner_new(void);
/* Checks that no instance lives. */
void cleaner_drop(q2c_cleaner *cleaner);
q2c_cleaner_stats cleaner_stats(q2c_cleaner *cleaner);
/* Wait until this many more passes have been made than now. */
void cleaner_await_passes(q2c_cleaner *cleaner, uint64_t more);

/* The stops that wait, called in the state that each asks for: the first one with the lock. */
struct cleaner_stop {
    const char *name;
    int (*stop)(q2c_cleaner *cleaner); /* takes and drops the lock where it is needed */
};

#define CLEANER_STOPS 3
extern const struct cleaner_stop cleaner_stops[CLEANER_STOPS];

#endif
