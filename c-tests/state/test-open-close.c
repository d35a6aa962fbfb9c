/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* q2c_state_open, the objects that it creates, and q2c_state_close. */
#include <limits.h>

#include "image.h"

static struct image image;

static void open_creates_the_default_caches(void)
{
    q2c_cache_stats l2, refcount;
    q2c_cleaner_stats cleaner;

    image_init(&image);
    image_open(&image);
    CHECK_JOURNAL(&image.journal, "");
    l2 = cache_stats(image_l2(&image));
    refcount = cache_stats(image_refcount(&image));
    CHECK_U64(l2.tables, IMAGE_L2_TABLES);
    CHECK_U64(l2.table_size, CLUSTER);
    CHECK_U64(refcount.tables, 4);
    CHECK_U64(refcount.table_size, CLUSTER);
    CHECK(image_cleaner_runs(&image));
    cleaner = cleaner_stats(q2c_state_cleaner(image.state));
    CHECK_U64(cleaner.interval_ns, 600 * SECOND);
    CHECK_U64(cleaner.starts, 1);
    image_close(&image);
}

static void null_options_mean_the_defaults(void)
{
    image_init(&image);
    image.config.options = NULL;
    image_open(&image);
    CHECK_U64(cache_stats(image_l2(&image)).tables, IMAGE_L2_TABLES);
    CHECK(image_cleaner_runs(&image));
    image_close(&image);
}

static void caches_follow_the_options(void)
{
    image_init(&image);
    image.options.set = Q2C_OPTION_L2_CACHE_SIZE | Q2C_OPTION_REFCOUNT_CACHE_SIZE |
                        Q2C_OPTION_L2_CACHE_ENTRY_SIZE | Q2C_OPTION_CACHE_CLEAN_INTERVAL;
    image.options.l2_cache_size = 5 * CLUSTER;
    image.options.refcount_cache_size = 6 * CLUSTER;
    image.options.l2_cache_entry_size = 1024;
    image.options.cache_clean_interval = 30;
    image_open(&image);
    CHECK_U64(cache_stats(image_l2(&image)).tables, 20);
    CHECK_U64(cache_stats(image_l2(&image)).table_size, 1024);
    CHECK_U64(cache_stats(image_refcount(&image)).tables, 6);
    CHECK_U64(cleaner_stats(q2c_state_cleaner(image.state)).interval_ns, 30 * SECOND);
    image_close(&image);
}

/*
 * Readers without the lock pin all that they get. A caller with the lock still pins two tables at
 * the same time, as a driver does that copies an L2 slice or moves to another refcount block.
 */
static void two_tables_are_left_to_the_lock(q2c_cache *cache)
{
    enum { READERS = IMAGE_L2_TABLES + 2 };
    void *readers[READERS], *old, *new;
    unsigned count = 0;

    for (unsigned n = 0; n < READERS; n++) {
        int r = q2c_cache_get_unlocked(cache, CLUSTER_AT(n + 1), &readers[count]);

        if (r == 0) {
            count++;
        } else {
            CHECK_INT(r, -EAGAIN);
        }
    }
    CHECK_U64(count, cache_stats(cache).tables - 2);
    old = cache_pin(cache, CLUSTER_AT(READERS + 1));
    CHECK_INT(q2c_cache_get_empty(cache, CLUSTER_AT(READERS + 2), &new), 0);
    cache_unpin(cache, new);
    cache_unpin(cache, old);
    for (unsigned n = 0; n < count; n++) {
        cache_unpin(cache, readers[n]);
    }
}

static void default_caches_leave_two_tables_to_the_lock(void)
{
    image_init(&image);
    image_open(&image);
    two_tables_are_left_to_the_lock(image_l2(&image));
    two_tables_are_left_to_the_lock(image_refcount(&image));
    image_close(&image);
}

static void smallest_caches_leave_two_tables_to_the_lock(void)
{
    for (unsigned tables = 2; tables <= 5; tables++) {
        image_init(&image);
        image.options.set = Q2C_OPTION_L2_CACHE_SIZE | Q2C_OPTION_REFCOUNT_CACHE_SIZE;
        image.options.l2_cache_size = tables * CLUSTER;
        image.options.refcount_cache_size = (tables + 2) * CLUSTER;
        image_open(&image);
        CHECK_U64(cache_stats(image_l2(&image)).tables, tables);
        two_tables_are_left_to_the_lock(image_l2(&image));
        two_tables_are_left_to_the_lock(image_refcount(&image));
        image_close(&image);
    }
}

