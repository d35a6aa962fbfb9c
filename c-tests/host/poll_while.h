/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Layer 11. Waiting in plain code: QEMU's AIO_WAIT_WHILE, and the kick that makes it look again. */
#ifndef TESTHOST_POLL_WHILE_H
#define TESTHOST_POLL_WHILE_H
#include "context.h"

/*
 * Polls the calling thread's context until cond(arg) is false. Plain code, in a thread with a
 * context, with the graph not locked for writing.
 */
void host_poll_while(host_program *program, bool (*cond)(void *arg), void *arg);
/* Makes every host_poll_while() of the program look at its condition again. Any thread. */
void host_kick(host_program *program);

/* ---- for the layers above -------------------------------------------------------------------- */

/* host_poll_while() without its checks. */
void host_poll_unchecked(host_context *context, bool (*cond)(void *arg), void *arg);

#endif
