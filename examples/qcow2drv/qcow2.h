/* SPDX-License-Identifier: MIT */
/*
 * A small qcow2 block driver on libqcow2cache: the interface for other C code.
 *
 * Requests: qcow2drv_pread, qcow2drv_pwrite, qcow2drv_discard, qcow2drv_zero and qcow2drv_flush may
 * be called by any number of threads, or workers of another host, at the same time. Requests that
 * overlap take effect in any order, as on a disk.
 *
 * Control: qcow2drv_set_options, qcow2drv_detach, qcow2drv_attach, qcow2drv_inactivate and
 * qcow2drv_invalidate may be called while requests run. Those that replace the caches hold new
 * requests back until they are done. qcow2drv_close is the last call, once, with no other call
 * running.
 *
 * Errors: functions return 0 or -errno. Storage's errors pass through. Damaged or unsupported
 * metadata that a request meets gives -EINVAL or -ENOTSUP, and one line through the report
 * function.
 *
 * Offsets and lengths are bytes of the virtual disk; they need no alignment.
 */
#ifndef QCOW2DRV_QCOW2_H
#define QCOW2DRV_QCOW2_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <qcow2cache.h>

struct runtime;

typedef struct qcow2drv qcow2drv; /* an open image */

typedef struct qcow2drv_error {
    int code; /* errno, positive; 0 = none */
    char message[512];
} qcow2drv_error;

typedef struct qcow2drv_open_options {
    bool writable;
    const q2c_options
        *cache; /* what the user set; NULL = nothing. Read during qcow2drv_open only */
    uint64_t clean_interval_ns; /* not 0: in place of cache-clean-interval, for intervals below a
                                   second */
    struct runtime *runtime;    /* where to wait; NULL = threads. Must outlive the image */
    void *context;              /* where the cleaner runs; NULL on threads */
    /* Told about damage met by a request, one line without newline, from the thread that met it, no
     * lock held; at most 20 times per image. NULL = a line on standard error. */
    void (*report)(void *opaque, const char *message);
    void *report_opaque;
    const char
        *write_log; /* not NULL: every write and flush is recorded in this new file; for tests */
} qcow2drv_open_options;

/*
 * Opens an image: a path, or an nbd+unix:// URI if the driver was built with libnbd. All checks
 * come before the first write, so that a refused image stays untouched.
 *
 * Returns: 0; *image is set only then.
 * - -EINVAL: the image is damaged.
 * - -ENOTSUP: the image has a feature that this driver does not have.
 * - any errno of open(2).
 * error may be NULL.
 */
int qcow2drv_open(const char *name, const qcow2drv_open_options *options, qcow2drv **image,
                  qcow2drv_error *error);

/*
 * Flushes, stops the cleaner and frees the image. Waits for requests in flight; none may start any
 * more. NULL and *image == NULL are allowed.
 *
 * Returns: 0, and sets *image to NULL. On an error of the flush the image stays open, closed to
 * requests: call again, or give up with qcow2drv_abandon what is not written.
 */
int qcow2drv_close(qcow2drv **image);

/* Closes the image as qcow2drv_close does, but drops what cannot be written. Sets *image to NULL.
 */
void qcow2drv_abandon(qcow2drv **image);

/*
 * Reads. Never changes the image. Unallocated clusters read as zero.
 *
 * Returns: 0. -EINVAL: past the end of the disk.
 */
int qcow2drv_pread(qcow2drv *image, uint64_t offset, void *buf, size_t bytes);

/*
 * Writes.
 *
 * Returns: 0.
 * - -EINVAL: past the end of the disk.
 * - -EROFS: the image was opened read-only.
 * - -ENOSPC: storage is full, or of a fixed size.
 * - -EFBIG: the refcount table has the largest size that QEMU opens.
 */
int qcow2drv_pwrite(qcow2drv *image, uint64_t offset, const void *buf, size_t bytes);

/* Frees the clusters that lie wholly in the range; the end of the disk counts as the end of a
 * cluster. They read as zero afterwards. The rest of the range keeps its contents. */
int qcow2drv_discard(qcow2drv *image, uint64_t offset, uint64_t bytes);

/* Makes the range read as zero; whole clusters are freed. */
int qcow2drv_zero(qcow2drv *image, uint64_t offset, uint64_t bytes);

/* Flushes. When it returns 0, every request that ended before the call survives a crash. */
int qcow2drv_flush(qcow2drv *image);

/*
 * Sets new cache sizes and a new cleaning interval, as a transaction: on an error everything stays
 * as it was. Holds requests back and waits for those in flight. `locked`: commit with the image's
 * lock held or without it; the effect is the same.
 *
 * Returns: 0.
 * - -EINVAL: the message names the option.
 * - -ENOMEM.
 * - any errno of the flush.
 */
int qcow2drv_set_options(qcow2drv *image, const q2c_options *options, uint64_t clean_interval_ns,
                         bool locked, qcow2drv_error *error);

/* Checks whether qcow2drv_set_options could set these options: resolves them, flushes and allocates
 * like it, and then gives all of it up. Nothing changes; requests go on. Returns what it would. */
int qcow2drv_check_options(qcow2drv *image, const q2c_options *options, qcow2drv_error *error);

/* The image leaves its context: asks the cleaner to stop and never waits. Requests go on. */
int qcow2drv_detach(qcow2drv *image);
/* Starts the cleaner in the new context, with the same interval. -EALREADY: it is attached. */
int qcow2drv_attach(qcow2drv *image, void *context);

/* Call it before another process writes the image: flushes everything and holds requests back from
 * now on. On an error requests go on. -EALREADY: it was called before. */
int qcow2drv_inactivate(qcow2drv *image, qcow2drv_error *error);
/* Call it after another process has written the image: drops every table, reads header, L1 table
 * and refcount table again, and lets requests in. Without a qcow2drv_inactivate before it, what was
 * not flushed is lost. After an error all requests fail with -EIO until a later call succeeds. */
int qcow2drv_invalidate(qcow2drv *image, qcow2drv_error *error);

typedef struct qcow2drv_info {
    uint64_t virtual_size; /* bytes */
    uint64_t file_size;    /* bytes */
    uint32_t cluster_size; /* bytes */
    uint32_t version;
    uint32_t refcount_bits;
    uint32_t l1_entries;
    uint32_t snapshots;
    uint64_t refcount_table_entries;
    uint64_t incompatible_features, compatible_features, autoclear_features;
} qcow2drv_info;
void qcow2drv_get_info(qcow2drv *image,
                       qcow2drv_info *info); /* any thread; waits while requests are held back */

typedef struct qcow2drv_stats {
    q2c_cache_stats l2, refcounts;
    q2c_cleaner_stats cleaner;
    uint64_t clusters_allocated, clusters_freed; /* since qcow2drv_open */
    uint64_t quarantined_clusters;               /* freed, not reusable yet */
} qcow2drv_stats;
int qcow2drv_get_stats(qcow2drv *image,
                       qcow2drv_stats *stats); /* any thread; waits while requests are held back */

/* Where a guest range lives: *host is its offset in the file, or UINT64_MAX if it reads as zero;
 * *run (1 .. bytes) is how far that holds. For tools that compare with plain I/O; nothing keeps the
 * mapping in place but the caller's own quiet. */
int qcow2drv_map(qcow2drv *image, uint64_t offset, uint64_t bytes, uint64_t *host, uint64_t *run);

#endif
