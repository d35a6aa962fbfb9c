/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Layer 12. Threads that run a context and do nothing else, and calls into a context's thread. */
#ifndef TESTHOST_IOTHREAD_H
#define TESTHOST_IOTHREAD_H
#include "poll_while.h"

typedef struct host_iothread host_iothread;

/* Starts a thread with a context of its own. */
host_iothread *host_iothread_new(host_program *program);
host_context *host_iothread_context(host_iothread *iothread);
/* Asks the thread to end as soon as nothing is ready to run, and joins it. */
void host_iothread_free(host_iothread *iothread);

/*
 * Runs fn(arg) in the context's thread, in a coroutine or in plain code, and waits for its end.
 * Call it in plain code. During the wait, the calling thread polls its own context; a thread
 * without a context blocks.
 */
void host_context_call(host_context *context, bool in_coroutine, host_fn *fn, void *arg);

#endif
