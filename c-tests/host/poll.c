/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Poll-while with kick for plain code, and the graph's write lock, under which nobody may poll. */
#include "internal.h"

/* polling changes under the program's mutex, which the kick takes: either it sees us and notifies, or we come later and our
 * first look at the condition sees what was done before the kick. */
static void add_polling(th_context *context, int n)
{
    pthread_mutex_lock(&context->program->mutex);
    atomic_fetch_add(&context->polling, n);
    pthread_mutex_unlock(&context->program->mutex);
}

void poll_unchecked(th_context *context, bool (*cond)(void *arg), void *arg)
{
    add_polling(context, 1);
    while (cond(arg)) {
        th_context_poll(context, true);
    }
    add_polling(context, -1);
}

void th_poll_while(th_program *program, bool (*cond)(void *arg), void *arg)
{
    th_context *context = th_context_current();

    if (th_in_coroutine()) {
        th_die("poll_while in a coroutine");
    }
    if (!context || context->program != program) {
        th_die("poll_while in a thread that has no context of this program");
    }
    if (atomic_load(&program->graph_writer)) {
        th_die("poll_while while the graph is locked for writing");
    }
    poll_unchecked(context, cond, arg);
}

void th_kick(th_program *program)
{
    program_notify_all(program, true);
}

void th_graph_wrlock(th_program *program)
{
    th_co *none = NULL;

    if (!atomic_compare_exchange_strong(&program->graph_writer, &none, th_co_self())) {
        th_die("the graph is locked for writing already");
    }
}

void th_graph_wrunlock(th_program *program)
{
    th_co *self = th_co_self();

    if (!atomic_compare_exchange_strong(&program->graph_writer, &self, NULL)) {
        th_die("the graph is unlocked by somebody else than its writer");
    }
}

void graph_check_park(th_co *self)
{
    th_context *context = th_context_current();

    if (context && atomic_load(&context->program->graph_writer) == self) {
        th_die("coroutine %p parks while it holds the graph's write lock", (void *)self);
    }
}
