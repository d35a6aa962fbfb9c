/* SPDX-License-Identifier: MIT */
/* The driver's storage in the form the library wants. Called from inside of the library's waits. */
#include <errno.h>
#include <inttypes.h>

#include "qcow2_int.h"

void drv_file_reaches(qcow2drv *s, uint64_t end)
{
    uint64_t known = atomic_load(&s->file_end);

    while (known < end && !atomic_compare_exchange_weak(&s->file_end, &known, end)) {
    }
}

static int storage_preadv(void *opaque, int kind, uint64_t offset, const struct iovec *iov, int n)
{
    qcow2drv *s = opaque;

    (void)kind; /* L2 tables and refcount blocks are in the same file */
    return s->file->ops->preadv(s->file, offset, iov, n);
}

static int storage_pwritev(void *opaque, int kind, uint64_t offset, const struct iovec *iov, int n)
{
    qcow2drv *s = opaque;

    (void)kind; /* L2 tables and refcount blocks are in the same file */
    return qcow2drv_file_pwritev(s->file, offset, iov, n);
}

static int storage_flush(void *opaque)
{
    qcow2drv *s = opaque;

    return atomic_load(&s->abandoned) ? 0 : qcow2drv_file_flush(s->file);
}

static bool overlap(uint64_t a, uint64_t a_bytes, uint64_t b, uint64_t b_bytes)
{
    return a < b + b_bytes && b < a + a_bytes;
}

const char *drv_metadata_at(const qcow2drv *s, uint64_t offset, uint64_t bytes)
{
    const drv_header *h = &s->header;

    if (offset < s->cluster_size)
        return "the header";
    if (overlap(offset, bytes, h->l1_offset, UINT64_C(8) * h->l1_entries))
        return "the L1 table";
    if (overlap(offset, bytes, h->reftable_offset,
                (uint64_t)h->reftable_clusters << h->cluster_bits))
        return "the refcount table";
    return NULL;
}

/* A table that would land on other metadata comes from a damaged image. The library writes only
 * while the caller holds the state lock or the gate is closed, so that s->header stands still. */
static int storage_pre_write_check(void *opaque, int kind, uint64_t offset, uint64_t bytes)
{
    qcow2drv *s = opaque;
    const char *hit = drv_metadata_at(s, offset, bytes);

    if (!hit)
        return 0;
    drv_report(s, "%s at %#" PRIx64 " would overwrite %s; not written; run 'qemu-img check'",
               kind == DRV_KIND_L2 ? "L2 table" : "refcount block", offset, hit);
    return -EIO;
}

static void storage_corruption(void *opaque, int reason, int kind, uint64_t offset,
                               const char *message)
{
    (void)reason;
    drv_report(opaque, "%s at %#" PRIx64 ": %s; run 'qemu-img check'",
               kind == DRV_KIND_L2 ? "L2 table" : "refcount block", offset, message);
}

void drv_storage_fill(qcow2drv *s, q2c_storage *storage)
{
    *storage = (q2c_storage){
        .struct_size = sizeof(*storage),
        .opaque = s,
        .preadv = storage_preadv,
        .pwritev = storage_pwritev,
        .flush = storage_flush,
        .pre_write_check = storage_pre_write_check,
        .corruption = storage_corruption,
    };
}
