/* SPDX-License-Identifier: MIT */
/* The image header: read, checked, refused with a reason. Nothing here writes. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2_int.h"

#define MAGIC     0x514649fbu /* "QFI\xfb" */
#define V2_LENGTH 72u
#define V3_LENGTH 104u

#define INCOMPAT_DIRTY     0
#define INCOMPAT_CORRUPT   1
#define INCOMPAT_DATA_FILE 2
/* Another compression method. It does not matter: compressed clusters are refused. */
#define INCOMPAT_COMPRESSION 3
#define INCOMPAT_EXTENDED_L2 4

#define EXTENSION_END           0u
#define EXTENSION_FEATURE_NAMES 0x6803f857u
#define FEATURE_NAME_SIZE       48u

typedef struct parse {
    const char *name;
    const uint8_t *bytes; /* the first cluster, or as much of it as there is */
    size_t length;
    uint64_t file_size;
    qcow2drv_error *error;
} parse;

static uint32_t be32(const parse *p, size_t at)
{
    uint32_t value;

    memcpy(&value, p->bytes + at, sizeof(value));
    return be32toh(value);
}

static uint64_t be64(const parse *p, size_t at)
{
    uint64_t value;

    memcpy(&value, p->bytes + at, sizeof(value));
    return be64toh(value);
}

/* The name the image itself gives an incompatible feature bit, or "unknown". */
static void feature_name(const parse *p, uint32_t header_length, unsigned bit, char *name,
                         size_t size)
{
    size_t at = header_length;

    name[0] = '\0';
    strncat(name, "unknown", size - 1);
    while (at + 8 <= p->length) {
        uint32_t type = be32(p, at), length = be32(p, at + 4);

        at += 8;
        if (type == EXTENSION_END || length > p->length - at)
            return;
        if (type == EXTENSION_FEATURE_NAMES) {
            for (size_t i = 0; i + FEATURE_NAME_SIZE <= length; i += FEATURE_NAME_SIZE) {
                const uint8_t *entry = p->bytes + at + i;
                size_t n = size - 1 < 46 ? size - 1 : 46;

                if (entry[0] != 0 || entry[1] != bit || entry[2] == 0)
                    continue;
                memcpy(name, entry + 2, n);
                name[n] = '\0';
                for (size_t k = 0; name[k]; k++)
                    name[k] = name[k] >= ' ' && name[k] <= '~' ? name[k] : '?';
                return;
            }
        }
        at += drv_round_up(length, 8);
    }
}

static int check_incompatible(const parse *p, const drv_header *h, uint32_t header_length)
{
    static const struct {
        unsigned bit;
        int code;
        const char *what;
    } refused[] = {
        { INCOMPAT_CORRUPT, EINVAL,
          "the image is marked corrupt; run 'qemu-img check -r all' first" },
        { INCOMPAT_DIRTY, EINVAL,
          "the image is marked dirty (refcounts out of date); run 'qemu-img check -r all' first" },
        { INCOMPAT_DATA_FILE, ENOTSUP,
          "guest data is in an external data file; make a copy with 'qemu-img convert -O qcow2'" },
        { INCOMPAT_EXTENDED_L2, ENOTSUP,
          "extended L2 entries (subclusters); make a copy with 'qemu-img convert -O qcow2 -o "
          "extended_l2=off'" },
    };
    uint64_t unknown = h->incompatible & ~UINT64_C(0x1f);

    for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++) {
        if (h->incompatible & (UINT64_C(1) << refused[i].bit))
            return drv_fail(p->error, refused[i].code, "%s: header byte 72, feature bit %u: %s",
                            p->name, refused[i].bit, refused[i].what);
    }
    if (unknown) {
        unsigned bit = (unsigned)__builtin_ctzll(unknown);
        char name[47];

        feature_name(p, header_length, bit, name, sizeof(name));
        return drv_fail(p->error, ENOTSUP,
                        "%s: header byte 72, feature bit %u (%s): not known to this driver; "
                        "use the program that made the image",
                        p->name, bit, name);
    }
    return 0;
}

