/* SPDX-License-Identifier: MIT */
/* The command qcow2drv: what its subcommands share. Plain code, one thread, unless it says
 * otherwise. */
#ifndef QCOW2DRV_COMMAND_H
#define QCOW2DRV_COMMAND_H

#include <stdatomic.h>

#include "qcow2.h"
#include "runtime.h"

/* Exit codes. */
#define EXIT_OK     0
#define EXIT_FAILED 1 /* I/O error, refused image, wrong byte */
#define EXIT_USAGE  2

/* size.c: a number with an optional K, M, G or T (powers of 1024), as QEMU writes sizes. 0, or
 * -EINVAL: no such number; -ERANGE: over 2^63 - 1. */
int size_parse(const char *text, uint64_t *value);

typedef enum arg_kind {
    ARG_FLAG,   /* bool */
    ARG_NUMBER, /* uint64_t, plain */
    ARG_SIZE,   /* uint64_t, with K/M/G */
    ARG_STRING, /* const char * */
    ARG_CACHE,  /* q2c_options: KEY=VALUE,... ; may be given more than once */
    ARG_MIX,    /* unsigned[4]: percentages a:b:c:d, 100 together */
} arg_kind;

typedef struct cli_arg {
    const char *name; /* with its dashes */
    arg_kind kind;
    void *to;
    uint64_t min, max; /* of numbers and sizes; max 0 = no limit */
} cli_arg;

/* args.c: takes argv apart: options by the table (ended by name NULL), and exactly `wanted` other
 * words into `words`. Prints what is wrong and returns EXIT_USAGE, or EXIT_OK. */
int args_parse(const char *command, int argc, char **argv, const cli_arg *table, const char **words,
               int wanted);

/* What every subcommand that opens an image takes. */
typedef struct common {
    const char *host;
    uint64_t contexts;
    q2c_options cache;
    uint64_t cleaner_interval_ms;
    const char *write_log;
    _Atomic bool damage_reported; /* the driver has said what is wrong with the image; no second
                                     line is needed */
} common;

#define COMMON_ARGS(c)                                                                             \
    { "-o", ARG_CACHE, &(c).cache, 0, 0 }, { "--host", ARG_STRING, &(c).host, 0, 0 },              \
        { "--contexts", ARG_NUMBER, &(c).contexts, 1, 64 },                                        \
    {                                                                                              \
        "--cleaner-interval-ms", ARG_NUMBER, &(c).cleaner_interval_ms, 0, UINT32_MAX               \
    }

void common_init(common *c);
/* The runtime, then the image in it. Prints what is wrong; returns an exit code. */
int common_open(common *c, const char *name, bool writable, struct runtime **rt, qcow2drv **image);
/* Closes both; prints what is wrong. Returns `code`, or EXIT_FAILED if it was EXIT_OK and closing
 * failed. */
int common_close(struct runtime *rt, qcow2drv **image, int code);

/* A request has failed: "qcow2drv: " and the message, unless the driver has said why. */
#define COMPLAIN_UNLESS_REPORTED(c, ...)                                                           \
    do {                                                                                           \
        if (!atomic_load(&(c)->damage_reported))                                                   \
            complain(__VA_ARGS__);                                                                 \
    } while (0)

/* "qcow2drv: " and the message on standard error. */
void complain(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* argv without program and subcommand name; return an exit code. */
int cmd_info(int argc, char **argv);
int cmd_read(int argc, char **argv);
int cmd_write(int argc, char **argv);
int cmd_stress(int argc, char **argv);
int cmd_bench(int argc, char **argv);

#endif
