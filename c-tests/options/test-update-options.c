/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* A change of options as a transaction: prepare, then commit (locked or unlocked) or abort. */
#include <limits.h>

#include "image.h"

static struct image image;

static q2c_options smaller_options(void)
{
    q2c_options options;

    MUST(q2c_options_init(&options));
    options.set =
        Q2C_OPTION_L2_CACHE_SIZE | Q2C_OPTION_REFCOUNT_CACHE_SIZE | Q2C_OPTION_CACHE_CLEAN_INTERVAL;
    options.l2_cache_size = 8 * CLUSTER;
    options.refcount_cache_size = 5 * CLUSTER;
    options.cache_clean_interval = 30;
    return options;
}

static q2c_update *prepare(const q2c_options *options, uint64_t interval_ns)
{
    q2c_update *update = NULL;
    q2c_error error = { .message = "" };

    if (q2c_update_options_prepare(image.state, options, NULL, interval_ns, &update, &error) != 0) {
        test_note("q2c_update_options_prepare: %s", error.message);
    }
    REQUIRE(update != NULL);
    return update;
}

static void commit(q2c_update *update, bool locked)
{
    CHECK_INT(q2c_update_options_commit(image.state, &update, locked), 0);
    CHECK_PTR(update, NULL);
}

static void check_smaller(void)
{
    CHECK_U64(cache_stats(image_l2(&image)).tables, 8);
    CHECK_U64(cache_stats(image_refcount(&image)).tables, 5);
    CHECK_U64(cleaner_stats(q2c_state_cleaner(image.state)).interval_ns, 30 * SECOND);
    CHECK_U64(cleaner_stats(q2c_state_cleaner(image.state)).instances, 1);
    CHECK(image_cleaner_runs(&image));
}

static void check_unchanged(void)
{
    CHECK_U64(cache_stats(image_l2(&image)).tables, IMAGE_L2_TABLES);
    CHECK_U64(cache_stats(image_refcount(&image)).tables, 4);
    CHECK_U64(cleaner_stats(q2c_state_cleaner(image.state)).interval_ns, 600 * SECOND);
    CHECK(image_cleaner_runs(&image));
}

static void commit_without_the_lock_applies_the_options(void)
{
    q2c_options options = smaller_options();

    image_init(&image);
    image_open(&image);
    commit(prepare(&options, 0), false);
    check_smaller();
    CHECK_INT(q2c_state_unlock(image.state), -EPERM);
    image_close(&image);
}

static void commit_with_the_lock_keeps_the_lock(void)
{
    q2c_options options = smaller_options();

    image_init(&image);
    image_open(&image);
    CHECK_INT(q2c_state_lock(image.state), 0);
    commit(prepare(&options, 0), true);
    CHECK_INT(q2c_state_lock(image.state), -EDEADLK);
    check_smaller();
    CHECK_INT(q2c_state_unlock(image.state), 0);
    image_close(&image);
}

static void commit_in_the_wrong_context_fails(void)
{
    q2c_options options = smaller_options();
    q2c_update *update;

    image_init(&image);
    image_open(&image);
    update = prepare(&options, 0);
    CHECK_INT(q2c_update_options_commit(image.state, &update, true), -EPERM);
    REQUIRE(update != NULL);
    check_unchanged();
    CHECK_INT(q2c_state_lock(image.state), 0);
    CHECK_INT(q2c_update_options_commit(image.state, &update, false), -EDEADLK);
    REQUIRE(update != NULL);
    check_unchanged();
    CHECK_INT(q2c_state_unlock(image.state), 0);
    commit(update, false);
    check_smaller();
    image_close(&image);
}

static void abort_changes_nothing(void)
{
    q2c_options options = smaller_options();
    q2c_update *update;
    q2c_cache *l2;

    image_init(&image);
    image_open(&image);
    l2 = image_l2(&image);
    cache_touch(l2, CLUSTER_AT(1));
    update = prepare(&options, 0);
    CHECK_INT(q2c_update_options_abort(image.state, &update), 0);
    CHECK_PTR(update, NULL);
    check_unchanged();
    CHECK_PTR(image_l2(&image), l2);
    CHECK(cache_resident(l2, CLUSTER_AT(1)));
    image_close(&image);
}

