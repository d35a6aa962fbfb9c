/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#ifndef TEST_HEADERS_H
#define TEST_HEADERS_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* q2c_version() as that source file calls it; NULL while nothing is loaded. */
const char *headers_first_version(void);
const char *headers_other_version(void);

#endif
