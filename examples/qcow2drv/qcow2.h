/* SPDX-License-Identifier: MIT */
/*
 * A small qcow2 block driver on libqcow2cache: the interface for other C code.
 *
 * Threads: requests (qcow2drv_pread, qcow2drv_pwrite, qcow2drv_discard, qcow2drv_zero,
 * qcow2drv_flush) may be made by any number of threads, or workers of another host, at once.
 * Requests that overlap take effect in no promised order, as on a disk. qcow2drv_set_options,
 * qcow2drv_detach, qcow2drv_attach, qcow2drv_inactivate and qcow2drv_invalidate may be called while
 * requests run; those that replace the caches hold new requests back until they are done.
 * qcow2drv_close comes last, once, by itself.
 *
 * Errors: functions return 0 or -errno. Storage's errors pass through. A damaged or unsupported
 * piece of metadata met on the way gives -EINVAL or -ENOTSUP and one line through the report
 * function. Offsets and lengths are guest bytes; no alignment is asked for.
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
 * Opens an image: a path, or nbd+unix:// where libnbd was there at build time. All checks come
 * before the first write, so that a refused image is untouched. -EINVAL: damaged; -ENOTSUP: a
 * feature this driver does not have; what open(2) says. *image is written on success only. error
 * may be NULL.
 */
int qcow2drv_open(const char *name, const qcow2drv_open_options *options, qcow2drv **image,
                  qcow2drv_error *error);

/*
 * Flushes, stops the cleaner, frees. Waits for requests in flight; none may start any more. On an
 * error the image stays open, closed to requests: call again, or give up what is unwritten with
 * qcow2drv_abandon. Nulls *image on success. NULL and *image == NULL: 0.
 */
int qcow2drv_close(qcow2drv **image);

/* As qcow2drv_close, but drops what could not be written. Nulls *image. */
void qcow2drv_abandon(qcow2drv **image);

/* -EINVAL: past the end of the disk. Never changes the image. Unallocated clusters read as zero. */
int qcow2drv_pread(qcow2drv *image, uint64_t offset, void *buf, size_t bytes);

/* -EINVAL: past the end of the disk; -EROFS; -ENOSPC, also where storage has a fixed size; -EFBIG:
 * the refcount table is as large as the format's users allow. */
int qcow2drv_pwrite(qcow2drv *image, uint64_t offset, const void *buf, size_t bytes);

/* Frees the clusters that lie wholly in the range (the disk's end counts as a cluster's end); they
 * read as zero afterwards. The rest of the range stays as it is. */
int qcow2drv_discard(qcow2drv *image, uint64_t offset, uint64_t bytes);

/* The range reads as zero afterwards; whole clusters are freed. */
int qcow2drv_zero(qcow2drv *image, uint64_t offset, uint64_t bytes);

/* When it returns 0, every request that had ended before it began survives a crash. */
int qcow2drv_flush(qcow2drv *image);

/*
 * New cache sizes and cleaning interval, as a transaction: on an error all stays as it was. Holds
 * requests back and waits for those in flight. `locked`: commit with the image's lock held or
 * without; the effect is the same. -EINVAL with the option's name in the message; -ENOMEM; the
 * flush's error.
 */
int qcow2drv_set_options(qcow2drv *image, const q2c_options *options, uint64_t clean_interval_ns,
                         bool locked, qcow2drv_error *error);

/* Whether qcow2drv_set_options could set these: works them out, flushes and allocates as it would,
 * then gives it up. Nothing changes. Errors and context as there; the image works on meanwhile. */
int qcow2drv_check_options(qcow2drv *image, const q2c_options *options, qcow2drv_error *error);

/* The image leaves its context: the cleaner is asked to stop; never waits. Requests go on. */
int qcow2drv_detach(qcow2drv *image);
/* The cleaner starts in the new context, same interval. -EALREADY: attached. */
int qcow2drv_attach(qcow2drv *image, void *context);

/* Another process is about to write the image: flushes everything and holds requests back from now
 * on. On an error requests go on. -EALREADY. */
int qcow2drv_inactivate(qcow2drv *image, qcow2drv_error *error);
/* Another process has written the image: drops every table, written or not, reads header, L1 and
 * refcount table again, and lets requests in. Without a qcow2drv_inactivate before, what was not
 * flushed is lost. On an error all requests get -EIO until a later qcow2drv_invalidate succeeds. */
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
