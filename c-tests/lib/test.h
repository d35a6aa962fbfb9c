/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * The harness of the C tests: TAP on standard output, one line per case.
 *
 *     static void put_accepts_a_table(void) { CHECK_INT(q2c_cache_put(cache, &table), 0); }
 *     int main(void) { test_begin(); RUN(put_accepts_a_table); return test_end(); }
 *
 * A failed check prints the expression, its place in the source and both values. It fails the case,
 * which continues. Any thread may make checks. A watchdog fails a program that runs for more than
 * 60 s (Q2C_TEST_WATCHDOG: another number of seconds).
 *
 * Each program is built three ways: with the shared library, with the archive, and with
 * QCOW2CACHE_DLOPEN. In the last case test_begin() loads the library (Q2C_TEST_LIBRARY: its path),
 * and test_end() unloads it.
 */
#ifndef TEST_H
#define TEST_H

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <qcow2cache-dl.h>

void test_begin(void);
int test_end(void);
void test_run(const char *name, void (*function)(void));

#define RUN(function) test_run(#function, function)

/* Prints a line of diagnostics. */
__attribute__((format(printf, 1, 2))) void test_note(const char *format, ...);

struct test_site {
    const char *file;
    int line;
    const char *expression;
};

#define TEST_SITE(expression) ((struct test_site){ __FILE__, __LINE__, expression })

/* Each returns whether the check holds. */
bool test_check(struct test_site site, bool holds);
bool test_check_int(struct test_site site, int64_t got, int64_t expected);
bool test_check_u64(struct test_site site, uint64_t got, uint64_t expected);
bool test_check_between(struct test_site site, uint64_t got, uint64_t low, uint64_t high);
bool test_check_ptr(struct test_site site, const void *got, const void *expected);
bool test_check_str(struct test_site site, const char *got, const char *expected);
bool test_check_contains(struct test_site site, const char *got, const char *part);
/* Prints the requirement and exits, because the rest of the program depends on it. */
_Noreturn void test_require_failed(struct test_site site, int64_t value);

#define CHECK(expression) test_check(TEST_SITE(#expression), (expression))
/* Signed numbers; a failure names the errno of numbers below 0. */
#define CHECK_INT(got, expected) test_check_int(TEST_SITE(#got), (got), (expected))
#define CHECK_U64(got, expected) test_check_u64(TEST_SITE(#got), (got), (expected))
/* low <= got <= high */
#define CHECK_BETWEEN(got, low, high) test_check_between(TEST_SITE(#got), (got), (low), (high))
#define CHECK_PTR(got, expected)      test_check_ptr(TEST_SITE(#got), (got), (expected))
#define CHECK_STR(got, expected)      test_check_str(TEST_SITE(#got), (got), (expected))
/* The string contains the part. */
#define CHECK_CONTAINS(got, part) test_check_contains(TEST_SITE(#got), (got), (part))
/* The call returns 0, or the test ends here. */
#define MUST(call)                                                                                 \
    do {                                                                                           \
        int64_t must_value = (call);                                                               \
        if (must_value != 0) {                                                                     \
            test_require_failed(TEST_SITE(#call), must_value);                                     \
        }                                                                                          \
    } while (0)
#define REQUIRE(expression) MUST(!(expression))

/* Waits until the expression is true. The watchdog ends a wait without end. */
#define EVENTUALLY(expression)                                                                     \
    do {                                                                                           \
    } while (!(expression) && (test_pause(), true))

/* Sleeps for a millisecond. */
void test_pause(void);

/* The next pseudo-random number. *state is the position in the sequence; it starts with any
 * number but 0. */
uint64_t test_random(uint64_t *state);

#endif
