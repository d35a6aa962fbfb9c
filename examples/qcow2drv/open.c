/* SPDX-License-Identifier: MIT */
/* Opening and closing an image. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2_int.h"

typedef struct root_table {
    const char *what;
    uint64_t offset, entries, reserved;
} root_table;

/* Reads a table of offsets to tables of one cluster each, and checks every entry. */
static int load_root(qcow2drv *s, const root_table *root, const drv_header *h, uint64_t file_size,
                     uint64_t *entries, qcow2drv_error *error)
{
    uint64_t cluster_size = UINT64_C(1) << h->cluster_bits;
    int r =
        root->entries ? qcow2drv_file_read(s->file, root->offset, entries, root->entries * 8) : 0;

    if (r < 0)
        return drv_fail(error, -r, "%s: cannot read the %s table: %s", s->name, root->what,
                        strerror(-r));
    for (uint64_t i = 0; i < root->entries; i++) {
        uint64_t entry = be64toh(entries[i]), offset = entry & ~(root->reserved | DRV_COPIED);

        entries[i] = entry;
        if (entry & root->reserved)
            return drv_fail(error, EINVAL,
                            "%s: %s table entry %" PRIu64 ": %#" PRIx64
                            " has reserved bits set; run "
                            "'qemu-img check'",
                            s->name, root->what, i, entry);
        if (offset & (cluster_size - 1))
            return drv_fail(error, EINVAL,
                            "%s: %s table entry %" PRIu64 ": %#" PRIx64 " is not a multiple of the "
                            "cluster size; run 'qemu-img check'",
                            s->name, root->what, i, offset);
        if (offset != 0 && offset >= file_size)
            return drv_fail(error, EINVAL,
                            "%s: %s table entry %" PRIu64 ": %#" PRIx64 " lies past the end of the "
                            "file (%" PRIu64
                            " bytes); the file was cut off, or run 'qemu-img check'",
                            s->name, root->what, i, offset, file_size);
    }
    return 0;
}

int drv_load_roots(qcow2drv *s, const drv_header *h, uint64_t file_size, _Atomic uint64_t **l1,
                   uint64_t **reftable, qcow2drv_error *error)
{
    uint64_t reftable_entries = ((uint64_t)h->reftable_clusters << h->cluster_bits) / 8;
    root_table l1_root = { "L1", h->l1_offset, h->l1_entries, DRV_L1_RESERVED };
    root_table ref_root = { "refcount", h->reftable_offset, reftable_entries,
                            DRV_REFTABLE_RESERVED };
    uint64_t *new_l1 = calloc(h->l1_entries + UINT64_C(1), 8);
    uint64_t *new_reftable = calloc(reftable_entries, 8);
    int r = 0;

    if (!new_l1 || !new_reftable)
        r = drv_fail(error, ENOMEM, "%s: out of memory for the L1 and refcount tables", s->name);
    if (r == 0)
        r = load_root(s, &l1_root, h, file_size, new_l1, error);
    if (r == 0)
        r = load_root(s, &ref_root, h, file_size, new_reftable, error);
    if (r == 0 && s->writable && new_reftable[0] == 0)
        r = drv_fail(error, EINVAL,
                     "%s: refcount table entry 0 is empty, though the header is in use; "
                     "run 'qemu-img check -r all'",
                     s->name);
    if (r < 0) {
        free(new_l1);
        free(new_reftable);
        return r;
    }
    _Static_assert(sizeof(_Atomic uint64_t) == sizeof(uint64_t), "an atomic word is a word");
    *l1 = (_Atomic uint64_t *)new_l1;
    *reftable = new_reftable;
    return 0;
}

void drv_set_header(qcow2drv *s, const drv_header *h)
{
    s->header = *h;
    s->cluster_size = UINT64_C(1) << h->cluster_bits;
    s->l2_bits = h->cluster_bits - 3;
    s->block_bits = h->cluster_bits + 3 - h->refcount_order;
    s->reftable_entries = ((uint64_t)h->reftable_clusters << h->cluster_bits) / 8;
}

