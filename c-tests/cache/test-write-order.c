/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* q2c_cache_set_dependency and q2c_cache_depends_on_flush: which writes reach the disk first. */
#include "fixture.h"
#include "threads.h"

static struct journal journal = JOURNAL_EMPTY;
static struct storage a_storage, b_storage, c_storage;
static q2c_cache *a, *b, *c;

static void open_caches(void)
{
    storage_init_shared(&a_storage, 1 << 14, "a:", &journal);
    storage_init_shared(&b_storage, 1 << 14, "b:", &journal);
    storage_init_shared(&c_storage, 1 << 14, "c:", &journal);
    /* other tests look at pre_write_check */
    a_storage.calls.pre_write_check = NULL;
    b_storage.calls.pre_write_check = NULL;
    c_storage.calls.pre_write_check = NULL;
    a = cache_new(&a_storage, 2, TABLE, 0);
    b = cache_new(&b_storage, 2, TABLE, 0);
    c = cache_new(&c_storage, 2, TABLE, 0);
}

static void close_caches(void)
{
    cache_drop(a);
    cache_drop(b);
    cache_drop(c);
    storage_free(&a_storage);
    storage_free(&b_storage);
    storage_free(&c_storage);
    journal_clear(&journal);
}

static void dirty_all(void)
{
    cache_dirty(a, AT(1), 1);
    cache_dirty(b, AT(1), 1);
    cache_dirty(c, AT(1), 1);
    journal_clear(&journal);
}

static void dependency_is_flushed_first(void)
{
    open_caches();
    dirty_all();
    CHECK_INT(q2c_cache_set_dependency(a, b), 0);
    CHECK_JOURNAL(&journal, "");
    CHECK_INT(q2c_cache_flush(a), 0);
    CHECK_JOURNAL(&journal, "b:write 200+200; b:flush; a:write 200+200; a:flush; ");
    close_caches();
}

static void write_keeps_the_order(void)
{
    open_caches();
    dirty_all();
    CHECK_INT(q2c_cache_set_dependency(a, b), 0);
    CHECK_INT(q2c_cache_write(a), 0);
    CHECK_JOURNAL(&journal, "b:write 200+200; b:flush; a:write 200+200; ");
    close_caches();
}

static void flushed_dependency_is_forgotten(void)
{
    open_caches();
    dirty_all();
    CHECK_INT(q2c_cache_set_dependency(a, b), 0);
    CHECK_INT(q2c_cache_write(a), 0);
    dirty_all();
    CHECK_INT(q2c_cache_write(a), 0);
    CHECK_JOURNAL(&journal, "a:write 200+200; ");
    close_caches();
}

static void eviction_keeps_the_order(void)
{
    open_caches();
    dirty_all();
    cache_dirty(a, AT(2), 2);
    CHECK_INT(q2c_cache_set_dependency(a, b), 0);
    journal_clear(&journal);
    cache_touch(a, AT(5));
    /* the dependency, then the victim (one of the two tables, or both), then the load */
    CHECK(strncmp(journal_text(&journal), "b:write 200+200; b:flush; a:write ", 34) == 0);
    CHECK_CONTAINS(journal_text(&journal), "; a:read a00+200; ");
    close_caches();
}

static void dependency_does_not_order_the_reverse_direction(void)
{
    open_caches();
    dirty_all();
    CHECK_INT(q2c_cache_set_dependency(a, b), 0);
    CHECK_INT(q2c_cache_write(b), 0);
    CHECK_JOURNAL(&journal, "b:write 200+200; ");
    close_caches();
}

static void written_dependency_is_still_flushed(void)
{
    open_caches();
    dirty_all();
    CHECK_INT(q2c_cache_set_dependency(a, b), 0);
    CHECK_INT(q2c_cache_write(b), 0);
    journal_clear(&journal);
    CHECK_INT(q2c_cache_write(a), 0);
    CHECK_JOURNAL(&journal, "b:flush; a:write 200+200; ");
    close_caches();
}

static void chain_behind_a_dependency_is_settled(void)
{
    open_caches();
    dirty_all();
    CHECK_INT(q2c_cache_set_dependency(b, c), 0);
    /* a -> b -> c would be a chain: b's dependency is settled now */
    CHECK_INT(q2c_cache_set_dependency(a, b), 0);
    CHECK_JOURNAL(&journal, "c:write 200+200; c:flush; ");
    journal_clear(&journal);
    CHECK_INT(q2c_cache_flush(a), 0);
    CHECK_JOURNAL(&journal, "b:write 200+200; b:flush; a:write 200+200; a:flush; ");
    close_caches();
}

