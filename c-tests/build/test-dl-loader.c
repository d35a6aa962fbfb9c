/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * q2c_dl_open and q2c_dl_close with a table of the caller. Every failure has a message. Arguments:
 * the library; libraries with another ABI, with no ABI, and with the right ABI but nothing else.
 */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "test.h"

static const char *library, *other_abi, *no_abi, *abi_alone;

static void check_refused(const char *path, int error, const char *part)
{
    static const struct q2c_dl closed;
    struct q2c_dl dl;
    char message[512] = "";

    memset(&dl, 0xff, sizeof(dl));
    CHECK_INT(q2c_dl_open(&dl, path, message, sizeof(message)), error);
    CHECK(memcmp(&dl, &closed, sizeof(dl)) == 0);
    CHECK_CONTAINS(message, part);
    CHECK(path == NULL || strstr(message, path) != NULL);
    CHECK(strchr(message, '\n') == NULL);
    /* without room for a message */
    CHECK_INT(q2c_dl_open(&dl, path, NULL, 0), error);
    message[0] = 'x';
    CHECK_INT(q2c_dl_open(&dl, path, message, 0), error);
    CHECK(message[0] == 'x');
    memset(message, 'x', sizeof(message));
    CHECK_INT(q2c_dl_open(&dl, path, message, 4), error);
    CHECK_U64(strlen(message), 3);
    CHECK(message[4] == 'x');
}

static void open_loads_the_library(void)
{
    struct q2c_dl dl;
    char message[256] = "untouched";

    CHECK_INT(q2c_dl_open(&dl, library, message, sizeof(message)), 0);
    REQUIRE(dl.handle != NULL);
    CHECK_STR(message, "untouched");
    CHECK_STR(dl.version(), Q2C_VERSION);
    CHECK_U64(dl.abi_version(), Q2C_ABI_VERSION);
    CHECK_INT(dl.cache_flush(NULL), -EINVAL);
    q2c_dl_close(&dl);
    CHECK_PTR(dl.handle, NULL);
    CHECK(dl.version == NULL);
    q2c_dl_close(&dl);
    q2c_dl_close(NULL);
}

static void open_fills_every_function(void)
{
    struct q2c_dl dl;
    void *pointers[sizeof(dl) / sizeof(void *)];

    MUST(q2c_dl_open(&dl, library, NULL, 0));
    memcpy(pointers, &dl, sizeof(dl));
    for (size_t i = 0; i < sizeof(pointers) / sizeof(pointers[0]); i++) {
        CHECK(pointers[i] != NULL);
    }
    q2c_dl_close(&dl);
}

static void missing_library_is_enoent(void)
{
    check_refused("/nonexistent/libqcow2cache.so.0", -ENOENT, "cannot load");
    check_refused("libqcow2cache-that-nobody-has.so.0", -ENOENT, "cannot load");
}

static void file_that_is_no_library_is_enoexec(void)
{
    char path[] = "/tmp/qcow2cache-test-XXXXXX";
    int file = mkstemp(path);

    REQUIRE(file >= 0);
    REQUIRE(write(file, "not ELF", 7) == 7);
    close(file);
    check_refused(path, -ENOEXEC, "cannot load");
    unlink(path);
}

static void another_abi_is_rejected(void)
{
    check_refused(other_abi, -EPROTONOSUPPORT, "77");
}

static void missing_functions_are_enosys(void)
{
    check_refused(no_abi, -ENOSYS, "q2c_abi_version");
    check_refused(abi_alone, -ENOSYS, "q2c_");
}

static void null_table_is_rejected(void)
{
    CHECK_INT(q2c_dl_open(NULL, library, NULL, 0), -EINVAL);
}

/* This program is linked to the library, so the two calls of a driver do nothing. */
static void load_and_unload_do_nothing_in_a_linked_program(void)
{
    CHECK_INT(q2c_dl_load("/nonexistent", NULL, 0), 0);
    q2c_dl_unload();
    CHECK_STR(q2c_version(), Q2C_VERSION);
}

int main(int argc, char **argv)
{
    if (argc != 5) {
        fprintf(stderr, "usage: %s LIBRARY OTHER_ABI NO_ABI ABI_ALONE\n", argv[0]);
        return 2;
    }
    library = argv[1];
    other_abi = argv[2];
    no_abi = argv[3];
    abi_alone = argv[4];
    test_begin();
    RUN(open_loads_the_library);
    RUN(open_fills_every_function);
    RUN(missing_library_is_enoent);
    RUN(file_that_is_no_library_is_enoexec);
    RUN(another_abi_is_rejected);
    RUN(missing_functions_are_enosys);
    RUN(null_table_is_rejected);
    RUN(load_and_unload_do_nothing_in_a_linked_program);
    return test_end();
}
