/* SPDX-License-Identifier: MIT */
/* Storage: choice of the back end, and helpers over its table of functions. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "file.h"
#include "qcow2_int.h"

int qcow2drv_file_open(const char *name, bool writable, struct runtime *rt, qcow2drv_file **file,
                       qcow2drv_error *error)
{
    if (strncmp(name, "nbd+unix://", 11) == 0 || strncmp(name, "nbd://", 6) == 0) {
#ifdef HAVE_LIBNBD
        return qcow2drv_file_open_nbd(name, writable, rt, file, error);
#else
        return drv_fail(error, ENOTSUP,
                        "%s: built without libnbd; install libnbd-dev and build again", name);
#endif
    }
    return qcow2drv_file_open_posix(name, writable, rt, file, error);
}

int qcow2drv_file_pwritev(qcow2drv_file *file, uint64_t offset, const struct iovec *iov, int n)
{
    int r = file->ops->pwritev(file, offset, iov, n);

    atomic_fetch_add(&file->writes, 1); /* a write that failed may have written a part */
    return r;
}

int qcow2drv_file_zero(qcow2drv_file *file, uint64_t offset, uint64_t bytes)
{
    int r = file->ops->zero(file, offset, bytes);

    atomic_fetch_add(&file->writes, 1);
    return r;
}

int qcow2drv_file_flush(qcow2drv_file *file)
{
    unsigned long long written = atomic_load(&file->writes);
    unsigned long long flushed = atomic_load(&file->writes_flushed);
    int none = 0;
    int r = 0;

    if (atomic_load(&file->flush_error) == 0 && flushed < written)
        r = file->ops->flush(file);
    if (r < 0)
        atomic_compare_exchange_strong(&file->flush_error, &none, r);
    /* Of two flushes at the same time, the kernel may tell only one of the error. */
    r = atomic_load(&file->flush_error);
    if (r < 0)
        return r;
    while (flushed < written &&
           !atomic_compare_exchange_weak(&file->writes_flushed, &flushed, written)) {
    }
    return 0;
}

int qcow2drv_file_read(qcow2drv_file *file, uint64_t offset, void *buf, size_t bytes)
{
    struct iovec iov = { .iov_base = buf, .iov_len = bytes };

    return file->ops->preadv(file, offset, &iov, 1);
}

int qcow2drv_file_write(qcow2drv_file *file, uint64_t offset, const void *buf, size_t bytes)
{
    struct iovec iov = { .iov_base = (void *)(uintptr_t)buf, .iov_len = bytes };

    return qcow2drv_file_pwritev(file, offset, &iov, 1);
}

void *qcow2drv_file_zeros(void)
{
    static const char zeros[QCOW2DRV_FILE_ZEROS];

    return (void *)(uintptr_t)zeros; /* iovec has no const; only writes are given it */
}
