/* SPDX-License-Identifier: MIT */
/*
 * From guest offsets to host offsets.
 *
 * A lookup takes no lock: the L1 entry is one atomic load, the L2 entries are copied from the
 * cached slice. An entry may change right after it was copied. What the request then does with the
 * old answer is harmless:
 *   - the cluster it read from the entry stays out of use until the request has ended
 * (quarantine.c), so a late read or write in place meets old data of this very guest cluster, as if
 * the request had come earlier;
 *   - an entry goes from "none" or "zero" to "data" only after the data is written (alloc.c).
 */
#include <errno.h>
#include <inttypes.h>

#include "qcow2_int.h"

#define BATCH 64 /* entries looked up at once: 512 bytes of stack */

uint64_t drv_table_entry(const void *table, size_t index)
{
    return __atomic_load_n((const uint64_t *)table + index, __ATOMIC_ACQUIRE);
}

uint64_t drv_slice_of(const qcow2drv *s, uint64_t l2_offset, uint64_t guest, size_t *index)
{
    uint64_t entry = (guest >> s->header.cluster_bits) & ((UINT64_C(1) << s->l2_bits) - 1);

    *index = (size_t)(entry & ((UINT64_C(1) << s->slice_bits) - 1));
    return l2_offset + (entry >> s->slice_bits) * (UINT64_C(8) << s->slice_bits);
}

int drv_decode(qcow2drv *s, uint64_t guest, uint64_t stored, drv_cluster *cluster)
{
    uint64_t entry = be64toh(stored);
    uint64_t host = entry & DRV_OFFSET_MASK;
    uint64_t reserved = s->header.version < 3 ? DRV_L2_RESERVED | DRV_ZERO : DRV_L2_RESERVED;

    if (entry & DRV_COMPRESSED) {
        drv_report(s,
                   "L2 entry of guest offset %#" PRIx64
                   ": cluster is compressed, which this driver cannot read; "
                   "make a copy with 'qemu-img convert -O qcow2'",
                   guest);
        return -ENOTSUP;
    }
    if (entry & reserved) {
        drv_report(s,
                   "L2 entry of guest offset %#" PRIx64 ": %#" PRIx64 " has reserved bits set; "
                   "run 'qemu-img check'",
                   guest, entry);
        return -EINVAL;
    }
    if (host & (s->cluster_size - 1)) {
        drv_report(s,
                   "L2 entry of guest offset %#" PRIx64 ": host offset %#" PRIx64
                   " is not a multiple of the "
                   "cluster size; run 'qemu-img check'",
                   guest, host);
        return -EINVAL;
    }
    if (host != 0 && host >= atomic_load_explicit(&s->file_end, memory_order_relaxed)) {
        drv_report(s,
                   "L2 entry of guest offset %#" PRIx64 ": host offset %#" PRIx64
                   " lies past the end of the "
                   "file; the file was cut off, or run 'qemu-img check'",
                   guest, host);
        return -EINVAL;
    }
    cluster->host = host;
    cluster->copied = (entry & DRV_COPIED) != 0;
    if (entry & DRV_ZERO)
        cluster->type = host ? DRV_ZERO_ALLOCATED : DRV_ZERO_PLAIN;
    else
        cluster->type = host ? DRV_DATA : DRV_UNALLOCATED;
    return 0;
}

/* Entries of a slice, copied: without a pin if the slice is there; else loaded beside other loads;
 * else, where that would take the last free slot or a write-back, under the lock. */
static int copy_entries(qcow2drv *s, uint64_t slice, size_t index, uint64_t *entries, size_t n)
{
    void *table = NULL;
    bool locked = false;
    int r = q2c_cache_read(s->l2, slice, index * 8, entries, n * 8);

    if (r != -EAGAIN)
        return r;
    r = q2c_cache_get_unlocked(s->l2, slice, &table);
    if (r == -EAGAIN) {
        r = q2c_state_lock(s->state);
        if (r < 0)
            return r;
        locked = true;
        r = q2c_cache_get(s->l2, slice, &table);
    }
    if (r >= 0) {
        for (size_t i = 0; i < n; i++)
            entries[i] = drv_table_entry(table, index + i);
        r = q2c_cache_put(s->l2, &table);
    }
    if (locked)
        q2c_state_unlock(s->state);
    return r < 0 ? r : 0;
}

/* How far the entries from `index` + 1 on, at most `wanted` of them, go on where the first one
 * begins: the same kind of cluster, host offsets in a row. `entries` holds the first `n` entries
 * already. */
static uint64_t entries_in_a_row(qcow2drv *s, uint64_t guest, uint64_t slice, size_t index,
                                 uint64_t wanted, uint64_t entries[BATCH], size_t n)
{
    uint64_t first = be64toh(entries[0]), step = first & DRV_OFFSET_MASK ? s->cluster_size : 0;
    uint64_t row = 1;

    for (size_t i = 1;; i = 0) {
        for (; i < n; i++, row++) {
            drv_cluster next;

            /* What is wrong with a later entry is said when a request begins there. */
            if (be64toh(entries[i]) != first + row * step ||
                (step &&
                 drv_decode(s, guest + (row << s->header.cluster_bits), entries[i], &next) < 0))
                return row;
        }
        n = wanted - row < BATCH ? (size_t)(wanted - row) : BATCH;
        if (n == 0 || copy_entries(s, slice, index + row, entries, n) < 0)
            return row;
    }
}

int drv_map(qcow2drv *s, uint64_t guest, uint64_t bytes, drv_extent *extent)
{
    uint64_t in_cluster = guest & (s->cluster_size - 1);
    uint64_t l1 = atomic_load_explicit(&s->l1[drv_l1_index(s, guest)], memory_order_acquire);
    uint64_t slice, wanted, run, entries[BATCH];
    drv_cluster first;
    size_t index, n;
    int r;

    if ((l1 & DRV_OFFSET_MASK) == 0) {
        uint64_t covered = s->cluster_size << s->l2_bits;
        uint64_t left = covered - (guest & (covered - 1));

        *extent = (drv_extent){ .type = DRV_UNALLOCATED, .bytes = bytes < left ? bytes : left };
        return 0;
    }
    slice = drv_slice_of(s, l1 & DRV_OFFSET_MASK, guest, &index);
    wanted = ((in_cluster + bytes - 1) >> s->header.cluster_bits) + 1;
    if (wanted > (UINT64_C(1) << s->slice_bits) - index)
        wanted = (UINT64_C(1) << s->slice_bits) - index;
    n = wanted < BATCH ? (size_t)wanted : BATCH;
    r = copy_entries(s, slice, index, entries, n);
    if (r < 0)
        return r;
    r = drv_decode(s, guest, entries[0], &first);
    if (r < 0)
        return r;
    run = entries_in_a_row(s, guest - in_cluster, slice, index, wanted, entries, n)
          << s->header.cluster_bits;
    run -= in_cluster;
    *extent = (drv_extent){
        .type = first.type,
        .copied = first.copied && (l1 & DRV_COPIED) != 0,
        .host = first.host ? first.host + in_cluster : 0,
        .bytes = run < bytes ? run : bytes,
    };
    return 0;
}
