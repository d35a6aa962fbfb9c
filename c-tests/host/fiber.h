/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Layer 3. Tells AddressSanitizer, ThreadSanitizer and valgrind which stack runs. Each part
 * compiles to nothing where its tool is absent.
 */
#ifndef TESTHOST_FIBER_H
#define TESTHOST_FIBER_H
#include "stack.h"

#ifdef HOST_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef HOST_TSAN
#include <sanitizer/tsan_interface.h>
#endif
#ifdef HOST_VALGRIND
#include <valgrind/memcheck.h>
#endif

/* What the sanitizers must be told about a stack at each switch. */
typedef struct host_fiber {
    void *fake_stack;
    const void *bottom;
    size_t size;
    void *tsan;
} host_fiber;

/*
 * Makes the tools forget the frames on a stack: a coroutine that ended has not returned from all of
 * them.
 */
static inline void host_fiber_forget_frames(const host_stack *stack)
{
#ifdef HOST_ASAN
    __asan_unpoison_memory_region(stack->bottom, stack->size);
#endif
#ifdef HOST_VALGRIND
    /* valgrind takes what lies below the last stack pointer for inaccessible */
    VALGRIND_MAKE_MEM_DEFINED(stack->bottom, stack->size);
#endif
    (void)stack;
}

/* Call when a coroutine's stack is about to be used from its top. */
static inline void host_fiber_begin(host_fiber *fiber, const host_stack *stack)
{
    fiber->fake_stack = NULL;
    fiber->bottom = stack->bottom;
    fiber->size = stack->size;
#ifdef HOST_TSAN
    fiber->tsan = __tsan_create_fiber(0);
#endif
}

/* Call when the coroutine has left its stack for good. */
static inline void host_fiber_end(host_fiber *fiber)
{
#ifdef HOST_TSAN
    __tsan_destroy_fiber(fiber->tsan);
#endif
    fiber->tsan = NULL;
}

/* Call right before the switch. @leaving: @from will never run again. */
static inline void host_fiber_switch(host_fiber *from, host_fiber *to, bool leaving)
{
#ifdef HOST_ASAN
    __sanitizer_start_switch_fiber(leaving ? NULL : &from->fake_stack, to->bottom, to->size);
#endif
#ifdef HOST_TSAN
    if (!from->tsan) {
        from->tsan = __tsan_get_current_fiber(); /* a thread's own */
    }
    __tsan_switch_to_fiber(to->tsan, 0);
#endif
    (void)from;
    (void)to;
    (void)leaving;
}

/*
 * Call first on the stack that was switched to. @before: where the switch came from; its bounds
 * become known here.
 */
static inline void host_fiber_arrived(host_fiber *here, host_fiber *before)
{
#ifdef HOST_ASAN
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
