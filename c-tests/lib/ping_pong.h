/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Two threads take turns, each by a wait that the other one ends with a kick. */
#ifndef PING_PONG_H
#define PING_PONG_H

#include <qcow2cache-dl.h>

/* The caller and a thread of its own. Returns after a thousand turns of each: a kick that is lost hangs it. */
void play_ping_pong(q2c_state *state);

#endif
