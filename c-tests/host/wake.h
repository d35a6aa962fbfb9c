/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Layer 9. Parking a coroutine on the library's behalf, and waking it from any thread. */
#ifndef TESTHOST_WAKE_H
#define TESTHOST_WAKE_H
#include "context.h"

/* Parks the running coroutine for the library. Only host_co_wake() resumes it. */
void host_co_park(void);

/*
 * When a coroutine runs that is woken or spawned in its home thread. From any other thread, it is
 * always queued in its home context.
 */
typedef enum host_run_mode {
    HOST_RUN_QUEUED, /* in the context's next round */
    HOST_RUN_NOW,    /* inside the call, also from inside another coroutine */
    HOST_RUN_AFTER,  /* QEMU's way: from plain code inside the call, from a coroutine as soon as
                        that one yields or ends */
    HOST_RUN_MODES
} host_run_mode;

/*
 * Wakes a parked coroutine. Call it exactly once per host_co_park(), in any thread. In a thread
 * other than its home, the wake may be early: the coroutine has not reached host_co_park() yet.
 * Returns true if the wake was early.
 */
bool host_co_wake(host_co *co, host_run_mode mode);

#endif
