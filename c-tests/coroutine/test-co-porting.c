/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * The code of docs/porting.md: a small driver for a QEMU-like host, as it is after each step of the
 * port. check-porting.py compares the parts between "porting: NAME" and "end" with the text.
 */
#include <endian.h>
#include <stdatomic.h>
#include <stdio.h>

#include "world.h"

/*
 * The image: a header that nobody reads, one refcount block, four L2 tables, data. One L2 table
 * maps 2 MiB.
 */
enum {
    CLUSTER = 4096,
    ENTRIES = CLUSTER / 8,
    L2_TABLES = 4,
    FIRST_FREE = 2 + L2_TABLES,
    CLUSTERS = 512,
};
#define REFCOUNT_BLOCK UINT64_C(4096)
#define DISK_SIZE      ((uint64_t)L2_TABLES * ENTRIES * CLUSTER)

enum { KIND_L2 = 1, KIND_REFCOUNTS, KIND_DATA };

struct image {
    const q2c_host *host;
    q2c_storage storage;
    q2c_state *state;
    q2c_cache *l2, *refcounts;   /* the state's; others after each change of options */
    atomic_uint reads_in_flight; /* that look up without the lock */
    uint64_t freed[CLUSTERS];    /* not reused while such a read is in flight */
    unsigned n_freed;            /* this and freed: state lock */
};

static uint64_t l2_offset(uint64_t guest)
{
    return (2 + guest / CLUSTER / ENTRIES) * CLUSTER;
}

static size_t l2_byte(uint64_t guest)
{
    return 8 * (guest / CLUSTER % ENTRIES);
}

static char last_report[256];

static void report(const char *message)
{
    snprintf(last_report, sizeof(last_report), "%s", message);
}

static int data_io(struct image *image, bool write, uint64_t offset, void *bytes)
{
    struct iovec iov = { bytes, CLUSTER };

    return (write ? image->storage.pwritev : image->storage.preadv)(image->storage.opaque,
                                                                    KIND_DATA, offset, &iov, 1);
}

/* porting: open */
static void image_refresh(struct image *image)
{
    image->l2 = q2c_state_l2_cache(image->state);
    image->refcounts = q2c_state_refcount_cache(image->state);
}

static int image_open(struct image *image, const q2c_options *options, host_context *context)
{
    q2c_geometry geometry = { .struct_size = sizeof(geometry),
                              .virtual_size = DISK_SIZE,
                              .cluster_size = CLUSTER,
                              .l2_entry_size = 8 };
    q2c_state_config config = { .struct_size = sizeof(config),
                                .host = image->host,
                                .l2_storage = &image->storage, /* of both caches */
                                .l2_kind = KIND_L2,
                                .refcount_kind = KIND_REFCOUNTS,
                                .geometry = &geometry,
                                .options = options,
                                .context = context };
    q2c_error error;
    int r = q2c_state_open(&config, &image->state, &error);

    if (r < 0) {
        report(error.message);
        return r;
    }
    image_refresh(image);
    return 0;
}
/* end */

/* porting: lookup-with-lock */
/* State lock held. *host is 0 if the cluster is not allocated. */
static int lookup_locked(struct image *image, uint64_t guest, uint64_t *host)
{
    void *table = NULL;
    int r = q2c_cache_get(image->l2, l2_offset(guest), &table);

    if (r < 0)
        return r;
    *host = be64toh(*(uint64_t *)((char *)table + l2_byte(guest)));
    return q2c_cache_put(image->l2, &table);
}
/* end */

/* porting: refcount */
/* State lock held. */
static int set_refcount(struct image *image, uint64_t cluster, uint16_t refcount)
{
    void *block = NULL;
    int r = q2c_cache_get(image->refcounts, REFCOUNT_BLOCK, &block);

    if (r < 0)
        return r;
    ((uint16_t *)block)[cluster] = htobe16(refcount);
    q2c_cache_mark_dirty(image->refcounts, block);
    return q2c_cache_put(image->refcounts, &block);
}
/* end */

