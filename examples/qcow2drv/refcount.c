/* SPDX-License-Identifier: MIT */
/* Refcounts of host clusters: which are free. Everything here holds the state lock. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "qcow2_int.h"

uint64_t drv_refcount_get(const void *block, unsigned order, uint64_t index)
{
    switch (order) {
    case 0:
    case 1:
    case 2: { /* several in a byte, the first in its low bits */
        uint64_t bit = index << order;
        unsigned mask = (1u << (1u << order)) - 1;

        return (((const uint8_t *)block)[bit / 8] >> (bit % 8)) & mask;
    }
    case 3:
        return ((const uint8_t *)block)[index];
    case 4:
        return be16toh(((const uint16_t *)block)[index]);
    case 5:
        return be32toh(((const uint32_t *)block)[index]);
    default:
        return be64toh(((const uint64_t *)block)[index]);
    }
}

void drv_refcount_set(void *block, unsigned order, uint64_t index, uint64_t value)
{
    switch (order) {
    case 0:
    case 1:
    case 2: {
        uint64_t bit = index << order;
        unsigned mask = ((1u << (1u << order)) - 1) << (bit % 8);
        uint8_t *byte = (uint8_t *)block + bit / 8;

        *byte = (uint8_t)((*byte & ~mask) | ((value << (bit % 8)) & mask));
        break;
    }
    case 3:
        ((uint8_t *)block)[index] = (uint8_t)value;
        break;
    case 4:
        ((uint16_t *)block)[index] = htobe16((uint16_t)value);
        break;
    case 5:
        ((uint32_t *)block)[index] = htobe32((uint32_t)value);
        break;
    default:
        ((uint64_t *)block)[index] = htobe64(value);
    }
}

/* One past the last cluster that can ever be allocated. */
static uint64_t cluster_limit(const qcow2drv *s)
{
    if (s->file->fixed_size)
        return atomic_load(&s->file_end) >> s->header.cluster_bits;
    return DRV_OFFSET_MASK >> s->header.cluster_bits;
}

/* Looks in one pinned block, from *cluster to the end of the block, for free clusters in a row.
 * *found is set if there is one, *cluster to the first, *run to how many (at most want). */
static bool free_in_block(const qcow2drv *s, const void *block, uint64_t *cluster, uint64_t want,
                          uint64_t *run)
{
    uint64_t per_block = UINT64_C(1) << s->block_bits;
    uint64_t i = *cluster & (per_block - 1), base = *cluster - i;
    unsigned order = s->header.refcount_order;

    while (i < per_block && drv_refcount_get(block, order, i) != 0)
        i++;
    *cluster = base + i;
    for (*run = 0; i < per_block && *run < want && drv_refcount_get(block, order, i) == 0; i++)
        ++*run;
    return *run != 0;
}

/* Finds the first free clusters from the hint on. *run 0: *cluster is free, but has no refcount
 * block yet. */
static int find_free(qcow2drv *s, uint64_t want, uint64_t *cluster, uint64_t *run)
{
    uint64_t c = s->free_hint;

    for (;;) {
        uint64_t index = c >> s->block_bits;
        void *block;
        bool found;
        int r;

        if (c >= cluster_limit(s))
            return s->file->fixed_size ? -ENOSPC : -EFBIG;
        if (index >= s->reftable_entries || s->reftable[index] == 0) {
            *cluster = c;
            *run = 0;
            return 0;
        }
        r = q2c_cache_get(s->refcounts, s->reftable[index], &block);
        if (r < 0)
            return r;
        found = free_in_block(s, block, &c, want, run);
        q2c_cache_put(s->refcounts, &block);
        s->free_hint = c; /* all below are in use */
        if (found) {
            uint64_t room = c < cluster_limit(s) ? cluster_limit(s) - c : 0;

            if (room == 0)
                return -ENOSPC;
            *cluster = c;
            *run = *run < room ? *run : room;
            return 0;
        }
    }
}

