/* SPDX-License-Identifier: MIT */
/*
 * Writes to clusters that have no data yet.
 *
 *   1. lock; take clusters: refcounts go up in the cache; unlock
 *   2. write the data, the rest of the clusters zero, without the lock
 *   3. lock; L2 entries point to the clusters; unlock
 *
 * Until 3 readers find "none" or "zero" and read zero. The range is on a list meanwhile: another
 * write, discard or zeroing of the same clusters waits for the end of this one, so that 3 finds the
 * entries as 1 left them.
 *
 * On disk: the L2 cache depends on the refcount cache (refcounts first) and on a flush (data
 * first), so a crash leaves clusters that are counted but not used: leaks.
 */
#include <errno.h>
#include <inttypes.h>
#include <stddef.h>

#include "qcow2_int.h"

/* What step 1 decided. */
typedef struct plan {
    uint64_t guest; /* first cluster's offset */
    uint64_t clusters;
    uint64_t host; /* of the first cluster */
    bool fresh;    /* the clusters were free; else they belong to zero entries already */
} plan;

bool drv_in_flight_overlaps(const qcow2drv *s, uint64_t start, uint64_t end)
{
    for (const drv_in_flight *f = s->in_flight; f; f = f->next) {
        if (f->start < end && start < f->end)
            return true;
    }
    return false;
}

struct ends_wait {
    qcow2drv *s;
    uint32_t seen;
};

static bool no_end_since(void *arg)
{
    struct ends_wait *wait = arg;

    return atomic_load(&wait->s->in_flight_ends) == wait->seen;
}

void drv_in_flight_wait_unlock(qcow2drv *s)
{
    struct ends_wait wait = { .s = s, .seen = atomic_load(&s->in_flight_ends) };

    q2c_state_unlock(s->state);
    s->rt->ops->wait_while(s->rt, no_end_since, &wait);
}

static void in_flight_remove(qcow2drv *s, const drv_in_flight *ended)
{
    drv_in_flight **at = &s->in_flight;

    while (*at != ended)
        at = &(*at)->next;
    *at = ended->next;
}

int drv_order_l2(qcow2drv *s)
{
    int r = q2c_cache_set_dependency(s->l2, s->refcounts);

    if (r >= 0)
        r = q2c_cache_depends_on_flush(s->l2);
    return r < 0 ? r : 0;
}

/* Gives back clusters that nothing on disk has ever pointed to. What fails here leaks. */
static void free_clusters(qcow2drv *s, uint64_t host, uint64_t clusters)
{
    uint64_t done;

    (void)drv_refcount_drop(s, host, clusters, &done);
}

/* An empty L2 table: it and its refcount are stable before the L1 entry points to it. */
static int new_l2_table(qcow2drv *s, uint64_t l1_index, uint64_t *l2_offset)
{
    uint64_t host, got, stored;
    int r = drv_alloc_clusters(s, 1, &host, &got);

    if (r < 0)
        return r;
    /* Slices of an earlier table there must not come out of the cache. */
    r = q2c_cache_discard_range(s->l2, host, s->cluster_size);
    if (r >= 0)
        r = qcow2drv_file_zero(s->file, host, s->cluster_size);
    if (r >= 0) {
        drv_file_reaches(s, host + s->cluster_size);
        r = q2c_cache_flush(s->refcounts); /* flushes storage, too, and with it the table */
    }
    if (r < 0) {
        free_clusters(s, host, 1);
        return r;
    }
    stored = htobe64(host | DRV_COPIED);
    r = qcow2drv_file_write(s->file, s->header.l1_offset + l1_index * 8, &stored, sizeof(stored));
    if (r < 0)
        return r; /* it may have reached the disk, so the cluster stays in use: a leak */
    atomic_store_explicit(&s->l1[l1_index], host | DRV_COPIED, memory_order_release);
    *l2_offset = host;
    return 0;
}

int drv_l2_table(qcow2drv *s, uint64_t guest, uint64_t *l2_offset)
{
    uint64_t index = drv_l1_index(s, guest);
    uint64_t l1 = atomic_load_explicit(&s->l1[index], memory_order_relaxed);

    *l2_offset = l1 & DRV_OFFSET_MASK;
    if (*l2_offset != 0 && (l1 & DRV_COPIED) == 0) {
        drv_report(s,
                   "L1 entry %" PRIu64
                   ": the L2 table is shared, though the image has no snapshots; "
                   "run 'qemu-img check -r all'",
                   index);
        return -ENOTSUP;
    }
    return 0;
}

int drv_refuse_shared(qcow2drv *s, uint64_t guest)
{
    drv_report(s,
               "L2 entry of guest offset %#" PRIx64
               ": the cluster is shared, though the image has no snapshots; "
               "run 'qemu-img check -r all'",
               guest);
    return -ENOTSUP;
}

/* From the entries of a pinned slice: which clusters, from the first on, this write fills in one
 * go. clusters 0: the first one has data by now. */
static int plan_from_slice(qcow2drv *s, const void *table, size_t index, uint64_t wanted, plan *p)
{
    size_t end = (size_t)1 << s->slice_bits;
    drv_cluster first = { 0 }, c;

    p->clusters = 0;
    for (; index < end && p->clusters < wanted; index++) {
        uint64_t at = p->guest + (p->clusters << s->header.cluster_bits);
        int r = drv_decode(s, at, drv_table_entry(table, index), &c);

        if (r < 0)
            return p->clusters ? 0 : r; /* said when a request begins there */
        if (c.type == DRV_DATA || drv_in_flight_overlaps(s, at, at + s->cluster_size))
            return 0;
        if (p->clusters == 0) {
            first = c;
            p->host = c.host;
            p->fresh = c.host == 0;
            if (!p->fresh && !c.copied)
                return drv_refuse_shared(s, at);
        } else if (p->fresh ? c.host != 0
                            : !c.copied ||
                                  c.host != first.host + (p->clusters << s->header.cluster_bits)) {
            return 0;
        }
        p->clusters++;
    }
    return 0;
}

