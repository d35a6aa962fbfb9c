/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Layer 2. Coroutine stacks: anonymous mappings with a guard page below, so that an overflow
 * crashes and is never silent.
 */
#ifndef TESTHOST_STACK_H
#define TESTHOST_STACK_H
#include "base.h"

#define HOST_STACK_SIZE       ((size_t)256 * 1024)
#define HOST_STACK_SIZE_SMALL ((size_t)32 * 1024)

typedef struct host_stack {
    char *map; /* guard page, then the stack */
    size_t map_size;
    char *bottom;
    size_t size;
    bool painted;
    unsigned valgrind_id;
} host_stack;

/* @size: in bytes, a multiple of the page size. Aborts if there is no memory. */
void host_stack_alloc(host_stack *stack, size_t size);
void host_stack_free(host_stack *stack);
/* Fills the stack with a pattern, from which host_stack_used() sees how deep it was used. */
void host_stack_paint(host_stack *stack);
/* The number of bytes of a painted stack that were used. */
size_t host_stack_used(const host_stack *stack);

#endif
