/* SPDX-License-Identifier: MIT */
/* Sizes as QEMU's options spell them. */
#include <ctype.h>
#include <errno.h>

#include "command.h"

int size_parse(const char *text, uint64_t *value)
{
    uint64_t n = 0;
    unsigned shift = 0;

    if (!isdigit((unsigned char)*text))
        return -EINVAL;
    for (; isdigit((unsigned char)*text); text++) {
        unsigned digit = (unsigned)(*text - '0');

        if (n > ((uint64_t)INT64_MAX - digit) / 10)
            return -ERANGE;
        n = n * 10 + digit;
    }
    switch (toupper((unsigned char)*text)) {
    case 'T':
        shift += 10; /* fall through */
    case 'G':
        shift += 10; /* fall through */
    case 'M':
        shift += 10; /* fall through */
    case 'K':
        shift += 10;
        text++;
        break;
    case 'B':
        text++;
        break;
    default:
        break;
    }
    if (*text != '\0')
        return -EINVAL;
    if (n > (uint64_t)INT64_MAX >> shift)
        return -ERANGE;
    *value = n << shift;
    return 0;
}
