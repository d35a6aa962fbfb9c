/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* A library that is not qcow2cache; FAKE_ABI is the ABI version that it claims, if any. */
#include <stdint.h>

#ifdef FAKE_ABI
uint32_t q2c_abi_version(void);

uint32_t q2c_abi_version(void)
{
    return FAKE_ABI;
}
#else
const char *q2c_version(void);

const char *q2c_version(void)
{
    return "none";
}
#endif
