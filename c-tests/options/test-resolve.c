/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* q2c_options_init and q2c_options_resolve: the sizes that follow from options and geometry. */
#include "test.h"

#define K UINT64_C(1024)
#define M (1024 * K)
#define G (1024 * M)
#define T (1024 * G)

#define ALL_SIZES                                                                                  \
    (Q2C_OPTION_CACHE_SIZE | Q2C_OPTION_L2_CACHE_SIZE | Q2C_OPTION_REFCOUNT_CACHE_SIZE)

struct line {
    uint64_t virtual_size;
    uint32_t cluster_size, l2_entry_size;
    uint32_t set;
    uint64_t cache_size, l2_cache_size, refcount_cache_size, l2_cache_entry_size;
    /* expected; a refcount block has the size of a cluster */
    size_t l2_tables, l2_table_size, refcount_tables;
};

/*
 * Calculated by hand. An image needs an L2 entry for each cluster, in whole L2 tables. A 64 KiB
 * table of 8-byte entries covers 512 MiB.
 */
static const struct line lines[] = {
    /* nothing set: what the image needs, up to 32 MiB, and 4 refcount blocks */
    { 8 * G, 64 * K, 8, 0, 0, 0, 0, 0, 16, 64 * K, 4 },
    { 256 * G, 64 * K, 8, 0, 0, 0, 0, 0, 512, 64 * K, 4 },
    /* 32 MiB do not cover the image: slices of 4 KiB */
    { 257 * G, 64 * K, 8, 0, 0, 0, 0, 0, 8192, 4 * K, 4 },
    { 1 * T, 64 * K, 8, 0, 0, 0, 0, 0, 8192, 4 * K, 4 },
    { UINT64_MAX, 64 * K, 8, 0, 0, 0, 0, 0, 8192, 4 * K, 4 },
    /* small images: at least 2 tables */
    { 512 * M, 64 * K, 8, 0, 0, 0, 0, 0, 2, 64 * K, 4 },
    { 1 * M, 64 * K, 8, 0, 0, 0, 0, 0, 2, 64 * K, 4 },
    { 0, 64 * K, 8, 0, 0, 0, 0, 0, 2, 64 * K, 4 },
    /* one byte more needs one table more */
    { 1 * G, 64 * K, 8, 0, 0, 0, 0, 0, 2, 64 * K, 4 },
    { 1 * G + 1, 64 * K, 8, 0, 0, 0, 0, 0, 3, 64 * K, 4 },
    /* entries of 16 bytes: twice as much */
    { 8 * G, 64 * K, 16, 0, 0, 0, 0, 0, 32, 64 * K, 4 },
    { 128 * G + 1, 64 * K, 16, 0, 0, 0, 0, 0, 8192, 4 * K, 4 },
    /* clusters from 512 bytes (slices no larger) to 2 MiB */
    { 1 * M, 512, 8, 0, 0, 0, 0, 0, 32, 512, 4 },
    { 4 * G, 512, 8, 0, 0, 0, 0, 0, 65536, 512, 4 },
    { 1 * T, 2 * M, 8, 0, 0, 0, 0, 0, 2, 2 * M, 4 },
    { 8 * T, 2 * M, 8, 0, 0, 0, 0, 0, 16, 2 * M, 4 },
    { 32 * T, 2 * M, 8, 0, 0, 0, 0, 0, 8192, 4 * K, 4 },
    /* l2-cache-size: an upper limit, too */
    { 8 * G, 64 * K, 8, Q2C_OPTION_L2_CACHE_SIZE, 0, 512 * K, 0, 0, 128, 4 * K, 4 },
    { 8 * G, 64 * K, 8, Q2C_OPTION_L2_CACHE_SIZE, 0, 1 * M, 0, 0, 16, 64 * K, 4 },
    { 8 * G, 64 * K, 8, Q2C_OPTION_L2_CACHE_SIZE, 0, 64 * M, 0, 0, 16, 64 * K, 4 },
    { 1 * T, 64 * K, 8, Q2C_OPTION_L2_CACHE_SIZE, 0, 128 * M, 0, 0, 2048, 64 * K, 4 },
    { 8 * G, 64 * K, 8, Q2C_OPTION_L2_CACHE_SIZE, 0, 0, 0, 0, 2, 4 * K, 4 },
    { 8 * G, 64 * K, 8, Q2C_OPTION_L2_CACHE_SIZE, 0, 1, 0, 0, 2, 4 * K, 4 },
    { 8 * G, 64 * K, 8, Q2C_OPTION_L2_CACHE_SIZE, 0, UINT64_MAX, 0, 0, 16, 64 * K, 4 },
    /* refcount-cache-size */
    { 8 * G, 64 * K, 8, Q2C_OPTION_REFCOUNT_CACHE_SIZE, 0, 0, 1 * M, 0, 16, 64 * K, 16 },
    { 8 * G, 64 * K, 8, Q2C_OPTION_REFCOUNT_CACHE_SIZE, 0, 0, 128 * K, 0, 16, 64 * K, 4 },
    { 8 * G, 64 * K, 8, Q2C_OPTION_REFCOUNT_CACHE_SIZE, 0, 0, 0, 0, 16, 64 * K, 4 },
    /* cache-size: L2 gets what it needs, refcounts the rest */
    { 8 * G, 64 * K, 8, Q2C_OPTION_CACHE_SIZE, 4 * M, 0, 0, 0, 16, 64 * K, 48 },
    { 8 * G, 64 * K, 8, Q2C_OPTION_CACHE_SIZE, 1 * M + 256 * K, 0, 0, 0, 16, 64 * K, 4 },
    /* if that is not enough: refcounts get 4 clusters, L2 the rest, in slices */
    { 8 * G, 64 * K, 8, Q2C_OPTION_CACHE_SIZE, 1 * M, 0, 0, 0, 192, 4 * K, 4 },
    { 8 * G, 64 * K, 8, Q2C_OPTION_CACHE_SIZE, 256 * K, 0, 0, 0, 2, 4 * K, 4 },
    { 8 * G, 64 * K, 8, Q2C_OPTION_CACHE_SIZE, 0, 0, 0, 0, 2, 4 * K, 4 },
    /* cache-size and one of the others: the rest is for the third */
    { 8 * G, 64 * K, 8, Q2C_OPTION_CACHE_SIZE | Q2C_OPTION_L2_CACHE_SIZE, 2 * M, 512 * K, 0, 0, 128,
      4 * K, 24 },
    { 8 * G, 64 * K, 8, Q2C_OPTION_CACHE_SIZE | Q2C_OPTION_L2_CACHE_SIZE, 2 * M, 2 * M, 0, 0, 16,
      64 * K, 16 },
    { 8 * G, 64 * K, 8, Q2C_OPTION_CACHE_SIZE | Q2C_OPTION_REFCOUNT_CACHE_SIZE, 2 * M, 0, 512 * K,
      0, 24, 64 * K, 8 },
    { 8 * G, 64 * K, 8, Q2C_OPTION_CACHE_SIZE | Q2C_OPTION_REFCOUNT_CACHE_SIZE, 1 * M, 0, 512 * K,
      0, 128, 4 * K, 8 },
    /* l2-cache-entry-size is taken as it is */
    { 8 * G, 64 * K, 8, Q2C_OPTION_L2_CACHE_ENTRY_SIZE, 0, 0, 0, 4 * K, 256, 4 * K, 4 },
    { 8 * G, 64 * K, 8, Q2C_OPTION_L2_CACHE_ENTRY_SIZE, 0, 0, 0, 512, 2048, 512, 4 },
    { 1 * T, 64 * K, 8, Q2C_OPTION_L2_CACHE_ENTRY_SIZE, 0, 0, 0, 64 * K, 512, 64 * K, 4 },
    { 8 * G, 64 * K, 8, Q2C_OPTION_L2_CACHE_SIZE | Q2C_OPTION_L2_CACHE_ENTRY_SIZE, 0, 512 * K, 0,
      64 * K, 8, 64 * K, 4 },
    /* values without their bit in `set` are ignored */
    { 8 * G, 64 * K, 8, 0, 1 * K, 2 * K, 3 * K, 5, 16, 64 * K, 4 },
};

