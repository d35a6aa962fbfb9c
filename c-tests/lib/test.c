/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#define Q2C_DL_IMPLEMENTATION
#include "test.h"

#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define WATCHDOG_SECONDS 60

static atomic_int checks;
static atomic_int failed_checks;
static int cases;
static int failed_cases;
static const char *volatile current_case = "before the first case";

#ifdef __SANITIZE_THREAD__
const char *__tsan_default_suppressions(void);

/*
 * Arc's last drop orders itself by a fence, and ThreadSanitizer sees no fences (std has a variant for
 * it, but the build of std that rustup brings is not instrumented). What is touched after its last
 * drop is AddressSanitizer's to find.
 *
 * q2c_cache_read copies from a table without a pin, and throws away what it copied if the table went meanwhile, when storage may
 * have been writing the next one there. Fences order that, too; the models in tests/loom_cache.rs check them.
 */
const char *__tsan_default_suppressions(void)
{
    return "race:drop_slow\n"
           "race:read_fast\n"
           "race:read_slow\n";
}
#endif

/* Async-signal-safe: what hangs may hold any lock. */
static void watchdog(int signal_number)
{
    static const char before[] = "Bail out! the watchdog found it hanging in: ";
    const char *name = current_case;
    ssize_t written;

    (void)signal_number;
    written = write(STDOUT_FILENO, before, sizeof(before) - 1);
    written += write(STDOUT_FILENO, name, strlen(name));
    written += write(STDOUT_FILENO, "\n", 1);
    _exit(written > 0 ? 1 : 2);
}

static void start_watchdog(void)
{
    const char *setting = getenv("Q2C_TEST_WATCHDOG");
    int seconds = setting != NULL ? atoi(setting) : 0;
    struct sigaction action = {.sa_handler = watchdog};

    sigaction(SIGALRM, &action, NULL);
    alarm(seconds > 0 ? (unsigned)seconds : WATCHDOG_SECONDS);
}

void test_begin(void)
{
    char message[256] = "";

    /* whole lines, so that a crash loses none */
    setvbuf(stdout, NULL, _IOLBF, 0);
    start_watchdog();
    if (q2c_dl_load(getenv("Q2C_TEST_LIBRARY"), message, sizeof(message)) != 0) {
        printf("Bail out! %s\n", message);
        exit(1);
    }
}

int test_end(void)
{
    q2c_dl_unload();
    printf("1..%d\n", cases);
    return failed_cases == 0 && cases > 0 ? 0 : 1;
}

void test_run(const char *name, void (*function)(void))
{
    int checks_before = atomic_load(&checks);
    int failed_before = atomic_load(&failed_checks);
    bool ok;

    current_case = name;
    function();
    ok = atomic_load(&failed_checks) == failed_before;
    if (atomic_load(&checks) == checks_before) {
        test_note("%s checked nothing", name);
        ok = false;
    }
    cases++;
    failed_cases += ok ? 0 : 1;
    printf("%s %d - %s\n", ok ? "ok" : "not ok", cases, name);
    current_case = "after the last case";
}

void test_note(const char *format, ...)
{
    char line[1024];
    va_list args;

    va_start(args, format);
    vsnprintf(line, sizeof(line), format, args);
    va_end(args);
    printf("# %s\n", line);
}

static bool verdict(struct test_site site, bool holds)
{
    atomic_fetch_add(&checks, 1);
    if (!holds) {
        atomic_fetch_add(&failed_checks, 1);
        test_note("%s:%d: %s", site.file, site.line, site.expression);
    }
    return holds;
}

bool test_check(struct test_site site, bool holds)
{
    return verdict(site, holds);
}

static const char *errno_name(int64_t value)
{
    const char *name = value < 0 && value > -4096 ? strerrorname_np((int)-value) : NULL;

    return name != NULL ? name : "";
}

bool test_check_int(struct test_site site, int64_t got, int64_t expected)
{
    bool holds = verdict(site, got == expected);

    if (!holds) {
        test_note("    got %" PRId64 " %s, expected %" PRId64 " %s", got, errno_name(got), expected,
                  errno_name(expected));
    }
    return holds;
}

bool test_check_u64(struct test_site site, uint64_t got, uint64_t expected)
{
    bool holds = verdict(site, got == expected);

    if (!holds) {
        test_note("    got %" PRIu64 " (0x%" PRIx64 "), expected %" PRIu64 " (0x%" PRIx64 ")", got,
                  got, expected, expected);
    }
    return holds;
}

bool test_check_between(struct test_site site, uint64_t got, uint64_t low, uint64_t high)
{
    bool holds = verdict(site, low <= got && got <= high);

    if (!holds) {
        test_note("    got %" PRIu64 ", expected %" PRIu64 " to %" PRIu64, got, low, high);
    }
    return holds;
}

bool test_check_ptr(struct test_site site, const void *got, const void *expected)
{
    bool holds = verdict(site, got == expected);

    if (!holds) {
        test_note("    got %p, expected %p", got, expected);
    }
    return holds;
}

bool test_check_str(struct test_site site, const char *got, const char *expected)
{
    bool holds = verdict(site, strcmp(got, expected) == 0);

    if (!holds) {
        test_note("    got      \"%s\"", got);
        test_note("    expected \"%s\"", expected);
    }
    return holds;
}

bool test_check_contains(struct test_site site, const char *got, const char *part)
{
    bool holds = verdict(site, strstr(got, part) != NULL);

    if (!holds) {
        test_note("    got \"%s\", expected \"%s\" in it", got, part);
    }
    return holds;
}

void test_require_failed(struct test_site site, int64_t value)
{
    test_note("%s:%d: %s", site.file, site.line, site.expression);
    test_note("    got %" PRId64 " %s, expected 0", value, errno_name(value));
    printf("Bail out! %s cannot go on\n", current_case);
    exit(1);
}

void test_pause(void)
{
    struct timespec millisecond = {.tv_nsec = 1000000};

    nanosleep(&millisecond, NULL);
}

uint64_t test_random(uint64_t *state)
{
    /* xorshift64 */
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}
