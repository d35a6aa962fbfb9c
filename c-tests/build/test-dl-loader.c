/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * q2c_dl_open and q2c_dl_close with a table of one's own: every way to fail is a message.
 * Arguments: the library; those of another ABI, of no ABI, of the right one but with nothing else.
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

static void opens_the_library(void)
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

static void every_function_is_filled(void)
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

static void missing_library(void)
{
    check_refused("/nonexistent/libqcow2cache.so.0", -ENOENT, "cannot load");
    check_refused("libqcow2cache-that-nobody-has.so.0", -ENOENT, "cannot load");
}

static void a_file_that_is_no_library(void)
{
    char path[] = "/tmp/qcow2cache-test-XXXXXX";
    int file = mkstemp(path);

    REQUIRE(file >= 0);
    REQUIRE(write(file, "not ELF", 7) == 7);
    close(file);
    check_refused(path, -ENOEXEC, "cannot load");
    unlink(path);
}

static void another_abi(void)
{
    check_refused(other_abi, -EPROTONOSUPPORT, "77");
}

static void missing_functions(void)
{
    check_refused(no_abi, -ENOSYS, "q2c_abi_version");
    check_refused(abi_alone, -ENOSYS, "q2c_");
}

static void no_table(void)
{
    CHECK_INT(q2c_dl_open(NULL, library, NULL, 0), -EINVAL);
}

/* This program is linked: the driver's two calls do nothing then. */
static void load_of_a_linked_program(void)
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
    RUN(opens_the_library);
    RUN(every_function_is_filled);
    RUN(missing_library);
    RUN(a_file_that_is_no_library);
    RUN(another_abi);
    RUN(missing_functions);
    RUN(no_table);
    RUN(load_of_a_linked_program);
    return test_end();
}