/* State lock held. */
static int find_free(struct image *image, uint64_t *cluster)
{
    void *block = NULL;
    int r = q2c_cache_get(image->refcounts, REFCOUNT_BLOCK, &block);

    if (r < 0)
        return r;
    for (*cluster = FIRST_FREE; *cluster < CLUSTERS; ++*cluster) {
        bool waits = false;

        for (unsigned i = 0; i < image->n_freed; i++) {
            waits |= image->freed[i] == *cluster;
        }
        if (((uint16_t *)block)[*cluster] == 0 && !waits) {
            break;
        }
    }
    r = q2c_cache_put(image->refcounts, &block);
    return r < 0 ? r : *cluster == CLUSTERS ? -ENOSPC : 0;
}

/* porting: allocate */
/* State lock held. The cluster is in use from now on, but no entry names it yet. */
static int allocate(struct image *image, uint64_t *host)
{
    uint64_t cluster = 0;
    int r;

    if (atomic_load(&image->reads_in_flight) == 0)
        image->n_freed = 0; /* nobody can still be on his way to a freed cluster */
    r = find_free(image, &cluster);
    if (r == 0)
        r = set_refcount(image, cluster, 1);
    *host = cluster * CLUSTER;
    return r;
}

/* State lock held. Data are written; the entry comes last. */
static int link_l2(struct image *image, uint64_t guest, uint64_t host)
{
    void *table = NULL;
    int r = q2c_cache_get(image->l2, l2_offset(guest), &table);

    if (r < 0)
        return r;
    r = q2c_cache_set_dependency(image->l2, image->refcounts);
    if (r == 0) {
        q2c_cache_store(image->l2, table, l2_byte(guest), htobe64(host));
        q2c_cache_mark_dirty(image->l2, table);
    }
    q2c_cache_put(image->l2, &table);
    return r;
}
/* end */

/* porting: write */
static int image_write(struct image *image, uint64_t guest, void *bytes)
{
    uint64_t host = 0;
    bool is_new;
    int r;

    q2c_state_lock(image->state);
    r = lookup_locked(image, guest, &host);
    is_new = r == 0 && host == 0;
    if (is_new)
        r = allocate(image, &host);
    q2c_state_unlock(image->state);
    if (r == 0)
        r = data_io(image, true, host, bytes);
    if (r == 0 && is_new) {
        q2c_state_lock(image->state);
        r = link_l2(image, guest, host);
        q2c_state_unlock(image->state);
    }
    return r;
}
/* end */

/* porting: flush */
static int image_flush(struct image *image)
{
    int r, r2;

    q2c_state_lock(image->state);
    r = q2c_cache_write(image->l2);
    r2 = q2c_cache_write(image->refcounts);
    q2c_state_unlock(image->state);
    if (r == 0)
        r = r2;
    return r < 0 ? r : q2c_cache_flush_storage(image->l2); /* the lock is not held over it */
}
/* end */

/* porting: move */
static void image_detach(struct image *image)
{
    q2c_state_detach_context(image->state); /* does not wait: the graph lock may be held */
}

static int image_attach(struct image *image, host_context *context)
{
    return q2c_state_attach_context(image->state, context);
}
/* end */

/* porting: close */
static int image_close(struct image *image)
{
    int r = q2c_state_close(&image->state); /* stops the cleaner, writes, flushes if owed */

    if (r < 0) {
        /* The disk is dead: what is not written is given up. No storage is called. */
        q2c_state_invalidate(image->state);
        q2c_state_close(&image->state);
    }
    return r;
}
/* end */

/* porting: options */
/* No request is in flight. */
static int image_set_options(struct image *image, const q2c_options *options)
{
    q2c_update *update = NULL;
    q2c_error error;
    int r;

    q2c_state_lock(image->state);
    r = q2c_update_options_prepare(image->state, options, NULL, 0, &update, &error);
    q2c_state_unlock(image->state);
    if (r < 0) {
        report(error.message);
        return r; /* nothing changed */
    }
    r = q2c_update_options_commit(image->state, &update, false);
    if (r < 0)
        q2c_update_options_abort(image->state, &update);
    image_refresh(image);
    return r;
}
/* end */

/* porting: options-by-hand */
struct parts { /* of a driver that does not use q2c_state */
    q2c_cleaner *cleaner;
    q2c_cache *cache;
    uint64_t interval_ns;
};

