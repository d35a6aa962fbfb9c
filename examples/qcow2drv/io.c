/* SPDX-License-Identifier: MIT */
/* Guest requests. */
#include <errno.h>
#include <string.h>

#include "qcow2_int.h"

/* Begins a request; on an error none has begun. */
static int begin(qcow2drv *s, drv_request *request, uint64_t offset, uint64_t bytes, bool writes)
{
    int r = 0;

    drv_enter(s, request);
    if (atomic_load_explicit(&s->broken, memory_order_relaxed))
        r = -EIO;
    else if (writes && !s->writable)
        r = -EROFS;
    else if (offset > s->header.size || bytes > s->header.size - offset)
        r = -EINVAL;
    if (r < 0)
        drv_leave(s, request);
    return r;
}

int qcow2drv_pread(qcow2drv *s, uint64_t offset, void *buf, size_t bytes)
{
    drv_request request;
    char *to = buf;
    int r = begin(s, &request, offset, bytes, false);

    if (r < 0)
        return r;
    while (bytes > 0 && r >= 0) {
        drv_extent extent;

        r = drv_map(s, offset, bytes, &extent);
        if (r < 0)
            break;
        if (extent.type == DRV_DATA)
            r = qcow2drv_file_read(s->file, extent.host, to, (size_t)extent.bytes);
        else
            memset(to, 0, (size_t)extent.bytes);
        to += extent.bytes;
        offset += extent.bytes;
        bytes -= (size_t)extent.bytes;
    }
    drv_leave(s, &request);
    return r < 0 ? r : 0;
}

/* Inside a request. */
static int write_range(qcow2drv *s, uint64_t offset, const char *from, uint64_t bytes)
{
    int r = 0;

    while (bytes > 0 && r >= 0) {
        drv_extent extent;
        uint64_t done;

        r = drv_map(s, offset, bytes, &extent);
        if (r < 0)
            break;
        done = extent.bytes;
        if (extent.type != DRV_DATA)
            r = drv_write_alloc(s, offset, from, bytes, &done);
        else if (extent.copied)
            r = qcow2drv_file_write(s->file, extent.host, from, (size_t)done);
        else
            r = drv_refuse_shared(s, offset);
        if (r >= 0) {
            from += done;
            offset += done;
            bytes -= done;
        }
    }
    return r < 0 ? r : 0;
}

int qcow2drv_pwrite(qcow2drv *s, uint64_t offset, const void *buf, size_t bytes)
{
    drv_request request;
    int r = begin(s, &request, offset, bytes, true);

    if (r < 0)
        return r;
    r = write_range(s, offset, buf, bytes);
    drv_leave(s, &request);
    return r;
}

/* The whole clusters in a range; the disk's end is the end of a cluster, too. */
static void whole_clusters(const qcow2drv *s, uint64_t offset, uint64_t bytes, uint64_t *start,
                           uint64_t *end)
{
    *start = drv_round_up(offset, s->cluster_size);
    *end = offset + bytes;
    *end = *end == s->header.size ? drv_round_up(*end, s->cluster_size)
                                  : *end & ~(s->cluster_size - 1);
    if (*end < *start)
        *end = *start;
}

int qcow2drv_discard(qcow2drv *s, uint64_t offset, uint64_t bytes)
{
    drv_request request;
    uint64_t start, end;
    int r = begin(s, &request, offset, bytes, true);

    if (r < 0)
        return r;
    whole_clusters(s, offset, bytes, &start, &end);
    r = drv_free_range(s, start, end, false);
    drv_leave(s, &request);
    return r;
}

/* Part of a cluster, inside a request: zeroes are written only where there is data. */
static int zero_part(qcow2drv *s, uint64_t offset, uint64_t bytes)
{
    while (bytes > 0) {
        uint64_t step = bytes < QCOW2DRV_FILE_ZEROS ? bytes : QCOW2DRV_FILE_ZEROS;
        drv_extent extent;
        int r = drv_map(s, offset, step, &extent);

        if (r == 0 && extent.type == DRV_DATA)
            r = write_range(s, offset, qcow2drv_file_zeros(), extent.bytes);
        if (r < 0)
            return r;
        offset += extent.bytes;
        bytes -= extent.bytes;
    }
    return 0;
}

int qcow2drv_zero(qcow2drv *s, uint64_t offset, uint64_t bytes)
{
    drv_request request;
    uint64_t start, end;
    int r = begin(s, &request, offset, bytes, true);

    if (r < 0)
        return r;
    whole_clusters(s, offset, bytes, &start, &end);
    if (start >= end) {
        r = zero_part(s, offset, bytes);
    } else {
        r = zero_part(s, offset, start - offset);
        if (r == 0)
            r = drv_free_range(s, start, end, s->header.version >= 3);
        if (r == 0 && end < offset + bytes)
            r = zero_part(s, end, offset + bytes - end);
    }
    drv_leave(s, &request);
    return r;
}

int qcow2drv_flush(qcow2drv *s)
{
    drv_request request;
    int r = begin(s, &request, 0, 0, false);

    if (r < 0)
        return r;
    if (s->writable)
        r = drv_flush(s);
    drv_leave(s, &request);
    return r;
}

int qcow2drv_map(qcow2drv *s, uint64_t offset, uint64_t bytes, uint64_t *host, uint64_t *run)
{
    drv_request request;
    drv_extent extent;
    int r = bytes == 0 ? -EINVAL : begin(s, &request, offset, bytes, false);

    if (r < 0)
        return r;
    r = drv_map(s, offset, bytes, &extent);
    drv_leave(s, &request);
    if (r < 0)
        return r;
    *host = extent.type == DRV_DATA ? extent.host : UINT64_MAX;
    *run = extent.bytes;
    return 0;
}
