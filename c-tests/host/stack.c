/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "stack.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifdef HOST_VALGRIND
#include <valgrind/valgrind.h>
#endif

#define PAINT 0xA5

void host_stack_alloc(host_stack *stack, size_t size)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    char *map;

    if (size == 0 || size % page) {
        host_die("stack size %zu is not a multiple of the page size %zu", size, page);
    }
    map = mmap(NULL, size + page, PROT_READ | PROT_WRITE,
               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    if (map == MAP_FAILED || mprotect(map, page, PROT_NONE)) {
        host_die("no memory for a stack of %zu bytes", size);
    }
    *stack =
        (host_stack){ .map = map, .map_size = size + page, .bottom = map + page, .size = size };
#ifdef HOST_VALGRIND
    stack->valgrind_id = VALGRIND_STACK_REGISTER(stack->bottom, stack->bottom + size);
#endif
}

void host_stack_free(host_stack *stack)
{
    if (!stack->map) {
        return;
    }
#ifdef HOST_VALGRIND
    VALGRIND_STACK_DEREGISTER(stack->valgrind_id);
#endif
    munmap(stack->map, stack->map_size);
    memset(stack, 0, sizeof(*stack));
}

void host_stack_paint(host_stack *stack)
{
    memset(stack->bottom, PAINT, stack->size);
    stack->painted = true;
}

size_t host_stack_used(const host_stack *stack)
{
    const unsigned char *p = (const unsigned char *)stack->bottom;
    size_t untouched = 0;

    while (untouched < stack->size && p[untouched] == PAINT) {
        untouched++;
    }
    return stack->size - untouched;
}
