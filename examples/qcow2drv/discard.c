/* SPDX-License-Identifier: MIT */
/* Freeing clusters: their L2 entries are cleared under the lock; quarantine.c does the rest. */
#include <errno.h>

#include "qcow2_int.h"

#define CHUNK 1024 /* clusters dealt with under one hold of the lock */

/* Clears the entries of one pinned slice. *changed: there was something to clear. */
static int clear_entries(qcow2drv *s, void *table, size_t index, uint64_t guest, uint64_t wanted,
                         bool zero_flag, bool *changed)
{
    uint64_t cleared = zero_flag ? htobe64(DRV_ZERO) : 0;

    *changed = false;
    for (uint64_t i = 0; i < wanted; i++) {
        drv_cluster c;
        int r = drv_decode(s, guest + (i << s->header.cluster_bits),
                           drv_table_entry(table, index + i), &c);

        if (r < 0)
            return r;
        if (c.host == 0)
            continue; /* reads as zero, owns nothing */
        if (!c.copied)
            return drv_refuse_shared(s, guest + (i << s->header.cluster_bits));
        r = q2c_cache_store(s->l2, table, (index + i) * 8, cleared);
        if (r < 0)
            return r;
        *changed = true;
        drv_quarantine_add(s, c.host, 1);
    }
    return 0;
}

/* Lock held. */
static int free_in_slice(qcow2drv *s, uint64_t l2_offset, uint64_t guest, uint64_t clusters,
                         bool zero_flag)
{
    size_t index;
    uint64_t slice = drv_slice_of(s, l2_offset, guest, &index);
    bool changed;
    void *table;
    int r = drv_quarantine_reserve(s, clusters), dirty = 0;

    if (r < 0)
        return r;
    r = q2c_cache_get(s->l2, slice, &table);
    if (r < 0)
        return r;
    r = clear_entries(s, table, index, guest, clusters, zero_flag, &changed);
    if (changed)
        dirty = q2c_cache_mark_dirty(s->l2, table);
    q2c_cache_put(s->l2, &table);
    return r < 0 ? r : dirty < 0 ? dirty : 0;
}

/* One hold of the lock; *next: where to go on. */
static int free_some(qcow2drv *s, uint64_t start, uint64_t end, bool zero_flag, uint64_t *next)
{
    uint64_t entry = start >> s->header.cluster_bits;
    uint64_t in_slice =
        (UINT64_C(1) << s->slice_bits) - (entry & ((UINT64_C(1) << s->slice_bits) - 1));
    uint64_t clusters = (end - start) >> s->header.cluster_bits, l2_offset;
    int r = q2c_state_lock(s->state);

    if (r < 0)
        return r;
    clusters = clusters < in_slice ? clusters : in_slice;
    clusters = clusters < CHUNK ? clusters : CHUNK;
    end = start + (clusters << s->header.cluster_bits);
    if (drv_in_flight_overlaps(s, start, end)) {
        drv_in_flight_wait_unlock(s);
        *next = start;
        return 0;
    }
    r = drv_l2_table(s, start, &l2_offset);
    if (r == 0 && l2_offset != 0)
        r = free_in_slice(s, l2_offset, start, clusters, zero_flag);
    q2c_state_unlock(s->state);
    *next = end;
    return r;
}

int drv_free_range(qcow2drv *s, uint64_t start, uint64_t end, bool zero_flag)
{
    uint64_t covered = s->cluster_size << s->l2_bits;
    int r = 0;

    while (start < end && r == 0) {
        uint64_t l1 = atomic_load_explicit(&s->l1[drv_l1_index(s, start)], memory_order_acquire);

        if ((l1 & DRV_OFFSET_MASK) == 0)
            start = (start | (covered - 1)) + 1; /* no L2 table: nothing to free */
        else
            r = free_some(s, start, end, zero_flag, &start);
    }
    return r;
}
