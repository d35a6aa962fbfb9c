/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * A cleaner on the thread host, in an event loop, or in one whose clock stands still; and ways to bring it into every state
 * that it has.
 */
#ifndef SETTING_H
#define SETTING_H

#include "looping.h"
#include "seams.h"

enum host { THREADS, LOOP, STANDING_LOOP, HOSTS };

enum state {
    NEVER_STARTED,
    NOT_YET_RUN,      /* started; its thread is held on the way to it */
    ABOUT_TO_SLEEP,   /* held at its look at the clock, its timer and waker not yet there */
    ABOUT_TO_WAIT,    /* asleep, its thread held on the way into the kernel */
    ASLEEP,           /* its thread waits in the kernel for the timer */
    WAITING_FOR_LOCK, /* its thread waits in the kernel, without limit */
    IN_A_PASS,        /* held while it gives tables' memory back */
    ASKED_TO_STOP,    /* the same, and asked to stop */
    JUST_ENDED,
    STATES
};

extern const char *const host_names[HOSTS];
extern const char *const state_names[STATES];

struct setting {
    enum host host;
    struct turner home;    /* of the cleaner; on the thread host just one more thread */
    struct turner another;
    q2c_cleaner *cleaner;
    q2c_cache *cache;
    struct storage *storage; /* in pages of its own */
    uint64_t passes;   /* made when the state was reached */
};

extern struct setting setting;

void setting_begin(enum host host);
/* Checks that nothing is left of the cleaner, now or when its time comes; the stop must have unmapped the storage. */
void setting_end(void);
/* From now on whoever calls storage dies. */
void setting_unmap_storage(void);

/* In a loop whose clock stands still no cleaner can look at it. */
bool state_exists(enum host host, enum state state);
/* Is the cleaner's thread held in that state, until seam_release()? */
bool state_holds(enum state state);
/*
 * Into the state, by the main thread. For WAITING_FOR_LOCK that is asleep: the caller has the lock taken by whom it likes, and
 * then calls setting_await_lock().
 */
void setting_reach(enum state state);
void setting_fall_asleep(void);
void setting_await_lock(void);
int setting_start(void);
/* The end of its sleep. */
void setting_make_due(void);

/* In the thread that is to hold it; for turner_run(). */
void setting_take_lock(void *argument);
void setting_drop_lock(void *argument);

uint32_t setting_instances(void);
/* Everything that is ready in the home thread, or becomes so meanwhile, has run. */
void setting_turn(void);

#endif
