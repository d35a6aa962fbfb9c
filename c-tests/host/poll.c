/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Poll-while with kick for plain code, and the graph's write lock, under which nobody may poll. */
#include "internal.h"

/* polling changes under the program's mutex, which the kick takes: either it sees us and notifies, or we come later and our
 * first look at the condition sees what was done before the kick. */
static void add_polling(host_context *context, int n)
{
    pthread_mutex_lock(&context->program->mutex);
    atomic_fetch_add(&context->polling, n);
    pthread_mutex_unlock(&context->program->mutex);
}

void poll_unchecked(host_context *context, bool (*cond)(void *arg), void *arg)
{
    add_polling(context, 1);
    while (cond(arg)) {
        host_context_poll(context, true);
    }
    add_polling(context, -1);
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
    if (atomic_load(&program->graph_writer)) {
        host_die("poll_while while the graph is locked for writing");
    }
    poll_unchecked(context, cond, arg);
}

void host_kick(host_program *program)
{
    program_notify_all(program, true);
}

void host_graph_wrlock(host_program *program)
{
    host_co *none = NULL;

    if (!atomic_compare_exchange_strong(&program->graph_writer, &none, host_co_self())) {
        host_die("the graph is locked for writing already");
    }
}

void host_graph_wrunlock(host_program *program)
{
    host_co *self = host_co_self();

    if (!atomic_compare_exchange_strong(&program->graph_writer, &self, NULL)) {
        host_die("the graph is unlocked by somebody else than its writer");
    }
}

void graph_check_park(host_co *self)
{
    host_context *context = host_context_current();

    if (context && atomic_load(&context->program->graph_writer) == self) {
        host_die("coroutine %p parks while it holds the graph's write lock", (void *)self);
    }
}