static void interval_0_starts_no_cleaner(void)
{
    image_init(&image);
    image.options.set = Q2C_OPTION_CACHE_CLEAN_INTERVAL;
    image_open(&image);
    CHECK(!image_cleaner_runs(&image));
    CHECK(q2c_state_cleaner(image.state) != NULL);
    image_close(&image);
}

static void interval_below_a_second_is_used(void)
{
    image_init(&image);
    image.options.set = Q2C_OPTION_CACHE_CLEAN_INTERVAL;
    image.config.clean_interval_ns = MILLISECOND;
    image_open(&image);
    CHECK_U64(cleaner_stats(q2c_state_cleaner(image.state)).interval_ns, MILLISECOND);
    cache_touch(image_l2(&image), CLUSTER_AT(1));
    cache_touch(image_refcount(&image), CLUSTER_AT(2));
    EVENTUALLY(!cache_resident(image_l2(&image), CLUSTER_AT(1)));
    EVENTUALLY(!cache_resident(image_refcount(&image), CLUSTER_AT(2)));
    image_close(&image);
}

static void each_cache_has_its_own_storage_and_kind(void)
{
    image_init(&image);
    image_open(&image);
    cache_dirty(image_l2(&image), CLUSTER_AT(1), 1);
    cache_dirty(image_refcount(&image), CLUSTER_AT(2), 2);
    CHECK_INT(q2c_cache_flush(image_l2(&image)), 0);
    CHECK_INT(q2c_cache_flush(image_refcount(&image)), 0);
    CHECK_JOURNAL(&image.journal, "l2:read 1000+1000; rb:read 2000+1000; "
                                  "l2:check 1000+1000; l2:write 1000+1000; l2:flush; "
                                  "rb:check 2000+1000; rb:write 2000+1000; rb:flush; ");
    CHECK_INT(storage_last_kind(&image.l2_storage, STORAGE_CHECK), L2_KIND);
    CHECK_INT(storage_last_kind(&image.refcount_storage, STORAGE_CHECK), REFCOUNT_KIND);
    image_close(&image);
}

static void caches_can_share_one_storage(void)
{
    image_init(&image);
    image.config.refcount_storage = NULL;
    image_open(&image);
    cache_touch(image_refcount(&image), CLUSTER_AT(3));
    CHECK_JOURNAL(&image.journal, "l2:read 3000+1000; ");
    image_close(&image);
}

static void close_writes_dirty_tables_in_order(void)
{
    image_init(&image);
    image_open(&image);
    cache_dirty(image_l2(&image), CLUSTER_AT(1), 111);
    cache_dirty(image_refcount(&image), CLUSTER_AT(2), 222);
    CHECK_INT(q2c_cache_set_dependency(image_l2(&image), image_refcount(&image)), 0);
    journal_clear(&image.journal);
    CHECK_INT(q2c_state_close(&image.state), 0);
    CHECK_PTR(image.state, NULL);
    CHECK_U64(storage_peek(&image.l2_storage, CLUSTER_AT(1)), 111);
    CHECK_U64(storage_peek(&image.refcount_storage, CLUSTER_AT(2)), 222);
    {
        const char *text = journal_text(&image.journal);
        const char *first = strstr(text, "rb:write 2000+1000; rb:flush; ");
        const char *second = strstr(text, "l2:write 1000+1000; ");

        CHECK(first != NULL && second != NULL && first < second);
        CHECK(second != NULL && strstr(second, "l2:flush; ") != NULL);
    }
    image_close(&image);
}

static void close_is_busy_while_a_table_is_pinned(void)
{
    void *table;

    image_init(&image);
    image_open(&image);
    table = cache_pin(image_l2(&image), CLUSTER_AT(1));
    CHECK_INT(q2c_state_close(&image.state), -EBUSY);
    REQUIRE(image.state != NULL);
    CHECK(!image_cleaner_runs(&image));
    cache_unpin(image_l2(&image), table);
    table = cache_pin(image_refcount(&image), CLUSTER_AT(1));
    CHECK_INT(q2c_state_close(&image.state), -EBUSY);
    REQUIRE(image.state != NULL);
    cache_unpin(image_refcount(&image), table);
    CHECK_INT(q2c_state_close(&image.state), 0);
    CHECK_PTR(image.state, NULL);
    image_close(&image);
}

