/* SPDX-License-Identifier: MIT */
/* Errors in words. */
#include <stdarg.h>
#include <stdio.h>

#include "qcow2_int.h"

int drv_fail(qcow2drv_error *error, int code, const char *format, ...)
{
    if (error) {
        va_list args;

        error->code = code;
        va_start(args, format);
        vsnprintf(error->message, sizeof(error->message), format, args);
        va_end(args);
    }
    return -code;
}

void drv_report(qcow2drv *s, const char *format, ...)
{
    unsigned left = atomic_load(&s->reports_left);
    char text[400], line[512];
    va_list args;

    do {
        if (left == 0)
            return;
    } while (!atomic_compare_exchange_weak(&s->reports_left, &left, left - 1));

    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    snprintf(line, sizeof(line), "%s: %s", s->name, text);
    if (s->report)
        s->report(s->report_opaque, line);
    else
        fprintf(stderr, "%s\n", line);
}
