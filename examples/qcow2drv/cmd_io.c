/* SPDX-License-Identifier: MIT */
/* Subcommands info, read and write. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "command.h"

#define CHUNK ((size_t)1 << 20)

static void print_info(const qcow2drv_info *info, const qcow2drv_stats *stats)
{
    printf("virtual_size: %" PRIu64 "\n", info->virtual_size);
    printf("file_size: %" PRIu64 "\n", info->file_size);
    printf("version: %" PRIu32 "\n", info->version);
    printf("cluster_size: %" PRIu32 "\n", info->cluster_size);
    printf("refcount_bits: %" PRIu32 "\n", info->refcount_bits);
    printf("l1_entries: %" PRIu32 "\n", info->l1_entries);
    printf("refcount_table_entries: %" PRIu64 "\n", info->refcount_table_entries);
    printf("snapshots: %" PRIu32 "\n", info->snapshots);
    printf("incompatible_features: 0x%" PRIx64 "\n", info->incompatible_features);
    printf("compatible_features: 0x%" PRIx64 "\n", info->compatible_features);
    printf("autoclear_features: 0x%" PRIx64 "\n", info->autoclear_features);
    printf("l2_cache_tables: %zu\n", stats->l2.tables);
    printf("l2_cache_table_size: %zu\n", stats->l2.table_size);
    printf("refcount_cache_tables: %zu\n", stats->refcounts.tables);
    printf("refcount_cache_table_size: %zu\n", stats->refcounts.table_size);
    printf("cache_clean_interval_ms: %" PRIu64 "\n", stats->cleaner.interval_ns / 1000000u);
}

int cmd_info(int argc, char **argv)
{
    const char *name;
    struct runtime *rt;
    qcow2drv_stats stats;
    qcow2drv_info info;
    qcow2drv *image;
    common c;
    int code, r;

    common_init(&c);
    const cli_arg table[] = { COMMON_ARGS(c), { 0 } };
    code = args_parse("info", argc, argv, table, &name, 1);
    if (code == EXIT_OK)
        code = common_open(&c, name, false, &rt, &image);
    if (code != EXIT_OK)
        return code;
    qcow2drv_get_info(image, &info);
    r = qcow2drv_get_stats(image, &stats);
    if (r < 0) {
        complain("%s: no statistics: %s", name, strerror(-r));
        code = EXIT_FAILED;
    } else {
        print_info(&info, &stats);
    }
    return common_close(rt, &image, code);
}

static int parse_place(const char *command, const char *what, const char *text, uint64_t *value)
{
    if (size_parse(text, value) == 0)
        return EXIT_OK;
    complain("%s: %s '%s' is not a size: digits, then K, M, G or T if wanted", command, what, text);
    return EXIT_USAGE;
}

static int copy_out(const common *c, qcow2drv *image, const char *name, uint64_t offset,
                    uint64_t bytes)
{
    char *buf = malloc(CHUNK);
    int code = EXIT_OK;

    if (!buf) {
        complain("out of memory");
        return EXIT_FAILED;
    }
    while (bytes > 0 && code == EXIT_OK) {
        size_t step = bytes < CHUNK ? (size_t)bytes : CHUNK;
        int r = qcow2drv_pread(image, offset, buf, step);

        if (r < 0) {
            COMPLAIN_UNLESS_REPORTED(c, "%s: cannot read %zu bytes at %" PRIu64 ": %s", name, step,
                                     offset, strerror(-r));
            code = EXIT_FAILED;
        } else if (fwrite(buf, 1, step, stdout) != step) {
            complain("cannot write to standard output: %s", strerror(errno));
            code = EXIT_FAILED;
        }
        offset += step;
        bytes -= step;
    }
    if (fflush(stdout) != 0 && code == EXIT_OK) {
        complain("cannot write to standard output: %s", strerror(errno));
        code = EXIT_FAILED;
    }
    free(buf);
    return code;
}

int cmd_read(int argc, char **argv)
{
    const char *words[3];
    uint64_t offset = 0, bytes = 0;
    struct runtime *rt;
    qcow2drv_info info;
    qcow2drv *image;
    common c;
    int code;

    common_init(&c);
    const cli_arg table[] = { COMMON_ARGS(c), { 0 } };
    code = args_parse("read", argc, argv, table, words, 3);
    if (code == EXIT_OK)
        code = parse_place("read", "OFFSET", words[1], &offset);
    if (code == EXIT_OK)
        code = parse_place("read", "LENGTH", words[2], &bytes);
    if (code == EXIT_OK)
        code = common_open(&c, words[0], false, &rt, &image);
    if (code != EXIT_OK)
        return code;
    qcow2drv_get_info(image, &info);
    if (offset > info.virtual_size || bytes > info.virtual_size - offset) {
        complain("%s: %" PRIu64 " bytes at %" PRIu64 " run past the end of the disk (%" PRIu64
                 " bytes)",
                 words[0], bytes, offset, info.virtual_size);
        code = EXIT_FAILED;
    } else {
        code = copy_out(&c, image, words[0], offset, bytes);
    }
    return common_close(rt, &image, code);
}

/* Fills buf from standard input; the number of bytes, 0 at the end, or -errno. */
static ssize_t read_input(char *buf, size_t bytes)
{
    size_t have = 0;

    while (have < bytes) {
        ssize_t r = read(STDIN_FILENO, buf + have, bytes - have);

        if (r == 0)
            break;
        if (r < 0 && errno != EINTR)
            return -errno;
        if (r > 0)
            have += (size_t)r;
    }
    return (ssize_t)have;
}

static int copy_in(const common *c, qcow2drv *image, const char *name, uint64_t offset)
{
    char *buf = malloc(CHUNK);
    ssize_t n = 0;
    int r = 0;

    if (!buf) {
        complain("out of memory");
        return EXIT_FAILED;
    }
    while (r == 0 && (n = read_input(buf, CHUNK)) > 0) {
        r = qcow2drv_pwrite(image, offset, buf, (size_t)n);
        if (r < 0)
            COMPLAIN_UNLESS_REPORTED(c, "%s: cannot write %zd bytes at %" PRIu64 ": %s", name, n,
                                     offset,
                                     r == -EINVAL ? "past the end of the disk" : strerror(-r));
        offset += (uint64_t)n;
    }
    free(buf);
    if (n < 0)
        complain("cannot read standard input: %s", strerror((int)-n));
    if (r == 0) {
        r = qcow2drv_flush(image);
        if (r < 0)
            complain("%s: cannot flush: %s", name, strerror(-r));
    }
    return r < 0 || n < 0 ? EXIT_FAILED : EXIT_OK;
}

int cmd_write(int argc, char **argv)
{
    const char *words[2];
    uint64_t offset = 0;
    struct runtime *rt;
    qcow2drv *image;
    common c;
    int code;

    common_init(&c);
    const cli_arg table[] = { COMMON_ARGS(c), { 0 } };
    code = args_parse("write", argc, argv, table, words, 2);
    if (code == EXIT_OK)
        code = parse_place("write", "OFFSET", words[1], &offset);
    if (code == EXIT_OK)
        code = common_open(&c, words[0], true, &rt, &image);
    if (code != EXIT_OK)
        return code;
    code = copy_in(&c, image, words[0], offset);
    return common_close(rt, &image, code);
}