static q2c_options options_of(const struct line *line)
{
    return (q2c_options){
        .struct_size = sizeof(q2c_options),
        .set = line->set,
        .cache_size = line->cache_size,
        .l2_cache_size = line->l2_cache_size,
        .refcount_cache_size = line->refcount_cache_size,
        .l2_cache_entry_size = line->l2_cache_entry_size,
    };
}

static void sizes_follow_from_options_and_geometry(void)
{
    for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
        const struct line *line = &lines[i];
        q2c_options options = options_of(line);
        q2c_geometry geometry = { .struct_size = sizeof(geometry),
                                  .virtual_size = line->virtual_size,
                                  .cluster_size = line->cluster_size,
                                  .l2_entry_size = line->l2_entry_size };
        q2c_resolved_options resolved = { .struct_size = sizeof(resolved) };
        q2c_error error = { .message = "" };
        bool ok;

        ok = CHECK_INT(q2c_options_resolve(&options, &geometry, &resolved, &error), 0);
        ok = CHECK_U64(resolved.l2_tables, line->l2_tables) && ok;
        ok = CHECK_U64(resolved.l2_table_size, line->l2_table_size) && ok;
        ok = CHECK_U64(resolved.refcount_tables, line->refcount_tables) && ok;
        ok = CHECK_U64(resolved.refcount_table_size, line->cluster_size) && ok;
        ok = CHECK_U64(resolved.clean_interval_ns, UINT64_C(600000000000)) && ok;
        if (!ok) {
            test_note("    in line %zu: %s", i, error.message);
        }
    }
}

