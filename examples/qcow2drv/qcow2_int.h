/* SPDX-License-Identifier: MIT */
/*
 * Inside of the driver. Three rules hold it together:
 *
 * 1. Requests. Every request runs between drv_enter and drv_leave (request.c). The borrowed cache
 *    pointers, the geometry and the L1 array are replaced only while the gate is closed and no
 *    request is inside.
 *
 * 2. The state lock (q2c_state_lock) guards what changes tables: the contents of slices, which
 *    clusters are free, the refcount table, the list of allocations in flight, the quarantine. It
 *    may be held over metadata I/O, never over I/O of guest data. Lookups and writes in place do
 *    not take it.
 *
 * 3. A crash leaks clusters at most. Each file says which order of writes that takes: new data and
 *    refcounts before L2 entries (alloc.c), L2 tables before L1 entries (alloc.c), refcount blocks
 *    before the entries of the refcount table, and a new refcount table before the header
 *    (reftable.c), cleared L2 entries before their clusters are reused (quarantine.c).
 */
#ifndef QCOW2DRV_QCOW2_INT_H
#define QCOW2DRV_QCOW2_INT_H

#include <endian.h>
#include <stdatomic.h>

#include "file.h"
#include "qcow2.h"
#include "runtime.h"

#define DRV_OFFSET_MASK UINT64_C(0x00fffffffffffe00) /* of an L1 or L2 entry: host offset */
#define DRV_COPIED      (UINT64_C(1) << 63) /* refcount is exactly one: may be written in place */
#define DRV_COMPRESSED  (UINT64_C(1) << 62)
#define DRV_ZERO        UINT64_C(1) /* version 3: reads as zero, whatever the offset says */
#define DRV_L1_RESERVED (~(DRV_OFFSET_MASK | DRV_COPIED))
#define DRV_L2_RESERVED (~(DRV_OFFSET_MASK | DRV_COPIED | DRV_COMPRESSED | DRV_ZERO))
#define DRV_REFTABLE_RESERVED UINT64_C(0x1ff)

/* QEMU's limits: it can open what this driver writes. */
#define DRV_MAX_L1_BYTES       (UINT64_C(32) << 20)
#define DRV_MAX_REFTABLE_BYTES (UINT64_C(8) << 20)

/* `kind` of the two caches: the library passes it back to the callbacks. */
#define DRV_KIND_L2        1
#define DRV_KIND_REFCOUNTS 2

/* ---- header.c ---- */
typedef struct drv_header {
    uint32_t version;
    unsigned cluster_bits;
    unsigned refcount_order; /* log2 of a refcount's bits */
    uint64_t size;           /* virtual disk, bytes */
    uint64_t l1_offset;
    uint32_t l1_entries;
    uint64_t reftable_offset;
    uint32_t reftable_clusters;
    uint32_t snapshots;
    uint64_t incompatible, compatible, autoclear;
} drv_header;

/* Where fields that we write lie in the header. */
#define DRV_HEADER_REFTABLE  48 /* offset (8 bytes), clusters (4): one write inside one sector */
#define DRV_HEADER_AUTOCLEAR 88

/* Reads and checks the header of a file of file_size bytes. Writes nothing. error is filled. */
int drv_header_read(qcow2drv_file *file, const char *name, uint64_t file_size, bool writable,
                    drv_header *header, qcow2drv_error *error);

/* ---- requests (request.c) ---- */
#define DRV_SHARDS 16
typedef struct drv_shard {
    _Alignas(64) _Atomic uint32_t active[3]; /* requests inside, by epoch modulo 3 */
} drv_shard;

typedef struct drv_request {
    _Atomic uint32_t *active;
} drv_request;

/* ---- clusters that were freed and may not be reused yet (quarantine.c) ---- */
typedef struct drv_freed {
    uint64_t host; /* offset of the first cluster */
    uint64_t clusters;
    uint64_t epoch; /* when its L2 entry was cleared */
    uint64_t flush; /* number of the flush that makes the clearing stable */
} drv_freed;

typedef struct drv_quarantine {
    drv_freed *entries; /* [head, end): oldest first; epoch and flush never fall */
    size_t head, end, capacity;
    uint64_t clusters;
} drv_quarantine;

/* ---- an allocating write in flight (alloc.c): lives on the stack of its request ---- */
typedef struct drv_in_flight {
    uint64_t start, end; /* guest bytes, whole clusters */
    struct drv_in_flight *next;
} drv_in_flight;

