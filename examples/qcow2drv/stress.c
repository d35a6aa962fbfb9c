/* SPDX-License-Identifier: MIT */
/* Subcommand stress: many workers on one image, every byte checked. */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "stress.h"

#define CHUNK  ((size_t)1 << 20)
#define SECOND UINT64_C(1000000000)

void stress_fail(stress *s, const char *format, ...)
{
    char text[400];
    va_list args;

    atomic_store(&s->stop, true);
    if (atomic_exchange(&s->failed, true))
        return;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    COMPLAIN_UNLESS_REPORTED(&s->options->common, "%s", text);
}

void stress_wrong(stress *s, const char *how, const wrong_byte *wrong)
{
    stress_fail(s, "WRONG BYTE at offset %" PRIu64 " (%s): expected 0x%02x, read 0x%02x",
                wrong->offset, how, wrong->expected, wrong->found);
}

/* Calls fn for the disk's area chunk by chunk, with what the driver reads there. */
static void read_all(stress *s,
                     void (*fn)(stress *s, uint64_t offset, const uint8_t *buf, size_t bytes))
{
    uint8_t *buf = malloc(CHUNK);

    if (!buf) {
        stress_fail(s, "out of memory");
        return;
    }
    for (uint64_t at = 0; at < s->shadow.size && !atomic_load(&s->failed); at += CHUNK) {
        size_t step = s->shadow.size - at < CHUNK ? (size_t)(s->shadow.size - at) : CHUNK;
        int r = qcow2drv_pread(s->image, at, buf, step);

        if (r < 0)
            stress_fail(s, "cannot read %zu bytes at %" PRIu64 ": %s", step, at, strerror(-r));
        else
            fn(s, at, buf, step);
    }
    free(buf);
}

static void take_over(stress *s, uint64_t offset, const uint8_t *buf, size_t bytes)
{
    /* Zeroes are left out: the copy's memory stays untouched there. */
    if (buf[0] != 0 || memcmp(buf, buf + 1, bytes - 1) != 0)
        shadow_write(&s->shadow, offset, buf, bytes);
}

static void verify_chunk(stress *s, uint64_t offset, const uint8_t *buf, size_t bytes)
{
    wrong_byte wrong;

    if (!shadow_compare(&s->shadow, offset, buf, bytes, &wrong))
        stress_wrong(s, "final pass", &wrong);
}

static uint64_t resident(const qcow2drv_stats *stats)
{
    return stats->l2.resident_bytes + stats->refcounts.resident_bytes;
}

static void progress_line(void *arg)
{
    stress *s = arg;
    bool tty = isatty(STDERR_FILENO);
    qcow2drv_stats stats;

    if (!tty && !s->options->progress)
        return;
    if (qcow2drv_get_stats(s->image, &stats) < 0)
        return;
    fprintf(stderr,
            "%s%4" PRIu64 " s  %" PRIu64 " reads  %" PRIu64 " writes  %" PRIu64
            " discards  %" PRIu64 " zeroes  %" PRIu64 " MiB  tables resident %" PRIu64
            " KiB, cleaned %" PRIu64 "%s",
            tty ? "\r" : "", (runtime_now_ns() - s->begun_ns) / SECOND,
            atomic_load(&s->done[OP_READ]), atomic_load(&s->done[OP_WRITE]),
            atomic_load(&s->done[OP_DISCARD]), atomic_load(&s->done[OP_ZERO]),
            (atomic_load(&s->bytes_read) + atomic_load(&s->bytes_written)) >> 20,
            resident(&stats) >> 10, stats.cleaner.tables_cleaned, tty ? "\033[K" : "\n");
}

/* Starts the workers and waits for them. */
static void run_load(stress *s)
{
    const stress_options *o = s->options;
    worker *workers = calloc(o->threads, sizeof(*workers));
    uint8_t *bufs = malloc(o->threads * o->max_request);
    int r = workers && bufs ? 0 : -ENOMEM;

    s->begun_ns = runtime_now_ns();
    s->deadline_ns = s->begun_ns + o->seconds * SECOND;
    for (unsigned i = 0; i < o->threads && r == 0; i++) {
        workers[i] = (worker){
            .s = s,
            .index = i,
            .random =
                (o->seed + 1) * UINT64_C(0x9e3779b97f4a7c15) + i * UINT64_C(0xd1342543de82ef95),
            .buf = bufs + i * o->max_request,
        };
        workers[i].random |= workers[i].random == 0;
        atomic_fetch_add(&s->working, 1);
        r = s->rt->ops->spawn(s->rt, i, stress_work, &workers[i]);
        if (r < 0)
            atomic_fetch_sub(&s->working, 1);
    }
    if (r == 0 && o->lifecycle_ms != 0)
        r = s->rt->ops->spawn(s->rt, 0, stress_lifecycle, s);
    if (r < 0)
        stress_fail(s, "cannot start a worker: %s", strerror(-r));
    s->rt->ops->wait_workers(s->rt, SECOND, progress_line, s);
    if (isatty(STDERR_FILENO))
        fputc('\n', stderr);
    free(workers);
    free(bufs);
}