static void prepare_flushes_the_old_caches(void)
{
    q2c_options options = smaller_options();
    q2c_update *update;
    void *table;

    image_init(&image);
    image_open(&image);
    cache_dirty(image_l2(&image), CLUSTER_AT(1), 11);
    cache_dirty(image_refcount(&image), CLUSTER_AT(2), 22);
    update = prepare(&options, 0);
    CHECK_U64(cache_stats(image_l2(&image)).dirty_tables, 0);
    CHECK_U64(cache_stats(image_refcount(&image)).dirty_tables, 0);
    CHECK_U64(storage_peek(&image.l2_storage, CLUSTER_AT(1)), 11);
    CHECK_U64(storage_peek(&image.refcount_storage, CLUSTER_AT(2)), 22);
    commit(update, false);
    table = cache_pin(image_l2(&image), CLUSTER_AT(1));
    CHECK_U64(table_word(table, 0), 11);
    cache_unpin(image_l2(&image), table);
    image_close(&image);
}

static void prepare_fails_when_the_flush_fails(void)
{
    static const int ops[] = { STORAGE_WRITE, STORAGE_FLUSH, STORAGE_CHECK };
    q2c_options options = smaller_options();

    for (size_t i = 0; i < 3; i++) {
        q2c_update *update = NULL;
        q2c_error error = { .code = 0, .message = "" };

        image_init(&image);
        image_open(&image);
        cache_dirty(image_l2(&image), CLUSTER_AT(1), 11);
        storage_fail(&image.l2_storage, ops[i], 0, 1, -ENOSPC);
        CHECK_INT(q2c_update_options_prepare(image.state, &options, NULL, 0, &update, &error),
                  -ENOSPC);
        storage_heal(&image.l2_storage);
        CHECK_PTR(update, NULL);
        CHECK_INT(error.code, ENOSPC);
        CHECK(error.message[0] != '\0');
        check_unchanged();
        CHECK_INT(q2c_cache_flush(image_l2(&image)), 0);
        CHECK_U64(storage_peek(&image.l2_storage, CLUSTER_AT(1)), 11);
        image_close(&image);
    }
}

static void prepare_rejects_bad_options(void)
{
    q2c_options options = smaller_options();
    q2c_geometry geometry;
    q2c_update *const untouched = (q2c_update *)&image;
    q2c_update *update = untouched;
    q2c_error error = { .code = 0, .message = "" };

    image_init(&image);
    image_open(&image);
    options.set |= Q2C_OPTION_CACHE_SIZE;
    CHECK_INT(q2c_update_options_prepare(image.state, &options, NULL, 0, &update, &error), -EINVAL);
    CHECK_INT(error.code, EINVAL);
    CHECK_CONTAINS(error.message, "cache-size");
    options = smaller_options();
    geometry = image.geometry;
    geometry.cluster_size = 77;
    CHECK_INT(q2c_update_options_prepare(image.state, &options, &geometry, 0, &update, &error),
              -EINVAL);
    CHECK_CONTAINS(error.message, "cluster");
    options.struct_size = 1;
    CHECK_INT(q2c_update_options_prepare(image.state, &options, NULL, 0, &update, NULL), -EINVAL);
    CHECK_PTR(update, untouched);
    check_unchanged();
    image_close(&image);
}

static void commit_is_busy_while_a_table_is_pinned(void)
{
    for (unsigned i = 0; i < 4; i++) {
        bool locked = i % 2 == 1;
        q2c_options options = smaller_options();
        q2c_update *update;
        q2c_cache *pinned;
        void *table;

        image_init(&image);
        image_open(&image);
        if (locked) {
            CHECK_INT(q2c_state_lock(image.state), 0);
        }
        pinned = i / 2 == 0 ? image_l2(&image) : image_refcount(&image);
        table = cache_pin(pinned, CLUSTER_AT(1));
        update = prepare(&options, 0);
        CHECK_INT(q2c_update_options_commit(image.state, &update, locked), -EBUSY);
        REQUIRE(update != NULL);
        check_unchanged();
        CHECK(table_untouched(table, CLUSTER_AT(1), CLUSTER));
        cache_unpin(pinned, table);
        commit(update, locked);
        check_smaller();
        if (locked) {
            CHECK_INT(q2c_state_unlock(image.state), 0);
        }
        image_close(&image);
    }
}

