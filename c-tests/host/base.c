/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "base.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#ifdef HOST_VALGRIND
#include <valgrind/valgrind.h>
#endif

_Noreturn void host_die(const char *format, ...)
{
    va_list args;

    fflush(stdout);
    va_start(args, format);
    fputs("testhost: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    abort();
}

bool host_instrumented(void)
{
#if defined(HOST_ASAN) || defined(HOST_TSAN)
    return true;
#elif defined(HOST_VALGRIND)
    return RUNNING_ON_VALGRIND;
#else
    return false;
#endif
}

unsigned host_scale_rounds(unsigned rounds)
{
    unsigned fewer = rounds / 10;

    if (!host_instrumented()) {
        return rounds;
    }
    return fewer ? fewer : 1;
}

int64_t host_real_now(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}