/* The image stays open and nobody uses it: the cleaner gives the tables' memory back. It never
 * writes, so dirty tables are flushed before, again and again until those are written, too, whose
 * refcounts a flush has lowered. */
static void run_idle(stress *s)
{
    for (int i = 0; i < 3 && s->options->idle_seconds != 0; i++) {
        if (qcow2drv_flush(s->image) < 0)
            stress_fail(s, "cannot flush");
    }
    for (uint64_t i = 1; i <= s->options->idle_seconds; i++) {
        qcow2drv_stats stats;

        s->rt->ops->sleep_ns(s->rt, SECOND);
        if (qcow2drv_get_stats(s->image, &stats) == 0)
            fprintf(stderr,
                    "idle %4" PRIu64 " s  tables resident %" PRIu64 " KiB (%zu), cleaned %" PRIu64
                    "\n",
                    i, resident(&stats) >> 10,
                    stats.l2.resident_tables + stats.refcounts.resident_tables,
                    stats.cleaner.tables_cleaned);
    }
}

static int copy_rest(stress *s, FILE *file, uint8_t *buf)
{
    for (uint64_t at = s->shadow.size; at < s->shadow.disk_size; at += CHUNK) {
        size_t step = s->shadow.disk_size - at < CHUNK ? (size_t)(s->shadow.disk_size - at) : CHUNK;
        int r = qcow2drv_pread(s->image, at, buf, step);

        if (r < 0)
            return r;
        if (buf[0] == 0 && memcmp(buf, buf + 1, step - 1) == 0)
            continue;
        if (fseeko(file, (off_t)at, SEEK_SET) != 0 || fwrite(buf, 1, step, file) != step)
            return -errno;
    }
    return 0;
}

/* The expected contents; past the area nobody wrote, so what the driver reads there stands for
 * itself. */
static void write_shadow(stress *s)
{
    FILE *file = fopen(s->options->shadow_out, "wb");
    uint8_t *buf = malloc(CHUNK);
    int r = file && buf ? 0 : -errno;

    for (uint64_t at = 0; at < s->shadow.size && r == 0; at += CHUNK) {
        size_t step = s->shadow.size - at < CHUNK ? (size_t)(s->shadow.size - at) : CHUNK;

        memcpy(buf, s->shadow.bytes + at, step);
        if (buf[0] == 0 && memcmp(buf, buf + 1, step - 1) == 0)
            continue;
        if (fseeko(file, (off_t)at, SEEK_SET) != 0 || fwrite(buf, 1, step, file) != step)
            r = -errno;
    }
    if (r == 0)
        r = copy_rest(s, file, buf);
    if (r == 0 && (fflush(file) != 0 || ftruncate(fileno(file), (off_t)s->shadow.disk_size) != 0))
        r = -errno;
    if (file && fclose(file) != 0 && r == 0)
        r = -errno;
    free(buf);
    if (r < 0)
        stress_fail(s, "cannot write %s: %s", s->options->shadow_out, strerror(-r));
}

static void print_cache(const char *name, const q2c_cache_stats *c)
{
    printf("%s_hits: %" PRIu64 "\n", name, c->hits);
    printf("%s_misses: %" PRIu64 "\n", name, c->misses);
    printf("%s_loads: %" PRIu64 "\n", name, c->loads);
    printf("%s_evictions: %" PRIu64 "\n", name, c->evictions);
    printf("%s_write_backs: %" PRIu64 "\n", name, c->write_backs);
    printf("%s_writes: %" PRIu64 "\n", name, c->writes);
    printf("%s_cleaned: %" PRIu64 "\n", name, c->cleaned);
    printf("%s_discarded: %" PRIu64 "\n", name, c->discarded);
    printf("%s_tables: %zu\n", name, c->tables);
    printf("%s_table_size: %zu\n", name, c->table_size);
    printf("%s_resident_bytes: %" PRIu64 "\n", name, c->resident_bytes);
}

