/* SPDX-License-Identifier: MIT */
/*
 * Requests in flight: who must be waited for.
 *
 * Two things ask. The gate (option changes, invalidate, close) waits until no request is inside.
 * The quarantine (quarantine.c) asks whether all requests that were inside at some moment have
 * ended, and never waits: it does so by epochs.
 *
 *   A request registers under the current epoch, modulo 3, in one of a few counters that lie on
 * cache lines of their own, and looks at the epoch and the gate again: if either has changed it
 * takes the registration back and starts over. The epoch moves from e to e + 1 when no request of
 * epoch e - 1 is left. So two epochs are in use at a time, and when the epoch reaches e + 2, every
 * request that registered in e or before has ended.
 *
 * Order: a registration (read-modify-write) comes before the second look at epoch and gate; setting
 * epoch or gate comes before reading the counters. All four are sequentially consistent, so either
 * the request sees the change or the counters show the request. A registration that is taken back
 * can only delay somebody.
 */
#include "qcow2_int.h"

/* Only a hint that spreads the counters: read once per request, which then remembers its counter.
 */
static unsigned shard_hint(void)
{
    static _Atomic unsigned next;
    static _Thread_local unsigned mine;

    if (mine == 0)
        mine = atomic_fetch_add_explicit(&next, 1, memory_order_relaxed) % DRV_SHARDS + 1;
    return mine - 1;
}

static bool gate_is_shut(void *arg)
{
    qcow2drv *s = arg;

    return atomic_load(&s->gate_closed);
}

void drv_enter(qcow2drv *s, drv_request *request)
{
    drv_shard *shard = &s->shards[shard_hint()];

    for (;;) {
        uint64_t epoch = atomic_load(&s->epoch);

        request->active = &shard->active[epoch % 3];
        atomic_fetch_add(request->active, 1);
        if (atomic_load(&s->epoch) == epoch && !atomic_load(&s->gate_closed))
            return;
        drv_leave(s, request);
        if (atomic_load(&s->gate_closed))
            s->rt->ops->wait_while(s->rt, gate_is_shut, s);
    }
}

void drv_leave(qcow2drv *s, drv_request *request)
{
    atomic_fetch_sub(request->active, 1);
    if (atomic_load(&s->gate_closed))
        runtime_notify(s->rt);
}

static bool active_in(qcow2drv *s, uint64_t epoch)
{
    for (unsigned i = 0; i < DRV_SHARDS; i++) {
        if (atomic_load(&s->shards[i].active[epoch % 3]) != 0)
            return true;
    }
    return false;
}

static bool any_active(void *arg)
{
    qcow2drv *s = arg;

    return active_in(s, 0) || active_in(s, 1) || active_in(s, 2);
}

void drv_gate_close(qcow2drv *s)
{
    bool expected = false;

    while (!atomic_compare_exchange_strong(&s->gate_closed, &expected, true)) {
        s->rt->ops->wait_while(s->rt, gate_is_shut, s);
        expected = false;
    }
    s->rt->ops->wait_while(s->rt, any_active, s);
}

void drv_gate_open(qcow2drv *s)
{
    atomic_store(&s->gate_closed, false);
    runtime_notify(s->rt);
}

uint64_t drv_epoch_advance(qcow2drv *s)
{
    uint64_t epoch = atomic_load(&s->epoch);

    /* Twice is enough: it takes an epoch with no request at all to the point where everything is
     * due. */
    for (int i = 0; i < 2 && !active_in(s, epoch - 1); i++)
        atomic_store(&s->epoch, ++epoch);
    return epoch;
}
