/* SPDX-License-Identifier: MIT */
/*
 * One fdatasync fails, and all later ones say 0, as Linux does it. The driver's flushes must fail
 * from then on, until the image is opened anew. usage: test-failed-flush HOST IMAGE
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2.h"
#include "runtime.h"

static atomic_int fail_next;
static atomic_uint calls;

/* In place of libc's. */
int fdatasync(int fd)
{
    (void)fd;
    atomic_fetch_add(&calls, 1);
    if (atomic_exchange(&fail_next, 0) == 0)
        return 0;
    errno = EIO;
    return -1;
}

static void expect_at(int line, const char *what, long got, long expected)
{
    if (got == expected)
        return;
    fprintf(stderr, "test_failed_flush.c:%d: %s is %ld, not %ld\n", line, what, got, expected);
    exit(1);
}
#define EXPECT(what, expected) expect_at(__LINE__, #what, (long)(what), (long)(expected))

static qcow2drv *open_image(struct runtime *rt, const char *name, bool writable)
{
    qcow2drv_open_options options = { .writable = writable,
                                      .runtime = rt,
                                      .context = rt->ops->context(rt, 0) };
    qcow2drv_error error = { 0 };
    qcow2drv *image = NULL;

    if (qcow2drv_open(name, &options, &image, &error) < 0) {
        fprintf(stderr, "%s\n", error.message);
        exit(1);
    }
    return image;
}

int main(int argc, char **argv)
{
    struct runtime *rt = argc == 3 ? runtime_new(argv[1], 1) : NULL;
    char data[4096], found[sizeof(data)];
    qcow2drv_stats stats;
    qcow2drv *image;
    unsigned before;
    int r;

    if (!rt) {
        fprintf(stderr, "usage: test-failed-flush HOST IMAGE; HOST is one of: %s\n",
                runtime_names());
        return 2;
    }
    memset(data, 0x5a, sizeof(data));

    /* Nothing is written, so nothing is flushed. */
    image = open_image(rt, argv[2], false);
    EXPECT(qcow2drv_pread(image, 0, found, sizeof(found)), 0);
    EXPECT(qcow2drv_flush(image), 0);
    EXPECT(qcow2drv_close(&image), 0);
    image = open_image(rt, argv[2], true);
    EXPECT(qcow2drv_flush(image), 0);
    EXPECT(qcow2drv_close(&image), 0);
    EXPECT(atomic_load(&calls), 0);

    /* A good flush, and one for which there is nothing left to do. */
    image = open_image(rt, argv[2], true);
    EXPECT(qcow2drv_pwrite(image, 0, data, sizeof(data)), 0);
    EXPECT(qcow2drv_flush(image), 0);
    before = atomic_load(&calls);
    EXPECT(before > 0, 1);
    EXPECT(qcow2drv_flush(image), 0);
    EXPECT(atomic_load(&calls), before);

    /* The flush that fails, and those after it. */
    EXPECT(qcow2drv_pwrite(image, 1 << 20, data, sizeof(data)), 0);
    atomic_store(&fail_next, 1);
    EXPECT(qcow2drv_flush(image), -EIO);
    EXPECT(atomic_load(&fail_next), 0);
    EXPECT(qcow2drv_flush(image), -EIO);
    /* a write that needs a flush for its order fails, too */
    r = qcow2drv_pwrite(image, 2 << 20, data, sizeof(data));
    EXPECT(r == 0 || r == -EIO, 1);
    EXPECT(qcow2drv_flush(image), -EIO);
    EXPECT(qcow2drv_pread(image, 1 << 20, found, sizeof(found)), 0);
    EXPECT(memcmp(found, data, sizeof(data)), 0);
    EXPECT(qcow2drv_get_stats(image, &stats), 0);
    EXPECT(stats.l2.redirtied + stats.refcounts.redirtied > 0, 1);
    EXPECT(qcow2drv_close(&image), -EIO);
    EXPECT(image != NULL, 1);
    qcow2drv_abandon(&image);
    EXPECT(image == NULL, 1);

    /* Opened anew, it works. */
    image = open_image(rt, argv[2], true);
    EXPECT(qcow2drv_pwrite(image, 3 << 20, data, sizeof(data)), 0);
    EXPECT(qcow2drv_flush(image), 0);
    EXPECT(qcow2drv_close(&image), 0);
    rt->ops->free(rt);
    return 0;
}
