/* SPDX-License-Identifier: MIT */
/*
 * Clusters on their way from "in use" to "free". State lock held throughout.
 *
 * A cluster whose L2 entry has just been cleared must not be used again until
 *
 *   1. every request that was in flight at the clearing has ended. A lock-free read, or a write in
 * place, may have looked the entry up before and still be on its way to the cluster; if another
 * guest cluster owned it by then, the read would return that cluster's data, and the write would
 * destroy it. Epochs tell (request.c).
 *   2. the cleared entry is stable on disk. New data goes to the cluster at once; if the machine
 * crashed with the old entry still there, the old guest offset would show somebody else's data, and
 * two entries could claim one cluster.
 *
 * So the cluster keeps its refcount, which keeps it from being allocated, and waits here. Both
 * conditions are only looked at, never waited for. When they hold, the refcount is lowered; as the
 * cleared entry is stable by then, this needs no further order on disk: a crash at any moment
 * leaves a leak at most. Lowering at once with the refcount cache depending on the L2 cache would
 * be correct, too, as to refcounts; but as every allocation makes the L2 cache depend on the
 * refcount cache, each change of direction would cost a flush.
 *
 * Every flush of the guest makes entries stable. If no guest flushes, the allocator does when much
 * has piled up.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2_int.h"

#define PILE_LIMIT (UINT64_C(32) << 20) /* bytes */

int drv_quarantine_reserve(qcow2drv *s, size_t ranges)
{
    drv_quarantine *q = &s->quarantine;
    size_t used = q->end - q->head, capacity;
    drv_freed *entries;

    if (ranges <= q->capacity - q->end)
        return 0;
    if (used + ranges <= q->capacity / 2) {
        memmove(q->entries, q->entries + q->head, used * sizeof(*q->entries));
        q->head = 0;
        q->end = used;
        return 0;
    }
    capacity = 2 * (used + ranges);
    entries = malloc(capacity * sizeof(*entries));
    if (!entries)
        return -ENOMEM;
    if (used)
        memcpy(entries, q->entries + q->head, used * sizeof(*entries));
    free(q->entries);
    *q = (drv_quarantine){
        .entries = entries, .end = used, .capacity = capacity, .clusters = q->clusters
    };
    return 0;
}

void drv_quarantine_add(qcow2drv *s, uint64_t host, uint64_t clusters)
{
    drv_quarantine *q = &s->quarantine;
    uint64_t epoch = atomic_load(&s->epoch);
    uint64_t flush = s->flushes_begun + 1; /* the next one to begin writes the cleared entry */
    drv_freed *last = q->end > q->head ? &q->entries[q->end - 1] : NULL;

    q->clusters += clusters;
    if (last && last->epoch == epoch && last->flush == flush &&
        last->host + (last->clusters << s->header.cluster_bits) == host)
        last->clusters += clusters;
    else
        q->entries[q->end++] =
            (drv_freed){ .host = host, .clusters = clusters, .epoch = epoch, .flush = flush };
}

bool drv_quarantine_release(qcow2drv *s)
{
    drv_quarantine *q = &s->quarantine;
    uint64_t epoch = q->end > q->head ? drv_epoch_advance(s) : 0;
    bool any = false;

    while (q->head < q->end) {
        drv_freed *oldest = &q->entries[q->head];
        uint64_t done;
        int r;

        if (oldest->flush > s->flushes_done || oldest->epoch + 2 > epoch)
            break;
        r = drv_refcount_drop(s, oldest->host, oldest->clusters, &done);
        any = any || done > 0;
        q->clusters -= done;
        oldest->host += done << s->header.cluster_bits;
        oldest->clusters -= done;
        if (r < 0)
            break; /* storage's trouble; the rest stays here for the next time */
        q->head++;
    }
    if (q->head == q->end)
        q->head = q->end = 0;
    return any;
}

bool drv_quarantine_relieve(qcow2drv *s, bool urgent)
{
    drv_quarantine *q = &s->quarantine;
    bool any = drv_quarantine_release(s);
    uint64_t flush;

    if (any || q->head == q->end || (!urgent && q->clusters << s->header.cluster_bits < PILE_LIMIT))
        return any;
    if (q->entries[q->head].flush <= s->flushes_done)
        return false; /* it is requests that these wait for */
    flush = ++s->flushes_begun;
    if (q2c_cache_flush(s->l2) < 0)
        return false;
    if (s->flushes_done < flush)
        s->flushes_done = flush;
    return drv_quarantine_release(s);
}

void drv_quarantine_clear(qcow2drv *s)
{
    free(s->quarantine.entries);
    s->quarantine = (drv_quarantine){ 0 };
}
