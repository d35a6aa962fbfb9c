/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "threads.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "test.h"

static void *run(void *argument)
{
    struct thread *thread = argument;

    atomic_store(&thread->kernel_id, (int)gettid());
    thread->function(thread->argument);
    atomic_store(&thread->done, true);
    return NULL;
}

void thread_start(struct thread *thread, void (*function)(void *argument), void *argument)
{
    atomic_init(&thread->kernel_id, 0);
    atomic_init(&thread->done, false);
    thread->function = function;
    thread->argument = argument;
    MUST(pthread_create(&thread->id, NULL, run, thread));
}

void thread_join(struct thread *thread)
{
    MUST(pthread_join(thread->id, NULL));
}

/* Does the thread wait in the kernel? */
static bool is_waiting(int kernel_id)
{
    char path[64];
    char line[256] = "";
    const char *state;
    FILE *file;

    snprintf(path, sizeof(path), "/proc/self/task/%d/stat", kernel_id);
    file = fopen(path, "r");
    if (file == NULL) {
        return false;
    }
    if (fgets(line, sizeof(line), file) == NULL) {
        line[0] = '\0';
    }
    fclose(file);
    /* "id (name) S ..." */
    state = strrchr(line, ')');
    return state != NULL && strncmp(state, ") S", 3) == 0;
}

void thread_settle(struct thread *thread)
{
    int seen = 0;

    for (int i = 0; i < 100 && seen < 3 && !atomic_load(&thread->done); i++) {
        int kernel_id = atomic_load(&thread->kernel_id);

        seen = kernel_id != 0 && is_waiting(kernel_id) ? seen + 1 : 0;
        test_pause();
    }
}

void gate_wait(struct gate *gate)
{
    pthread_mutex_lock(&gate->mutex);
    gate->waiting++;
    pthread_cond_broadcast(&gate->changed);
    while (!gate->open) {
        pthread_cond_wait(&gate->changed, &gate->mutex);
    }
    gate->waiting--;
    pthread_mutex_unlock(&gate->mutex);
}

void gate_await(struct gate *gate, unsigned waiting)
{
    pthread_mutex_lock(&gate->mutex);
    while (gate->waiting < waiting) {
        pthread_cond_wait(&gate->changed, &gate->mutex);
    }
    pthread_mutex_unlock(&gate->mutex);
}

void gate_open(struct gate *gate)
{
    pthread_mutex_lock(&gate->mutex);
    gate->open = true;
    pthread_cond_broadcast(&gate->changed);
    pthread_mutex_unlock(&gate->mutex);
}
