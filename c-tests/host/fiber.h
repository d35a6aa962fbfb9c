/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Tells AddressSanitizer, ThreadSanitizer and valgrind which stack runs. Each is nothing where its tool is absent. */
#ifndef TESTHOST_FIBER_H
#define TESTHOST_FIBER_H
#include "internal.h"

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define FIBER_ASAN 1
#endif
#if __has_feature(thread_sanitizer)
#define FIBER_TSAN 1
#endif
#endif
#ifdef __SANITIZE_ADDRESS__
#define FIBER_ASAN 1
#endif
#ifdef __SANITIZE_THREAD__
#define FIBER_TSAN 1
#endif

#ifdef FIBER_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef FIBER_TSAN
#include <sanitizer/tsan_interface.h>
#endif
#if defined(__has_include)
#if __has_include(<valgrind/memcheck.h>)
#include <valgrind/memcheck.h>
#define FIBER_VALGRIND 1
#endif
#endif

/* Forget what is known of the frames that were on a stack: those of an ended coroutine were never all left. */
static inline void fiber_forget_frames(const host_stack *stack)
{
#ifdef FIBER_ASAN
    __asan_unpoison_memory_region(stack->bottom, stack->size);
#endif
#ifdef FIBER_VALGRIND
    VALGRIND_MAKE_MEM_DEFINED(stack->bottom, stack->size); /* to valgrind what lies below the last stack pointer is gone */
#endif
    (void)stack;
}

/* A coroutine's stack is about to be used from its top. */
static inline void fiber_begin(host_fiber *fiber, const host_stack *stack)
{
    fiber->fake_stack = NULL;
    fiber->bottom = stack->bottom;
    fiber->size = stack->size;
#ifdef FIBER_TSAN
    fiber->tsan = __tsan_create_fiber(0);
#endif
}

/* It has been left for good. */
static inline void fiber_end(host_fiber *fiber)
{
#ifdef FIBER_TSAN
    __tsan_destroy_fiber(fiber->tsan);
#endif
    fiber->tsan = NULL;
}

/* Right before the switch. leaving: from will never run again. */
static inline void fiber_switch(host_fiber *from, host_fiber *to, bool leaving)
{
#ifdef FIBER_ASAN
    __sanitizer_start_switch_fiber(leaving ? NULL : &from->fake_stack, to->bottom, to->size);
#endif
#ifdef FIBER_TSAN
    if (!from->tsan) {
        from->tsan = __tsan_get_current_fiber(); /* a thread's own */
    }
    __tsan_switch_to_fiber(to->tsan, 0);
#endif
    (void)from;
    (void)to;
    (void)leaving;
}

/* The first thing on the stack switched to. before: where the switch came from; its bounds become known here. */
static inline void fiber_arrived(host_fiber *here, host_fiber *before)
{
#ifdef FIBER_ASAN
    const void *bottom;
    size_t size;
    __sanitizer_finish_switch_fiber(here->fake_stack, &bottom, &size);
    if (before) {
        before->bottom = bottom;
        before->size = size;
    }
#endif
    (void)here;
    (void)before;
}

#endif
