/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Layer 14. The library's q2c_host callbacks over this host, with counters, and checks on what the
 * library may call when.
 */
#ifndef TESTHOST_ADAPTER_H
#define TESTHOST_ADAPTER_H
#include "co_mutex.h"
#include "poll_while.h"
#include "wake.h"

#include "qcow2cache.h"

typedef struct host_adapter host_adapter; /* what the callbacks get as opaque */

typedef struct host_adapter_config {
    host_program *program;
    /* true: the library gets the host's mutex (lock, unlock); false: it uses its own lock */
    bool own_lock;
    host_run_mode wake, spawn;
    /* true: a kick after host_adapter_close() is counted; false: it aborts as all callbacks do */
    bool late_kick_ok;
} host_adapter_config;

typedef struct host_adapter_stats {
    uint64_t yields, wakes, early_wakes, spawns, locks, polls, kicks, timers, late_kicks;
    uint64_t timers_alive, parked, spawned_alive;
} host_adapter_stats;

host_adapter *host_adapter_new(const host_adapter_config *config);
/* The callback table, valid as long as the adapter. */
const q2c_host *host_adapter_vtable(host_adapter *host);
/*
 * Closes the adapter: each later callback aborts. Aborts itself if a coroutine is parked, a timer
 * is alive or the mutex is held.
 */
void host_adapter_close(host_adapter *host);
/*
 * Closes the adapter if it is not closed, and waits until the coroutines that it spawned have left
 * their stacks. Its memory is freed with the program, so a late callback aborts with a message.
 * Call it in plain code.
 */
void host_adapter_free(host_adapter *host);
/* The mutex behind lock and unlock. The test's own code may use it, too. */
host_co_mutex *host_adapter_mutex(host_adapter *host);
/* Makes the next co_spawn return -@error. Any thread. */
void host_adapter_fail_spawn(host_adapter *host, int error);
/*
 * Calls fn(arg, name) at the beginning of every callback, in its caller's context, with the
 * callback's name ("co_suspend"...). In co_suspend that is after the library announced that it
 * parks and before it does: the window that early wakes hit. @fn may block, and may call what any
 * callback may call. NULL: no more; a call in progress continues. Any thread.
 */
typedef void host_on_call(void *arg, const char *callback);
void host_adapter_on_call(host_adapter *host, host_on_call *fn, void *arg);
void host_adapter_get_stats(host_adapter *host, host_adapter_stats *stats);

#endif
