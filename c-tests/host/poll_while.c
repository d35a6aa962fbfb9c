/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "poll_while.h"

/*
 * polling changes under the program's mutex, which the kick takes. Either the kick sees this
 * context and notifies it, or this context comes later, and its first check of the condition sees
 * what was done before the kick.
 */
void host_poll_unchecked(host_context *context, bool (*cond)(void *arg), void *arg)
{
    host_program_polls(context->program, &context->member, 1);
    while (cond(arg)) {
        host_context_poll(context, true);
    }
    host_program_polls(context->program, &context->member, -1);
}

void host_poll_while(host_program *program, bool (*cond)(void *arg), void *arg)
{
    host_context *context = host_context_current();

    if (host_in_coroutine()) {
        host_die("poll_while in a coroutine");
    }
    if (!context || context->program != program) {
        host_die("poll_while in a thread that has no context of this program");
    }
    if (host_graph_writer(program)) {
        host_die("poll_while while the graph is locked for writing");
    }
    host_poll_unchecked(context, cond, arg);
}

void host_kick(host_program *program)
{
    host_program_notify(program, true);
}