static const q2c_geometry usual = { .struct_size = sizeof(q2c_geometry),
                                    .virtual_size = UINT64_C(8) << 30,
                                    .cluster_size = 65536,
                                    .l2_entry_size = 8 };

static void null_options_mean_the_defaults(void)
{
    q2c_resolved_options with = { .struct_size = sizeof(with) };
    q2c_resolved_options without = { .struct_size = sizeof(without) };
    q2c_options options;

    memset(&options, 0xff, sizeof(options));
    CHECK_INT(q2c_options_init(&options), 0);
    CHECK_U64(options.struct_size, sizeof(options));
    CHECK_U64(options.set, 0);
    CHECK_INT(q2c_options_resolve(&options, &usual, &with, NULL), 0);
    CHECK_INT(q2c_options_resolve(NULL, &usual, &without, NULL), 0);
    CHECK(memcmp(&with, &without, sizeof(with)) == 0);
    CHECK_INT(q2c_options_init(NULL), -EINVAL);
}

static void interval_is_converted_to_nanoseconds(void)
{
    static const uint64_t seconds[] = { 0, 1, 30, 600, UINT32_MAX };
    q2c_options options;
    q2c_resolved_options resolved = { .struct_size = sizeof(resolved) };

    CHECK_INT(q2c_options_init(&options), 0);
    options.set = Q2C_OPTION_CACHE_CLEAN_INTERVAL;
    for (size_t i = 0; i < sizeof(seconds) / sizeof(seconds[0]); i++) {
        options.cache_clean_interval = seconds[i];
        CHECK_INT(q2c_options_resolve(&options, &usual, &resolved, NULL), 0);
        CHECK_U64(resolved.clean_interval_ns, seconds[i] * UINT64_C(1000000000));
    }
}

/* Rejected with a message that contains all of @parts (ended by NULL), and without output. */
static void check_refused(const q2c_options *options, const q2c_geometry *geometry,
                          const char *const *parts)
{
    q2c_resolved_options resolved, before;
    q2c_error error = { .code = 0, .message = "" };

    memset(&resolved, 0x55, sizeof(resolved));
    resolved.struct_size = sizeof(resolved);
    before = resolved;
    CHECK_INT(q2c_options_resolve(options, geometry, &resolved, &error), -EINVAL);
    CHECK_INT(error.code, EINVAL);
    CHECK(memcmp(&resolved, &before, sizeof(before)) == 0);
    for (; *parts != NULL; parts++) {
        CHECK_CONTAINS(error.message, *parts);
    }
    CHECK_INT(q2c_options_resolve(options, geometry, &resolved, NULL), -EINVAL);
}

static void conflicting_sizes_are_rejected(void)
{
    q2c_options options;

    CHECK_INT(q2c_options_init(&options), 0);
    options.cache_size = 4 * M;
    options.l2_cache_size = 1 * M;
    options.refcount_cache_size = 1 * M;
    options.set = ALL_SIZES;
    check_refused(&options, &usual,
                  (const char *[]){ "cache-size", "l2-cache-size", "refcount-cache-size", NULL });
    options.set = Q2C_OPTION_CACHE_SIZE | Q2C_OPTION_L2_CACHE_SIZE;
    options.l2_cache_size = 4 * M + 1;
    check_refused(&options, &usual,
                  (const char *[]){ "l2-cache-size", "cache-size", "4194305", "4194304", NULL });
    options.set = Q2C_OPTION_CACHE_SIZE | Q2C_OPTION_REFCOUNT_CACHE_SIZE;
    options.refcount_cache_size = 5 * M;
    check_refused(&options, &usual,
                  (const char *[]){ "refcount-cache-size", "5242880", "4194304", NULL });
    /* an L2 size above cache-size is wrong even if the image needs less */
    options.set = Q2C_OPTION_CACHE_SIZE | Q2C_OPTION_L2_CACHE_SIZE;
    options.l2_cache_size = UINT64_MAX;
    check_refused(&options, &usual, (const char *[]){ "l2-cache-size", NULL });
}

static void wrong_entry_sizes_are_rejected(void)
{
    static const uint64_t bad[] = { 0, 1, 256, 511, 513, 3000, 128 * K, UINT64_MAX };
    q2c_options options;

    CHECK_INT(q2c_options_init(&options), 0);
    options.set = Q2C_OPTION_L2_CACHE_ENTRY_SIZE;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        options.l2_cache_entry_size = bad[i];
        check_refused(&options, &usual,
                      (const char *[]){ "l2-cache-entry-size", "512", "65536", NULL });
    }
}