/* The cleaner's lock is held, and no request is in flight. */
static int replace_cache(struct parts *parts, const q2c_cache_options *options,
                         const q2c_storage *storage, const q2c_host *host, void *context)
{
    q2c_cache *new_cache = NULL;
    int r = q2c_cache_create(options, storage, host, &new_cache, NULL);

    if (r < 0)
        return r; /* the old one works on */
    r = q2c_cache_flush(parts->cache);
    if (r == 0)
        r = q2c_cleaner_co_locked_del_and_wait(parts->cleaner);
    if (r == 0)
        r = q2c_cache_destroy(&parts->cache);
    if (r < 0) {
        q2c_cache_destroy(&new_cache);
    } else {
        parts->cache = new_cache;
        q2c_cleaner_set_caches(parts->cleaner, &parts->cache, 1);
    }
    q2c_cleaner_start(parts->cleaner, context, parts->interval_ns); /* last; -EALREADY: it runs */
    return r;
}
/* end */

/* porting: discard */
static int image_discard(struct image *image, uint64_t guest)
{
    uint64_t host = 0;
    void *table = NULL;
    int r;

    q2c_state_lock(image->state);
    r = q2c_cache_get(image->l2, l2_offset(guest), &table);
    if (r == 0) {
        host = be64toh(*(uint64_t *)((char *)table + l2_byte(guest)));
        if (host != 0) {
            q2c_cache_store(image->l2, table, l2_byte(guest), 0);
            q2c_cache_mark_dirty(image->l2, table);
        }
        q2c_cache_put(image->l2, &table);
    }
    if (r == 0 && host != 0)
        r = q2c_cache_set_dependency(image->refcounts, image->l2); /* the other way round */
    if (r == 0 && host != 0)
        r = set_refcount(image, host / CLUSTER, 0);
    if (r == 0 && host != 0) {
        /* Had it been a table's cluster, its slices would leave the caches, dirty or not. */
        q2c_cache_discard_range(image->l2, host, CLUSTER);
        q2c_cache_discard_range(image->refcounts, host, CLUSTER);
        image->freed[image->n_freed++] = host / CLUSTER;
    }
    q2c_state_unlock(image->state);
    return r;
}
/* end */

/* porting: lookup-without-lock */
static int lookup(struct image *image, uint64_t guest, uint64_t *host)
{
    uint64_t entry = 0;
    void *table = NULL;
    int r = q2c_cache_read(image->l2, l2_offset(guest), l2_byte(guest), &entry, sizeof(entry));

    if (r == -EAGAIN) { /* not resident */
        r = q2c_cache_get_unlocked(image->l2, l2_offset(guest), &table);
        if (r == 0) {
            const uint64_t *at = (const uint64_t *)((char *)table + l2_byte(guest));

            entry = __atomic_load_n(at, __ATOMIC_ACQUIRE);
            q2c_cache_put(image->l2, &table);
        }
    }
    *host = be64toh(entry);
    if (r == -EAGAIN) { /* it needs a write-back, or a reserved slot */
        q2c_state_lock(image->state);
        r = lookup_locked(image, guest, host);
        q2c_state_unlock(image->state);
    }
    return r;
}

static int image_read(struct image *image, uint64_t guest, void *bytes)
{
    uint64_t host = 0;
    int r;

    atomic_fetch_add(&image->reads_in_flight, 1); /* before the lookup */
    r = lookup(image, guest, &host);
    if (r == 0 && host == 0)
        memset(bytes, 0, CLUSTER);
    else if (r == 0)
        r = data_io(image, false, host, bytes);
    atomic_fetch_sub(&image->reads_in_flight, 1);
    return r;
}
/* end */

static int image_read_locked(struct image *image, uint64_t guest, void *bytes)
{
    uint64_t host = 0;
    int r;

    q2c_state_lock(image->state);
    r = lookup_locked(image, guest, &host);
    if (r == 0 && host == 0)
        memset(bytes, 0, CLUSTER);
    else if (r == 0)
        r = data_io(image, false, host, bytes);
    q2c_state_unlock(image->state);
    return r;
}

/* ---- the tests: the same load on the driver of each step ---- */