/* Step 1, lock held. clusters 0: look again. */
static int take_clusters(qcow2drv *s, uint64_t guest, uint64_t wanted, plan *p)
{
    uint64_t l2_offset, slice, got;
    size_t index;
    void *table;
    int r = drv_l2_table(s, guest, &l2_offset);

    if (r == 0 && l2_offset == 0)
        r = new_l2_table(s, drv_l1_index(s, guest), &l2_offset);
    if (r < 0)
        return r;
    p->guest = guest;
    slice = drv_slice_of(s, l2_offset, guest, &index);
    r = q2c_cache_get(s->l2, slice, &table);
    if (r < 0)
        return r;
    r = plan_from_slice(s, table, index, wanted, p);
    q2c_cache_put(s->l2, &table);
    if (r < 0 || p->clusters == 0 || !p->fresh)
        return r;
    r = drv_alloc_clusters(s, p->clusters, &p->host, &got);
    if (r == 0)
        p->clusters = got;
    return r;
}

/* Step 2: zeroes before and after the data, joined to it where they are short. */
static int write_padded(qcow2drv *s, uint64_t host, uint64_t head, const void *buf, uint64_t bytes,
                        uint64_t tail)
{
    struct iovec iov[3];
    uint64_t offset = host;
    int n = 0, r = 0;

    if (head > QCOW2DRV_FILE_ZEROS) {
        r = qcow2drv_file_zero(s->file, host, head);
        offset += head;
    } else if (head > 0) {
        iov[n++] = (struct iovec){ .iov_base = qcow2drv_file_zeros(), .iov_len = (size_t)head };
    }
    iov[n++] = (struct iovec){ .iov_base = (void *)(uintptr_t)buf, .iov_len = (size_t)bytes };
    if (tail > 0 && tail <= QCOW2DRV_FILE_ZEROS)
        iov[n++] = (struct iovec){ .iov_base = qcow2drv_file_zeros(), .iov_len = (size_t)tail };
    if (r == 0)
        r = qcow2drv_file_pwritev(s->file, offset, iov, n);
    if (r >= 0 && tail > QCOW2DRV_FILE_ZEROS)
        r = qcow2drv_file_zero(s->file, host + head + bytes, tail);
    return r < 0 ? r : 0;
}

/* Step 3, lock held. *linked: an entry may point to the clusters. */
static int link_clusters(qcow2drv *s, const plan *p, bool *linked)
{
    uint64_t l1 = atomic_load_explicit(&s->l1[drv_l1_index(s, p->guest)], memory_order_relaxed);
    size_t index;
    uint64_t slice = drv_slice_of(s, l1 & DRV_OFFSET_MASK, p->guest, &index);
    void *table;
    int r = drv_order_l2(s);

    if (r < 0)
        return r;
    r = q2c_cache_get(s->l2, slice, &table);
    if (r < 0)
        return r;
    for (uint64_t i = 0; i < p->clusters && r >= 0; i++) {
        uint64_t entry = (p->host + (i << s->header.cluster_bits)) | DRV_COPIED;

        *linked = true;
        r = q2c_cache_store(s->l2, table, (index + i) * 8, htobe64(entry));
    }
    if (r >= 0)
        r = q2c_cache_mark_dirty(s->l2, table);
    q2c_cache_put(s->l2, &table);
    return r < 0 ? r : 0;
}

int drv_write_alloc(qcow2drv *s, uint64_t guest, const void *buf, uint64_t bytes, uint64_t *done)
{
    uint64_t head = guest & (s->cluster_size - 1), first = guest - head, size;
    uint64_t wanted = (head + bytes + s->cluster_size - 1) >> s->header.cluster_bits;
    drv_in_flight inflight;
    bool linked = false;
    plan p;
    int r;

    *done = 0;
    r = q2c_state_lock(s->state);
    if (r < 0)
        return r;
    if (drv_in_flight_overlaps(s, first, first + s->cluster_size)) {
        drv_in_flight_wait_unlock(s);
        return 0;
    }
    r = take_clusters(s, first, wanted, &p);
    if (r < 0 || p.clusters == 0) {
        q2c_state_unlock(s->state);
        return r;
    }
    size = p.clusters << s->header.cluster_bits;
    inflight = (drv_in_flight){ .start = first, .end = first + size, .next = s->in_flight };
    s->in_flight = &inflight;
    q2c_state_unlock(s->state);

    bytes = bytes < size - head ? bytes : size - head;
    r = write_padded(s, p.host, head, buf, bytes, size - head - bytes);

    (void)q2c_state_lock(s->state); /* cannot fail where it worked just now */
    if (r == 0) {
        drv_file_reaches(s, p.host + size);
        r = link_clusters(s, &p, &linked);
    }
    if (r < 0 && p.fresh && !linked)
        free_clusters(s, p.host, p.clusters);
    in_flight_remove(s, &inflight);
    q2c_state_unlock(s->state);
    atomic_fetch_add(&s->in_flight_ends, 1);
    runtime_notify(s->rt);
    if (r == 0)
        *done = bytes;
    return r;
}