/* Sets refcounts from zero to one, all in one block. */
static int take(qcow2drv *s, uint64_t cluster, uint64_t n)
{
    void *block;
    int r = q2c_cache_get(s->refcounts, s->reftable[cluster >> s->block_bits], &block);

    if (r < 0)
        return r;
    for (uint64_t i = 0; i < n; i++)
        drv_refcount_set(block, s->header.refcount_order,
                         (cluster + i) & ((UINT64_C(1) << s->block_bits) - 1), 1);
    r = q2c_cache_mark_dirty(s->refcounts, block);
    q2c_cache_put(s->refcounts, &block);
    return r < 0 ? r : 0;
}

/* Refcounts of a damaged image may call free what is not. */
static int check_free(qcow2drv *s, uint64_t host, uint64_t bytes)
{
    const char *used = drv_metadata_at(s, host, bytes);

    if (!used)
        return 0;
    drv_report(s,
               "the refcounts from %#" PRIx64
               " on say free, but %s is there; run 'qemu-img check -r all'",
               host, used);
    return -EINVAL;
}

int drv_alloc_clusters(qcow2drv *s, uint64_t want, uint64_t *host, uint64_t *got)
{
    uint64_t cluster, run;
    int r = drv_reftable_settle(s);

    if (r < 0)
        return r;
    (void)drv_quarantine_relieve(s, false);
    for (;;) {
        r = find_free(s, want, &cluster, &run);
        if (r == -ENOSPC && drv_quarantine_relieve(s, true))
            continue;
        if (r < 0)
            return r;
        if (run > 0)
            break;
        r = check_free(s, cluster << s->header.cluster_bits, s->cluster_size);
        if (r == 0)
            r = drv_reftable_add_block(s, cluster);
        if (r < 0)
            return r;
    }
    r = check_free(s, cluster << s->header.cluster_bits, run << s->header.cluster_bits);
    if (r == 0)
        r = take(s, cluster, run);
    if (r < 0)
        return r;
    s->free_hint = cluster + run;
    s->clusters_allocated += run;
    *host = cluster << s->header.cluster_bits;
    *got = run;
    return 0;
}

/* Lowers one block's refcounts. */
static int drop_in_block(qcow2drv *s, uint64_t cluster, uint64_t n)
{
    uint64_t index = cluster >> s->block_bits, mask = (UINT64_C(1) << s->block_bits) - 1;
    unsigned order = s->header.refcount_order;
    void *block;
    int r;

    if (index >= s->reftable_entries || s->reftable[index] == 0) {
        drv_report(
            s, "cluster at %#" PRIx64 " is in use but has no refcount block; run 'qemu-img check'",
            cluster << s->header.cluster_bits);
        return 0;
    }
    r = q2c_cache_get(s->refcounts, s->reftable[index], &block);
    if (r < 0)
        return r;
    for (uint64_t i = 0; i < n; i++) {
        uint64_t value = drv_refcount_get(block, order, (cluster + i) & mask);

        if (value == 0) {
            drv_report(
                s, "cluster at %#" PRIx64 " is in use but its refcount is 0; run 'qemu-img check'",
                (cluster + i) << s->header.cluster_bits);
            continue;
        }
        drv_refcount_set(block, order, (cluster + i) & mask, value - 1);
        if (value == 1 && cluster + i < s->free_hint)
            s->free_hint = cluster + i;
    }
    r = q2c_cache_mark_dirty(s->refcounts, block);
    q2c_cache_put(s->refcounts, &block);
    return r < 0 ? r : 0;
}

int drv_refcount_drop(qcow2drv *s, uint64_t host, uint64_t clusters, uint64_t *done)
{
    uint64_t cluster = host >> s->header.cluster_bits;
    uint64_t per_block = UINT64_C(1) << s->block_bits;

    for (*done = 0; *done < clusters;) {
        uint64_t left = per_block - ((cluster + *done) & (per_block - 1));
        uint64_t n = clusters - *done < left ? clusters - *done : left;
        int r = drop_in_block(s, cluster + *done, n);

        if (r < 0)
            return r;
        *done += n;
        s->clusters_freed += n;
    }
    return 0;
}
