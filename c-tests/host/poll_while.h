/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Layer 11. Waiting in plain code: QEMU's AIO_WAIT_WHILE, and the kick that wakes it. */
#ifndef TESTHOST_POLL_WHILE_H
#define TESTHOST_POLL_WHILE_H
#include "context.h"

/*
 * Polls the calling thread's context until cond(arg) is false. Call it in plain code, in a thread
 * with a context, while the graph is not locked for writing.
 */
void host_poll_while(host_program *program, bool (*cond)(void *arg), void *arg);
/* Makes every host_poll_while() of the program check its condition again. Any thread. */
void host_kick(host_program *program);

/* ---- for the layers above -------------------------------------------------------------------- */

/* Does what host_poll_while() does, without its checks. */
void host_poll_unchecked(host_context *context, bool (*cond)(void *arg), void *arg);

#endif