int drv_refresh_caches(qcow2drv *s)
{
    q2c_cache_stats stats = { .struct_size = sizeof(stats) };
    int r;

    s->l2 = q2c_state_l2_cache(s->state);
    s->refcounts = q2c_state_refcount_cache(s->state);
    r = q2c_cache_get_stats(s->l2, &stats);
    if (r >= 0)
        s->slice_bits = (unsigned)__builtin_ctzll(stats.table_size) - 3;
    return r < 0 ? r : 0;
}

static int open_state(qcow2drv *s, const qcow2drv_open_options *options, qcow2drv_error *error)
{
    q2c_geometry geometry = {
        .struct_size = sizeof(geometry),
        .virtual_size = s->header.size,
        .cluster_size = (uint32_t)s->cluster_size,
        .l2_entry_size = 8,
    };
    q2c_storage storage;
    q2c_state_config config = {
        .struct_size = sizeof(config),
        .host = s->rt->ops->host(s->rt),
        .l2_storage = &storage,
        .l2_kind = DRV_KIND_L2,
        .refcount_kind = DRV_KIND_REFCOUNTS,
        .geometry = &geometry,
        .options = options->cache,
        .clean_interval_ns = options->clean_interval_ns,
        .context = options->context,
    };
    q2c_error why = { 0 };
    int r;

    drv_storage_fill(s, &storage);
    r = q2c_state_open(&config, &s->state, &why);
    if (r < 0)
        return drv_fail(error, -r, "%s: %s", s->name, why.message[0] ? why.message : strerror(-r));
    r = drv_refresh_caches(s);
    return r < 0 ? drv_fail(error, -r, "%s: no cache statistics: %s", s->name, strerror(-r)) : 0;
}

/* The format's rule: who writes the image clears the autoclear bits it does not know. We know none.
 */
int drv_clear_autoclear(qcow2drv *s, qcow2drv_error *error)
{
    uint64_t none = 0;
    int r;

    if (!s->writable || s->header.version < 3 || s->header.autoclear == 0)
        return 0;
    r = qcow2drv_file_write(s->file, DRV_HEADER_AUTOCLEAR, &none, sizeof(none));
    if (r == 0)
        r = qcow2drv_file_flush(s->file);
    if (r < 0)
        return drv_fail(error, -r, "%s: cannot write the header: %s", s->name, strerror(-r));
    s->header.autoclear = 0;
    return 0;
}

/* In every sound image the header's cluster is in use. Before the first write, since an allocation
 * would take it. State lock held. */
static int header_is_in_use(qcow2drv *s)
{
    uint64_t count;
    void *block;
    int r;

    if (s->reftable_entries == 0 || s->reftable[0] == 0)
        return -EINVAL;
    r = q2c_cache_get(s->refcounts, s->reftable[0], &block);
    if (r < 0)
        return r;
    count = drv_refcount_get(block, s->header.refcount_order, 0);
    q2c_cache_put(s->refcounts, &block);
    return count == 0 ? -EINVAL : 0;
}

static int check_header_refcount(qcow2drv *s, qcow2drv_error *error)
{
    int r;

    if (!s->writable)
        return 0;
    r = q2c_state_lock(s->state);
    if (r < 0)
        return drv_fail(error, -r, "%s: state lock: %s", s->name, strerror(-r));
    r = header_is_in_use(s);
    /* Half-way, with the lock held: the cleaner goes before its caches do. Plain code of a
     * coroutine host may not, and leaves it to q2c_state_close. */
    if (r < 0)
        (void)q2c_cleaner_co_locked_del_and_wait(q2c_state_cleaner(s->state));
    q2c_state_unlock(s->state);
    if (r == -EINVAL)
        return drv_fail(
            error, EINVAL,
            "%s: the header's cluster has refcount 0; run 'qemu-img check -r all' first", s->name);
    return r < 0 ? drv_fail(error, -r, "%s: cannot read the first refcount block: %s", s->name,
                            strerror(-r))
                 : 0;
}

