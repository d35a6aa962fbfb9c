/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Two threads take turns: each waits until the other one kicks. */
#ifndef PING_PONG_H
#define PING_PONG_H

#include <qcow2cache-dl.h>

/*
 * Plays with the caller and a new thread. Returns after a thousand turns of each; a lost kick makes
 * it hang.
 */
void play_ping_pong(q2c_state *state);

#endif