static void print_results(stress *s, const qcow2drv_stats *loaded, const qcow2drv_stats *idle)
{
    static const char *const names[] = { "reads", "writes", "discards", "zeroes", "flushes" };

    for (unsigned i = 0; i < OP_KINDS; i++)
        printf("%s: %" PRIu64 "\n", names[i], atomic_load(&s->done[i]));
    printf("racing_reads: %" PRIu64 "\n", atomic_load(&s->racing_reads));
    printf("shared_reads: %" PRIu64 "\n", atomic_load(&s->shared_reads));
    printf("bytes_read: %" PRIu64 "\n", atomic_load(&s->bytes_read));
    printf("bytes_written: %" PRIu64 "\n", atomic_load(&s->bytes_written));
    stress_lifecycle_figures(s);
    print_cache("l2", &loaded->l2);
    print_cache("refcount", &loaded->refcounts);
    printf("clusters_allocated: %" PRIu64 "\n", idle->clusters_allocated);
    printf("clusters_freed: %" PRIu64 "\n", idle->clusters_freed);
    printf("cleaner_passes: %" PRIu64 "\n", idle->cleaner.passes);
    printf("tables_cleaned: %" PRIu64 "\n", idle->cleaner.tables_cleaned);
    printf("resident_bytes_loaded: %" PRIu64 "\n", resident(loaded));
    printf("resident_bytes_idle: %" PRIu64 "\n", resident(idle));
    printf("resident_tables_loaded: %zu\n",
           loaded->l2.resident_tables + loaded->refcounts.resident_tables);
    printf("resident_tables_idle: %zu\n",
           idle->l2.resident_tables + idle->refcounts.resident_tables);
}

/* The run on the open image. */
static void run(stress *s)
{
    qcow2drv_stats loaded, idle;
    int r;

    read_all(s, take_over);
    if (atomic_load(&s->failed))
        return;
    shadow_judge(&s->shadow);
    run_load(s);
    r = qcow2drv_get_stats(s->image, &loaded);
    if (!atomic_load(&s->failed))
        run_idle(s);
    if (r == 0)
        r = qcow2drv_get_stats(s->image, &idle);
    if (r < 0)
        stress_fail(s, "no statistics: %s", strerror(-r));
    else
        print_results(s, &loaded, &idle);
    if (!atomic_load(&s->failed))
        read_all(s, verify_chunk);
    if (!atomic_load(&s->failed) && s->options->shadow_out)
        write_shadow(s);
}

static int run_on(const stress_options *o, struct runtime *rt, qcow2drv *image)
{
    stress s = { .options = o, .rt = rt, .image = image };
    qcow2drv_info info;
    uint64_t size;
    int r;

    qcow2drv_get_info(image, &info);
    size = o->area < info.virtual_size ? o->area : info.virtual_size;
    r = shadow_init(&s.shadow, size, info.virtual_size, info.cluster_size, o->threads);
    if (r < 0) {
        complain("%s: a disk of %" PRIu64 " bytes %s", o->image, size,
                 r == -EINVAL ? "is too small for that many workers"
                              : "is too large to keep a copy; use --area");
        return EXIT_FAILED;
    }
    run(&s);
    shadow_free(&s.shadow);
    printf("result: %s\n", atomic_load(&s.failed) ? "failed" : "verified");
    return atomic_load(&s.failed) ? EXIT_FAILED : EXIT_OK;
}

int cmd_stress(int argc, char **argv)
{
    stress_options o = {
        .threads = 4,
        .seconds = 10,
        .flush_every = 64,
        .max_request = 256 << 10,
        .area = 256 << 20,
        .seed = 1,
        .mix = { 50, 30, 10, 10 },
    };
    struct runtime *rt;
    qcow2drv *image;
    int code;

    common_init(&o.common);
    const cli_arg table[] = {
        { "--threads", ARG_NUMBER, &o.threads, 1, 1024 },
        { "--seconds", ARG_NUMBER, &o.seconds, 0, 86400 },
        { "--operations", ARG_NUMBER, &o.operations, 0, 0 },
        { "--mix", ARG_MIX, o.mix, 0, 0 },
        { "--flush-every", ARG_NUMBER, &o.flush_every, 0, 0 },
        { "--max-request", ARG_SIZE, &o.max_request, 1, 1 << 30 },
        { "--area", ARG_SIZE, &o.area, 1, 0 },
        { "--seed", ARG_NUMBER, &o.seed, 0, 0 },
        { "--lifecycle-ms", ARG_NUMBER, &o.lifecycle_ms, 0, 3600000 },
        { "--idle-seconds", ARG_NUMBER, &o.idle_seconds, 0, 86400 },
        { "--shadow-out", ARG_STRING, &o.shadow_out, 0, 0 },
        { "--damaged", ARG_STRING, &o.damaged, 0, 0 },
        { "--write-log", ARG_STRING, &o.common.write_log, 0, 0 },
        { "--progress", ARG_FLAG, &o.progress, 0, 0 },
        COMMON_ARGS(o.common),
        { 0 },
    };
    code = args_parse("stress", argc, argv, table, &o.image, 1);
    if (code == EXIT_OK)
        code = common_open(&o.common, o.image, true, &rt, &image);
    if (code != EXIT_OK)
        return code;
    code = run_on(&o, rt, image);
    return common_close(rt, &image, code);
}
