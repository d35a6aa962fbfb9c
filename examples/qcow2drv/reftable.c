/* SPDX-License-Identifier: MIT */
/*
 * The refcount table: which refcount blocks there are. Everything here holds the state lock.
 *
 * The table is in memory and written through. A new block is stable before the table points to it,
 * a new table before the header does. A write of such a pointer that fails may have reached the
 * disk or not, so memory takes the new state over at once, and nothing is allocated until the
 * pointer has been written again with success (drv_reftable_settle): both states on disk are then
 * good ones.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2_int.h"

static int write_entry(qcow2drv *s, uint64_t index)
{
    uint64_t stored = htobe64(s->reftable[index]);
    int r = qcow2drv_file_write(s->file, s->header.reftable_offset + index * 8, &stored,
                                sizeof(stored));

    s->reftable_unwritten = r < 0;
    s->reftable_unwritten_index = index;
    return r;
}

/* Points the header to the table of s->header. */
static int write_header(qcow2drv *s)
{
    struct __attribute__((packed)) {
        uint64_t offset;
        uint32_t clusters;
    } field = { htobe64(s->header.reftable_offset), htobe32(s->header.reftable_clusters) };
    int r = qcow2drv_file_write(s->file, DRV_HEADER_REFTABLE, &field, sizeof(field));

    if (r == 0)
        r = qcow2drv_file_flush(s->file);
    s->header_unwritten = r < 0;
    return r;
}

int drv_reftable_settle(qcow2drv *s)
{
    int r = 0;

    if (s->header_unwritten)
        r = write_header(s);
    if (r == 0 && s->reftable_unwritten)
        r = write_entry(s, s->reftable_unwritten_index);
    return r;
}

/* How large a new table must be, and how many refcount blocks it brings along to cover them and
 * itself. They lie one after the other from the first cluster on that the old table does not cover.
 */
static int plan_growth(const qcow2drv *s, uint64_t *entries, uint64_t *blocks,
                       uint64_t *table_clusters)
{
    uint64_t per_cluster = s->cluster_size / 8, old = s->reftable_entries;
    uint64_t per_block = UINT64_C(1) << s->block_bits;
    uint64_t most = DRV_MAX_REFTABLE_BYTES / 8;

    *entries = drv_round_up(old + old / 2 + 1, per_cluster);
    *entries = *entries < most ? *entries : most;
    *table_clusters = *entries / per_cluster;
    *blocks = 1;
    while (*blocks * per_block < *blocks + *table_clusters)
        ++*blocks;
    return old + *blocks <= *entries ? 0 : -EFBIG;
}

static int write_growth(qcow2drv *s, uint64_t start, const uint64_t *table, uint64_t entries,
                        uint64_t blocks, uint64_t table_clusters)
{
    uint64_t blocks_bytes = blocks << s->header.cluster_bits, table_bytes = entries * 8;
    uint64_t per_block = UINT64_C(1) << s->block_bits;
    char *area = calloc(1, blocks_bytes + table_bytes);
    uint64_t *stored;
    int r;

    if (!area)
        return -ENOMEM;
    for (uint64_t i = 0; i < blocks + table_clusters; i++)
        drv_refcount_set(area + ((i / per_block) << s->header.cluster_bits),
                         s->header.refcount_order, i % per_block, 1);
    stored = (uint64_t *)(void *)(area + blocks_bytes);
    for (uint64_t i = 0; i < entries; i++)
        stored[i] = htobe64(table[i]);
    /* Nothing of an earlier use of these clusters may come out of the cache later. */
    r = q2c_cache_discard_range(s->refcounts, start, blocks_bytes + table_bytes);
    if (r >= 0)
        r = qcow2drv_file_write(s->file, start, area, blocks_bytes + table_bytes);
    if (r >= 0)
        r = qcow2drv_file_flush(s->file);
    free(area);
    return r < 0 ? r : 0;
}

/* Makes a larger table and switches to it. A crash before the switch leaks the new one, after it
 * the old one. */
static int grow(qcow2drv *s)
{
    uint64_t first = s->reftable_entries << s->block_bits; /* not covered by the old table */
    uint64_t start = first << s->header.cluster_bits, old_offset = s->header.reftable_offset;
    uint64_t old_clusters = s->header.reftable_clusters, entries, blocks, table_clusters, end,
             dropped;
    uint64_t *table;
    int r = plan_growth(s, &entries, &blocks, &table_clusters);

    if (r < 0)
        return r;
    end = start + ((blocks + table_clusters) << s->header.cluster_bits);
    if (end > DRV_OFFSET_MASK)
        return -EFBIG;
    if (s->file->fixed_size && end > atomic_load(&s->file_end))
        return -ENOSPC;
    table = calloc(entries, 8);
    if (!table)
        return -ENOMEM;
    memcpy(table, s->reftable, s->reftable_entries * 8);
    for (uint64_t i = 0; i < blocks; i++)
        table[s->reftable_entries + i] = start + (i << s->header.cluster_bits);
    r = write_growth(s, start, table, entries, blocks, table_clusters);
    if (r < 0) {
        free(table);
        return r;
    }
    drv_file_reaches(s, end);
    free(s->reftable);
    s->reftable = table;
    s->reftable_entries = entries;
    s->header.reftable_offset = start + (blocks << s->header.cluster_bits);
    s->header.reftable_clusters = (uint32_t)table_clusters;
    s->clusters_allocated += blocks + table_clusters;
    r = write_header(s);
    if (r < 0)
        return r; /* the old table leaks: the header on disk may still mean it */
    (void)drv_refcount_drop(s, old_offset, old_clusters, &dropped); /* fails: the rest leaks */
    return 0;
}

int drv_reftable_add_block(qcow2drv *s, uint64_t cluster)
{
    uint64_t index = cluster >> s->block_bits, host = cluster << s->header.cluster_bits;
    void *block;
    int r;

    if (index >= s->reftable_entries)
        return grow(s);
    r = q2c_cache_discard_range(s->refcounts, host, s->cluster_size);
    if (r >= 0)
        r = q2c_cache_get_empty(s->refcounts, host, &block);
    if (r < 0)
        return r;
    drv_refcount_set(block, s->header.refcount_order,
                     cluster & ((UINT64_C(1) << s->block_bits) - 1), 1);
    r = q2c_cache_mark_dirty(s->refcounts, block);
    q2c_cache_put(s->refcounts, &block);
    if (r >= 0)
        r = q2c_cache_flush(s->refcounts);
    if (r < 0) {
        q2c_cache_discard_offset(s->refcounts,
                                 host); /* nothing points to it yet: as if it had never been */
        return r;
    }
    drv_file_reaches(s, host + s->cluster_size);
    s->reftable[index] = host;
    s->clusters_allocated++;
    return write_entry(s, index);
}
