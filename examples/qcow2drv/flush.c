/* SPDX-License-Identifier: MIT */
/* Flushing: what was written becomes stable. */
#include "qcow2_int.h"

static int keep_first(int error, int next)
{
    return error < 0 ? error : next < 0 ? next : 0;
}

int drv_flush(qcow2drv *s)
{
    uint64_t number;
    int r = q2c_state_lock(s->state);

    if (r < 0)
        return r;
    r = drv_reftable_settle(s);
    number = ++s->flushes_begun;
    /* L2 tables first: where new entries need it, the cache has refcounts and data flushed before.
     */
    r = keep_first(r, q2c_cache_write(s->l2));
    r = keep_first(r, q2c_cache_write(s->refcounts));
    q2c_state_unlock(s->state);

    /* Without the lock: requests go on meanwhile. What they change belongs to the next flush. The
     * library flushes, so that it knows what is stable. */
    r = keep_first(r, q2c_cache_flush_storage(s->l2));
    if (r < 0)
        return r;

    r = q2c_state_lock(s->state);
    if (r < 0)
        return r;
    if (s->flushes_done < number)
        s->flushes_done = number;
    (void)drv_quarantine_release(s);
    q2c_state_unlock(s->state);
    return 0;
}

int drv_flush_all(qcow2drv *s)
{
    bool more;
    int r;

    do {
        more = s->quarantine.clusters != 0; /* what this flush frees, the next one writes */
        /* Nobody is inside, so every epoch so far has ended. The counters would say so, too, but
         * for requests that register, find the gate closed and take it back. */
        atomic_fetch_add(&s->epoch, 2);
        r = drv_flush(s);
        if (r == 0 && more && s->quarantine.clusters != 0)
            break; /* refcounts could not be lowered: storage's trouble; leaks */
    } while (r == 0 && more);
    return r;
}
