/* SPDX-License-Identifier: MIT */
/* The command qcow2drv: help, and the choice of the subcommand. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "command.h"

/* clang-format off: one line of help in one line of code */
#define COMMON_HELP                                                                                \
    "  -o KEY=VALUE,...          cache options with QEMU's names: cache-size, l2-cache-size,\n"    \
    "                            refcount-cache-size, l2-cache-entry-size (bytes, with K, M, "     \
    "G),\n"                                                                                        \
    "                            cache-clean-interval (seconds, 0 = never)\n"                      \
    "  --cleaner-interval-ms N   in place of cache-clean-interval, for intervals below a second\n" \
    "  --host=NAME               host of the library: threads, loops (its own event loops) or\n"   \
    "                            coroutines\n"                                                     \
    "  --contexts=N              number of event loops, on hosts that have some (2)\n"

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *help;
} commands[] = {
    { "info", cmd_info,
      "usage: qcow2drv info IMAGE\n"
      "Prints what the header says and how large the caches would be, one 'name: value' a "
      "line.\n" COMMON_HELP "example: qcow2drv info -o l2-cache-size=1M disk.qcow2\n" },
    { "read", cmd_read,
      "usage: qcow2drv read IMAGE OFFSET LENGTH\n"
      "Copies a part of the disk to standard output. OFFSET and LENGTH are bytes; K, M, G may\n"
      "follow.\n" COMMON_HELP "example: qcow2drv read disk.qcow2 1M 4K | hexdump -C\n" },
    { "write", cmd_write,
      "usage: qcow2drv write IMAGE OFFSET\n"
      "Copies standard input to the disk, from OFFSET on, and flushes.\n" COMMON_HELP
      "example: qcow2drv write disk.qcow2 1M < sector.bin\n" },
    { "stress", cmd_stress,
      "usage: qcow2drv stress IMAGE\n"
      "Reads, writes, discards and zeroes from several workers at once, and compares every byte\n"
      "read with a copy of the disk in memory. In the end it compares the whole disk. Prints\n"
      "'name: value' lines; exit status 1 at the first wrong byte.\n"
      "THE IMAGE'S CONTENTS ARE OVERWRITTEN.\n"
      "  --threads=N               workers (4)\n"
      "  --seconds=N               how long (10)\n"
      "  --operations=N            end earlier, after N operations of each worker\n"
      "  --mix=R:W:D:Z             percentages of reads, writes, discards, zeroes (50:30:10:10)\n"
      "  --flush-every=N           each worker flushes after every N operations; 0 = never (64)\n"
      "  --max-request=SIZE        longest request (256K)\n"
      "  --area=SIZE               only the first SIZE bytes of the disk (256M, or the disk's "
      "size)\n"
      "  --seed=N                  seed of the random numbers (1)\n"
      "  --lifecycle-ms=N          every N ms one step, in turn: change options with the lock "
      "held,\n"
      "                            detach and attach, change options without the lock, prepare "
      "and\n"
      "                            abort a change, inactivate and invalidate\n"
      "  --idle-seconds=N          after the load keep the image open, and print the caches'\n"
      "                            resident memory every second: it falls as the cleaner works\n"
      "  --damaged=FILE            an image that cannot be opened; opening it becomes one of the\n"
      "                            steps of --lifecycle-ms\n"
      "  --shadow-out=FILE         write the disk's expected contents, for 'qemu-img compare'\n"
      "  --write-log=FILE          record every write and flush, for tests of crash consistency\n"
      "  --progress                a line every second, even if standard error is no "
      "terminal\n" COMMON_HELP
      "example: qcow2drv stress --threads 4 --seconds 20 --cleaner-interval-ms 5 \\\n"
      "             -o l2-cache-size=64K disk.qcow2\n" },
    { "bench", cmd_bench,
      "usage: qcow2drv bench IMAGE\n"
      "Reads blocks from all over the disk, read-only, and prints how long one read takes.\n"
      "  --threads=N               requests in flight (1)\n"
      "  --seconds=N               how long (5)\n"
      "  --block=SIZE              bytes per request (4K)\n"
      "  --area=SIZE               only the first SIZE bytes of the disk\n"
      "  --sequential              one block after the other instead of random ones\n"
      "  --bare                    plain pread(2) of the same host offsets, without the driver:\n"
      "                            the upper limit\n"
      "  --warm                    read every block once before the clock starts\n"
      "  --seed=N                  seed of the random numbers (1)\n" COMMON_HELP
      "example: qcow2drv bench --threads 16 -o l2-cache-size=256K,l2-cache-entry-size=4K "
      "disk.qcow2\n"
      "example: qcow2drv bench --threads 16 'nbd+unix:///?socket=/tmp/disk.sock'\n" },
};
/* clang-format on */

