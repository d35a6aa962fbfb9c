/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * What rustc's ThreadSanitizer calls and gcc's runtime (before 13) lacks. The C library's functions
 * are intercepted by the runtime, which then sees the same accesses. Weak: a newer runtime's come
 * first.
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