struct qcow2drv {
    struct runtime *rt;
    struct runtime *own_rt; /* to free at the end; NULL if the caller's */
    qcow2drv_file *file;
    char *name;
    bool writable;
    void (*report)(void *opaque, const char *message);
    void *report_opaque;
    _Atomic unsigned reports_left;

    q2c_state *state;
    /* Replaced while the gate is closed. */
    q2c_cache *l2, *refcounts; /* borrowed from state */
    unsigned slice_bits;       /* log2 of entries per slice */
    drv_header header;
    uint64_t cluster_size;
    unsigned l2_bits;    /* log2 of entries per L2 table */
    unsigned block_bits; /* log2 of refcounts per refcount block */
    /* Host byte order. Entries change under the state lock; readers take no lock. */
    _Atomic uint64_t *l1;

    _Atomic uint64_t file_end; /* bytes; grows */

    /* Under the state lock. */
    uint64_t *reftable; /* host byte order */
    uint64_t reftable_entries;
    uint64_t free_hint;      /* no free cluster has a lower index */
    bool header_unwritten;   /* the header on disk may not point to the new refcount table yet */
    bool reftable_unwritten; /* entry reftable_unwritten_index may be missing on disk */
    uint64_t reftable_unwritten_index;
    drv_in_flight *in_flight;
    drv_quarantine quarantine;
    uint64_t flushes_begun; /* of the L2 cache and storage */
    uint64_t flushes_done;  /* highest number of one that succeeded */
    uint64_t clusters_allocated, clusters_freed;

    /* Number of allocations that ended. Requests that wait for one watch it. */
    _Atomic uint32_t in_flight_ends;

    _Atomic uint64_t epoch; /* changes under the state lock */
    _Atomic bool gate_closed;
    _Atomic bool broken;    /* an invalidate failed half-way: only another one repairs it */
    _Atomic bool inactive;  /* qcow2drv_inactivate, or a close that failed, holds the gate */
    _Atomic bool abandoned; /* what is not written yet is given up */
    drv_shard shards[DRV_SHARDS];
};

