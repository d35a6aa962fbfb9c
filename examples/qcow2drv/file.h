/* SPDX-License-Identifier: MIT */
/* Where an image's bytes live. Offsets are host bytes. All calls: any number of threads at once;
 * they wait. */
#ifndef QCOW2DRV_FILE_H
#define QCOW2DRV_FILE_H

#include <sys/uio.h>

#include "qcow2.h"
#include "runtime.h"

typedef struct qcow2drv_file qcow2drv_file;

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
    bool fixed_size; /* does not grow by writing past the end */
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

/* One buffer. */
int qcow2drv_file_read(qcow2drv_file *file, uint64_t offset, void *buf, size_t bytes);
int qcow2drv_file_write(qcow2drv_file *file, uint64_t offset, const void *buf, size_t bytes);

/* `bytes` zero bytes to point an iovec at: at most QCOW2DRV_FILE_ZEROS. Never written to. */
#define QCOW2DRV_FILE_ZEROS 65536u
void *qcow2drv_file_zeros(void);

#endif
