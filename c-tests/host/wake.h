/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Layer 9. Parking a coroutine on the library's behalf, and waking it from any thread. */
#ifndef TESTHOST_WAKE_H
#define TESTHOST_WAKE_H
#include "context.h"

/* Parks the running coroutine on the library's behalf: only host_co_wake() ends it. */
void host_co_park(void);

/*
 * When a coroutine that is woken or spawned in its home thread runs. From any other thread it is
 * always queued in the home context.
 */
typedef enum host_run_mode {
    HOST_RUN_QUEUED, /* in the context's next round */
    HOST_RUN_NOW,    /* inside the call, also from inside another coroutine */
    HOST_RUN_AFTER,  /* QEMU's way: from plain code inside the call, from a coroutine as soon as
                        that one yields or ends */
    HOST_RUN_MODES
} host_run_mode;

/*
 * Wakes a parked coroutine, exactly once per host_co_park(). From another thread than its home it
 * may come early, while the coroutine is still running towards host_co_park(). Any thread. Returns
 * true if it came early.
 */
bool host_co_wake(host_co *co, host_run_mode mode);

#endif
