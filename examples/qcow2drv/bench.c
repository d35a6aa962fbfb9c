/* SPDX-License-Identifier: MIT */
/* Subcommand bench: how long a read takes, through the driver or as plain pread(2) of the same host
 * bytes. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "command.h"

#define SECOND UINT64_C(1000000000)

typedef struct bench {
    qcow2drv *image;
    struct runtime *rt;
    const uint64_t
        *hosts;    /* host offset of every cluster, or of every block; NULL: through the driver */
    uint64_t unit; /* bytes of guest for each of these */
    int fd;        /* of the image, with hosts */
    uint64_t blocks, block;
    uint64_t deadline_ns, seed;
    uint64_t threads;
    bool sequential;
    _Atomic unsigned next_worker;
    _Atomic uint64_t done;
    _Atomic int error; /* -errno */
} bench;

static int read_block(bench *b, uint64_t block, char *buf)
{
    uint64_t offset = block * b->block, host;

    if (!b->hosts)
        return qcow2drv_pread(b->image, offset, buf, (size_t)b->block);
    host = b->hosts[offset / b->unit];
    if (host == UINT64_MAX) {
        memset(buf, 0, (size_t)b->block);
        return 0;
    }
    return pread(b->fd, buf, (size_t)b->block, (off_t)(host + offset % b->unit)) < 0 ? -errno : 0;
}

static void work(void *arg)
{
    bench *b = arg;
    unsigned index = atomic_fetch_add(&b->next_worker, 1);
    uint64_t random = (b->seed + 1) * UINT64_C(0x9e3779b97f4a7c15) + index, n = 0;
    uint64_t block = b->blocks / b->threads * index;
    char *buf = malloc((size_t)b->block);
    int r = buf ? 0 : -ENOMEM;

    random |= random == 0;
    while (r == 0 && (n % 16 != 0 || runtime_now_ns() < b->deadline_ns)) {
        random ^= random << 13; /* xorshift64 */
        random ^= random >> 7;
        random ^= random << 17;
        block = b->sequential ? (block + 1) % b->blocks : random % b->blocks;
        r = read_block(b, block, buf);
        n++;
    }
    free(buf);
    if (r < 0)
        atomic_store(&b->error, r);
    atomic_fetch_add(&b->done, n);
}

/* Host offset of every unit that lies in one piece; the others count as not there. As few as can
 * be: the loop without the driver is not to wait for its own list. */
static uint64_t *map_units(bench *b, const qcow2drv_info *info)
{
    uint64_t *hosts, units;

    b->unit = info->cluster_size % b->block == 0 ? info->cluster_size
                                                 : b->block; /* a block lies in one unit */
    units = (b->blocks * b->block + b->unit - 1) / b->unit;
    hosts = malloc((size_t)units * sizeof(*hosts));
    for (uint64_t i = 0; hosts && i < units; i++) {
        uint64_t left = info->virtual_size - i * b->unit, run;
        uint64_t wanted = b->unit < left ? b->unit : left;
        int r = qcow2drv_map(b->image, i * b->unit, wanted, &hosts[i], &run);

        if (r < 0) {
            atomic_store(&b->error, r);
            free(hosts);
            return NULL;
        }
        if (run < wanted)
            hosts[i] = UINT64_MAX;
    }
    return hosts;
}

static int warm(bench *b)
{
    char *buf = malloc((size_t)b->block);
    int r = buf ? 0 : -ENOMEM;

    for (uint64_t i = 0; i < b->blocks && r == 0; i++)
        r = read_block(b, i, buf);
    free(buf);
    return r;
}

static int run(bench *b, uint64_t seconds, bool warm_first)
{
    qcow2drv_stats before, after;
    uint64_t begun, ns;
    int r = warm_first ? warm(b) : 0;

    if (r == 0)
        r = qcow2drv_get_stats(b->image, &before);
    begun = runtime_now_ns();
    b->deadline_ns = begun + seconds * SECOND;
    for (unsigned i = 0; i < b->threads && r == 0; i++)
        r = b->rt->ops->spawn(b->rt, i, work, b);
    b->rt->ops->wait_workers(b->rt, SECOND, NULL, NULL);
    ns = runtime_now_ns() - begun;
    r = r < 0 ? r : atomic_load(&b->error);
    if (r == 0)
        r = qcow2drv_get_stats(b->image, &after);
    if (r < 0 || b->done == 0) {
        complain("cannot read: %s", r < 0 ? strerror(-r) : "no request was made");
        return EXIT_FAILED;
    }
    printf("requests: %" PRIu64 "\n", atomic_load(&b->done));
    printf("requests_per_second: %.0f\n", (double)b->done * 1e9 / (double)ns);
    printf("ns_per_request: %.1f\n",
           (double)ns / (double)b->done); /* wall clock, all workers together */
    printf("latency_ns: %.1f\n", (double)ns * (double)b->threads / (double)b->done);
    printf("l2_loads: %" PRIu64 "\n", after.l2.loads - before.l2.loads);
    printf("l2_evictions: %" PRIu64 "\n", after.l2.evictions - before.l2.evictions);
    return EXIT_OK;
}

static int run_on(bench *b, const char *name, uint64_t area, uint64_t seconds, bool bare,
                  bool warm_first)
{
    uint64_t *hosts = NULL;
    qcow2drv_info info;
    int code;

    qcow2drv_get_info(b->image, &info);
    b->blocks = (area && area < info.virtual_size ? area : info.virtual_size) / b->block;
    if (b->blocks == 0) {
        complain("%s: smaller than one block", name);
        return EXIT_FAILED;
    }
    if (bare) {
        hosts = map_units(b, &info);
        b->fd = open(name, O_RDONLY | O_CLOEXEC);
        if (!hosts || b->fd < 0) {
            complain("%s: cannot read it without the driver", name);
            free(hosts);
            return EXIT_FAILED;
        }
        b->hosts = hosts;
    }
    code = run(b, seconds, warm_first);
    if (bare)
        close(b->fd);
    free(hosts);
    return code;
}

int cmd_bench(int argc, char **argv)
{
    bench b = { .threads = 1, .block = 4096, .seed = 1, .fd = -1 };
    uint64_t seconds = 5, area = 0;
    bool bare = false, warm_first = false;
    const char *name;
    common c;
    int code;

    common_init(&c);
    const cli_arg table[] = {
        { "--threads", ARG_NUMBER, &b.threads, 1, 1024 },
        { "--seconds", ARG_NUMBER, &seconds, 1, 86400 },
        { "--block", ARG_SIZE, &b.block, 1, 1 << 30 },
        { "--area", ARG_SIZE, &area, 1, 0 },
        { "--seed", ARG_NUMBER, &b.seed, 0, 0 },
        { "--sequential", ARG_FLAG, &b.sequential, 0, 0 },
        { "--bare", ARG_FLAG, &bare, 0, 0 },
        { "--warm", ARG_FLAG, &warm_first, 0, 0 },
        COMMON_ARGS(c),
        { 0 },
    };
    code = args_parse("bench", argc, argv, table, &name, 1);
    if (code == EXIT_OK)
        code = common_open(&c, name, false, &b.rt, &b.image);
    if (code != EXIT_OK)
        return code;
    code = run_on(&b, name, area, seconds, bare, warm_first);
    return common_close(b.rt, &b.image, code);
}