static void free_image(qcow2drv *s)
{
    if (s->file)
        s->file->ops->close(s->file);
    if (s->own_rt)
        s->own_rt->ops->free(s->own_rt);
    drv_quarantine_clear(s);
    free((void *)(uintptr_t)s->l1);
    free(s->reftable);
    free(s->name);
    free(s);
}

static int open_image(qcow2drv *s, const qcow2drv_open_options *options, qcow2drv_error *error)
{
    uint64_t file_size;
    drv_header header;
    int r = qcow2drv_file_open(s->name, s->writable, s->rt, &s->file, error);

    if (r >= 0 && options->write_log)
        r = qcow2drv_file_log(&s->file, options->write_log, error);
    if (r < 0)
        return r;
    r = s->file->ops->size(s->file, &file_size);
    if (r < 0)
        return drv_fail(error, -r, "%s: cannot tell the size: %s", s->name, strerror(-r));
    atomic_init(&s->file_end, file_size);
    r = drv_header_read(s->file, s->name, file_size, s->writable, &header, error);
    if (r < 0)
        return r;
    r = drv_load_roots(s, &header, file_size, &s->l1, &s->reftable, error);
    if (r < 0)
        return r;
    drv_set_header(s, &header);
    r = open_state(s, options, error);
    if (r >= 0)
        r = check_header_refcount(s, error);
    return r < 0 ? r : drv_clear_autoclear(s, error);
}

static qcow2drv *new_image(const char *name, const qcow2drv_open_options *options)
{
    qcow2drv *s = aligned_alloc(_Alignof(qcow2drv), sizeof(*s));

    if (!s)
        return NULL;
    memset(s, 0, sizeof(*s));
    atomic_init(&s->epoch, 3); /* epoch - 1 is never below zero */
    atomic_init(&s->reports_left, 20);
    s->writable = options->writable;
    s->report = options->report;
    s->report_opaque = options->report_opaque;
    s->rt = options->runtime;
    s->name = strdup(name);
    if (!s->rt)
        s->rt = s->own_rt = runtime_threads_new(1);
    if (!s->name || !s->rt) {
        free_image(s);
        return NULL;
    }
    return s;
}

int qcow2drv_open(const char *name, const qcow2drv_open_options *options, qcow2drv **image,
                  qcow2drv_error *error)
{
    static const qcow2drv_open_options defaults;
    qcow2drv *s;
    int r;

    if (!options)
        options = &defaults;
    s = new_image(name, options);
    if (!s)
        return drv_fail(error, ENOMEM, "%s: out of memory", name);
    r = open_image(s, options, error);
    if (r < 0) {
        if (s->state)
            (void)q2c_state_close(&s->state); /* nothing is dirty or pinned yet */
        free_image(s);
        return r;
    }
    *image = s;
    return 0;
}

int qcow2drv_close(qcow2drv **image)
{
    qcow2drv *s = image ? *image : NULL;
    int r = 0;

    if (!s)
        return 0;
    if (!atomic_exchange(&s->inactive, true))
        drv_gate_close(s);
    if (s->writable && !atomic_load(&s->broken) && !atomic_load(&s->abandoned))
        r = drv_flush_all(s);
    if (r == 0)
        r = q2c_state_close(&s->state);
    if (r < 0)
        return r;
    free_image(s);
    *image = NULL;
    return 0;
}

void qcow2drv_abandon(qcow2drv **image)
{
    qcow2drv *s = image ? *image : NULL;

    if (!s)
        return;
    if (!atomic_exchange(&s->inactive, true))
        drv_gate_close(s);
    atomic_store(&s->abandoned, true);
    (void)q2c_state_invalidate(s->state);
    (void)qcow2drv_close(image);
    *image = NULL;
}