static void chain_in_front_of_a_dependency_is_settled(void)
{
    const char *a_write, *b_first, *b_second, *c_flush;

    open_caches();
    dirty_all();
    CHECK_INT(q2c_cache_set_dependency(a, b), 0);
    CHECK_INT(q2c_cache_set_dependency(b, c), 0);
    /* a -> b -> c would be a chain: a's dependency is settled now */
    CHECK_JOURNAL(&journal, "b:write 200+200; b:flush; ");
    cache_dirty(b, AT(5), 5);
    CHECK_INT(q2c_cache_flush(a), 0);
    CHECK_INT(q2c_cache_flush(b), 0);
    a_write = strstr(journal_text(&journal), "a:write 200+200; ");
    b_first = strstr(journal_text(&journal), "b:write 200+200; ");
    b_second = strstr(journal_text(&journal), "b:write a00+200; ");
    c_flush = strstr(journal_text(&journal), "c:write 200+200; c:flush; ");
    if (CHECK(a_write != NULL && b_first != NULL && b_second != NULL && c_flush != NULL)) {
        CHECK(b_first < a_write);
        CHECK(strstr(b_first, "b:flush; ") < a_write);
        CHECK(c_flush < b_second);
    }
    close_caches();
}

static void second_dependency_settles_the_first(void)
{
    open_caches();
    dirty_all();
    CHECK_INT(q2c_cache_set_dependency(a, b), 0);
    CHECK_INT(q2c_cache_set_dependency(a, c), 0);
    CHECK_JOURNAL(&journal, "b:write 200+200; b:flush; ");
    journal_clear(&journal);
    CHECK_INT(q2c_cache_flush(a), 0);
    CHECK_JOURNAL(&journal, "c:write 200+200; c:flush; a:write 200+200; a:flush; ");
    close_caches();
}

static void repeated_dependency_costs_nothing(void)
{
    open_caches();
    dirty_all();
    CHECK_INT(q2c_cache_set_dependency(a, b), 0);
    CHECK_INT(q2c_cache_set_dependency(a, b), 0);
    CHECK_JOURNAL(&journal, "");
    CHECK_INT(q2c_cache_write(a), 0);
    CHECK_JOURNAL(&journal, "b:write 200+200; b:flush; a:write 200+200; ");
    close_caches();
}

static void ring_of_dependencies_is_settled(void)
{
    open_caches();
    dirty_all();
    CHECK_INT(q2c_cache_set_dependency(a, b), 0);
    CHECK_INT(q2c_cache_set_dependency(b, a), 0);
    CHECK_JOURNAL(&journal, "b:write 200+200; b:flush; ");
    cache_dirty(b, AT(2), 2);
    journal_clear(&journal);
    CHECK_INT(q2c_cache_flush(b), 0);
    CHECK_JOURNAL(&journal, "a:write 200+200; a:flush; b:write 400+200; b:flush; ");
    close_caches();
}

static void failed_flush_keeps_the_dependency(void)
{
    static const int ops[] = { STORAGE_WRITE, STORAGE_FLUSH };

    for (size_t i = 0; i < 2; i++) {
        open_caches();
        dirty_all();
        CHECK_INT(q2c_cache_set_dependency(a, b), 0);
        storage_fail(&b_storage, ops[i], 0, 1, -EREMOTEIO);
        CHECK_INT(q2c_cache_flush(a), -EREMOTEIO);
        CHECK_U64(storage_count(&a_storage, STORAGE_WRITE), 0);
        CHECK_U64(cache_stats(a).dirty_tables, 1);
        storage_heal(&b_storage);
        cache_dirty(b, AT(2), 2);
        journal_clear(&journal);
        CHECK_INT(q2c_cache_flush(a), 0);
        CHECK(strncmp(journal_text(&journal), "b:write ", 8) == 0);
        CHECK_CONTAINS(journal_text(&journal), "b:flush; a:write 200+200; a:flush; ");
        close_caches();
    }
}

static void dependency_stays_if_it_cannot_be_settled(void)
{
    open_caches();
    dirty_all();
    CHECK_INT(q2c_cache_set_dependency(a, b), 0);
    storage_fail(&b_storage, STORAGE_WRITE, 0, 1, -ENOSPC);
    CHECK_INT(q2c_cache_set_dependency(a, c), -ENOSPC);
    storage_heal(&b_storage);
    journal_clear(&journal);
    CHECK_INT(q2c_cache_write(a), 0);
    CHECK_JOURNAL(&journal, "b:write 200+200; b:flush; a:write 200+200; ");
    close_caches();
}

static void depends_on_flush_flushes_before_the_next_write(void)
{
    open_caches();
    dirty_all();
    CHECK_INT(q2c_cache_depends_on_flush(a), 0);
    CHECK_JOURNAL(&journal, "");
    CHECK_INT(q2c_cache_write(a), 0);
    CHECK_JOURNAL(&journal, "a:flush; a:write 200+200; ");
    cache_dirty(a, AT(1), 2);
    journal_clear(&journal);
    CHECK_INT(q2c_cache_write(a), 0);
    CHECK_JOURNAL(&journal, "a:write 200+200; ");
    close_caches();
}

static void one_flush_covers_all_tables(void)
{
    open_caches();
    cache_dirty(a, AT(1), 1);
    cache_dirty(a, AT(5), 1);
    journal_clear(&journal);
    CHECK_INT(q2c_cache_depends_on_flush(a), 0);
    CHECK_INT(q2c_cache_write(a), 0);
    CHECK_JOURNAL(&journal, "a:flush; a:write 200+200; a:write a00+200; ");
    close_caches();
}

