/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* q2c_cache_destroy of caches that depend on each other, and of those that a cleaner knows. */
#include "cleaning.h"
#include "destruction.h"

static void destruction_calls_no_storage(void)
{
    destruction_on_dead_storage(NULL);
}

static void dependent_waits_for_a_flush(void)
{
    destruction_leaves_a_flush_behind(NULL);
}

static void what_is_not_stable_is_not_forgotten(void)
{
    destruction_hands_over_what_is_not_stable(NULL);
}

static void memory_is_freed(void)
{
    destruction_frees_the_memory(NULL);
}

/* While passes follow one another, caches come and go: each in the middle of a pass, or between. */
static void caches_can_be_destroyed_during_passes(void)
{
    enum { ROUNDS = 300 };
    struct storage storage;
    q2c_cleaner *cleaner = NULL;
    q2c_cache *kept;

    storage_init(&storage, 1 << 16);
    kept = cache_new(&storage, 4, TABLE, 0);
    MUST(q2c_cleaner_create(NULL, &cleaner, NULL));
    for (unsigned round = 0; round < ROUNDS; round++) {
        q2c_cache *caches[2] = { kept, cache_new(&storage, 64, TABLE, 0) };

        CHECK_INT(q2c_cleaner_set_caches(cleaner, caches, 2), 0);
        MUST(q2c_cleaner_start(cleaner, NULL, 1));
        for (unsigned n = 1; n <= 64; n++) {
            cache_touch(caches[1], AT(n));
        }
        CHECK_INT(q2c_cache_destroy(&caches[1]), 0);
        if (round % 2 == 0) {
            cache_touch(kept, AT(1));
        }
        CHECK_INT(q2c_cleaner_del_and_wait(cleaner), 0);
    }
    CHECK_INT(q2c_cleaner_destroy(&cleaner), 0);
    cache_drop(kept);
    storage_free(&storage);
}

int main(void)
{
    test_begin();
    RUN(destruction_calls_no_storage);
    RUN(dependent_waits_for_a_flush);
    RUN(what_is_not_stable_is_not_forgotten);
    RUN(memory_is_freed);
    RUN(caches_can_be_destroyed_during_passes);
    return test_end();
}