/* Fields that only version 3 has. */
static int parse_v3(const parse *p, drv_header *h)
{
    uint32_t header_length;

    if (p->length < V3_LENGTH)
        return drv_fail(p->error, EINVAL,
                        "%s: file of %" PRIu64 " bytes ends inside the version 3 header "
                        "(%u bytes); the file was cut off",
                        p->name, p->file_size, V3_LENGTH);
    h->incompatible = be64(p, 72);
    h->compatible = be64(p, 80);
    h->autoclear = be64(p, 88);
    h->refcount_order = be32(p, 96);
    header_length = be32(p, 100);
    if (header_length < V3_LENGTH || header_length > UINT64_C(1) << h->cluster_bits ||
        header_length % 8 != 0)
        return drv_fail(p->error, EINVAL,
                        "%s: header byte 100: header length %" PRIu32 " is not a multiple of 8 "
                        "between %u and the cluster size; the header is damaged",
                        p->name, header_length, V3_LENGTH);
    if (h->refcount_order > 6)
        return drv_fail(p->error, EINVAL,
                        "%s: header byte 96: refcount order %u is over 6 (64 bits); "
                        "the header is damaged",
                        p->name, h->refcount_order);
    return check_incompatible(p, h, header_length);
}

/* The extensions must end inside the first cluster, and before the backing file's name. */
static int check_extensions(const parse *p, const drv_header *h)
{
    size_t at = h->version < 3 ? V2_LENGTH : be32(p, 100);

    while (at + 8 <= p->length) {
        uint32_t type = be32(p, at), length = be32(p, at + 4);

        if (type == EXTENSION_END)
            return 0;
        at += 8;
        if (length > p->length - at)
            return drv_fail(p->error, EINVAL,
                            "%s: header extension %#" PRIx32 " at byte %zu: length %" PRIu32
                            " runs past the first cluster; the header is damaged",
                            p->name, type, at - 8, length);
        at += drv_round_up(length, 8);
    }
    return 0;
}

static int check_l1(const parse *p, const drv_header *h)
{
    uint64_t covered_bits = 2 * h->cluster_bits - 3; /* log2 of what one L2 table maps */
    uint64_t needed =
        (h->size >> covered_bits) + ((h->size & ((UINT64_C(1) << covered_bits) - 1)) != 0);
    uint64_t bytes = UINT64_C(8) * h->l1_entries;

    if (bytes > DRV_MAX_L1_BYTES)
        return drv_fail(p->error, EINVAL,
                        "%s: header byte 36: L1 table of %" PRIu32 " entries is over %" PRIu64
                        " MiB; the header is damaged",
                        p->name, h->l1_entries, DRV_MAX_L1_BYTES >> 20);
    if (h->l1_entries < needed)
        return drv_fail(p->error, EINVAL,
                        "%s: header byte 36: L1 table of %" PRIu32 " entries is too small for "
                        "a disk of %" PRIu64 " bytes (%" PRIu64 " needed); the header is damaged",
                        p->name, h->l1_entries, h->size, needed);
    if (h->l1_entries == 0)
        return 0;
    if (h->l1_offset == 0 || h->l1_offset & ((UINT64_C(1) << h->cluster_bits) - 1))
        return drv_fail(p->error, EINVAL,
                        "%s: header byte 40: L1 table offset %#" PRIx64 " is zero or not a "
                        "multiple of the cluster size; the header is damaged",
                        p->name, h->l1_offset);
    if (h->l1_offset > p->file_size || bytes > p->file_size - h->l1_offset)
        return drv_fail(p->error, EINVAL,
                        "%s: L1 table at %#" PRIx64 " (%" PRIu64 " bytes) runs past the end of "
                        "the file (%" PRIu64
                        " bytes); the file was cut off or the header is damaged",
                        p->name, h->l1_offset, bytes, p->file_size);
    return 0;
}

static int check_reftable(const parse *p, const drv_header *h)
{
    uint64_t bytes = (uint64_t)h->reftable_clusters << h->cluster_bits;

    if (h->reftable_clusters == 0 || bytes > DRV_MAX_REFTABLE_BYTES)
        return drv_fail(p->error, EINVAL,
                        "%s: header byte 56: refcount table of %" PRIu32 " clusters is empty or "
                        "over %" PRIu64 " MiB; the header is damaged",
                        p->name, h->reftable_clusters, DRV_MAX_REFTABLE_BYTES >> 20);
    if (h->reftable_offset == 0 || h->reftable_offset & ((UINT64_C(1) << h->cluster_bits) - 1))
        return drv_fail(p->error, EINVAL,
                        "%s: header byte 48: refcount table offset %#" PRIx64 " is zero or "
                        "not a multiple of the cluster size; the header is damaged",
                        p->name, h->reftable_offset);
    if (h->reftable_offset > p->file_size || bytes > p->file_size - h->reftable_offset)
        return drv_fail(p->error, EINVAL,
                        "%s: refcount table at %#" PRIx64 " (%" PRIu64 " bytes) runs past the end "
                        "of the file (%" PRIu64
                        " bytes); the file was cut off or the header is damaged",
                        p->name, h->reftable_offset, bytes, p->file_size);
    return 0;
}

