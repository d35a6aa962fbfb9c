/* SPDX-License-Identifier: MIT */
/*
 * A back end over another one that records every write and flush, for tests of what a crash leaves
 * behind.
 *
 * The log is a sequence of records, little machine-dependent as it is read on the machine that
 * wrote it: kind (1 byte, 7 of padding), id, offset, bytes (8 each); a WRITE_BEGIN is followed by
 * its data. A write that had ended before a flush began is stable when that flush ends.
 */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "file.h"
#include "qcow2_int.h"

enum { WRITE_BEGIN = 1, WRITE_END, FLUSH_BEGIN, FLUSH_END };

struct record {
    uint8_t kind, padding[7];
    uint64_t id, offset, bytes;
};

typedef struct log_file {
    qcow2drv_file file;
    qcow2drv_file *below;
    FILE *log;
    pthread_mutex_t lock; /* the log alone; not held across the calls below */
    uint64_t last_id;
} log_file;

static log_file *of(qcow2drv_file *file)
{
    return (log_file *)file;
}

/* id 0: takes a new one. Returns the record's id. */
static uint64_t record(log_file *f, uint8_t kind, uint64_t id, uint64_t offset,
                       const struct iovec *iov, int n)
{
    struct record r = { .kind = kind, .offset = offset };

    for (int i = 0; i < n; i++)
        r.bytes += iov[i].iov_len;
    pthread_mutex_lock(&f->lock);
    r.id = id ? id : ++f->last_id;
    fwrite(&r, sizeof(r), 1, f->log);
    for (int i = 0; i < n; i++)
        fwrite(iov[i].iov_base, 1, iov[i].iov_len, f->log);
    pthread_mutex_unlock(&f->lock);
    return r.id;
}

static int log_preadv(qcow2drv_file *file, uint64_t offset, const struct iovec *iov, int n)
{
    return of(file)->below->ops->preadv(of(file)->below, offset, iov, n);
}

static int log_pwritev(qcow2drv_file *file, uint64_t offset, const struct iovec *iov, int n)
{
    log_file *f = of(file);
    uint64_t id = record(f, WRITE_BEGIN, 0, offset, iov, n);
    int r = f->below->ops->pwritev(f->below, offset, iov, n);

    record(f, WRITE_END, id, offset, NULL, 0);
    return r;
}

static int log_zero(qcow2drv_file *file, uint64_t offset, uint64_t bytes)
{
    int r = 0;

    while (bytes && r >= 0) {
        struct iovec iov = { .iov_base = qcow2drv_file_zeros(),
                             .iov_len = bytes < QCOW2DRV_FILE_ZEROS ? bytes : QCOW2DRV_FILE_ZEROS };

        r = log_pwritev(file, offset, &iov, 1);
        offset += iov.iov_len;
        bytes -= iov.iov_len;
    }
    return r;
}

static int log_flush(qcow2drv_file *file)
{
    log_file *f = of(file);
    uint64_t id = record(f, FLUSH_BEGIN, 0, 0, NULL, 0);
    int r = f->below->ops->flush(f->below);

    if (r >= 0)
        record(f, FLUSH_END, id, 0, NULL, 0);
    return r;
}

static int log_size(qcow2drv_file *file, uint64_t *bytes)
{
    return of(file)->below->ops->size(of(file)->below, bytes);
}

static void log_close(qcow2drv_file *file)
{
    log_file *f = of(file);

    f->below->ops->close(f->below);
    if (ferror(f->log) | (fclose(f->log) != 0))
        fputs("qcow2drv: the write log is incomplete\n", stderr);
    pthread_mutex_destroy(&f->lock);
    free(f);
}

static const qcow2drv_file_ops log_ops = {
    .preadv = log_preadv,
    .pwritev = log_pwritev,
    .zero = log_zero,
    .flush = log_flush,
    .size = log_size,
    .close = log_close,
};

int qcow2drv_file_log(qcow2drv_file **file, const char *path, qcow2drv_error *error)
{
    log_file *f = calloc(1, sizeof(*f));

    if (!f)
        return drv_fail(error, ENOMEM, "%s: no memory", path);
    f->log = fopen(path, "wb");
    if (!f->log) {
        int code = errno;

        free(f);
        return drv_fail(error, code, "%s: the write log cannot be made: %s", path, strerror(code));
    }
    pthread_mutex_init(&f->lock, NULL);
    f->below = *file;
    f->file = **file;
    f->file.ops = &log_ops;
    *file = &f->file;
    return 0;
}
