/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "ping_pong.h"

#include "test.h"
#include "threads.h"

enum { TURNS = 1000 };

static atomic_uint turn; /* even: the caller's; odd: the thread's */

static bool is_turn_of(void *argument)
{
    return atomic_load(&turn) % 2 == (uintptr_t)argument;
}

static void pass_on(q2c_state *state)
{
    atomic_fetch_add(&turn, 1);
    CHECK_INT(q2c_poll_kick(state), 0);
}

static void answer(void *argument)
{
    q2c_state *state = argument;

    for (unsigned i = 0; i < TURNS; i++) {
        CHECK_INT(q2c_poll_until_done(state, is_turn_of, (void *)1), 0);
        pass_on(state);
    }
}

void play_ping_pong(q2c_state *state)
{
    struct thread thread;

    atomic_store(&turn, 0);
    thread_start(&thread, answer, state);
    for (unsigned i = 0; i < TURNS; i++) {
        pass_on(state);
        CHECK_INT(q2c_poll_until_done(state, is_turn_of, (void *)0), 0);
    }
    thread_join(&thread);
    CHECK_U64(atomic_load(&turn), 2 * TURNS);
}
