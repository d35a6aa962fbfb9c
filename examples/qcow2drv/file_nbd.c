/* SPDX-License-Identifier: MIT */
/*
 * Storage behind an NBD server, through libnbd's blocking calls.
 *
 * One connection carries one request at a time, so that each request in flight has a connection of
 * its own: a request takes an idle one, the most recently used first, or makes another. A thread
 * that does one request after the other keeps coming back to the same connection.
 */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include <libnbd.h>

#include "file.h"
#include "qcow2_int.h"

#define MAX_REQUEST ((size_t)16 << 20) /* bytes; every server takes that much */

struct connection {
    struct connection *next;
    struct nbd_handle *nbd;
};

struct file_nbd {
    qcow2drv_file file;
    char *uri;
    bool can_zero;
    bool can_flush;
    uint64_t size;
    pthread_mutex_t mutex; /* guards the list; never held over I/O */
    struct connection *idle;
};

struct io {
    struct file_nbd *f;
    uint64_t offset;
    uint64_t bytes;
    const struct iovec *iov;
    int n;
};

static struct file_nbd *to_nbd(qcow2drv_file *file)
{
    return (struct file_nbd *)file; /* file is the first member */
}

/* libnbd's last error in this thread. */
static int last_error(void)
{
    int code = nbd_get_errno();

    return code > 0 ? -code : -EIO;
}

static int connect_new(const char *uri, struct connection **connection)
{
    struct connection *c = calloc(1, sizeof(*c));
    int r = 0;

    if (!c)
        return -ENOMEM;
    c->nbd = nbd_create();
    if (!c->nbd || nbd_connect_uri(c->nbd, uri) < 0)
        r = last_error();
    if (r < 0) {
        nbd_close(c->nbd); /* NULL is fine */
        free(c);
        return r;
    }
    *connection = c;
    return 0;
}

static void disconnect(struct connection *c)
{
    (void)nbd_shutdown(c->nbd, 0);
    nbd_close(c->nbd);
    free(c);
}

static int take(struct file_nbd *f, struct connection **connection)
{
    struct connection *c;

    pthread_mutex_lock(&f->mutex);
    c = f->idle;
    if (c)
        f->idle = c->next;
    pthread_mutex_unlock(&f->mutex);
    if (c) {
        *connection = c;
        return 0;
    }
    return connect_new(f->uri, connection);
}

/* A connection that failed is closed: the next request makes a new one. */
static void free_clusters(struct file_nbd *f, struct connection *c, int r)
{
    if (r < 0 && nbd_aio_is_ready(c->nbd) != 1) {
        disconnect(c);
        return;
    }
    pthread_mutex_lock(&f->mutex);
    c->next = f->idle;
    f->idle = c;
    pthread_mutex_unlock(&f->mutex);
}

/* The part of a read inside the export; the rest of the buffer is zeroed. */
static size_t clip(const struct file_nbd *f, uint64_t offset, char *buf, size_t bytes)
{
    size_t inside = offset >= f->size          ? 0
                    : f->size - offset < bytes ? (size_t)(f->size - offset)
                                               : bytes;

    memset(buf + inside, 0, bytes - inside);
    return inside;
}

static int read_on(struct io *io, struct nbd_handle *nbd)
{
    uint64_t offset = io->offset;

    for (int i = 0; i < io->n; i++) {
        char *buf = io->iov[i].iov_base;
        size_t left = clip(io->f, offset, buf, io->iov[i].iov_len);

        for (uint64_t at = offset; left > 0;) {
            size_t step = left < MAX_REQUEST ? left : MAX_REQUEST;

            if (nbd_pread(nbd, buf, step, at, 0) < 0)
                return last_error();
            buf += step;
            at += step;
            left -= step;
        }
        offset += io->iov[i].iov_len;
    }
    return 0;
}

static int write_on(struct io *io, struct nbd_handle *nbd)
{
    uint64_t offset = io->offset;

    for (int i = 0; i < io->n; i++) {
        const char *buf = io->iov[i].iov_base;

        for (size_t left = io->iov[i].iov_len; left > 0;) {
            size_t step = left < MAX_REQUEST ? left : MAX_REQUEST;

            if (nbd_pwrite(nbd, buf, step, offset, 0) < 0)
                return last_error();
            buf += step;
            offset += step;
            left -= step;
        }
    }
    return 0;
}

static int zero_on(struct io *io, struct nbd_handle *nbd)
{
    uint64_t offset = io->offset, left = io->bytes;

    while (left > 0) {
        size_t most = io->f->can_zero ? MAX_REQUEST : QCOW2DRV_FILE_ZEROS;
        size_t step = left < most ? (size_t)left : most;
        int r = io->f->can_zero ? nbd_zero(nbd, step, offset, 0)
                                : nbd_pwrite(nbd, qcow2drv_file_zeros(), step, offset, 0);

        if (r < 0)
            return last_error();
        offset += step;
        left -= step;
    }
    return 0;
}

