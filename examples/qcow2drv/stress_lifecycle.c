/* SPDX-License-Identifier: MIT */
/* What a program does to an open image while its guest works: new options, another context, migration. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "stress.h"

enum { KINDS = 6 }; /* of steps */

/* Two sets of options in turn: the user's own, and small caches with small slices. */
static int change_options(stress *s, uint64_t round, bool locked, qd_error *error)
{
    q2c_options options = s->options->common.cache;
    uint64_t interval_ns = s->options->common.cleaner_interval_ms * 1000000u;

    if (round % 2 == 0) {
        q2c_options_init(&options);
        options.set = Q2C_OPTION_L2_CACHE_SIZE | Q2C_OPTION_L2_CACHE_ENTRY_SIZE;
        options.l2_cache_entry_size = s->shadow.cluster_size < 1024 ? s->shadow.cluster_size : 1024;
        options.l2_cache_size = 8 * options.l2_cache_entry_size;
    }
    return qd_set_options(s->image, &options, interval_ns, locked, error);
}

/* A move does not change the interval: the cleaner works in the new context as it did in the old one. */
static int check_interval(stress *s, qd_error *error)
{
    qd_stats stats;
    int r = qd_get_stats(s->image, &stats);

    if (r == 0 && stats.cleaner.interval_ns != s->options->common.cleaner_interval_ms * 1000000u) {
        *error = (qd_error){ .code = ERANGE, .message = "the move changed the cleaner's interval" };
        return -ERANGE;
    }
    return r < 0 ? r : 0;
}

static int move(stress *s, uint64_t round, qd_error *error)
{
    const rt_ops *ops = s->rt->ops;
    int r;

    /* As a host does that changes its graph of block nodes: a detach that waited would abort the program. */
    if (ops->forbid_waits)
        ops->forbid_waits(s->rt, true);
    r = qd_detach(s->image);
    if (ops->forbid_waits)
        ops->forbid_waits(s->rt, false);
    if (r == 0) {
        ops->sleep_ns(s->rt, 1000000);
        r = qd_attach(s->image, ops->context(s->rt, (unsigned)(round % s->options->common.contexts)));
    }
    if (r < 0)
        *error = (qd_error){ .code = -r, .message = "detach or attach" };
    return r < 0 ? r : check_interval(s, error);
}

static int hand_over(stress *s, qd_error *error)
{
    int r = qd_inactivate(s->image, error);

    return r < 0 ? r : qd_invalidate(s->image, error);
}

/* An image whose open fails half-way, its cleaner running already, beside the one that works. */
static int fail_to_open(stress *s, uint64_t round, qd_error *error)
{
    qd_open_options options = {
        .writable = true,
        .clean_interval_ns = 1000000,
        .runtime = s->rt,
        .context = s->rt->ops->context(s->rt, (unsigned)(round % s->options->common.contexts)),
    };
    qd *image = NULL;

    if (!s->options->damaged || qd_open(s->options->damaged, &options, &image, error) == -EINVAL)
        return 0;
    if (image)
        qd_close(&image);
    error->code = EBADMSG;
    return -EBADMSG;
}

void stress_lifecycle(void *arg)
{
    stress *s = arg;
    uint64_t n = 0;

    while (atomic_load(&s->working) != 0 && !atomic_load(&s->stop)) {
        qd_error error = { 0 };
        int r;

        switch (n % KINDS) {
        case 0: r = change_options(s, n / KINDS, true, &error); break;
        case 1: r = move(s, n / KINDS + 1, &error); break;
        case 2: r = change_options(s, n / KINDS + 1, false, &error); break;
        case 3: r = fail_to_open(s, n / KINDS, &error); break;
        case 4: r = qd_check_options(s->image, &s->options->common.cache, &error); break;
        default: r = hand_over(s, &error); break;
        }
        if (r < 0)
            stress_fail(s, "life-cycle step %" PRIu64 ": %s: %s", n % KINDS, error.message, strerror(-r));
        n++;
        atomic_fetch_add_explicit(&s->lifecycle_events, 1, memory_order_relaxed);
        s->rt->ops->sleep_ns(s->rt, s->options->lifecycle_ms * 1000000u);
    }
    if (n < KINDS)
        stress_fail(s, "only %" PRIu64 " of %d kinds of life-cycle steps were made: more --seconds, please", n, KINDS);
}