/* Features that both versions can have. */
static int check_features(const parse *p, const drv_header *h, bool writable)
{
    uint32_t encryption = be32(p, 32);

    if (be64(p, 8) != 0)
        return drv_fail(p->error, ENOTSUP,
                        "%s: header byte 8: the image has a backing file; "
                        "make a copy of its own with 'qemu-img convert -O qcow2'",
                        p->name);
    if (encryption > 2)
        return drv_fail(p->error, EINVAL,
                        "%s: header byte 32: encryption method %" PRIu32 " does not exist; "
                        "the header is damaged",
                        p->name, encryption);
    if (encryption != 0)
        return drv_fail(p->error, ENOTSUP,
                        "%s: header byte 32: the image is encrypted (%s); "
                        "make a plain copy with 'qemu-img convert'",
                        p->name, encryption == 1 ? "AES" : "LUKS");
    if (h->snapshots != 0 && writable)
        return drv_fail(
            p->error, ENOTSUP,
            "%s: header byte 60: the image has %" PRIu32 " internal snapshots, with "
            "which this driver does not write; delete them with 'qemu-img snapshot -d', or open "
            "read-only",
            p->name, h->snapshots);
    return 0;
}

static int parse_header(const parse *p, bool writable, drv_header *h)
{
    int r;

    h->size = be64(p, 24);
    h->l1_entries = be32(p, 36);
    h->l1_offset = be64(p, 40);
    h->reftable_offset = be64(p, 48);
    h->reftable_clusters = be32(p, 56);
    h->snapshots = be32(p, 60);
    h->refcount_order = 4;
    if (h->version >= 3) {
        r = parse_v3(p, h);
        if (r < 0)
            return r;
    }
    r = check_features(p, h, writable);
    if (r < 0)
        return r;
    if (h->size > INT64_MAX)
        return drv_fail(p->error, EINVAL,
                        "%s: header byte 24: disk of %" PRIu64 " bytes is over 2^63 - 1; "
                        "the header is damaged",
                        p->name, h->size);
    r = check_extensions(p, h);
    if (r < 0)
        return r;
    r = check_l1(p, h);
    if (r < 0)
        return r;
    return check_reftable(p, h);
}

int drv_header_read(qcow2drv_file *file, const char *name, uint64_t file_size, bool writable,
                    drv_header *header, qcow2drv_error *error)
{
    uint8_t start[V2_LENGTH], *cluster;
    parse p = { .name = name,
                .bytes = start,
                .length = sizeof(start),
                .file_size = file_size,
                .error = error };
    drv_header h = { 0 };
    uint32_t cluster_bits;
    int r;

    if (file_size < V2_LENGTH)
        return drv_fail(error, EINVAL,
                        "%s: file of %" PRIu64 " bytes is shorter than a qcow2 header (%u bytes); "
                        "not a qcow2 image, or it was cut off",
                        name, file_size, V2_LENGTH);
    r = qcow2drv_file_read(file, 0, start, sizeof(start));
    if (r < 0)
        return drv_fail(error, -r, "%s: cannot read the header: %s", name, strerror(-r));
    if (be32(&p, 0) != MAGIC)
        return drv_fail(error, EINVAL,
                        "%s: byte 0: no qcow2 magic; name a qcow2 image "
                        "('qemu-img info' tells an image's format)",
                        name);
    h.version = be32(&p, 4);
    if (h.version != 2 && h.version != 3)
        return drv_fail(error, ENOTSUP,
                        "%s: header byte 4: qcow version %" PRIu32
                        " is not supported (2 and 3 are); "
                        "make a copy with 'qemu-img convert -O qcow2'",
                        name, h.version);
    cluster_bits = be32(&p, 20);
    if (cluster_bits < 9 || cluster_bits > 21)
        return drv_fail(error, EINVAL,
                        "%s: header byte 20: cluster size 2^%" PRIu32
                        " is not between 512 bytes and "
                        "2 MiB; the header is damaged",
                        name, cluster_bits);
    h.cluster_bits = cluster_bits;

    p.length = (size_t)1 << cluster_bits;
    p.length = p.length < file_size ? p.length : (size_t)file_size;
    cluster = malloc(p.length);
    if (!cluster)
        return drv_fail(error, ENOMEM, "%s: out of memory", name);
    p.bytes = cluster;
    r = qcow2drv_file_read(file, 0, cluster, p.length);
    if (r < 0)
        r = drv_fail(error, -r, "%s: cannot read the header: %s", name, strerror(-r));
    else
        r = parse_header(&p, writable, &h);
    free(cluster);
    if (r == 0)
        *header = h;
    return r;
}
