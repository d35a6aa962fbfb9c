/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* The loop as a GSource of a GLib main loop, next to a timeout of GLib. */
#include <glib.h>

#include "looping.h"

struct loop_source {
    GSource source;
    q2c_loop *loop;
    gpointer tag;
};

/* How long GLib may wait, in ms. Rounded up; otherwise it would spin until the timer is due. */
static gboolean prepare(GSource *source, gint *timeout_ms)
{
    int64_t timeout_ns = loop_timeout(((struct loop_source *)source)->loop);

    *timeout_ms = timeout_ns < 0 ? -1 : (gint)((timeout_ns + 999999) / 1000000);
    return timeout_ns == 0;
}

static gboolean check(GSource *source)
{
    struct loop_source *ours = (struct loop_source *)source;

    return (g_source_query_unix_fd(source, ours->tag) & G_IO_IN) != 0 ||
           loop_timeout(ours->loop) == 0;
}

static gboolean dispatch(GSource *source, GSourceFunc callback, gpointer data)
{
    (void)callback, (void)data;
    CHECK(q2c_loop_dispatch(((struct loop_source *)source)->loop) >= 0);
    return G_SOURCE_CONTINUE;
}

static GSourceFuncs functions = { .prepare = prepare, .check = check, .dispatch = dispatch };

static GMainContext *context;
static q2c_loop *loop;
static q2c_cleaner *cleaner;
static unsigned ticks;

static gboolean tick(gpointer data)
{
    (void)data;
    ticks++;
    return G_SOURCE_CONTINUE;
}

static void glib_serves_the_loop_and_a_timeout(void)
{
    GSource *timeout = g_timeout_source_new(1);

    ticks = 0;
    g_source_set_callback(timeout, tick, NULL, NULL);
    g_source_attach(timeout, context);
    CHECK_INT(q2c_cleaner_start(cleaner, loop, 2 * MILLISECOND), 0);
    while (cleaner_stats(cleaner).passes < 5 || ticks < 5) {
        g_main_context_iteration(context, TRUE);
    }
    CHECK_INT(q2c_cleaner_del_and_wait(cleaner), 0);
    g_source_destroy(timeout);
    g_source_unref(timeout);
}

static void start_it(void *argument)
{
    CHECK_INT(q2c_cleaner_start(argument, loop, MILLISECOND), 0);
}

/* GLib waits without a limit, and this is its only source. */
static void start_in_another_thread_wakes_glib(void)
{
    struct thread thread;

    thread_start(&thread, start_it, cleaner);
    while (cleaner_stats(cleaner).passes < 3) {
        g_main_context_iteration(context, TRUE);
    }
    thread_join(&thread);
    CHECK_INT(q2c_cleaner_del_and_wait(cleaner), 0);
}

static void paused_clock_sets_no_timeout_in_glib(void)
{
    CHECK_INT(q2c_loop_clock_pause(loop), 0);
    CHECK_INT(q2c_cleaner_start(cleaner, loop, MILLISECOND), 0);
    while (g_main_context_iteration(context, FALSE)) {
    }
    CHECK_INT(loop_timeout(loop), -1);
    CHECK_INT(q2c_loop_clock_resume(loop), 0);
    while (cleaner_stats(cleaner).passes < 10) {
        g_main_context_iteration(context, TRUE);
    }
    CHECK_INT(q2c_cleaner_del_and_wait(cleaner), 0);
}

int main(void)
{
    GSource *source;

    test_begin();
    context = g_main_context_new();
    loop = loop_new();
    cleaner = loop_cleaner_new();
    source = g_source_new(&functions, sizeof(struct loop_source));
    ((struct loop_source *)source)->loop = loop;
    ((struct loop_source *)source)->tag = g_source_add_unix_fd(source, q2c_loop_fd(loop), G_IO_IN);
    g_source_attach(source, context);
    RUN(glib_serves_the_loop_and_a_timeout);
    RUN(start_in_another_thread_wakes_glib);
    RUN(paused_clock_sets_no_timeout_in_glib);
    g_source_destroy(source);
    g_source_unref(source);
    g_main_context_unref(context);
    cleaner_drop(cleaner);
    loop_drop(loop);
    return test_end();
}
