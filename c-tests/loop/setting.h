/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * A cleaner on the thread host, in an event loop, or in an event loop with a paused clock; and ways
 * to bring it into each of its states.
 */
#ifndef SETTING_H
#define SETTING_H

#include "looping.h"
#include "seams.h"

enum host { THREADS, LOOP, STANDING_LOOP, HOSTS };

enum state {
    NEVER_STARTED,
    NOT_YET_RUN,      /* started; its thread is held before the first run */
    ABOUT_TO_SLEEP,   /* held when it reads the clock, before its timer and waker exist */
    ABOUT_TO_WAIT,    /* asleep; its thread is held before its wait in the kernel */
    ASLEEP,           /* its thread waits in the kernel for the timer */
    WAITING_FOR_LOCK, /* its thread waits in the kernel without limit */
    IN_A_PASS,        /* held while it releases tables' memory */
    ASKED_TO_STOP,    /* as IN_A_PASS, and asked to stop */
    JUST_ENDED,
    STATES
};

extern const char *const host_names[HOSTS];
extern const char *const state_names[STATES];

struct setting {
    enum host host;
    struct turner home; /* of the cleaner; on the thread host only one more thread */
    struct turner another;
    q2c_cleaner *cleaner;
    q2c_cache *cache;
    struct storage *storage; /* in separate pages */
    uint64_t passes;         /* passes when the state was reached */
};

extern struct setting setting;

void setting_begin(enum host host);
/*
 * Checks that nothing is left of the cleaner, neither now nor when its timer would be due. The test
 * must have unmapped the storage.
 */
void setting_end(void);
/* From now on, a call of storage crashes the program. */
void setting_unmap_storage(void);

/* A loop with a paused clock does not read the clock, so it has no ABOUT_TO_SLEEP. */
bool state_exists(enum host host, enum state state);
/* Is the cleaner's thread held in that state (until seam_release())? */
bool state_holds(enum state state);
/*
 * Brings the cleaner into the state. Main thread. For WAITING_FOR_LOCK the cleaner is asleep
 * afterwards: the caller lets a thread take the lock, and then calls setting_await_lock().
 */
void setting_reach(enum state state);
void setting_fall_asleep(void);
void setting_await_lock(void);
int setting_start(void);
/* Ends the cleaner's sleep. */
void setting_make_due(void);

/* For turner_run(), in the thread that is to hold the lock. */
void setting_take_lock(void *argument);
void setting_drop_lock(void *argument);

uint32_t setting_instances(void);
/* Returns after everything has run that is ready in the home thread, or becomes ready meanwhile. */
void setting_turn(void);

#endif
