/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Places at which a test can hold the thread that a cleaner runs in. The program defines ppoll,
 * clock_gettime and madvise, and the library calls these in each of the three builds. Each makes
 * the system call, and is a place to hold the thread.
 *
 * Only the cleaner's thread is held: the library's own thread, or the home thread of its event
 * loop. Other threads of the test must exclude themselves by seam_thread_cleans().
 */
#ifndef SEAMS_H
#define SEAMS_H

#include <stdbool.h>

enum seam {
    SEAM_NONE,
    SEAM_WAIT,      /* about to wait in the kernel; no lock of the library is held */
    SEAM_WOKEN,     /* back from the wait; no lock is held, nothing has been dispatched yet */
    SEAM_CLOCK,     /* about to read the clock, under the loop's own lock */
    SEAM_GIVE_BACK, /* in a pass, about to release tables' memory; no lock is held */
    SEAMS
};

/* Says whether a cleaner may run in the calling thread. A thread that never calls this: yes. */
void seam_thread_cleans(bool cleans);

/* Holds the cleaner's thread at its next call there, after @skip calls. One hold at a time. */
void seam_hold(enum seam seam, unsigned skip);
/* Lets a thread that is held run on, and holds it at @seam, after @skip calls there. */
void seam_move(enum seam seam, unsigned skip);
bool seam_is_held(void);
/* Ends the hold. If a thread is held, returns after it runs again. */
void seam_release(void);
/* Makes the cleaner's thread call @function there, once, and does not hold it. */
void seam_call(enum seam seam, void (*function)(void));

/*
 * What functions of seam_call() did comes before what the caller does next. Helgrind needs it,
 * which knows mutexes: the library's thread lives on after a test case.
 */
void seam_await_calls(void);

/* How the cleaner's thread waits in the kernel now. */
enum seam_wait {
    SEAM_NOT_WAITING,
    SEAM_WAITS_FOR_TIMER, /* with a time limit above 0 */
    SEAM_WAITS,           /* without limit */
};
enum seam_wait seam_waits(void);

/* How often the cleaner's thread has released memory. */
unsigned seam_given_back(void);

#endif
