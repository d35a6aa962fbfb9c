/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Layer 16. Runs a self test in a child process, for misuse that the host must not let pass: the
 * child has to die of a signal and say why.
 */
#ifndef TESTHOST_CHILD_H
#define TESTHOST_CHILD_H

#include "host.h"

/*
 * The child's own: a program, the context of its main thread, and an adapter with a lock, whose
 * wakes are queued.
 */
extern host_program *program;
extern host_context *here;
extern host_adapter *host;
extern const q2c_host *vt;

/*
 * Calls fn(NULL) in a child, which exits with 0 if fn returns. @text gets what the child wrote to
 * stderr, at most @size - 1 bytes. Returns the child's wait status.
 */
int run_child(host_fn *fn, char *text, size_t size);
/* Checks that fn(NULL) makes the child die of SIGABRT, and that stderr contains @why. */
void check_aborts(host_fn *fn, const char *why);

/* For use in children. Does nothing. */
void do_nothing(void *arg);
/* Returns a coroutine that has parked in this thread. */
void *parked_here(void);
/* Returns a coroutine that has yielded for a reason of the host. */
host_co *yielded_here(void);

#endif
