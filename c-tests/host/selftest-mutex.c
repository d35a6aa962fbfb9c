/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* The test host's coroutine mutex and wait queue: fair in one context, exclusive across several. */
#include <stdatomic.h>

#include "host.h"
#include "test.h"

enum { CONTEXTS = 4, PER_CONTEXT = 4, ROUNDS = 1000 };

static host_co_mutex mutex;
static char order[64];
static size_t order_length;

struct member {
    char name;
    unsigned rounds;
};

static void take_in_turn(void *arg)
{
    struct member *m = arg;

    for (unsigned i = 0; i < m->rounds; i++) {
        host_co_mutex_lock(&mutex);
        order[order_length++] = m->name;
        order[order_length] = 0;
        host_co_yield(); /* with the lock held */
        host_co_mutex_unlock(&mutex);
    }
}

static void mutex_is_granted_in_arrival_order(void)
{
    host_program *program = host_program_new();
    host_context *here = host_context_new(program);
    struct member members[3] = { { 'a', 3 }, { 'b', 3 }, { 'c', 3 } };
    host_co *co[3];

    host_co_mutex_init(&mutex);
    order_length = 0;
    for (int i = 0; i < 3; i++) {
        co[i] = host_co_create(take_in_turn, &members[i]);
        host_co_enter(co[i]);
    }
    CHECK_STR(order, "a");
    /* the holder unlocks and locks again immediately: it must queue behind the others */
    for (int i = 0; i < 9; i++) {
        host_co_enter(co[i % 3]);
        host_context_poll(here, false);
    }
    CHECK_STR(order, "abcabcabc");
    CHECK_U64(host_co_alive(), 0);
    host_co_mutex_destroy(&mutex);
    host_context_free(here);
    host_program_free(program);
}

struct contention {
    host_context *contexts[CONTEXTS];
    /* protected by the mutex alone, up to running */
    unsigned inside;
    unsigned most_inside, total, not_mine;
    atomic_uint running;
};

static void contend(void *arg)
{
    struct contention *c = arg;

    for (unsigned i = 0; i < ROUNDS; i++) {
        host_co_mutex_lock(&mutex);
        c->inside++;
        c->most_inside = c->inside > c->most_inside ? c->inside : c->most_inside;
        c->not_mine += !host_co_mutex_held(&mutex);
        if (i % 7 == 0) {
            /* the owner is a coroutine, not a thread */
            host_co_move(c->contexts[i / 7 % CONTEXTS]);
        }
        c->total++;
        c->inside--;
        host_co_mutex_unlock(&mutex);
    }
    atomic_fetch_sub(&c->running, 1);
}

static void mutex_is_exclusive_across_four_contexts(void)
{
    host_program *program = host_program_new();
    host_iothread *t[CONTEXTS];
    struct contention c = { .inside = 0 };

    host_co_mutex_init(&mutex);
    atomic_store(&c.running, CONTEXTS * PER_CONTEXT);
    for (int i = 0; i < CONTEXTS; i++) {
        t[i] = host_iothread_new(program);
        c.contexts[i] = host_iothread_context(t[i]);
    }
    for (int i = 0; i < CONTEXTS * PER_CONTEXT; i++) {
        host_co_schedule(c.contexts[i % CONTEXTS], host_co_create(contend, &c));
    }
    EVENTUALLY(atomic_load(&c.running) == 0);
    for (int i = 0; i < CONTEXTS; i++) {
        host_iothread_free(t[i]);
    }
    CHECK_U64(c.total, CONTEXTS * PER_CONTEXT * ROUNDS);
    CHECK_U64(c.most_inside, 1);
    CHECK_U64(c.not_mine, 0);
    CHECK_U64(host_co_alive(), 0);
    host_co_mutex_destroy(&mutex);
    host_program_free(program);
}

/* ---- the queue ---- */

struct box {
    host_co_queue empty, full;
    unsigned content, taken, sum;
};

static void put(void *arg)
{
    struct box *b = arg;

    for (unsigned i = 1; i <= ROUNDS; i++) {
        host_co_mutex_lock(&mutex);
        while (b->content) {
            host_co_queue_wait(&b->empty, &mutex);
        }
        b->content = i;
        host_co_queue_next(&b->full);
        host_co_mutex_unlock(&mutex);
    }
}

static void take(void *arg)
{
    struct box *b = arg;

    for (unsigned i = 1; i <= ROUNDS; i++) {
        host_co_mutex_lock(&mutex);
        while (!b->content) {
            host_co_queue_wait(&b->full, &mutex);
        }
        b->sum += b->content;
        b->taken++;
        b->content = 0;
        host_co_queue_next(&b->empty);
        host_co_mutex_unlock(&mutex);
    }
}

static void wait_queue_loses_no_wake_between_contexts(void)
{
    host_program *program = host_program_new();
    host_iothread *a = host_iothread_new(program), *b = host_iothread_new(program);
    struct box box = { .content = 0 };

    host_co_mutex_init(&mutex);
    host_co_queue_init(&box.empty);
    host_co_queue_init(&box.full);
    host_co_schedule(host_iothread_context(a), host_co_create(put, &box));
    host_context_call(host_iothread_context(b), true, take, &box);
    host_iothread_free(a);
    host_iothread_free(b);
    CHECK_U64(box.taken, ROUNDS);
    CHECK_U64(box.sum, ROUNDS * (ROUNDS + 1) / 2);
    host_co_mutex_destroy(&mutex);
    host_program_free(program);
}

int main(void)
{
    test_begin();
    RUN(mutex_is_granted_in_arrival_order);
    RUN(mutex_is_exclusive_across_four_contexts);
    RUN(wait_queue_loses_no_wake_between_contexts);
    host_co_pool_drain();
    return test_end();
}