/* A table dirtied after prepare is on disk after the commit, or dirty if the commit fails. */
static void tables_dirtied_after_prepare_are_not_lost(void)
{
    q2c_options options = smaller_options();
    q2c_update *update;

    image_init(&image);
    image_open(&image);
    update = prepare(&options, 0);
    cache_dirty(image_l2(&image), CLUSTER_AT(1), 11);
    storage_fail(&image.l2_storage, STORAGE_WRITE, 0, 1, -ENOSPC);
    CHECK(q2c_update_options_commit(image.state, &update, false) < 0);
    REQUIRE(update != NULL);
    check_unchanged();
    CHECK_U64(cache_stats(image_l2(&image)).dirty_tables, 1);
    storage_heal(&image.l2_storage);
    if (q2c_update_options_commit(image.state, &update, false) != 0) {
        CHECK_INT(q2c_cache_flush(image_l2(&image)), 0);
        CHECK_INT(q2c_update_options_commit(image.state, &update, false), 0);
    }
    CHECK_U64(storage_peek(&image.l2_storage, CLUSTER_AT(1)), 11);
    check_smaller();
    image_close(&image);
}

static void interval_below_a_second_is_used(void)
{
    image_init(&image);
    image_open(&image);
    commit(prepare(NULL, MILLISECOND), false);
    CHECK_U64(cleaner_stats(q2c_state_cleaner(image.state)).interval_ns, MILLISECOND);
    cache_touch(image_l2(&image), CLUSTER_AT(1));
    EVENTUALLY(!cache_resident(image_l2(&image), CLUSTER_AT(1)));
    /* 0: the options decide again */
    commit(prepare(NULL, 0), false);
    CHECK_U64(cleaner_stats(q2c_state_cleaner(image.state)).interval_ns, 600 * SECOND);
    image_close(&image);
}

static void interval_0_stops_the_cleaner(void)
{
    q2c_options options;

    MUST(q2c_options_init(&options));
    options.set = Q2C_OPTION_CACHE_CLEAN_INTERVAL;
    image_init(&image);
    image_open(&image);
    commit(prepare(&options, 0), false);
    CHECK(!image_cleaner_runs(&image));
    CHECK_U64(cleaner_stats(q2c_state_cleaner(image.state)).instances, 0);
    commit(prepare(NULL, 0), false);
    CHECK(image_cleaner_runs(&image));
    image_close(&image);
}

static void geometry_of_a_grown_image_is_kept(void)
{
    q2c_geometry grown;
    q2c_update *update = NULL;

    image_init(&image);
    image_open(&image);
    grown = image.geometry;
    grown.virtual_size *= 2;
    CHECK_INT(q2c_update_options_prepare(image.state, NULL, &grown, 0, &update, NULL), 0);
    commit(update, false);
    CHECK_U64(cache_stats(image_l2(&image)).tables, 2 * IMAGE_L2_TABLES);
    /* the next change keeps it */
    commit(prepare(NULL, 0), false);
    CHECK_U64(cache_stats(image_l2(&image)).tables, 2 * IMAGE_L2_TABLES);
    image_close(&image);
}

static void new_caches_are_used_and_cleaned(void)
{
    q2c_options options = smaller_options();
    q2c_cache *l2;

    image_init(&image);
    image_open(&image);
    cache_touch(image_l2(&image), CLUSTER_AT(1));
    commit(prepare(&options, MILLISECOND), false);
    l2 = image_l2(&image);
    CHECK_U64(cache_stats(l2).resident_tables, 0);
    cache_dirty(l2, CLUSTER_AT(2), 2);
    cache_touch(l2, CLUSTER_AT(3));
    EVENTUALLY(!cache_resident(l2, CLUSTER_AT(3)));
    CHECK(cache_resident(l2, CLUSTER_AT(2)));
    CHECK_INT(storage_last_kind(&image.l2_storage, STORAGE_CHECK), 0);
    CHECK_INT(q2c_cache_flush(l2), 0);
    CHECK_INT(storage_last_kind(&image.l2_storage, STORAGE_CHECK), L2_KIND);
    image_close(&image);
}

static void update_of_another_state_is_rejected(void)
{
    struct image other;
    q2c_update *update;

    image_init(&image);
    image_open(&image);
    image_init(&other);
    image_open(&other);
    update = prepare(NULL, 0);
    CHECK_INT(q2c_update_options_commit(other.state, &update, false), -EINVAL);
    REQUIRE(update != NULL);
    commit(update, false);
    image_close(&other);
    image_close(&image);
}

static void detached_state_stays_detached(void)
{
    q2c_options options = smaller_options();

    image_init(&image);
    image_open(&image);
    CHECK_INT(q2c_state_detach_context(image.state), 0);
    commit(prepare(&options, 0), false);
    CHECK(!image_cleaner_runs(&image));
    CHECK_U64(cache_stats(image_l2(&image)).tables, 8);
    CHECK_INT(q2c_state_attach_context(image.state, NULL), 0);
    check_smaller();
    image_close(&image);
}

