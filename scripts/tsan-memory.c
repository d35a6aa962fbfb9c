/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Functions that code from rustc calls under ThreadSanitizer and that gcc's runtime lacks before
 * version 13. They call the C library's functions, which the runtime intercepts, so that it sees
 * the same accesses. They are weak: those of a newer runtime take precedence.
 */
#include <stddef.h>
#include <string.h>

void *__tsan_memcpy(void *to, const void *from, size_t bytes);
void *__tsan_memmove(void *to, const void *from, size_t bytes);
void *__tsan_memset(void *to, int byte, size_t bytes);

__attribute__((weak)) void *__tsan_memcpy(void *to, const void *from, size_t bytes)
{
    return memcpy(to, from, bytes);
}

__attribute__((weak)) void *__tsan_memmove(void *to, const void *from, size_t bytes)
{
    return memmove(to, from, bytes);
}

__attribute__((weak)) void *__tsan_memset(void *to, int byte, size_t bytes)
{
    return memset(to, byte, bytes);
}
