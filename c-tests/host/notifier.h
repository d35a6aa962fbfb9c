/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Layer 5. An eventfd that one thread waits on and any thread can set: QEMU's EventNotifier. */
#ifndef TESTHOST_NOTIFIER_H
#define TESTHOST_NOTIFIER_H
#include "base.h"

typedef struct host_notifier {
    int fd;
    atomic_bool set; /* fd was written, and the waiting thread has not seen that yet */
} host_notifier;

/* Returns false if no file descriptor is available. */
bool host_notifier_init(host_notifier *notifier);
void host_notifier_destroy(host_notifier *notifier);
/* Ends the current wait, or else the next one. Any thread. */
void host_notifier_set(host_notifier *notifier);
/*
 * Waits until it is set, at most @timeout_ns, or without a limit if that is below 0. May return
 * early. Only one thread may wait.
 */
void host_notifier_wait(host_notifier *notifier, int64_t timeout_ns);

#endif