static int flush_on(struct io *io, struct nbd_handle *nbd)
{
    (void)io;
    return nbd_flush(nbd, 0) < 0 ? last_error() : 0;
}

static int with_connection(struct io *io, int (*fn)(struct io *io, struct nbd_handle *nbd))
{
    struct connection *c;
    int r = take(io->f, &c);

    if (r < 0)
        return r;
    r = fn(io, c->nbd);
    free_clusters(io->f, c, r);
    return r;
}

static int do_read(void *arg)
{
    return with_connection(arg, read_on);
}

static int do_write(void *arg)
{
    return with_connection(arg, write_on);
}

static int do_zero(void *arg)
{
    return with_connection(arg, zero_on);
}

static int do_flush(void *arg)
{
    return with_connection(arg, flush_on);
}

static int nbd_file_preadv(qcow2drv_file *file, uint64_t offset, const struct iovec *iov, int n)
{
    struct io io = { .f = to_nbd(file), .offset = offset, .iov = iov, .n = n };

    return runtime_blocking(file->rt, do_read, &io);
}

static int nbd_file_pwritev(qcow2drv_file *file, uint64_t offset, const struct iovec *iov, int n)
{
    struct io io = { .f = to_nbd(file), .offset = offset, .iov = iov, .n = n };

    return runtime_blocking(file->rt, do_write, &io);
}

static int nbd_file_zero(qcow2drv_file *file, uint64_t offset, uint64_t bytes)
{
    struct io io = { .f = to_nbd(file), .offset = offset, .bytes = bytes };

    return runtime_blocking(file->rt, do_zero, &io);
}

static int nbd_file_flush(qcow2drv_file *file)
{
    struct io io = { .f = to_nbd(file) };

    return to_nbd(file)->can_flush ? runtime_blocking(file->rt, do_flush, &io) : 0;
}

static int nbd_file_size(qcow2drv_file *file, uint64_t *bytes)
{
    *bytes = to_nbd(file)->size;
    return 0;
}

static void nbd_file_close(qcow2drv_file *file)
{
    struct file_nbd *f = to_nbd(file);

    while (f->idle) {
        struct connection *c = f->idle;

        f->idle = c->next;
        disconnect(c);
    }
    pthread_mutex_destroy(&f->mutex);
    free(f->uri);
    free(f);
}

static const qcow2drv_file_ops nbd_ops = {
    .preadv = nbd_file_preadv,
    .pwritev = nbd_file_pwritev,
    .zero = nbd_file_zero,
    .flush = nbd_file_flush,
    .size = nbd_file_size,
    .close = nbd_file_close,
};

/* What the server can do, from its first connection. */
static int ask(struct file_nbd *f, struct nbd_handle *nbd, bool writable, qcow2drv_error *error)
{
    int64_t size = nbd_get_size(nbd);

    if (size < 0)
        return drv_fail(error, EIO, "%s: no size: %s", f->uri, nbd_get_error());
    if (writable && nbd_is_read_only(nbd) != 0)
        return drv_fail(error, EROFS, "%s: the server exports it read-only", f->uri);
    if (writable && nbd_can_multi_conn(nbd) != 1)
        return drv_fail(error, ENOTSUP,
                        "%s: the server does not allow several connections to write; open it "
                        "read-only, or use a server that does (nbdkit file)",
                        f->uri);
    f->size = (uint64_t)size;
    f->can_zero = nbd_can_zero(nbd) == 1;
    f->can_flush = nbd_can_flush(nbd) == 1;
    return 0;
}

int qcow2drv_file_open_nbd(const char *uri, bool writable, struct runtime *rt, qcow2drv_file **file,
                           qcow2drv_error *error)
{
    struct file_nbd *f = calloc(1, sizeof(*f));
    struct connection *c = NULL;
    int r;

    if (!f || !(f->uri = strdup(uri))) {
        free(f);
        return drv_fail(error, ENOMEM, "%s: out of memory", uri);
    }
    f->file =
        (qcow2drv_file){ .ops = &nbd_ops, .rt = rt, .writable = writable, .fixed_size = true };
    pthread_mutex_init(&f->mutex, NULL);
    r = connect_new(uri, &c);
    if (r < 0) {
        r = drv_fail(error, -r, "%s: cannot connect: %s", uri,
                     nbd_get_error() ? nbd_get_error() : strerror(-r));
    } else {
        f->idle = c;
        r = ask(f, c->nbd, writable, error);
    }
    if (r < 0) {
        nbd_file_close(&f->file);
        return r;
    }
    *file = &f->file;
    return 0;
}
