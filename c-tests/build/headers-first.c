/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#include <qcow2cache.h>

#include <qcow2cache-dl.h>

#include "test-headers.h"

const char *headers_first_version(void)
{
    return q2c_dl_shared.handle != NULL ? q2c_version() : NULL;
}
