/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Layer 12. Threads that run a context and do nothing else, and calls into a context's thread. */
#ifndef TESTHOST_IOTHREAD_H
#define TESTHOST_IOTHREAD_H
#include "poll_while.h"

typedef struct host_iothread host_iothread;

/* A thread with a context of its own. */
host_iothread *host_iothread_new(host_program *program);
host_context *host_iothread_context(host_iothread *iothread);
/* Asks it to end when it has nothing ready to run, and joins it. */
void host_iothread_free(host_iothread *iothread);

/*
 * Runs fn(arg) in the context's thread, in a coroutine or in plain code, and waits for its end.
 * From plain code, not from a coroutine. Meanwhile the calling thread polls its own context; a
 * thread without one blocks.
 */
void host_context_call(host_context *context, bool in_coroutine, host_fn *fn, void *arg);

#endif
