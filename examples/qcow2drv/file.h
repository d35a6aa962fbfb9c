/* SPDX-License-Identifier: MIT */
/* Where an image's bytes live. Offsets are host bytes. All calls: any number of threads at once; they wait. */
#ifndef QCOW2DRV_FILE_H
#define QCOW2DRV_FILE_H

#include <sys/uio.h>

#include "qcow2.h"
#include "runtime.h"

typedef struct qd_file qd_file;

typedef struct qd_file_ops {
    /* What lies past the end reads as zero. 0 = all done. */
    int (*preadv)(qd_file *file, uint64_t offset, const struct iovec *iov, int n);
    int (*pwritev)(qd_file *file, uint64_t offset, const struct iovec *iov, int n);
    /* The range reads as zero, and the file is at least that long. */
    int (*zero)(qd_file *file, uint64_t offset, uint64_t bytes);
    /* What had been written when it was called survives a crash. */
    int (*flush)(qd_file *file);
    int (*size)(qd_file *file, uint64_t *bytes);
    void (*close)(qd_file *file);
} qd_file_ops;

struct qd_file {
    const qd_file_ops *ops;
    struct rt *rt;
    bool writable;
    bool fixed_size; /* does not grow by writing past the end */
};

/* Picks the back end by the name. error is filled. */
int qd_file_open(const char *name, bool writable, struct rt *rt, qd_file **file, qd_error *error);

int qd_file_open_posix(const char *name, bool writable, struct rt *rt, qd_file **file, qd_error *error);
int qd_file_open_nbd(const char *uri, bool writable, struct rt *rt, qd_file **file, qd_error *error);

/* Puts a recorder of all writes and flushes over *file; see file_log.c for the form. Closing it closes both. */
int qd_file_log(qd_file **file, const char *path, qd_error *error);

/* One buffer. */
int qd_file_read(qd_file *file, uint64_t offset, void *buf, size_t bytes);
int qd_file_write(qd_file *file, uint64_t offset, const void *buf, size_t bytes);

/* `bytes` zero bytes to point an iovec at: at most QD_FILE_ZEROS. Never written to. */
#define QD_FILE_ZEROS 65536u
void *qd_file_zeros(void);

#endif
