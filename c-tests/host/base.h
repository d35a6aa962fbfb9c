/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Layer 1. How the host reports a mistake, and which tools watch the process.
 *
 * The host is strict. What QEMU asserts, the host asserts: it prints one line to stderr
 * ("testhost: ...") and calls abort(). Entering a coroutine twice, waking it twice or while it is
 * not parked, and using a timer outside its thread are the caller's bugs.
 */
#ifndef TESTHOST_BASE_H
#define TESTHOST_BASE_H
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define HOST_ASAN 1
#endif
#if __has_feature(thread_sanitizer)
#define HOST_TSAN 1
#endif
#endif
#ifdef __SANITIZE_ADDRESS__
#define HOST_ASAN 1
#endif
#ifdef __SANITIZE_THREAD__
#define HOST_TSAN 1
#endif
#if defined(__has_include)
#if __has_include(<valgrind/memcheck.h>)
#define HOST_VALGRIND 1
#endif
#endif

typedef void host_fn(void *arg);

/* Prints "testhost: <message>" to stderr and aborts. Any thread. */
_Noreturn void host_die(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Whether the process runs under a sanitizer or valgrind, which make every step slow. */
bool host_instrumented(void);
/* The number of rounds of a stress test: @rounds, or a tenth of it if host_instrumented(). */
unsigned host_scale_rounds(unsigned rounds);

/* CLOCK_MONOTONIC in ns. */
int64_t host_real_now(void);

#endif
