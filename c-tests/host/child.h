/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Tests of what the host must not let pass: each is run in a child process, which has to die of a
 * signal, saying why. */
#ifndef TESTHOST_CHILD_H
#define TESTHOST_CHILD_H

#include "host.h"

/* Of the child: a program, the context of its main thread, and a host with a lock of its own whose
 * wakes are queued. */
extern host_program *program;
extern host_context *here;
extern host_adapter *host;
extern const q2c_host *vt;

/* fn(NULL) in a child, which exits with 0 if it returns; what it wrote to stderr is in text.
 * Returns its wait status. */
int run_child(host_fn *fn, char *text, size_t size);
/* Checks that the child dies of SIGABRT, with this among its last words. */
void check_aborts(host_fn *fn, const char *why);

/* For use in children: does nothing. */
void do_nothing(void *arg);
/* A coroutine that parked in this thread. */
void *parked_here(void);
/* One that yielded for a reason of the host's. */
host_co *yielded_here(void);

#endif
