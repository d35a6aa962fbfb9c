/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Puts the example driver under loads such as fio makes. OVERWRITES THE IMAGE'S CONTENTS.
 *
 * usage: mixes IMAGE SECONDS-PER-MIX
 *
 * Runs one mix after the other, each with four threads:
 *
 *   randrw    7 of 10 requests read, the others write; 4 KiB each; zipf with exponent 1.1 over the
 *             disk
 *   backup    three threads as in randrw; one reads the disk from front to back, 256 KiB at a time
 *   copy      two threads write different parts from front to back, 64 KiB at a time; two read 4
 *             KiB at random, with the same zipf law
 *   randread  4 KiB each; every block is equally likely
 */
#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "qcow2.h"

#define THREADS 4
#define BLOCK   UINT64_C(4096)
#define CHUNK   (UINT64_C(256) << 10)

enum kind { ZIPF_READ, ZIPF_READ_WRITE, UNIFORM_READ, SEQUENTIAL_READ, SEQUENTIAL_WRITE };

static const struct {
    const char *name;
    enum kind threads[THREADS];
} mixes[] = {
    { "randrw", { ZIPF_READ_WRITE, ZIPF_READ_WRITE, ZIPF_READ_WRITE, ZIPF_READ_WRITE } },
    { "backup", { ZIPF_READ_WRITE, ZIPF_READ_WRITE, ZIPF_READ_WRITE, SEQUENTIAL_READ } },
    { "copy", { SEQUENTIAL_WRITE, SEQUENTIAL_WRITE, ZIPF_READ, ZIPF_READ } },
    { "randread", { UNIFORM_READ, UNIFORM_READ, UNIFORM_READ, UNIFORM_READ } },
};

typedef struct worker {
    qcow2drv *image;
    enum kind kind;
    uint64_t random, size, at, done;
    double until;
    char *buf;
} worker;

static double seconds(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static uint64_t next_random(worker *w)
{
    w->random ^= w->random << 13; /* xorshift64 */
    w->random ^= w->random >> 7;
    w->random ^= w->random << 17;
    return w->random;
}

/* Returns a block by zipf's law with exponent 1.1, by inverting the continuous distribution. The
 * places of the popular blocks are random. */
static uint64_t zipf_block(worker *w)
{
    const double exponent = 1.1, blocks = (double)(w->size / BLOCK);
    double u = (double)(next_random(w) >> 11) / 9007199254740992.0;
    double rank = pow(1 + u * (pow(blocks, 1 - exponent) - 1), 1 / (1 - exponent));

    return ((uint64_t)rank * UINT64_C(2654435761)) % (w->size / BLOCK);
}

static int request(worker *w)
{
    uint64_t offset;

    switch (w->kind) {
    case ZIPF_READ:
    case ZIPF_READ_WRITE:
        offset = zipf_block(w) * BLOCK;
        if (w->kind == ZIPF_READ_WRITE && next_random(w) % 10 < 3)
            return qcow2drv_pwrite(w->image, offset, w->buf, BLOCK);
        return qcow2drv_pread(w->image, offset, w->buf, BLOCK);
    case UNIFORM_READ:
        return qcow2drv_pread(w->image, next_random(w) % (w->size / BLOCK) * BLOCK, w->buf, BLOCK);
    case SEQUENTIAL_READ:
        offset = w->at;
        w->at = (w->at + CHUNK) % w->size;
        return qcow2drv_pread(w->image, offset, w->buf, CHUNK);
    case SEQUENTIAL_WRITE:
        offset = w->at;
        w->at = (w->at + CHUNK / 4) % w->size;
        return qcow2drv_pwrite(w->image, offset, w->buf, CHUNK / 4);
    }
    return 0;
}

static void *work(void *arg)
{
    worker *w = arg;

    while (seconds() < w->until) {
        int r = request(w);

        if (r < 0) {
            fprintf(stderr, "mixes: request: %s\n", strerror(-r));
            exit(1);
        }
        w->done++;
    }
    return NULL;
}

static uint64_t run(qcow2drv *image, uint64_t size, size_t mix, double length)
{
    worker workers[THREADS];
    pthread_t threads[THREADS];
    uint64_t done = 0;

    for (size_t i = 0; i < THREADS; i++) {
        workers[i] = (worker){
            .image = image,
            .kind = mixes[mix].threads[i],
            .random = (mix * THREADS + i + 1) * UINT64_C(0x9e3779b97f4a7c15),
            .size = size,
            .at = size / THREADS * i / CHUNK * CHUNK,
            .until = seconds() + length,
            .buf = calloc(1, CHUNK),
        };
        if (!workers[i].buf || pthread_create(&threads[i], NULL, work, &workers[i]) != 0) {
            fprintf(stderr, "mixes: no memory\n");
            exit(1);
        }
    }
    for (size_t i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        free(workers[i].buf);
        done += workers[i].done;
    }
    return done;
}

int main(int argc, char **argv)
{
    q2c_options cache;
    qcow2drv_open_options options = { .writable = true, .cache = &cache };
    qcow2drv_error error;
    qcow2drv_info info;
    qcow2drv *image;
    int r;

    if (argc != 3) {
        fprintf(stderr, "usage: mixes IMAGE SECONDS-PER-MIX\n");
        return 2;
    }
    q2c_options_init(&cache);
    /* Small slices, so that a small image has many of them. Which table is asked for does not
     * depend on the cache. */
    cache.set = Q2C_OPTION_L2_CACHE_ENTRY_SIZE | Q2C_OPTION_L2_CACHE_SIZE;
    cache.l2_cache_entry_size = 512;
    cache.l2_cache_size = UINT64_C(256) << 10;
    if (qcow2drv_open(argv[1], &options, &image, &error) < 0) {
        fprintf(stderr, "mixes: %s\n", error.message);
        return 1;
    }
    qcow2drv_get_info(image, &info);
    for (size_t i = 0; i < sizeof(mixes) / sizeof(mixes[0]); i++)
        printf("%s: %" PRIu64 " requests\n", mixes[i].name,
               run(image, info.virtual_size, i, strtod(argv[2], NULL)));
    r = qcow2drv_close(&image);
    if (r < 0)
        fprintf(stderr, "mixes: close: %s\n", strerror(-r));
    return r < 0;
}
