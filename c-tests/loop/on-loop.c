/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "on-loop.h"

#include <stdlib.h>

#include "looping.h"

static struct turner home;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void end_home(void)
{
    turner_stop(&home);
}

static void begin_home(void)
{
    turner_start(&home);
    MUST(atexit(end_home));
}

const q2c_host *on_loop_host(const q2c_host *host)
{
    return host != NULL ? host : &loop_host;
}

void *on_loop_context(void *context)
{
    if (context != NULL) {
        return context;
    }
    MUST(pthread_once(&once, begin_home));
    return home.loop;
}
