/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* A module with the static library inside, as a plugin of some program is. */
#include <stdint.h>

#include <qcow2cache.h>

int module_use(void);

/* Starts and stops a cleaner, for which the library makes its background thread. */
int module_use(void)
{
    q2c_cleaner *cleaner = NULL;
    int r = q2c_cleaner_create(NULL, &cleaner, NULL);

    if (r == 0) {
        r = q2c_cleaner_start(cleaner, NULL, UINT64_C(600000000000));
    }
    if (r == 0) {
        r = q2c_cleaner_del_and_wait(cleaner);
    }
    return r != 0 ? r : q2c_cleaner_destroy(&cleaner);
}