static void too_large_values_are_rejected(void)
{
    q2c_options options;

    CHECK_INT(q2c_options_init(&options), 0);
    options.set = Q2C_OPTION_CACHE_CLEAN_INTERVAL;
    options.cache_clean_interval = (uint64_t)UINT32_MAX + 1;
    check_refused(&options, &usual,
                  (const char *[]){ "cache-clean-interval", "4294967296", "4294967295", NULL });
    options.cache_clean_interval = UINT64_MAX;
    check_refused(&options, &usual, (const char *[]){ "cache-clean-interval", NULL });
    /* more than INT_MAX tables */
    options.set = Q2C_OPTION_REFCOUNT_CACHE_SIZE;
    options.refcount_cache_size = (UINT64_C(1) << 31) * 64 * K;
    check_refused(&options, &usual, (const char *[]){ "refcount-cache-size", NULL });
    options.refcount_cache_size = UINT64_MAX;
    check_refused(&options, &usual, (const char *[]){ "refcount-cache-size", NULL });
}

static void invalid_geometry_is_rejected(void)
{
    static const uint32_t clusters[] = { 0, 1, 256, 511, 65535, 65537, 4 << 20, UINT32_MAX };
    static const uint32_t entries[] = { 0, 1, 4, 9, 32, UINT32_MAX };
    q2c_geometry geometry = usual;

    for (size_t i = 0; i < sizeof(clusters) / sizeof(clusters[0]); i++) {
        geometry.cluster_size = clusters[i];
        check_refused(NULL, &geometry, (const char *[]){ "cluster", NULL });
    }
    geometry = usual;
    for (size_t i = 0; i < sizeof(entries) / sizeof(entries[0]); i++) {
        geometry.l2_entry_size = entries[i];
        check_refused(NULL, &geometry, (const char *[]){ "L2", NULL });
    }
}

static void unknown_option_bits_are_rejected(void)
{
    q2c_options options;

    CHECK_INT(q2c_options_init(&options), 0);
    options.set = 32;
    check_refused(&options, &usual, (const char *[]){ "", NULL });
}

static void null_arguments_and_struct_sizes_are_checked(void)
{
    struct {
        q2c_resolved_options resolved;
        uint64_t tail[2];
    } longer = { .resolved.struct_size = sizeof(longer), .tail = { 1, 2 } };
    struct {
        q2c_options options;
        uint64_t tail[2];
    } longer_options = { .tail = { 0 } };
    struct {
        q2c_geometry geometry;
        uint64_t tail[2];
    } longer_geometry = { .geometry = usual };

    CHECK_INT(q2c_options_resolve(NULL, NULL, &longer.resolved, NULL), -EINVAL);
    CHECK_INT(q2c_options_resolve(NULL, &usual, NULL, NULL), -EINVAL);
    CHECK_INT(q2c_options_init(&longer_options.options), 0);
    longer_options.options.struct_size = sizeof(longer_options);
    longer_geometry.geometry.struct_size = sizeof(longer_geometry);
    CHECK_INT(q2c_options_resolve(&longer_options.options, &longer_geometry.geometry,
                                  &longer.resolved, NULL),
              0);
    CHECK_U64(longer.resolved.l2_tables, 16);
    CHECK_U64(longer.tail[1], 2);
    longer_options.options.struct_size = sizeof(q2c_options) - 1;
    check_refused(&longer_options.options, &usual, (const char *[]){ "", NULL });
    longer_options.options.struct_size = 0;
    check_refused(&longer_options.options, &usual, (const char *[]){ "", NULL });
    longer_geometry.geometry.struct_size = sizeof(size_t);
    check_refused(NULL, &longer_geometry.geometry, (const char *[]){ "", NULL });
    longer.resolved.struct_size = sizeof(size_t);
    CHECK_INT(q2c_options_resolve(NULL, &usual, &longer.resolved, NULL), -EINVAL);
    longer.resolved.struct_size = 0;
    CHECK_INT(q2c_options_resolve(NULL, &usual, &longer.resolved, NULL), -EINVAL);
}

int main(void)
{
    test_begin();
    RUN(sizes_follow_from_options_and_geometry);
    RUN(null_options_mean_the_defaults);
    RUN(interval_is_converted_to_nanoseconds);
    RUN(conflicting_sizes_are_rejected);
    RUN(wrong_entry_sizes_are_rejected);
    RUN(too_large_values_are_rejected);
    RUN(invalid_geometry_is_rejected);
    RUN(unknown_option_bits_are_rejected);
    RUN(null_arguments_and_struct_sizes_are_checked);
    return test_end();
}
