/* SPDX-License-Identifier: MIT */
/* The stress run: what its parts share. */
#ifndef QCOW2DRV_STRESS_H
#define QCOW2DRV_STRESS_H

#include "command.h"
#include "shadow.h"

typedef enum op { OP_READ, OP_WRITE, OP_DISCARD, OP_ZERO, OP_FLUSH, OP_KINDS } op;

typedef struct stress_options {
    common common;
    const char *image;
    uint64_t threads, seconds, operations, flush_every, max_request, area, seed, lifecycle_ms,
        idle_seconds;
    unsigned mix[4];
    const char *shadow_out;
    const char *damaged; /* NULL, or an image whose open must fail with EINVAL */
    bool progress;
} stress_options;

enum { STRESS_STEPS = 6 };

typedef struct stress {
    const stress_options *options;
    struct runtime *rt;
    qcow2drv *image;
    shadow shadow;
    uint64_t begun_ns, deadline_ns;
    _Atomic bool stop;               /* the time is over or something failed */
    _Atomic bool failed;             /* said so on standard error */
    _Atomic unsigned working;        /* workers besides the one that changes options */
    _Atomic uint64_t done[OP_KINDS]; /* operations */
    _Atomic uint64_t bytes_read, bytes_written;
    _Atomic uint64_t racing_reads, shared_reads;
    _Atomic uint64_t steps[STRESS_STEPS]; /* of the life cycle */
} stress;

typedef struct worker {
    stress *s;
    unsigned index;
    uint64_t random; /* state; never zero */
    uint8_t *buf;    /* max_request bytes */
} worker;

/* stress_worker.c: entry of a worker; arg is a worker. */
void stress_work(void *arg);
/* stress_lifecycle.c: entry of the worker that changes what is around the others; arg is the
 * stress. */
void stress_lifecycle(void *arg);
/* How often each step was made; the run has failed if one that was asked for never was. After the
 * load. */
void stress_lifecycle_figures(stress *s);

/* Any worker: says what went wrong, once, and ends the run. */
void stress_fail(stress *s, const char *format, ...) __attribute__((format(printf, 2, 3)));
void stress_wrong(stress *s, const char *how, const wrong_byte *wrong);

#endif
