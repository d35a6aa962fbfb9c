/* SPDX-License-Identifier: MIT */
/* One worker of the stress run. */
#include <inttypes.h>
#include <string.h>

#include "stress.h"

static uint64_t next_random(worker *w)
{
    w->random ^= w->random << 13; /* xorshift64 */
    w->random ^= w->random >> 7;
    w->random ^= w->random << 17;
    return w->random;
}

static uint64_t below(worker *w, uint64_t n)
{
    return n < 2 ? 0 : next_random(w) % n;
}

typedef struct range {
    uint64_t offset;
    uint64_t bytes;
} range;

/* A part of [start, end), at most `most` bytes: short ones as often as long ones, often aligned. */
static range some_range(worker *w, uint64_t start, uint64_t end, uint64_t most)
{
    static const uint64_t alignments[] = { 4096, 4096, 512, 1 };
    uint64_t align = alignments[below(w, 4)], limit = UINT64_C(1) << (9 + below(w, 20));
    range r;

    limit = limit < most ? limit : most;
    r.offset = start + below(w, end - start);
    r.bytes = 1 + below(w, limit);
    if (r.offset - r.offset % align >= start)
        r.offset -= r.offset % align;
    if (r.bytes % align != 0)
        r.bytes += align - r.bytes % align;
    if (r.bytes > most)
        r.bytes = most;
    if (r.bytes > end - r.offset)
        r.bytes = end - r.offset;
    return r;
}

static area *own_area(worker *w)
{
    shadow *sh = &w->s->shadow;
    uint64_t mine = (sh->count - w->index + sh->workers - 1) / sh->workers;

    return &sh->areas[w->index + sh->workers * below(w, mine)];
}

static bool read_into_buf(worker *w, range r)
{
    int error = qcow2drv_pread(w->s->image, r.offset, w->buf, (size_t)r.bytes);

    if (error < 0) {
        stress_fail(w->s, "cannot read %" PRIu64 " bytes at %" PRIu64 ": %s", r.bytes, r.offset,
                    strerror(-error));
        return false;
    }
    atomic_fetch_add_explicit(&w->s->bytes_read, r.bytes, memory_order_relaxed);
    return true;
}

static void compare(worker *w, range r, const char *how)
{
    wrong_byte wrong;

    if (read_into_buf(w, r) &&
        !shadow_compare(&w->s->shadow, r.offset, w->buf, (size_t)r.bytes, &wrong))
        stress_wrong(w->s, how, &wrong);
}

/* A racing read: areas that held something else at the start are skipped. */
static void check_plausible(worker *w, range r)
{
    shadow *sh = &w->s->shadow;
    uint64_t length = sh->areas[0].end, end = r.offset + r.bytes;
    wrong_byte wrong;

    while (r.offset < end) {
        const area *a = &sh->areas[r.offset / length];
        uint64_t part = (a->end < end ? a->end : end) - r.offset;

        if (a->plausible && !shadow_plausible(r.offset, w->buf + (r.bytes - (end - r.offset)),
                                              (size_t)part, &wrong))
            stress_wrong(w->s, "racing read", &wrong);
        r.offset += part;
    }
}

static void do_read(worker *w)
{
    shadow *sh = &w->s->shadow;
    uint64_t most = w->s->options->max_request;
    area *a;

    switch (below(w, 4)) {
    case 0: /* anywhere, while others change it */
    {
        range r = some_range(w, 0, sh->size, most);
        range whole = r;

        if (!read_into_buf(w, r))
            return;
        check_plausible(w, whole);
        atomic_fetch_add_explicit(&w->s->racing_reads, 1, memory_order_relaxed);
    } break;
    case 1: /* another worker's, held still */
        a = &sh->areas[below(w, sh->count)];
        if (area_try_compare(a)) {
            compare(w, some_range(w, a->start, a->end, most), "shared read");
            area_end_compare(a);
            atomic_fetch_add_explicit(&w->s->shared_reads, 1, memory_order_relaxed);
            break;
        }
        /* fall through */
    default:
        a = own_area(w);
        compare(w, some_range(w, a->start, a->end, most), "own read");
    }
}

static int change(worker *w, op what, range r)
{
    stress *s = w->s;
    int error;

    switch (what) {
    case OP_WRITE:
        shadow_pattern(w->buf, r.offset, (size_t)r.bytes, next_random(w));
        error = qcow2drv_pwrite(s->image, r.offset, w->buf, (size_t)r.bytes);
        if (error == 0) {
            shadow_write(&s->shadow, r.offset, w->buf, (size_t)r.bytes);
            atomic_fetch_add_explicit(&s->bytes_written, r.bytes, memory_order_relaxed);
        }
        return error;
    case OP_DISCARD:
        error = qcow2drv_discard(s->image, r.offset, r.bytes);
        if (error == 0)
            shadow_discard(&s->shadow, r.offset, r.bytes);
        return error;
    default:
        error = qcow2drv_zero(s->image, r.offset, r.bytes);
        if (error == 0)
            shadow_zero(&s->shadow, r.offset, r.bytes);
        return error;
    }
}

static void do_change(worker *w, op what)
{
    static const char *const names[] = { "read", "write", "discard", "zero" };
    stress *s = w->s;
    area *a = own_area(w);
    uint64_t most = what == OP_WRITE ? s->options->max_request : 4 * s->shadow.cluster_size;
    range r;
    int error;

    if (!area_try_change(a))
        return; /* somebody compares it: another operation, then */
    r = some_range(w, a->start, a->end,
                   most > s->options->max_request ? most : s->options->max_request);
    if (what == OP_WRITE && r.bytes > most)
        r.bytes = most;
    error = change(w, what, r);
    area_end_change(a);
    if (error < 0)
        stress_fail(s, "cannot %s %" PRIu64 " bytes at %" PRIu64 ": %s", names[what], r.bytes,
                    r.offset, strerror(-error));
    else
        atomic_fetch_add_explicit(&s->done[what], 1, memory_order_relaxed);
}

static void do_flush(worker *w)
{
    int error = qcow2drv_flush(w->s->image);

    if (error < 0)
        stress_fail(w->s, "cannot flush: %s", strerror(-error));
    else
        atomic_fetch_add_explicit(&w->s->done[OP_FLUSH], 1, memory_order_relaxed);
}

static op choose(worker *w)
{
    uint64_t dice = below(w, 100);
    unsigned what = OP_READ;

    while (what < OP_ZERO && dice >= w->s->options->mix[what])
        dice -= w->s->options->mix[what++];
    return (op)what;
}

void stress_work(void *arg)
{
    worker *w = arg;
    stress *s = w->s;
    const stress_options *o = s->options;

    for (uint64_t n = 1; !atomic_load(&s->stop); n++) {
        op what = choose(w);

        if (what == OP_READ) {
            do_read(w);
            atomic_fetch_add_explicit(&s->done[OP_READ], 1, memory_order_relaxed);
        } else {
            do_change(w, what);
        }
        if (o->flush_every != 0 && n % o->flush_every == 0)
            do_flush(w);
        if (runtime_now_ns() >= s->deadline_ns || n == o->operations)
            break;
    }
    atomic_fetch_sub(&s->working, 1);
}
