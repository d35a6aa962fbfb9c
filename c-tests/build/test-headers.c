/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * The two headers compile alone, in either order and twice, as strict C11 and (by the .cpp file
 * that includes this one) as C++17. Three source files share one table of functions.
 */
#define Q2C_DL_IMPLEMENTATION
#include <qcow2cache-dl.h>
#include <qcow2cache-dl.h>
#include <qcow2cache.h>

#include "test-headers.h"

int main(void)
{
    const char *before = headers_first_version();
    int ok;

    if (q2c_dl_load(getenv("Q2C_TEST_LIBRARY"), NULL, 0) != 0) {
        puts("Bail out! the library cannot be loaded");
        return 1;
    }
    ok = before == NULL && strcmp(q2c_version(), Q2C_VERSION) == 0 &&
         headers_first_version() == q2c_version() && headers_other_version() == q2c_version();
    printf("%s 1 - table_of_functions_is_shared\n", ok ? "ok" : "not ok");
    q2c_dl_unload();
    puts("1..1");
    return ok ? 0 : 1;
}
