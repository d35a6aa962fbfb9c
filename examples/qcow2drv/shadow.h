/* SPDX-License-Identifier: MIT */
/*
 * What the disk should contain, in memory, and who may change which part of it.
 *
 * The disk is cut into areas whose bounds are odd, so that neighbours share a cluster. Each belongs
 * to one worker, the only one that changes it. Three kinds of reads check it: own     the owner
 * compares with the copy: nobody else changes it shared  another worker compares with the copy,
 * while it keeps the owner from changing the area racing  anybody, at any time: what is written
 * depends on its offset, so that each byte must be zero or belong to this very offset, whatever is
 * going on. This is what catches another cluster's data. Nobody waits for an area: who cannot have
 * it does something else.
 */
#ifndef QCOW2DRV_SHADOW_H
#define QCOW2DRV_SHADOW_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct area {
    _Atomic int users; /* -1: its owner changes it; else the number of workers comparing */
    bool plausible;    /* what it held at first passes for our pattern, so that racing reads can be
                          checked */
    uint64_t start, end;
} area;

typedef struct shadow {
    uint8_t *bytes;
    uint64_t size;
    uint64_t disk_size;
    uint64_t cluster_size;
    area *areas; /* area i belongs to worker i modulo workers */
    size_t count;
    size_t workers;
} shadow;

typedef struct wrong_byte {
    uint64_t offset;
    uint8_t expected, found; /* expected: one of those allowed */
} wrong_byte;

/* Zero-filled. -ENOMEM, or -EINVAL: too small to cut up. */
int shadow_init(shadow *s, uint64_t size, uint64_t disk_size, uint64_t cluster_size,
                size_t workers);
void shadow_free(shadow *s);

/* Any worker. */
bool area_try_change(area *a);
void area_end_change(area *a);
bool area_try_compare(area *a);
void area_end_compare(area *a);

/* The bytes a write number `version` puts at `offset`. */
void shadow_pattern(uint8_t *buf, uint64_t offset, size_t bytes, uint64_t version);

/* With the right to change or compare. */
void shadow_write(shadow *s, uint64_t offset, const uint8_t *buf, size_t bytes);
void shadow_zero(shadow *s, uint64_t offset, uint64_t bytes);
/* As the driver does: whole clusters alone; the disk's end ends a cluster. */
void shadow_discard(shadow *s, uint64_t offset, uint64_t bytes);
bool shadow_compare(const shadow *s, uint64_t offset, const uint8_t *buf, size_t bytes,
                    wrong_byte *wrong);
/* Any worker, no right needed. */
bool shadow_plausible(uint64_t offset, const uint8_t *buf, size_t bytes, wrong_byte *wrong);

/* Plain code: which areas can be checked by racing reads, from what they hold now. */
void shadow_judge(shadow *s);

#endif
