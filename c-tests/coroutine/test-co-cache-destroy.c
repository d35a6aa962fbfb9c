/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* The destruction of caches that depend on each other, in coroutines and in plain code. */
#include "destruction.h"
#include "world.h"

static void all_cases(void *arg)
{
    (void)arg;
    destruction_on_dead_storage(world.vtable);
    destruction_leaves_a_flush_behind(world.vtable);
    destruction_hands_over_what_is_not_stable(world.vtable);
    destruction_frees_the_memory(world.vtable);
}

static void in_a_coroutine(void)
{
    host_context_call(world.io[0], true, all_cases, NULL);
}

static void in_plain_code(void)
{
    all_cases(NULL);
}

int main(void)
{
    test_begin();
    world_begin();
    EACH(in_a_coroutine);
    EACH(in_plain_code);
    world_end();
    return test_end();
}