/* ---- error.c ---- */
/* Fills error (may be NULL) and returns -code. */
int drv_fail(qcow2drv_error *error, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* Reports damage in one line; a limited number per image. Any thread, any lock held. */
void drv_report(qcow2drv *s, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* ---- request.c ---- */
/* Waits while the gate is closed; then the request counts as in flight. */
void drv_enter(qcow2drv *s, drv_request *request);
void drv_leave(qcow2drv *s, drv_request *request);
/* Holds new requests back and waits for those in flight; one caller at a time. */
void drv_gate_close(qcow2drv *s);
void drv_gate_open(qcow2drv *s);
/* Begins new epochs as far as the requests in flight allow; returns the current epoch. State lock
 * held. All requests that began in epoch e or earlier have ended when this is e + 2 or more. */
uint64_t drv_epoch_advance(qcow2drv *s);

/* ---- map.c ---- */
typedef enum drv_type { DRV_UNALLOCATED, DRV_ZERO_PLAIN, DRV_ZERO_ALLOCATED, DRV_DATA } drv_type;

typedef struct drv_cluster {
    drv_type type;
    bool copied;
    uint64_t host; /* of the cluster; 0 if none */
} drv_cluster;

typedef struct drv_extent {
    drv_type type;
    bool copied;
    uint64_t host;  /* of the first byte; 0 if none */
    uint64_t bytes; /* how far this holds: 1 .. what was asked for */
} drv_extent;

/* Checks an L2 entry as stored (big-endian) and takes it apart. Reports damage. */
int drv_decode(qcow2drv *s, uint64_t guest, uint64_t stored, drv_cluster *cluster);
/* Looks up as many clusters of one slice as have one type and lie in a row. Inside a request, no
 * lock held. */
int drv_map(qcow2drv *s, uint64_t guest, uint64_t bytes, drv_extent *extent);
/* Entry of a pinned table, as stored. */
uint64_t drv_table_entry(const void *table, size_t index);
/* The host offset of the slice that maps `guest`, in the L2 table at l2_offset, and the entry's
 * index in it. */
uint64_t drv_slice_of(const qcow2drv *s, uint64_t l2_offset, uint64_t guest, size_t *index);

static inline uint64_t drv_l1_index(const qcow2drv *s, uint64_t guest)
{
    return guest >> (s->header.cluster_bits + s->l2_bits);
}

static inline uint64_t drv_round_up(uint64_t value, uint64_t power_of_two)
{
    return (value + power_of_two - 1) & ~(power_of_two - 1);
}

/* ---- refcount.c; all under the state lock ---- */
uint64_t drv_refcount_get(const void *block, unsigned order, uint64_t index);
void drv_refcount_set(void *block, unsigned order, uint64_t index, uint64_t value);
/* Finds 1 .. want free clusters in a row and sets their refcounts to one, in the cache. */
int drv_alloc_clusters(qcow2drv *s, uint64_t want, uint64_t *host, uint64_t *got);
/* Decrements refcounts; *done counts the clusters that were, also on an error. Nothing on disk may
 * refer to them any more. */
int drv_refcount_drop(qcow2drv *s, uint64_t host, uint64_t clusters, uint64_t *done);

/* ---- reftable.c; all under the state lock ---- */
/* Makes the refcount block that covers the free cluster `index` in that very cluster; the block
 * holds its own refcount. */
int drv_reftable_add_block(qcow2drv *s, uint64_t index);
/* Writes the parts of the refcount table and the header that may not have reached the disk. */
int drv_reftable_settle(qcow2drv *s);

/* ---- alloc.c; under the state lock unless it says otherwise ---- */
/* Inside a request, lock not held. Writes buf to unallocated or zero clusters from `guest` on.
 * *done: bytes written; 0 = the mapping has changed, look it up again. */
int drv_write_alloc(qcow2drv *s, uint64_t guest, const void *buf, uint64_t bytes, uint64_t *done);
/* An allocation in flight overlaps [start, end). */
bool drv_in_flight_overlaps(const qcow2drv *s, uint64_t start, uint64_t end);
/* Releases the lock and waits until an allocation has ended. The caller starts over. */
void drv_in_flight_wait_unlock(qcow2drv *s);
/* Host offset of the L2 table that maps `guest`; 0: there is none. -ENOTSUP: it must not be
 * written. */
int drv_l2_table(qcow2drv *s, uint64_t guest, uint64_t *l2_offset);
/* Reports that the cluster must not be written, as a snapshot shares it. -ENOTSUP. */
int drv_refuse_shared(qcow2drv *s, uint64_t guest);
/* Has the L2 cache write nothing before refcounts and data are stable. */
int drv_order_l2(qcow2drv *s);

/* ---- discard.c; inside a request, lock not held ---- */
/* Frees the whole clusters [start, end), leaving entries that read as zero. */
int drv_free_range(qcow2drv *s, uint64_t start, uint64_t end, bool zero_flag);

/* ---- quarantine.c; under the state lock ---- */
/* Room for `ranges` more; -ENOMEM. */
int drv_quarantine_reserve(qcow2drv *s, size_t ranges);
/* The clusters' L2 entry has been cleared in the cache. Room was reserved. */
void drv_quarantine_add(qcow2drv *s, uint64_t host, uint64_t clusters);
/* Frees the clusters that are due; false: there were none. */
bool drv_quarantine_release(qcow2drv *s);
/* drv_quarantine_release, after a flush of the L2 cache if the quarantine is large or `urgent`. */
bool drv_quarantine_relieve(qcow2drv *s, bool urgent);
/* Empties it: the image is about to be read anew. */
void drv_quarantine_clear(qcow2drv *s);

/* ---- flush.c ---- */
/* Inside a request or with the gate closed; lock not held. */
int drv_flush(qcow2drv *s);
/* Flushes until the quarantine is empty. Gate closed. */
int drv_flush_all(qcow2drv *s);

/* ---- storage.c: the library's storage callbacks ---- */
void drv_storage_fill(qcow2drv *s, q2c_storage *storage);
/* Names what of the header, the L1 table and the refcount table lies in that part of the file, for
 * a message; NULL = nothing. State lock held or gate closed. */
const char *drv_metadata_at(const qcow2drv *s, uint64_t offset, uint64_t bytes);
/* The file is known to reach to `end`. */
void drv_file_reaches(qcow2drv *s, uint64_t end);

/* ---- open.c ---- */
/* Borrows the caches from the state again. Gate closed. */
int drv_refresh_caches(qcow2drv *s);
void drv_set_header(qcow2drv *s, const drv_header *header);
/* Reads L1 and refcount table into new arrays and checks them. error is filled. */
int drv_load_roots(qcow2drv *s, const drv_header *header, uint64_t file_size, _Atomic uint64_t **l1,
                   uint64_t **reftable, qcow2drv_error *error);
/* Writable images: clears the autoclear bits in the header. error is filled. */
int drv_clear_autoclear(qcow2drv *s, qcow2drv_error *error);

#endif
