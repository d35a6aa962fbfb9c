/* SPDX-License-Identifier: MIT */
/* The list of hosts. */
#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <time.h>

#include "runtime.h"

static const struct {
    const char *name;
    struct runtime *(*create)(unsigned contexts);
} hosts[] = {
    { "threads", runtime_threads_new },
    { "loops", runtime_loops_new },
#ifdef HAVE_COROUTINES
    { "coroutines", runtime_coroutines_new },
#endif
};

struct runtime *runtime_new(const char *host, unsigned contexts)
{
    for (size_t i = 0; i < sizeof(hosts) / sizeof(hosts[0]); i++) {
        if (strcmp(hosts[i].name, host) == 0)
            return hosts[i].create(contexts);
    }
    errno = ENOTSUP;
    return NULL;
}

const char *runtime_names(void)
{
#ifdef HAVE_COROUTINES
    return "threads, loops, coroutines";
#else
    return "threads, loops";
#endif
}

uint64_t runtime_now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}