static void failed_flush_keeps_depends_on_flush(void)
{
    open_caches();
    dirty_all();
    CHECK_INT(q2c_cache_depends_on_flush(a), 0);
    storage_fail(&a_storage, STORAGE_FLUSH, 0, 1, -EIO);
    CHECK_INT(q2c_cache_write(a), -EIO);
    CHECK_JOURNAL(&journal, "a:flush -> -5; ");
    storage_heal(&a_storage);
    CHECK_INT(q2c_cache_write(a), 0);
    CHECK_JOURNAL(&journal, "a:flush -> -5; a:flush; a:write 200+200; ");
    close_caches();
}

static void write_a(void *argument)
{
    (void)argument;
    CHECK_INT(q2c_cache_write(a), 0);
}

static void depends_on_flush_set_during_a_flush_survives(void)
{
    struct thread thread;
    int hold;

    open_caches();
    dirty_all();
    CHECK_INT(q2c_cache_depends_on_flush(a), 0);
    hold = storage_hold(&a_storage, STORAGE_FLUSH, STORAGE_ANYWHERE);
    thread_start(&thread, write_a, NULL);
    storage_await_held(&a_storage, hold, 1);
    /* the running flush may not cover data that was written after it began */
    CHECK_INT(q2c_cache_depends_on_flush(a), 0);
    storage_release(&a_storage, hold);
    thread_join(&thread);
    cache_dirty(a, AT(2), 2);
    journal_clear(&journal);
    CHECK_INT(q2c_cache_write(a), 0);
    CHECK_CONTAINS(journal_text(&journal), "a:write 400+200; ");
    CHECK_U64(storage_count(&a_storage, STORAGE_FLUSH), 2);
    close_caches();
}

static void eviction_order_is_dependency_check_victim_load(void)
{
    struct storage x_storage, y_storage;
    q2c_cache *x, *y;

    storage_init_shared(&x_storage, 1 << 14, "x:", &journal);
    storage_init_shared(&y_storage, 1 << 14, "y:", &journal);
    x = cache_new(&x_storage, 1, TABLE, 0);
    y = cache_new(&y_storage, 1, TABLE, 0);
    cache_dirty(x, AT(1), 1);
    cache_dirty(y, AT(2), 2);
    CHECK_INT(q2c_cache_set_dependency(x, y), 0);
    journal_clear(&journal);
    cache_touch(x, AT(3));
    CHECK_JOURNAL(&journal, "y:check 400+200; y:write 400+200; y:flush; "
                            "x:check 200+200; x:write 200+200; x:read 600+200; ");
    cache_drop(x);
    cache_drop(y);
    storage_free(&x_storage);
    storage_free(&y_storage);
    journal_clear(&journal);
}

static void destroying_a_dependent_drops_the_order(void)
{
    open_caches();
    cache_dirty(b, AT(1), 1);
    journal_clear(&journal);
    CHECK_INT(q2c_cache_set_dependency(a, b), 0);
    CHECK_INT(q2c_cache_destroy(&a), 0);
    CHECK_JOURNAL(&journal, "");
    CHECK_INT(q2c_cache_flush(b), 0);
    CHECK_JOURNAL(&journal, "b:write 200+200; b:flush; ");
    a = cache_new(&a_storage, 1, TABLE, 0);
    close_caches();
}

static void wrong_arguments_are_rejected(void)
{
    open_caches();
    CHECK_INT(q2c_cache_set_dependency(NULL, b), -EINVAL);
    CHECK_INT(q2c_cache_set_dependency(a, NULL), -EINVAL);
    CHECK_INT(q2c_cache_set_dependency(a, a), -EINVAL);
    CHECK_INT(q2c_cache_depends_on_flush(NULL), -EINVAL);
    cache_dirty(a, AT(1), 1);
    CHECK_INT(q2c_cache_flush(a), 0);
    close_caches();
}

int main(void)
{
    test_begin();
    RUN(dependency_is_flushed_first);
    RUN(write_keeps_the_order);
    RUN(flushed_dependency_is_forgotten);
    RUN(eviction_keeps_the_order);
    RUN(dependency_does_not_order_the_reverse_direction);
    RUN(written_dependency_is_still_flushed);
    RUN(chain_behind_a_dependency_is_settled);
    RUN(chain_in_front_of_a_dependency_is_settled);
    RUN(second_dependency_settles_the_first);
    RUN(repeated_dependency_costs_nothing);
    RUN(ring_of_dependencies_is_settled);
    RUN(failed_flush_keeps_the_dependency);
    RUN(dependency_stays_if_it_cannot_be_settled);
    RUN(depends_on_flush_flushes_before_the_next_write);
    RUN(one_flush_covers_all_tables);
    RUN(failed_flush_keeps_depends_on_flush);
    RUN(depends_on_flush_set_during_a_flush_survives);
    RUN(eviction_order_is_dependency_check_victim_load);
    RUN(destroying_a_dependent_drops_the_order);
    RUN(wrong_arguments_are_rejected);
    journal_free(&journal);
    return test_end();
}
