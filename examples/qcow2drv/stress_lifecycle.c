/* SPDX-License-Identifier: MIT */
/* What a program does to an open image while its guest works: new options, another context,
 * migration. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "stress.h"

/* Two sets of options in turn: the user's own, and small caches with small slices. */
static int change_options(stress *s, uint64_t round, bool locked, qcow2drv_error *error)
{
    q2c_options options = s->options->common.cache;
    uint64_t interval_ns = s->options->common.cleaner_interval_ms * 1000000u;

    if (round % 2 == 0) {
        q2c_options_init(&options);
        options.set = Q2C_OPTION_L2_CACHE_SIZE | Q2C_OPTION_L2_CACHE_ENTRY_SIZE;
        options.l2_cache_entry_size = s->shadow.cluster_size < 1024 ? s->shadow.cluster_size : 1024;
        options.l2_cache_size = 8 * options.l2_cache_entry_size;
    }
    return qcow2drv_set_options(s->image, &options, interval_ns, locked, error);
}

static int wrong(qcow2drv_error *error, int code, const char *message)
{
    *error = (qcow2drv_error){ .code = code };
    snprintf(error->message, sizeof(error->message), "%s", message);
    return -code;
}

/* A move changes nothing for the cleaner: the interval is as it was, and it works in the new
 * context. One pass more may be of the old one, which was on its way out. */
static int check_moved_cleaner(stress *s, uint64_t passes_before, qcow2drv_error *error)
{
    if (s->options->common.cleaner_interval_ms == 0 ||
        s->options->common.cleaner_interval_ms > 1000)
        return 0; /* not known here; not within the time of a test */
    for (int ms = 0; ms < 10000 && !atomic_load(&s->stop); ms++) {
        qcow2drv_stats stats;
        int r = qcow2drv_get_stats(s->image, &stats);

        if (r < 0)
            return wrong(error, -r, "no figures");
        if (stats.cleaner.interval_ns != s->options->common.cleaner_interval_ms * 1000000u)
            return wrong(error, ERANGE, "the move changed the cleaner's interval");
        if (stats.cleaner.passes >= passes_before + 2)
            return 0;
        s->rt->ops->sleep_ns(s->rt, 1000000);
    }
    return atomic_load(&s->stop) ? 0 : wrong(error, ETIME, "no pass in the new context");
}

static int move(stress *s, uint64_t round, qcow2drv_error *error)
{
    const runtime_ops *ops = s->rt->ops;
    qcow2drv_stats stats;
    int r;

    /* As a host does that changes its graph of block nodes: a detach that waited would abort the
     * program. */
    if (ops->forbid_waits)
        ops->forbid_waits(s->rt, true);
    r = qcow2drv_detach(s->image);
    if (ops->forbid_waits)
        ops->forbid_waits(s->rt, false);
    if (r == 0)
        r = qcow2drv_get_stats(s->image, &stats);
    if (r == 0) {
        ops->sleep_ns(s->rt, 1000000);
        r = qcow2drv_attach(
            s->image, ops->context(s->rt, (unsigned)((round + 1) % s->options->common.contexts)));
    }
    return r < 0 ? wrong(error, -r, "detach or attach")
                 : check_moved_cleaner(s, stats.cleaner.passes, error);
}

static int hand_over(stress *s, uint64_t round, qcow2drv_error *error)
{
    int r = qcow2drv_inactivate(s->image, error);

    (void)round;
    return r < 0 ? r : qcow2drv_invalidate(s->image, error);
}

/* An image whose open fails half-way, its cleaner running already, beside the one that works. */
static int fail_to_open(stress *s, uint64_t round, qcow2drv_error *error)
{
    qcow2drv_open_options options = {
        .writable = true,
        .clean_interval_ns = 1000000,
        .runtime = s->rt,
        .context = s->rt->ops->context(s->rt, (unsigned)(round % s->options->common.contexts)),
    };
    qcow2drv *image = NULL;
    int r = qcow2drv_open(s->options->damaged, &options, &image, error);

    if (r == 0) {
        qcow2drv_close(&image);
        return wrong(error, EBADMSG, "the damaged image can be opened");
    }
    /* Anything else comes before the caches and the cleaner. */
    return r == -EINVAL && strstr(error->message, "refcount 0") ? 0 : r;
}

static int change_locked(stress *s, uint64_t round, qcow2drv_error *error)
{
    return change_options(s, round, true, error);
}

static int change_unlocked(stress *s, uint64_t round, qcow2drv_error *error)
{
    return change_options(s, round + 1, false, error);
}

static int give_up_change(stress *s, uint64_t round, qcow2drv_error *error)
{
    (void)round;
    return qcow2drv_check_options(s->image, &s->options->common.cache, error);
}

static const struct {
    const char *name;
    int (*make)(stress *s, uint64_t round, qcow2drv_error *error);
} steps[STRESS_STEPS] = {
    { "change_locked", change_locked },     { "move", move },
    { "change_unlocked", change_unlocked }, { "failed_open", fail_to_open },
    { "give_up_change", give_up_change },   { "hand_over", hand_over },
};

static bool is_wanted(const stress *s, unsigned step)
{
    return s->options->lifecycle_ms != 0 &&
           (steps[step].make != fail_to_open || s->options->damaged);
}

void stress_lifecycle(void *arg)
{
    stress *s = arg;

    for (uint64_t n = 0; atomic_load(&s->working) != 0 && !atomic_load(&s->stop); n++) {
        unsigned step = (unsigned)(n % STRESS_STEPS);
        qcow2drv_error error = { 0 };
        int r;

        if (!is_wanted(s, step))
            continue;
        r = steps[step].make(s, n / STRESS_STEPS, &error);
        if (r < 0)
            stress_fail(s, "%s: %s: %s", steps[step].name, error.message, strerror(-r));
        atomic_fetch_add_explicit(&s->steps[step], 1, memory_order_relaxed);
        s->rt->ops->sleep_ns(s->rt, s->options->lifecycle_ms * 1000000u);
    }
}

void stress_lifecycle_figures(stress *s)
{
    for (unsigned step = 0; step < STRESS_STEPS; step++) {
        uint64_t made = atomic_load(&s->steps[step]);

        printf("%s: %" PRIu64 "\n", steps[step].name, made);
        if (made == 0 && is_wanted(s, step))
            stress_fail(s, "%s was never made: more --seconds, please", steps[step].name);
    }
}
