/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* q2c_version and q2c_abi_version against the header, and the layout of public structs. */
#include "test.h"

static void version_matches_the_header(void)
{
    CHECK_STR(q2c_version(), Q2C_VERSION);
}

static void abi_version_matches_the_header(void)
{
    CHECK_U64(q2c_abi_version(), Q2C_ABI_VERSION);
}

static void structs_start_with_their_size(void)
{
    CHECK_U64(offsetof(q2c_storage, struct_size), 0);
    CHECK_U64(offsetof(q2c_host, struct_size), 0);
    CHECK_U64(offsetof(q2c_cache_options, struct_size), 0);
    CHECK_U64(offsetof(q2c_cache_stats, struct_size), 0);
    CHECK_U64(offsetof(q2c_cleaner_stats, struct_size), 0);
    CHECK_U64(offsetof(q2c_options, struct_size), 0);
    CHECK_U64(offsetof(q2c_geometry, struct_size), 0);
    CHECK_U64(offsetof(q2c_resolved_options, struct_size), 0);
    CHECK_U64(offsetof(q2c_state_config, struct_size), 0);
    CHECK_U64(sizeof(((q2c_error *)0)->message), 256);
}

int main(void)
{
    test_begin();
    RUN(version_matches_the_header);
    RUN(abi_version_matches_the_header);
    RUN(structs_start_with_their_size);
    return test_end();
}
