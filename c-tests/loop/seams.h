/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Where a test can hold the thread that a cleaner runs in. The program has its own ppoll, clock_gettime and madvise, which
 * the library's calls come to, linked in any of the three ways: each is the kernel's, with a place to be held at.
 *
 * Only the cleaner's thread is held: the thread of the library's own, or the home thread of its event loop. The test's other
 * threads say that they are not it.
 */
#ifndef SEAMS_H
#define SEAMS_H

#include <stdbool.h>

enum seam {
    SEAM_NONE,
    SEAM_WAIT,      /* about to wait in the kernel; no lock of the library is held */
    SEAM_WOKEN,     /* back from there; no lock is held, nothing has been dispatched yet */
    SEAM_CLOCK,     /* at a look at the clock, under the loop's own lock */
    SEAM_GIVE_BACK, /* in a pass that gives tables' memory back; no lock is held */
    SEAMS
};

/* The calling thread is (not) one that a cleaner runs in. A thread that never calls this is. */
void seam_thread_cleans(bool cleans);

/* Hold the cleaner's thread at its next call there, after @skip others. One hold at a time. */
void seam_hold(enum seam seam, unsigned skip);
/* The same for a thread that is held: let it go as far as there. */
void seam_move(enum seam seam, unsigned skip);
bool seam_is_held(void);
/* Returns when the thread, if one was held, goes on; no hold any more. */
void seam_release(void);
/* In place of holding it: have it call @function there, once. */
void seam_call(enum seam seam, void (*function)(void));

/* Where the cleaner's thread waits in the kernel now. */
enum seam_wait {
    SEAM_NOT_WAITING,
    SEAM_WAITS_FOR_TIMER, /* with a limit of time above 0 */
    SEAM_WAITS,           /* without limit */
};
enum seam_wait seam_waits(void);

/* How often the cleaner's thread gave memory back. */
unsigned seam_given_back(void);

#endif