#define COMMANDS (sizeof(commands) / sizeof(commands[0]))

static void usage(FILE *to)
{
    fputs(
        "usage: qcow2drv COMMAND [OPTIONS] IMAGE ...\n"
        "A qcow2 block driver on libqcow2cache. IMAGE is a path, or an nbd+unix:// URI if it was\n"
        "built with libnbd.\n"
        "commands: info, read, write, stress, bench; 'qcow2drv COMMAND --help' explains one.\n",
        to);
    for (size_t i = 0; i < COMMANDS; i++)
        fprintf(to, "\n%s", commands[i].help);
}

void common_init(common *c)
{
    memset(c, 0, sizeof(*c));
    c->host = "threads";
    c->contexts = 2;
    q2c_options_init(&c->cache);
}

static void report(void *opaque, const char *message)
{
    common *c = opaque;

    atomic_store(&c->damage_reported, true);
    complain("%s", message);
}

int common_open(common *c, const char *name, bool writable, struct runtime **rt, qcow2drv **image)
{
    qcow2drv_open_options options = {
        .writable = writable,
        .cache = &c->cache,
        .clean_interval_ns = c->cleaner_interval_ms * 1000000u,
        .report = report,
        .report_opaque = c,
        .write_log = c->write_log,
    };
    qcow2drv_error error;

    *rt = runtime_new(c->host, (unsigned)c->contexts);
    if (!*rt) {
        complain("--host: '%s': %s; this build has: %s", c->host, strerror(errno), runtime_names());
        return EXIT_USAGE;
    }
    options.runtime = *rt;
    options.context = (*rt)->ops->context(*rt, 0);
    if (qcow2drv_open(name, &options, image, &error) < 0) {
        complain("%s", error.message);
        (*rt)->ops->free(*rt);
        return EXIT_FAILED;
    }
    return EXIT_OK;
}

int common_close(struct runtime *rt, qcow2drv **image, int code)
{
    int r = qcow2drv_close(image);

    if (r < 0) {
        complain("cannot close the image: %s; what was not flushed is lost", strerror(-r));
        qcow2drv_abandon(image);
        code = code == EXIT_OK ? EXIT_FAILED : code;
    }
    rt->ops->free(rt);
    return code;
}

static bool wants_help(int argc, char **argv)
{
    for (int i = 0; i < argc && strcmp(argv[i], "--") != 0; i++) {
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0)
            return true;
    }
    return false;
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        usage(stderr);
        return EXIT_USAGE;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 ||
        strcmp(argv[1], "help") == 0) {
        usage(stdout);
        return EXIT_OK;
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("qcow2drv on libqcow2cache %s\n", q2c_version());
        return EXIT_OK;
    }
    for (size_t i = 0; i < COMMANDS; i++) {
        if (strcmp(argv[1], commands[i].name) != 0)
            continue;
        if (wants_help(argc - 2, argv + 2)) {
            fputs(commands[i].help, stdout);
            return EXIT_OK;
        }
        return commands[i].run(argc - 2, argv + 2);
    }
    complain("unknown command '%s'; known are info, read, write, stress and bench", argv[1]);
    return EXIT_USAGE;
}
