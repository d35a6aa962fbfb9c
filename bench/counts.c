/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* scripts/instruction-counts runs this program under callgrind: counts MODE N. MODE is hit, dirty,
 * read or miss. The program makes N such operations on a cache that was filled before. callgrind
 * counts only inside the library's functions. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2cache.h"

#define TABLES     512
#define TABLE_SIZE 4096

static int read_nothing(void *opaque, int kind, uint64_t offset, const struct iovec *iov, int n)
{
    (void)opaque, (void)kind, (void)offset, (void)iov, (void)n;
    return 0;
}

static int flush_nothing(void *opaque)
{
    (void)opaque;
    return 0;
}

static void check(const char *what, int r)
{
    if (r < 0) {
        fprintf(stderr, "%s: %s\n", what, strerror(-r));
        exit(1);
    }
}

/* The offset of table number i. The tables are scattered over the image. */
static uint64_t offset_of(uint64_t i)
{
    return (i * 0x2c1b3c6d % (1u << 26) + 1) * TABLE_SIZE;
}

static void hit(q2c_cache *cache, uint64_t i, int dirty)
{
    void *table;

    check("q2c_cache_get", q2c_cache_get(cache, offset_of(i), &table));
    if (dirty)
        check("q2c_cache_mark_dirty", q2c_cache_mark_dirty(cache, table));
    check("q2c_cache_put", q2c_cache_put(cache, &table));
}

static void work(q2c_cache *cache, const char *mode, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++) {
        uint64_t entry;

        if (strcmp(mode, "miss") == 0)
            hit(cache, TABLES + i, 0);
        else if (strcmp(mode, "read") == 0)
            check("q2c_cache_read",
                  q2c_cache_read(cache, offset_of(i % TABLES), i % 512 * 8, &entry, sizeof(entry)));
        else
            hit(cache, i % TABLES, strcmp(mode, "dirty") == 0);
    }
}

int main(int argc, char **argv)
{
    const q2c_storage storage = {
        .struct_size = sizeof(storage),
        .preadv = read_nothing,
        .pwritev = read_nothing,
        .flush = flush_nothing,
    };
    const q2c_cache_options options = {
        .struct_size = sizeof(options),
        .tables = TABLES,
        .table_size = TABLE_SIZE,
    };
    q2c_cache *cache;

    if (argc != 3) {
        fprintf(stderr, "usage: counts hit|dirty|read|miss N\n");
        return 2;
    }
    check("q2c_cache_create", q2c_cache_create(&options, &storage, NULL, &cache, NULL));
    /* One load and two hits of each table: more hits change nothing any more. */
    work(cache, "hit", 3 * TABLES);
    work(cache, argv[1], strtoull(argv[2], NULL, 10));
    check("q2c_cache_discard_range", q2c_cache_discard_range(cache, 0, UINT64_MAX));
    check("q2c_cache_destroy", q2c_cache_destroy(&cache));
    return 0;
}