enum { WORKERS_PER_CONTEXT = 2, LOADS = IO_THREADS * WORKERS_PER_CONTEXT, ROUNDS = 40 };

static struct image image;
static host_storage *storage;
static bool without_lock, with_discards;
static atomic_uint running;
/* What each worker wrote last. */
static uint64_t written[LOADS][8 * L2_TABLES];

static void begin(unsigned interval_s)
{
    q2c_options options;

    image = (struct image){ .host = world.vtable };
    memset(written, 0, sizeof(written));
    storage = storage_new(CLUSTERS * CLUSTER / TABLE, HOST_RESUME_MIXED, &image.storage);
    MUST(q2c_options_init(&options));
    options.set = Q2C_OPTION_L2_CACHE_SIZE | Q2C_OPTION_CACHE_CLEAN_INTERVAL;
    options.l2_cache_size = 2 * CLUSTER; /* the smallest */
    options.cache_clean_interval = interval_s;
    MUST(image_open(&image, &options, world.io[0]));
}

static void end(void)
{
    CHECK_INT(image_close(&image), 0);
    host_storage_free(storage);
}

static uint64_t guest_of(unsigned worker, unsigned n)
{
    return ((uint64_t)n % L2_TABLES * ENTRIES + worker * 8 + n / L2_TABLES % 8) * CLUSTER;
}

/* Writes, reads, flushes and discards clusters that no other worker uses. */
static void load(void *arg)
{
    unsigned worker = (unsigned)(uintptr_t)arg;
    uint64_t random = worker * 7919 + 1, *seen = written[worker];
    uint64_t bytes[CLUSTER / 8];

    for (unsigned round = 0; round < ROUNDS; round++) {
        unsigned n = test_random(&random) % (8 * L2_TABLES);
        uint64_t guest = guest_of(worker, n);

        switch (test_random(&random) % 6) {
        case 0:
        case 1:
            seen[n] = test_random(&random);
            for (unsigned i = 0; i < CLUSTER / 8; i++) {
                bytes[i] = seen[n];
            }
            CHECK_INT(image_write(&image, guest, bytes), 0);
            break;
        case 2:
            if (with_discards) {
                CHECK_INT(image_discard(&image, guest), 0);
                seen[n] = 0;
            }
            break;
        case 3:
            CHECK_INT(image_flush(&image), 0);
            break;
        default:
            CHECK_INT((without_lock ? image_read : image_read_locked)(&image, guest, bytes), 0);
            CHECK_U64(bytes[0], seen[n]);
            CHECK_U64(bytes[CLUSTER / 8 - 1], seen[n]);
        }
    }
    for (unsigned n = 0; n < 8 * L2_TABLES; n++) {
        CHECK_INT(image_read_locked(&image, guest_of(worker, n), bytes), 0);
        CHECK_U64(bytes[0], seen[n]);
    }
    atomic_fetch_sub(&running, 1);
}

static void run_load(void)
{
    atomic_store(&running, LOADS);
    for (unsigned i = 0; i < LOADS; i++) {
        host_co_schedule(world.io[i % IO_THREADS], host_co_create(load, (void *)(uintptr_t)i));
    }
    TURN_UNTIL(atomic_load(&running) == 0);
}

static void the_cache_under_the_lock(void)
{
    without_lock = with_discards = false;
    begin(0);
    run_load();
    end();
}

static void with_the_cleaner(void)
{
    q2c_cleaner *cleaner;

    without_lock = with_discards = false;
    begin(600);
    cleaner = q2c_state_cleaner(image.state);
    CHECK_INT(q2c_cleaner_set_interval(cleaner, SECOND / 1000), 0);
    run_load();
    image_detach(&image);
    run_load();
    CHECK_INT(q2c_cleaner_is_running(cleaner), 0);
    CHECK_INT(image_attach(&image, world.io[1]), 0);
    run_load();
    CHECK_INT(q2c_cleaner_is_running(cleaner), 1);
    end();
}

