/* SPDX-License-Identifier: MIT */
/* Storage in a file or block device, by pread and pwrite. */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <linux/fs.h>

#include "file.h"
#include "qcow2_int.h"

struct file_posix {
    qcow2drv_file file;
    int fd;
};

/* One blocking call, packed so that a host with coroutines can run it elsewhere. */
struct io {
    int fd;
    uint64_t offset;
    uint64_t bytes;
    const struct iovec *iov;
    int n;
};

static int fd_of(qcow2drv_file *file)
{
    return ((struct file_posix *)file)->fd; /* file is the first member */
}

/* Reads `bytes` at `offset`; returns what was there before the end of the file, or -errno. */
static ssize_t read_some(int fd, uint64_t offset, char *buf, size_t bytes)
{
    size_t done = 0;

    while (done < bytes) {
        ssize_t r = pread(fd, buf + done, bytes - done, (off_t)(offset + done));

        if (r == 0)
            break;
        if (r < 0 && errno != EINTR)
            return -errno;
        if (r > 0)
            done += (size_t)r;
    }
    return (ssize_t)done;
}

static int write_all(int fd, uint64_t offset, const char *buf, size_t bytes)
{
    while (bytes > 0) {
        ssize_t r = pwrite(fd, buf, bytes, (off_t)offset);

        if (r == 0)
            return -EIO;
        if (r < 0 && errno != EINTR)
            return -errno;
        if (r > 0) {
            buf += r;
            bytes -= (size_t)r;
            offset += (uint64_t)r;
        }
    }
    return 0;
}

static int do_preadv(void *arg)
{
    const struct io *io = arg;
    uint64_t offset = io->offset;
    size_t skip = 0;

    if (io->n > 1) {
        ssize_t r = preadv(io->fd, io->iov, io->n, (off_t)offset);

        skip = r > 0 ? (size_t)r : 0; /* an error or a short read: the plain way finds out below */
    }
    for (int i = 0; i < io->n; i++) {
        size_t length = io->iov[i].iov_len;
        size_t have = skip < length ? skip : length;
        char *base = io->iov[i].iov_base;

        skip -= have;
        if (have < length) {
            ssize_t r = read_some(io->fd, offset + have, base + have, length - have);

            if (r < 0)
                return (int)r;
            have += (size_t)r;
            memset(base + have, 0, length - have);
        }
        offset += length;
    }
    return 0;
}

static int do_pwritev(void *arg)
{
    const struct io *io = arg;
    uint64_t offset = io->offset;
    size_t skip = 0;

    if (io->n > 1) {
        ssize_t r = pwritev(io->fd, io->iov, io->n, (off_t)offset);

        skip = r > 0 ? (size_t)r : 0;
    }
    for (int i = 0; i < io->n; i++) {
        size_t length = io->iov[i].iov_len;
        size_t have = skip < length ? skip : length;
        int r = write_all(io->fd, offset + have, (const char *)io->iov[i].iov_base + have,
                          length - have);

        if (r < 0)
            return r;
        skip -= have;
        offset += length;
    }
    return 0;
}

static int zero_by_writing(int fd, uint64_t offset, uint64_t bytes)
{
    while (bytes > 0) {
        size_t step = bytes < QCOW2DRV_FILE_ZEROS ? (size_t)bytes : QCOW2DRV_FILE_ZEROS;
        int r = write_all(fd, offset, qcow2drv_file_zeros(), step);

        if (r < 0)
            return r;
        offset += step;
        bytes -= step;
    }
    return 0;
}

static int do_zero(void *arg)
{
    const struct io *io = arg;

    if (fallocate(io->fd, FALLOC_FL_ZERO_RANGE, (off_t)io->offset, (off_t)io->bytes) == 0)
        return 0;
    /* A hole never makes the file longer; the last byte does. ftruncate could cut off what others
     * append. */
    if (fallocate(io->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)io->offset,
                  (off_t)io->bytes) == 0)
        return zero_by_writing(io->fd, io->offset + io->bytes - 1, 1);
    return zero_by_writing(io->fd, io->offset, io->bytes);
}

static int do_flush(void *arg)
{
    const struct io *io = arg;

    return fdatasync(io->fd) == 0 ? 0 : -errno;
}

static int posix_preadv(qcow2drv_file *file, uint64_t offset, const struct iovec *iov, int n)
{
    struct io io = { .fd = fd_of(file), .offset = offset, .iov = iov, .n = n };

    return runtime_blocking(file->rt, do_preadv, &io);
}

static int posix_pwritev(qcow2drv_file *file, uint64_t offset, const struct iovec *iov, int n)
{
    struct io io = { .fd = fd_of(file), .offset = offset, .iov = iov, .n = n };

    return runtime_blocking(file->rt, do_pwritev, &io);
}

static int posix_zero(qcow2drv_file *file, uint64_t offset, uint64_t bytes)
{
    struct io io = { .fd = fd_of(file), .offset = offset, .bytes = bytes };

    return bytes == 0 ? 0 : runtime_blocking(file->rt, do_zero, &io);
}

static int posix_flush(qcow2drv_file *file)
{
    struct io io = { .fd = fd_of(file) };

    return runtime_blocking(file->rt, do_flush, &io);
}

static int posix_size(qcow2drv_file *file, uint64_t *bytes)
{
    struct stat st;

    if (fstat(fd_of(file), &st) < 0)
        return -errno;
    if (S_ISBLK(st.st_mode))
        return ioctl(fd_of(file), BLKGETSIZE64, bytes) == 0 ? 0 : -errno;
    *bytes = (uint64_t)st.st_size;
    return 0;
}

static void posix_close(qcow2drv_file *file)
{
    close(fd_of(file));
    free(file);
}

static const qcow2drv_file_ops posix_ops = {
    .preadv = posix_preadv,
    .pwritev = posix_pwritev,
    .zero = posix_zero,
    .flush = posix_flush,
    .size = posix_size,
    .close = posix_close,
};

int qcow2drv_file_open_posix(const char *name, bool writable, struct runtime *rt,
                             qcow2drv_file **file, qcow2drv_error *error)
{
    struct file_posix *f = calloc(1, sizeof(*f));
    struct stat st;

    if (!f)
        return drv_fail(error, ENOMEM, "%s: out of memory", name);
    f->fd = open(name, (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC);
    if (f->fd < 0) {
        int code = errno;

        free(f);
        return drv_fail(error, code, "%s: cannot open%s: %s", name, writable ? " for writing" : "",
                        strerror(code));
    }
    if (fstat(f->fd, &st) < 0 || !(S_ISREG(st.st_mode) || S_ISBLK(st.st_mode))) {
        close(f->fd);
        free(f);
        return drv_fail(error, EINVAL, "%s: not a file or block device; name the image itself",
                        name);
    }
    f->file = (qcow2drv_file){
        .ops = &posix_ops, .rt = rt, .writable = writable, .fixed_size = S_ISBLK(st.st_mode)
    };
    *file = &f->file;
    return 0;
}