static void close_fails_when_its_flush_fails(void)
{
    image_init(&image);
    image_open(&image);
    cache_dirty(image_l2(&image), CLUSTER_AT(1), 111);
    storage_fail(&image.l2_storage, STORAGE_WRITE, 0, 1, -ENOSPC);
    CHECK_INT(q2c_state_close(&image.state), -ENOSPC);
    storage_heal(&image.l2_storage);
    REQUIRE(image.state != NULL);
    CHECK(!image_cleaner_runs(&image));
    CHECK_U64(cache_stats(image_l2(&image)).dirty_tables, 1);
    CHECK_INT(q2c_state_close(&image.state), 0);
    CHECK_PTR(image.state, NULL);
    CHECK_U64(storage_peek(&image.l2_storage, CLUSTER_AT(1)), 111);
    image_close(&image);
}

static void invalidate_lets_close_give_up_dirty_tables(void)
{
    image_init(&image);
    image_open(&image);
    cache_dirty(image_l2(&image), CLUSTER_AT(1), 111);
    storage_fail(&image.l2_storage, STORAGE_WRITE, 0, 1000, -EIO);
    CHECK_INT(q2c_state_close(&image.state), -EIO);
    CHECK_INT(q2c_state_invalidate(image.state), 0);
    CHECK_INT(q2c_state_close(&image.state), 0);
    CHECK_PTR(image.state, NULL);
    CHECK(storage_untouched(&image.l2_storage, CLUSTER_AT(1), CLUSTER));
    image_close(&image);
}

static void close_fails_with_the_lock_held(void)
{
    image_init(&image);
    image_open(&image);
    CHECK_INT(q2c_state_lock(image.state), 0);
    CHECK_INT(q2c_state_close(&image.state), -EDEADLK);
    REQUIRE(image.state != NULL);
    CHECK_INT(q2c_state_unlock(image.state), 0);
    image_close(&image);
}

static void reading_leaves_nothing_to_flush(void)
{
    image_init(&image);
    image_open(&image);
    for (unsigned n = 1; n <= 8; n++) {
        cache_touch(image_l2(&image), CLUSTER_AT(n));
        cache_touch(image_refcount(&image), CLUSTER_AT(n));
    }
    CHECK_INT(q2c_state_close(&image.state), 0);
    CHECK_U64(storage_count(&image.l2_storage, STORAGE_WRITE | STORAGE_FLUSH), 0);
    CHECK_U64(storage_count(&image.refcount_storage, STORAGE_WRITE | STORAGE_FLUSH), 0);
    image_close(&image);
}

static void close_flushes_what_was_only_written(void)
{
    image_init(&image);
    image_open(&image);
    cache_dirty(image_l2(&image), CLUSTER_AT(1), 1);
    CHECK_INT(q2c_cache_write(image_l2(&image)), 0);
    journal_clear(&image.journal);
    CHECK_INT(q2c_state_close(&image.state), 0);
    CHECK_JOURNAL(&image.journal, "l2:flush; ");
    image_close(&image);

    /* a flush that was asked for is owed, too */
    image_init(&image);
    image_open(&image);
    CHECK_INT(q2c_cache_depends_on_flush(image_refcount(&image)), 0);
    CHECK_INT(q2c_state_close(&image.state), 0);
    CHECK_JOURNAL(&image.journal, "rb:flush; ");
    image_close(&image);

    /* what is stable already is not flushed again */
    image_init(&image);
    image_open(&image);
    cache_dirty(image_l2(&image), CLUSTER_AT(1), 1);
    CHECK_INT(q2c_cache_flush(image_l2(&image)), 0);
    journal_clear(&image.journal);
    CHECK_INT(q2c_state_close(&image.state), 0);
    CHECK_JOURNAL(&image.journal, "");
    image_close(&image);
}

