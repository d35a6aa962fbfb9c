/* SPDX-License-Identifier: MIT */
/* What happens to an open image besides requests: options, contexts, hand-over to another process,
 * figures. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2_int.h"

/* Gate closed. prepare runs under the lock; commit with it or without, as asked. */
static int change_options(qcow2drv *s, const q2c_options *options, uint64_t clean_interval_ns,
                          bool locked, q2c_error *why)
{
    q2c_update *update = NULL;
    int r = q2c_state_lock(s->state);

    if (r < 0)
        return r;
    r = q2c_update_options_prepare(s->state, options, NULL, clean_interval_ns, &update, why);
    if (r >= 0 && locked)
        r = q2c_update_options_commit(s->state, &update, true);
    q2c_state_unlock(s->state);
    if (r >= 0 && !locked)
        r = q2c_update_options_commit(s->state, &update, false);
    if (r < 0 && update)
        (void)q2c_update_options_abort(s->state, &update);
    return r < 0 ? r : 0;
}

int qcow2drv_set_options(qcow2drv *s, const q2c_options *options, uint64_t clean_interval_ns,
                         bool locked, qcow2drv_error *error)
{
    q2c_error why = { 0 };
    int r;

    if (atomic_load(&s->inactive))
        return drv_fail(error, EBUSY, "%s: inactive; call qcow2drv_invalidate first", s->name);
    drv_gate_close(s);
    r = change_options(s, options, clean_interval_ns, locked, &why);
    if (r == 0)
        r = drv_refresh_caches(s);
    drv_gate_open(s);
    return r < 0
               ? drv_fail(error, -r, "%s: %s", s->name, why.message[0] ? why.message : strerror(-r))
               : 0;
}

int qcow2drv_check_options(qcow2drv *s, const q2c_options *options, qcow2drv_error *error)
{
    q2c_update *update = NULL;
    q2c_error why = { 0 };
    int r;

    if (atomic_load(&s->inactive))
        return drv_fail(error, EBUSY, "%s: inactive; call qcow2drv_invalidate first", s->name);
    r = q2c_state_lock(s->state);
    if (r == 0) {
        r = q2c_update_options_prepare(s->state, options, NULL, 0, &update, &why);
        q2c_state_unlock(s->state);
    }
    if (r == 0)
        r = q2c_update_options_abort(s->state, &update);
    return r < 0
               ? drv_fail(error, -r, "%s: %s", s->name, why.message[0] ? why.message : strerror(-r))
               : 0;
}

int qcow2drv_detach(qcow2drv *s)
{
    return q2c_state_detach_context(s->state);
}

int qcow2drv_attach(qcow2drv *s, void *context)
{
    return q2c_state_attach_context(s->state, context);
}

int qcow2drv_inactivate(qcow2drv *s, qcow2drv_error *error)
{
    int r = 0;

    if (atomic_load(&s->inactive))
        return drv_fail(error, EALREADY, "%s: inactive already", s->name);
    drv_gate_close(s);
    if (s->writable && !atomic_load(&s->broken))
        r = drv_flush_all(s);
    if (r < 0) {
        drv_gate_open(s);
        return drv_fail(error, -r, "%s: cannot flush: %s", s->name, strerror(-r));
    }
    atomic_store(&s->inactive, true);
    return 0;
}

/* Gate closed: everything that was read from the image is read again. */
static int reload(qcow2drv *s, qcow2drv_error *error)
{
    _Atomic uint64_t *l1;
    uint64_t *reftable, file_size;
    drv_header header;
    int dropped = q2c_state_invalidate(s->state), r = drv_refresh_caches(s);

    if (dropped < 0)
        return drv_fail(error, -dropped, "%s: cannot drop the caches: %s", s->name,
                        strerror(-dropped));
    if (r == 0)
        r = s->file->ops->size(s->file, &file_size);
    if (r < 0)
        return drv_fail(error, -r, "%s: cannot tell the size: %s", s->name, strerror(-r));
    r = drv_header_read(s->file, s->name, file_size, s->writable, &header, error);
    if (r < 0)
        return r;
    if (header.cluster_bits != s->header.cluster_bits)
        return drv_fail(error, EINVAL, "%s: the cluster size has changed; open the image anew",
                        s->name);
    r = drv_load_roots(s, &header, file_size, &l1, &reftable, error);
    if (r < 0)
        return r;
    free((void *)(uintptr_t)s->l1);
    free(s->reftable);
    s->l1 = l1;
    s->reftable = reftable;
    drv_set_header(s, &header);
    atomic_store(&s->file_end, file_size);
    s->free_hint = 0;
    s->header_unwritten = false;
    s->reftable_unwritten = false;
    drv_quarantine_clear(s);
    return drv_clear_autoclear(s, error);
}

int qcow2drv_invalidate(qcow2drv *s, qcow2drv_error *error)
{
    int r;

    if (!atomic_load(&s->inactive))
        drv_gate_close(s);
    r = reload(s, error);
    atomic_store(&s->broken, r < 0);
    atomic_store(&s->inactive, false);
    drv_gate_open(s);
    return r;
}

void qcow2drv_get_info(qcow2drv *s, qcow2drv_info *info)
{
    const drv_header *h = &s->header;
    drv_request request;

    drv_enter(s, &request);
    *info = (qcow2drv_info){
        .virtual_size = h->size,
        .file_size = atomic_load(&s->file_end),
        .cluster_size = (uint32_t)s->cluster_size,
        .version = h->version,
        .refcount_bits = 1u << h->refcount_order,
        .l1_entries = h->l1_entries,
        .snapshots = h->snapshots,
        .refcount_table_entries = s->reftable_entries,
        .incompatible_features = h->incompatible,
        .compatible_features = h->compatible,
        .autoclear_features = h->autoclear,
    };
    drv_leave(s, &request);
}

int qcow2drv_get_stats(qcow2drv *s, qcow2drv_stats *stats)
{
    qcow2drv_stats now = {
        .l2 = { .struct_size = sizeof(now.l2) },
        .refcounts = { .struct_size = sizeof(now.refcounts) },
        .cleaner = { .struct_size = sizeof(now.cleaner) },
    };
    drv_request request;
    int r;

    drv_enter(s, &request);
    r = q2c_cache_get_stats(s->l2, &now.l2);
    if (r >= 0)
        r = q2c_cache_get_stats(s->refcounts, &now.refcounts);
    if (r >= 0)
        r = q2c_cleaner_get_stats(q2c_state_cleaner(s->state), &now.cleaner);
    if (r >= 0)
        r = q2c_state_lock(s->state);
    if (r >= 0) {
        now.clusters_allocated = s->clusters_allocated;
        now.clusters_freed = s->clusters_freed;
        now.quarantined_clusters = s->quarantine.clusters;
        q2c_state_unlock(s->state);
    }
    drv_leave(s, &request);
    if (r < 0)
        return r;
    *stats = now;
    return 0;
}
