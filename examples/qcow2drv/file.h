/* SPDX-License-Identifier: MIT */
/* Where an image's bytes live. Offsets are host bytes. All calls: any number of threads at once;
 * they wait. */
#ifndef QCOW2DRV_FILE_H
#define QCOW2DRV_FILE_H

#include <stdatomic.h>
#include <sys/uio.h>

#include "qcow2.h"
#include "runtime.h"

typedef struct qcow2drv_file qcow2drv_file;

/* What a back end does. Callers use the functions below for all that writes or flushes. */
typedef struct qcow2drv_file_ops {
    /* What lies past the end reads as zero. 0 = all done. */
    int (*preadv)(qcow2drv_file *file, uint64_t offset, const struct iovec *iov, int n);
    int (*pwritev)(qcow2drv_file *file, uint64_t offset, const struct iovec *iov, int n);
    /* The range reads as zero, and the file is at least that long. */
    int (*zero)(qcow2drv_file *file, uint64_t offset, uint64_t bytes);
    /* What had been written when it was called survives a crash. */
    int (*flush)(qcow2drv_file *file);
    int (*size)(qcow2drv_file *file, uint64_t *bytes);
    void (*close)(qcow2drv_file *file);
} qcow2drv_file_ops;

struct qcow2drv_file {
    const qcow2drv_file_ops *ops;
    struct runtime *rt;
    bool writable;
    bool fixed_size;                      /* does not grow by writing past the end */
    atomic_int flush_error;               /* of the first flush that failed, -errno; 0: none */
    atomic_ullong writes, writes_flushed; /* how many were made; how many of them are stable */
};

/* Picks the back end by the name. error is filled. */
int qcow2drv_file_open(const char *name, bool writable, struct runtime *rt, qcow2drv_file **file,
                       qcow2drv_error *error);

int qcow2drv_file_open_posix(const char *name, bool writable, struct runtime *rt,
                             qcow2drv_file **file, qcow2drv_error *error);
int qcow2drv_file_open_nbd(const char *uri, bool writable, struct runtime *rt, qcow2drv_file **file,
                           qcow2drv_error *error);

/* Puts a recorder of all writes and flushes over *file; see file_log.c for the form. Closing it
 * closes both. */
int qcow2drv_file_log(qcow2drv_file **file, const char *path, qcow2drv_error *error);

/* Reads and writes as `ops` do. */
int qcow2drv_file_pwritev(qcow2drv_file *file, uint64_t offset, const struct iovec *iov, int n);
int qcow2drv_file_zero(qcow2drv_file *file, uint64_t offset, uint64_t bytes);
/*
 * Flushes, if something was written since the last good flush. After one flush that failed, every
 * later one fails with the same error, until the image is opened anew: the kernel, or the server,
 * may have dropped what it could not write, and says 0 the next time. (QEMU's file driver does so,
 * too, but not with O_DIRECT.)
 */
int qcow2drv_file_flush(qcow2drv_file *file);

/* One buffer. */
int qcow2drv_file_read(qcow2drv_file *file, uint64_t offset, void *buf, size_t bytes);
int qcow2drv_file_write(qcow2drv_file *file, uint64_t offset, const void *buf, size_t bytes);

/* `bytes` zero bytes to point an iovec at: at most QCOW2DRV_FILE_ZEROS. Never written to. */
#define QCOW2DRV_FILE_ZEROS 65536u
void *qcow2drv_file_zeros(void);

#endif
