/* SPDX-License-Identifier: MIT */
/* The copy of the disk that stress compares with. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "shadow.h"

#define TAG_BYTES 5u /* of each 8: these tell the offset, the other three the version */

int shadow_init(shadow *s, uint64_t size, uint64_t disk_size, uint64_t cluster_size, size_t workers)
{
    uint64_t length = size / (8 * workers);

    length = length < 3 * cluster_size ? 3 * cluster_size : length;
    length = length > size / workers ? size / workers : length;
    length |= 1; /* no bound but the last is a cluster's bound */
    if (size < 2 * workers)
        return -EINVAL;
    *s = (shadow){
        .size = size, .disk_size = disk_size, .cluster_size = cluster_size, .workers = workers
    };
    s->count = (size_t)((size + length - 1) / length);
    s->areas = calloc(s->count, sizeof(*s->areas));
    s->bytes = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                    -1, 0);
    if (!s->areas || s->bytes == MAP_FAILED) {
        if (s->bytes != MAP_FAILED)
            munmap(s->bytes, size);
        free(s->areas);
        return -ENOMEM;
    }
    for (size_t i = 0; i < s->count; i++) {
        s->areas[i].start = i * length;
        s->areas[i].end = (i + 1) * length < size ? (i + 1) * length : size;
    }
    return 0;
}

void shadow_free(shadow *s)
{
    munmap(s->bytes, s->size);
    free(s->areas);
}

bool area_try_change(area *a)
{
    int nobody = 0;

    return atomic_compare_exchange_strong(&a->users, &nobody, -1);
}

void area_end_change(area *a)
{
    atomic_store(&a->users, 0);
}

bool area_try_compare(area *a)
{
    int users = atomic_load(&a->users);

    while (users >= 0) {
        if (atomic_compare_exchange_weak(&a->users, &users, users + 1))
            return true;
    }
    return false;
}

void area_end_compare(area *a)
{
    atomic_fetch_sub(&a->users, 1);
}

/* The eight bytes of word `index`, version zero (splitmix64's mixing function, low five bytes). */
static uint64_t tag(uint64_t index)
{
    uint64_t x = (index + 1) * UINT64_C(0x9e3779b97f4a7c15);

    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return (x ^ (x >> 31)) & ((UINT64_C(1) << (8 * TAG_BYTES)) - 1);
}

void shadow_pattern(uint8_t *buf, uint64_t offset, size_t bytes, uint64_t version)
{
    for (size_t i = 0; i < bytes;) {
        uint64_t word = tag((offset + i) / 8) | version << (8 * TAG_BYTES);

        do {
            buf[i] = (uint8_t)(word >> (8 * ((offset + i) % 8)));
            i++;
        } while (i < bytes && (offset + i) % 8 != 0);
    }
}

void shadow_write(shadow *s, uint64_t offset, const uint8_t *buf, size_t bytes)
{
    memcpy(s->bytes + offset, buf, bytes);
}

void shadow_zero(shadow *s, uint64_t offset, uint64_t bytes)
{
    memset(s->bytes + offset, 0, bytes);
}

void shadow_discard(shadow *s, uint64_t offset, uint64_t bytes)
{
    uint64_t start = (offset + s->cluster_size - 1) / s->cluster_size * s->cluster_size;
    uint64_t end = offset + bytes;

    if (end != s->disk_size)
        end = end / s->cluster_size * s->cluster_size;
    if (start < end)
        shadow_zero(s, start, end - start);
}

bool shadow_compare(const shadow *s, uint64_t offset, const uint8_t *buf, size_t bytes,
                    wrong_byte *wrong)
{
    const uint8_t *expected = s->bytes + offset;

    if (memcmp(expected, buf, bytes) == 0)
        return true;
    for (size_t i = 0; i < bytes; i++) {
        if (expected[i] != buf[i]) {
            *wrong = (wrong_byte){ .offset = offset + i, .expected = expected[i], .found = buf[i] };
            return false;
        }
    }
    return true;
}

bool shadow_plausible(uint64_t offset, const uint8_t *buf, size_t bytes, wrong_byte *wrong)
{
    for (size_t i = 0; i < bytes;) {
        uint64_t word = tag((offset + i) / 8);

        do {
            unsigned at = (unsigned)((offset + i) % 8);
            uint8_t expected = (uint8_t)(word >> (8 * at));

            if (at < TAG_BYTES && buf[i] != 0 && buf[i] != expected) {
                *wrong =
                    (wrong_byte){ .offset = offset + i, .expected = expected, .found = buf[i] };
                return false;
            }
            i++;
        } while (i < bytes && (offset + i) % 8 != 0);
    }
    return true;
}

void shadow_judge(shadow *s)
{
    wrong_byte wrong;

    for (size_t i = 0; i < s->count; i++) {
        area *a = &s->areas[i];

        a->plausible =
            shadow_plausible(a->start, s->bytes + a->start, (size_t)(a->end - a->start), &wrong);
    }
}
