/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* q2c_state_invalidate: for an image that another process has written. */
#include "image.h"

static struct image image;

static void invalidate_reads_every_table_again(void)
{
    uint64_t changed = 55;
    void *table;

    image_init(&image);
    image_open(&image);
    cache_touch(image_l2(&image), CLUSTER_AT(1));
    cache_touch(image_refcount(&image), CLUSTER_AT(2));
    memcpy(image.l2_storage.data + CLUSTER_AT(1), &changed, sizeof(changed));
    journal_clear(&image.journal);
    CHECK_INT(q2c_state_invalidate(image.state), 0);
    CHECK_U64(cache_stats(image_l2(&image)).resident_tables, 0);
    CHECK_U64(cache_stats(image_refcount(&image)).resident_tables, 0);
    table = cache_pin(image_l2(&image), CLUSTER_AT(1));
    CHECK_U64(table_word(table, 0), 55);
    cache_unpin(image_l2(&image), table);
    CHECK_JOURNAL(&image.journal, "l2:read 1000+1000; ");
    image_close(&image);
}

static void invalidate_drops_dirty_tables_without_a_write(void)
{
    image_init(&image);
    image_open(&image);
    cache_dirty(image_l2(&image), CLUSTER_AT(1), 1);
    cache_dirty(image_refcount(&image), CLUSTER_AT(1), 1);
    journal_clear(&image.journal);
    CHECK_INT(q2c_state_invalidate(image.state), 0);
    CHECK_JOURNAL(&image.journal, "");
    CHECK_U64(cache_stats(image_l2(&image)).dirty_tables, 0);
    CHECK_U64(cache_stats(image_refcount(&image)).dirty_tables, 0);
    CHECK(storage_untouched(&image.l2_storage, CLUSTER_AT(1), CLUSTER));
    image_close(&image);
}

static void invalidate_is_busy_while_either_cache_has_a_pin(void)
{
    for (unsigned i = 0; i < 2; i++) {
        q2c_cache *pinned, *other;
        void *table;

        image_init(&image);
        image_open(&image);
        pinned = i == 0 ? image_l2(&image) : image_refcount(&image);
        other = i == 0 ? image_refcount(&image) : image_l2(&image);
        table = cache_pin(pinned, CLUSTER_AT(1));
        cache_dirty(other, CLUSTER_AT(2), 2);
        cache_dirty(pinned, CLUSTER_AT(3), 3);
        CHECK_INT(q2c_state_invalidate(image.state), -EBUSY);
        /* an error drops nothing */
        CHECK_U64(cache_stats(pinned).dirty_tables, 1);
        CHECK_U64(cache_stats(other).dirty_tables, 1);
        CHECK(table_untouched(table, CLUSTER_AT(1), CLUSTER));
        cache_unpin(pinned, table);
        CHECK_INT(q2c_state_invalidate(image.state), 0);
        image_close(&image);
    }
}

static void cleaner_continues_with_its_interval(void)
{
    q2c_cleaner_stats before, after;

    image_init(&image);
    image.config.clean_interval_ns = MILLISECOND;
    image_open(&image);
    before = cleaner_stats(q2c_state_cleaner(image.state));
    CHECK_INT(q2c_state_invalidate(image.state), 0);
    CHECK(image_cleaner_runs(&image));
    after = cleaner_stats(q2c_state_cleaner(image.state));
    CHECK_U64(after.starts, before.starts + 1);
    CHECK_U64(after.instances, 1);
    CHECK_U64(after.interval_ns, MILLISECOND);
    cache_touch(image_l2(&image), CLUSTER_AT(1));
    EVENTUALLY(!cache_resident(image_l2(&image), CLUSTER_AT(1)));
    image_close(&image);
}

static void invalidate_starts_no_cleaner_where_none_ran(void)
{
    image_init(&image);
    image.options.set = Q2C_OPTION_CACHE_CLEAN_INTERVAL;
    image_open(&image);
    CHECK_INT(q2c_state_invalidate(image.state), 0);
    CHECK(!image_cleaner_runs(&image));
    image_close(&image);
}

static void invalidate_fails_with_the_lock_held(void)
{
    image_init(&image);
    image_open(&image);
    cache_dirty(image_l2(&image), CLUSTER_AT(1), 1);
    CHECK_INT(q2c_state_lock(image.state), 0);
    CHECK_INT(q2c_state_invalidate(image.state), -EDEADLK);
    CHECK_U64(cache_stats(image_l2(&image)).dirty_tables, 1);
    CHECK_INT(q2c_state_unlock(image.state), 0);
    image_close(&image);
}

int main(void)
{
    test_begin();
    RUN(invalidate_reads_every_table_again);
    RUN(invalidate_drops_dirty_tables_without_a_write);
    RUN(invalidate_is_busy_while_either_cache_has_a_pin);
    RUN(cleaner_continues_with_its_interval);
    RUN(invalidate_starts_no_cleaner_where_none_ran);
    RUN(invalidate_fails_with_the_lock_held);
    return test_end();
}
