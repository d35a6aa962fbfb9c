/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Inside every callback no lock is held, and the thread is the caller's own. */
#include "fixture.h"

static struct storage storage;
static q2c_cache *cache;
static unsigned entered[STORAGE_ANY + 1]; /* by op; 0: corruption */
static pthread_t caller;

/* What a driver may want to do in a callback: look around, and take tables of its own. */
static void use_the_cache(struct storage *from, int op, uint64_t offset, void *argument)
{
    static bool inside;
    q2c_cache_stats stats = {.struct_size = sizeof(stats)};
    void *table = NULL;
    uint64_t word;
    int result;

    (void)from;
    (void)argument;
    CHECK(pthread_equal(pthread_self(), caller));
    if (inside) {
        return;
    }
    inside = true;
    entered[op]++;
    CHECK_INT(q2c_cache_get_stats(cache, &stats), 0);
    CHECK(q2c_cache_clean_unused(cache) >= 0);
    CHECK(q2c_cache_is_table_offset(cache, AT(60), &table) >= 0);
    CHECK(q2c_cache_read(cache, AT(60), 0, &word, 8) <= 0);
    table = NULL;
    if (q2c_cache_try_get(cache, AT(60), &table) == 0) {
        CHECK_INT(q2c_cache_put(cache, &table), 0);
    }
    /* another table than the one it is called for; -EAGAIN: all others are dirty */
    result = q2c_cache_get_unlocked(cache, AT(offset == AT(61) ? 62 : 61), &table);
    if (result == 0) {
        CHECK_INT(q2c_cache_put(cache, &table), 0);
    } else {
        CHECK_INT(result, -EAGAIN);
    }
    inside = false;
}

static void open_cache(void)
{
    memset(entered, 0, sizeof(entered));
    caller = pthread_self();
    storage_init(&storage, 1 << 16);
    cache = cache_new(&storage, 8, TABLE, 1);
    cache_touch(cache, AT(60));
    storage.inside = use_the_cache;
}

static void close_cache(void)
{
    storage.inside = NULL;
    cache_drop(cache);
    storage_free(&storage);
}

static void in_a_read(void)
{
    open_cache();
    cache_touch(cache, AT(1));
    CHECK_U64(entered[STORAGE_READ], 1);
    close_cache();
}

static void in_a_flush_of_dirty_tables(void)
{
    open_cache();
    cache_dirty(cache, AT(2), 2);
    CHECK_INT(q2c_cache_depends_on_flush(cache), 0);
    CHECK_INT(q2c_cache_flush(cache), 0);
    CHECK_U64(entered[STORAGE_CHECK], 1);
    CHECK_U64(entered[STORAGE_WRITE], 1);
    CHECK_U64(entered[STORAGE_FLUSH], 2);
    CHECK_U64(storage_peek(&storage, AT(2)), 2);
    close_cache();
}

static void in_the_flush_of_a_dependency(void)
{
    q2c_cache *other;

    open_cache();
    other = cache_new(&storage, 2, TABLE, 0);
    cache_dirty(other, AT(3), 3);
    cache_dirty(cache, AT(4), 4);
    CHECK_INT(q2c_cache_set_dependency(cache, other), 0);
    CHECK_INT(q2c_cache_flush(cache), 0);
    CHECK_U64(storage_peek(&storage, AT(3)), 3);
    CHECK_U64(storage_peek(&storage, AT(4)), 4);
    CHECK_U64(entered[STORAGE_WRITE], 2);
    cache_drop(other);
    close_cache();
}

static void in_corruption(void)
{
    open_cache();
    CHECK_INT(q2c_cache_get(cache, AT(5) + 8, &(void *){NULL}), -EIO);
    CHECK_U64(entered[0], 1);
    close_cache();
}

static void in_the_write_of_a_victim(void)
{
    open_cache();
    for (unsigned n = 10; n < 40; n++) {
        cache_dirty(cache, AT(n), n);
    }
    CHECK(entered[STORAGE_WRITE] > 0);
    CHECK_INT(q2c_cache_flush(cache), 0);
    for (unsigned n = 10; n < 40; n++) {
        CHECK_U64(storage_peek(&storage, AT(n)), n);
    }
    close_cache();
}

int main(void)
{
    test_begin();
    RUN(in_a_read);
    RUN(in_a_flush_of_dirty_tables);
    RUN(in_the_flush_of_a_dependency);
    RUN(in_corruption);
    RUN(in_the_write_of_a_victim);
    return test_end();
}