static void options_change_during_continuous_passes(void)
{
    q2c_options options = smaller_options();

    image_init(&image);
    image.config.clean_interval_ns = 1;
    image_open(&image);
    for (unsigned i = 0; i < 100; i++) {
        bool locked = i % 2 == 1;

        if (locked) {
            CHECK_INT(q2c_state_lock(image.state), 0);
        }
        cache_dirty(image_l2(&image), CLUSTER_AT(1 + i % 8), i);
        commit(prepare(i % 3 == 0 ? &options : NULL, 1 + i % 2), locked);
        if (locked) {
            CHECK_INT(q2c_state_unlock(image.state), 0);
        }
        CHECK_U64(storage_peek(&image.l2_storage, CLUSTER_AT(1 + i % 8)), i);
    }
    image_close(&image);
}

/*
 * Nothing is dirty at the commit, but something was written since the last flush, and the caches
 * depend on each other. The swap calls no storage; the new caches see to the rest.
 */
static void swap_of_clean_caches_calls_no_storage(void)
{
    q2c_options options = smaller_options();
    q2c_update *update;

    for (int l2_on_refcounts = 0; l2_on_refcounts < 2; l2_on_refcounts++) {
        q2c_cache *l2, *refcounts;

        image_init(&image);
        image_open(&image);
        update = prepare(&options, 0);
        l2 = image_l2(&image);
        refcounts = image_refcount(&image);
        cache_dirty(l2, CLUSTER_AT(1), 1);
        cache_dirty(refcounts, CLUSTER_AT(2), 2);
        CHECK_INT(q2c_cache_write(l2), 0);
        CHECK_INT(q2c_cache_write(refcounts), 0);
        CHECK_INT(l2_on_refcounts ? q2c_cache_set_dependency(l2, refcounts)
                                  : q2c_cache_set_dependency(refcounts, l2),
                  0);
        storage_fail(&image.l2_storage, STORAGE_ANY, 0, INT_MAX, -EIO);
        storage_fail(&image.refcount_storage, STORAGE_ANY, 0, INT_MAX, -EIO);
        journal_clear(&image.journal);
        commit(update, false);
        CHECK_JOURNAL(&image.journal, "");
        check_smaller();
        storage_heal(&image.l2_storage);
        storage_heal(&image.refcount_storage);

        /* The first write of the new cache waits for what the old one's write would wait for. */
        cache_dirty(l2_on_refcounts ? image_l2(&image) : image_refcount(&image), CLUSTER_AT(3), 3);
        journal_clear(&image.journal);
        CHECK_INT(q2c_cache_write(image_l2(&image)), 0);
        CHECK_INT(q2c_cache_write(image_refcount(&image)), 0);
        CHECK_JOURNAL(&image.journal, l2_on_refcounts
                                          ? "l2:flush; l2:check 3000+1000; l2:write 3000+1000; "
                                          : "rb:flush; rb:check 3000+1000; rb:write 3000+1000; ");
        /* What the old caches wrote is flushed at the latest when the image is closed. */
        journal_clear(&image.journal);
        CHECK_INT(q2c_state_close(&image.state), 0);
        CHECK_JOURNAL(&image.journal, "l2:flush; rb:flush; ");
        image_close(&image);
    }
}

int main(void)
{
    test_begin();
    RUN(commit_without_the_lock_applies_the_options);
    RUN(commit_with_the_lock_keeps_the_lock);
    RUN(commit_in_the_wrong_context_fails);
    RUN(abort_changes_nothing);
    RUN(prepare_flushes_the_old_caches);
    RUN(prepare_fails_when_the_flush_fails);
    RUN(prepare_rejects_bad_options);
    RUN(commit_is_busy_while_a_table_is_pinned);
    RUN(tables_dirtied_after_prepare_are_not_lost);
    RUN(interval_below_a_second_is_used);
    RUN(interval_0_stops_the_cleaner);
    RUN(geometry_of_a_grown_image_is_kept);
    RUN(new_caches_are_used_and_cleaned);
    RUN(update_of_another_state_is_rejected);
    RUN(detached_state_stays_detached);
    RUN(options_change_during_continuous_passes);
    RUN(swap_of_clean_caches_calls_no_storage);
    return test_end();
}