static void change_options(void *arg)
{
    q2c_options options;
    unsigned n = *(unsigned *)arg;

    MUST(q2c_options_init(&options));
    options.set = Q2C_OPTION_L2_CACHE_SIZE | Q2C_OPTION_CACHE_CLEAN_INTERVAL;
    options.l2_cache_size = (2 + n % 3) * CLUSTER;
    options.cache_clean_interval = n % 2 * 600;
    CHECK_INT(image_set_options(&image, &options), 0);
    options.l2_cache_entry_size = 3;
    options.set |= Q2C_OPTION_L2_CACHE_ENTRY_SIZE;
    CHECK_INT(image_set_options(&image, &options), -EINVAL);
    CHECK_CONTAINS(last_report, "l2-cache-entry-size");
}

static void with_changes_of_options(void)
{
    without_lock = with_discards = false;
    begin(600);
    for (unsigned n = 0; n < 6; n++) {
        run_load();
        host_context_call(world.io[n % IO_THREADS], true, change_options, &n);
    }
    end();
}

static void change_cache_by_hand(void *arg)
{
    struct parts parts = { .interval_ns = 600 * SECOND };
    q2c_cache_options options = {
        .struct_size = sizeof(options), .tables = 4, .table_size = TABLE, .reserved_tables = 2
    };

    (void)arg;
    MUST(q2c_cleaner_create(world.vtable, &parts.cleaner, NULL));
    MUST(q2c_cache_create(&options, &image.storage, world.vtable, &parts.cache, NULL));
    MUST(q2c_cleaner_set_caches(parts.cleaner, &parts.cache, 1));
    MUST(q2c_cleaner_start(parts.cleaner, NULL, parts.interval_ns));
    for (unsigned n = 0; n < 8; n++) {
        q2c_cache_stats stats = { .struct_size = sizeof(stats) };

        options.tables = 4 + n;
        CHECK_INT(q2c_cleaner_lock(parts.cleaner), 0);
        cache_dirty(parts.cache, AT(8 * n + 100 * CLUSTER / TABLE), n);
        CHECK_INT(replace_cache(&parts, &options, &image.storage, world.vtable, NULL), 0);
        CHECK_INT(q2c_cleaner_unlock(parts.cleaner), 0);
        CHECK_INT(q2c_cache_get_stats(parts.cache, &stats), 0);
        CHECK_U64(stats.tables, 4 + n);
        CHECK_INT(q2c_cleaner_is_running(parts.cleaner), 1);
        options.table_size = 3;
        CHECK_INT(q2c_cleaner_lock(parts.cleaner), 0);
        CHECK_INT(replace_cache(&parts, &options, &image.storage, world.vtable, NULL), -EINVAL);
        CHECK_INT(q2c_cleaner_unlock(parts.cleaner), 0);
        options.table_size = TABLE;
    }
    CHECK_INT(q2c_cleaner_co_del_and_wait(parts.cleaner), 0);
    CHECK_INT(q2c_cleaner_destroy(&parts.cleaner), 0);
    CHECK_INT(q2c_cache_destroy(&parts.cache), 0);
}

static void with_changes_by_hand(void)
{
    begin(0);
    host_context_call(world.io[0], true, change_cache_by_hand, NULL);
    end();
}

static void with_discards_by_range(void)
{
    without_lock = false;
    with_discards = true;
    begin(600);
    run_load();
    run_load();
    end();
}

static void with_lookups_outside_the_lock(void)
{
    without_lock = with_discards = true;
    begin(600);
    MUST(q2c_cleaner_set_interval(q2c_state_cleaner(image.state), SECOND / 1000));
    run_load();
    run_load();
    end();
}

static void a_dead_disk_can_be_given_up(void)
{
    static uint64_t bytes[CLUSTER / 8];

    begin(600);
    CHECK_INT(image_write(&image, 0, bytes), 0);
    host_storage_fail_at(storage, 1, EIO);
    CHECK_INT(image_close(&image), -EIO);
    CHECK_PTR(image.state, NULL);
    host_storage_free(storage);
}

int main(void)
{
    test_begin();
    world_begin();
    EACH(the_cache_under_the_lock);
    EACH(with_the_cleaner);
    EACH(with_changes_of_options);
    EACH(with_changes_by_hand);
    EACH(with_discards_by_range);
    EACH(with_lookups_outside_the_lock);
    EACH(a_dead_disk_can_be_given_up);
    world_end();
    return test_end();
}
