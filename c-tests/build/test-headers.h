/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#ifndef TEST_HEADERS_H
#define TEST_HEADERS_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* q2c_version(), called in headers-first.c; NULL while the library is not loaded. */
const char *headers_first_version(void);
/* q2c_version(), called in headers-other.c; only while the library is loaded. */
const char *headers_other_version(void);

#endif
