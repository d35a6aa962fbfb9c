/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#include <qcow2cache-dl.h>

#include "test-headers.h"

const char *headers_other_version(void)
{
    return q2c_version();
}
