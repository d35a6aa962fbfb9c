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

int qcow2drv_file_read(qcow2drv_file *file, uint64_t offset, void *buf, size_t bytes)
{
    struct iovec iov = { .iov_base = buf, .iov_len = bytes };

    return file->ops->preadv(file, offset, &iov, 1);
}

int qcow2drv_file_write(qcow2drv_file *file, uint64_t offset, const void *buf, size_t bytes)
{
    struct iovec iov = { .iov_base = (void *)(uintptr_t)buf, .iov_len = bytes };

    return file->ops->pwritev(file, offset, &iov, 1);
}

void *qcow2drv_file_zeros(void)
{
    static const char zeros[QCOW2DRV_FILE_ZEROS];

    return (void *)(uintptr_t)zeros; /* iovec has no const; only writes are given it */
}