/* Both caches dirty, with every dependency that they can have. */
static void make_dependencies(bool l2_on_refcounts)
{
    q2c_cache *l2 = image_l2(&image), *refcounts = image_refcount(&image);

    cache_dirty(l2, CLUSTER_AT(1), 1);
    cache_dirty(refcounts, CLUSTER_AT(2), 2);
    CHECK_INT(q2c_cache_write(l2), 0);
    CHECK_INT(q2c_cache_write(refcounts), 0);
    cache_dirty(l2, CLUSTER_AT(3), 3);
    cache_dirty(refcounts, CLUSTER_AT(4), 4);
    CHECK_INT(l2_on_refcounts ? q2c_cache_set_dependency(l2, refcounts)
                              : q2c_cache_set_dependency(refcounts, l2),
              0);
    CHECK_INT(q2c_cache_depends_on_flush(l2), 0);
    CHECK_INT(q2c_cache_depends_on_flush(refcounts), 0);
}

static void image_on_dead_storage_can_be_given_up(void)
{
    for (int round = 0; round < 4; round++) {
        image_init(&image);
        if (round % 2 != 0) {
            image.config.refcount_storage = NULL; /* both caches on one storage */
        }
        image_open(&image);
        make_dependencies(round < 2);
        storage_fail(&image.l2_storage, STORAGE_ANY, 0, INT_MAX, -EIO);
        storage_fail(&image.refcount_storage, STORAGE_ANY, 0, INT_MAX, -EIO);
        CHECK_INT(q2c_state_close(&image.state), -EIO);
        REQUIRE(image.state != NULL);
        CHECK_U64(cache_stats(image_l2(&image)).dirty_tables != 0, 1);
        CHECK_INT(q2c_state_invalidate(image.state), 0);
        journal_clear(&image.journal);
        CHECK_INT(q2c_state_close(&image.state), 0);
        CHECK_JOURNAL(&image.journal, "");
        image_close(&image);
    }
}

static void objects_of_a_state_cannot_be_destroyed(void)
{
    q2c_cache *l2;
    q2c_cleaner *cleaner;

    image_init(&image);
    image_open(&image);
    l2 = image_l2(&image);
    CHECK_INT(q2c_cache_destroy(&l2), -EPERM);
    CHECK_PTR(l2, image_l2(&image));
    cleaner = q2c_state_cleaner(image.state);
    CHECK_INT(q2c_cleaner_del_and_wait(cleaner), 0);
    CHECK(q2c_cleaner_destroy(&cleaner) < 0);
    CHECK_PTR(cleaner, q2c_state_cleaner(image.state));
    image_close(&image);
}

static void state_opens_and_closes_repeatedly(void)
{
    image_init(&image);
    for (unsigned i = 0; i < 200; i++) {
        image.config.clean_interval_ns = i % 2 == 0 ? 1 : 0;
        image_open(&image);
        cache_dirty(image_l2(&image), CLUSTER_AT(1), i);
        CHECK_INT(q2c_state_close(&image.state), 0);
        CHECK_U64(storage_peek(&image.l2_storage, CLUSTER_AT(1)), i);
    }
    image_close(&image);
}

int main(void)
{
    test_begin();
    RUN(open_creates_the_default_caches);
    RUN(null_options_mean_the_defaults);
    RUN(caches_follow_the_options);
    RUN(default_caches_leave_two_tables_to_the_lock);
    RUN(smallest_caches_leave_two_tables_to_the_lock);
    RUN(interval_0_starts_no_cleaner);
    RUN(interval_below_a_second_is_used);
    RUN(each_cache_has_its_own_storage_and_kind);
    RUN(caches_can_share_one_storage);
    RUN(close_writes_dirty_tables_in_order);
    RUN(close_is_busy_while_a_table_is_pinned);
    RUN(close_fails_when_its_flush_fails);
    RUN(invalidate_lets_close_give_up_dirty_tables);
    RUN(close_fails_with_the_lock_held);
    RUN(reading_leaves_nothing_to_flush);
    RUN(close_flushes_what_was_only_written);
    RUN(image_on_dead_storage_can_be_given_up);
    RUN(objects_of_a_state_cannot_be_destroyed);
    RUN(state_opens_and_closes_repeatedly);
    return test_end();
}
