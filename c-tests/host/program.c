/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "program.h"

#include <stdlib.h>

host_program *host_program_new(void)
{
    host_program *program = calloc(1, sizeof(*program));

    if (!program) {
        host_die("no memory for a program");
    }
    pthread_mutex_init(&program->mutex, NULL);
    atomic_store(&program->clock_stopped_at, -1);
    atomic_store(&program->clock_offset, INT64_C(1000000000) - host_real_now());
    atomic_store(&program->timers_fire, true);
    return program;
}

void host_program_free(host_program *program)
{
    host_kept *kept, *next;

    if (program->members) {
        host_die("the program ends while a context of it is left");
    }
    for (kept = program->kept; kept; kept = next) {
        next = kept->next;
        kept->dispose(kept);
    }
    pthread_mutex_destroy(&program->mutex);
    free(program);
}

void host_program_keep(host_program *program, host_kept *kept)
{
    pthread_mutex_lock(&program->mutex);
    kept->next = program->kept;
    program->kept = kept;
    pthread_mutex_unlock(&program->mutex);
}

/* ---- contexts ---- */

void host_program_add(host_program *program, host_member *member)
{
    pthread_mutex_lock(&program->mutex);
    member->next = program->members;
    program->members = member;
    pthread_mutex_unlock(&program->mutex);
}

void host_program_remove(host_program *program, host_member *member)
{
    host_member **p;

    pthread_mutex_lock(&program->mutex);
    for (p = &program->members; *p != member; p = &(*p)->next) {
    }
    *p = member->next;
    pthread_mutex_unlock(&program->mutex);
}

void host_program_notify(host_program *program, bool polling_only)
{
    pthread_mutex_lock(&program->mutex);
    for (host_member *m = program->members; m; m = m->next) {
        if (!polling_only || atomic_load(&m->polling)) {
            host_notifier_set(&m->notifier);
        }
    }
    pthread_mutex_unlock(&program->mutex);
}

void host_program_polls(host_program *program, host_member *member, int n)
{
    pthread_mutex_lock(&program->mutex);
    atomic_fetch_add(&member->polling, n);
    pthread_mutex_unlock(&program->mutex);
}

/* ---- the clock ---- */

/* A reader that finds the clock running uses an offset that was stored before clock_stopped_at. */
int64_t host_clock_now(host_program *program)
{
    int64_t stopped_at = atomic_load(&program->clock_stopped_at);

    return stopped_at >= 0 ? stopped_at : host_real_now() + atomic_load(&program->clock_offset);
}

void host_clock_stop(host_program *program)
{
    pthread_mutex_lock(&program->mutex);
    atomic_store(&program->clock_stopped_at, host_clock_now(program));
    pthread_mutex_unlock(&program->mutex);
}

void host_clock_resume(host_program *program)
{
    int64_t at;

    pthread_mutex_lock(&program->mutex);
    at = atomic_load(&program->clock_stopped_at);
    if (at >= 0) {
        atomic_store(&program->clock_offset, at - host_real_now());
        atomic_store(&program->clock_stopped_at, -1);
    }
    pthread_mutex_unlock(&program->mutex);
    host_program_notify(program, false);
}

void host_clock_step(host_program *program, uint64_t ns)
{
    int64_t at;

    pthread_mutex_lock(&program->mutex);
    at = atomic_load(&program->clock_stopped_at);
    if (at < 0) {
        host_die("a running clock is stepped");
    }
    atomic_store(&program->clock_stopped_at, at + (int64_t)ns);
    pthread_mutex_unlock(&program->mutex);
    host_program_notify(program, false);
}

void host_clock_set_firing(host_program *program, bool firing)
{
    atomic_store(&program->timers_fire, firing);
    host_program_notify(program, false);
}

/* ---- the graph lock ---- */

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

host_co *host_graph_writer(host_program *program)
{
    return atomic_load(&program->graph_writer);
}
