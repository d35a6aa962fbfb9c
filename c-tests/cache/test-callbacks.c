/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* The library calls every callback in the caller's thread and holds no lock meanwhile. */
#include "fixture.h"

static struct storage storage;
static q2c_cache *cache;
static unsigned entered[STORAGE_ANY + 1]; /* by op; 0 stands for corruption */
static pthread_t caller;

/* What a driver may do in a callback: read statistics, clean, and get other tables. */
static void use_the_cache(struct storage *from, int op, uint64_t offset, void *argument)
{
    static bool inside;
    q2c_cache_stats stats = { .struct_size = sizeof(stats) };
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
    /* a table other than the one of this callback; -EAGAIN if all others are dirty */
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

static void read_callback_can_use_the_cache(void)
{
    open_cache();
    cache_touch(cache, AT(1));
    CHECK_U64(entered[STORAGE_READ], 1);
    close_cache();
}

static void flush_callbacks_can_use_the_cache(void)
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

static void flush_of_a_dependency_can_use_the_cache(void)
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

static void corruption_callback_can_use_the_cache(void)
{
    open_cache();
    CHECK_INT(q2c_cache_get(cache, AT(5) + 8, &(void *){ NULL }), -EIO);
    CHECK_U64(entered[0], 1);
    close_cache();
}

static void victim_write_back_can_use_the_cache(void)
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

/* One opaque serves both caches of an image: each call says for which of them it is made. */
static void callbacks_get_the_kind_of_their_cache(void)
{
    const int kinds[] = { 21, -22 };
    q2c_cache *caches[2];

    storage_init(&storage, 1 << 16);
    for (unsigned n = 0; n < 2; n++) {
        const q2c_cache_options options = {
            .struct_size = sizeof(options), .tables = 2, .table_size = TABLE, .kind = kinds[n]
        };

        CHECK_INT(q2c_cache_create(&options, &storage.calls, NULL, &caches[n], NULL), 0);
    }
    for (unsigned round = 0; round < 4; round++) {
        unsigned n = round % 2;

        cache_dirty(caches[n], AT(10 + round), round);
        CHECK_INT(storage_last_kind(&storage, STORAGE_READ), kinds[n]);
        CHECK_INT(q2c_cache_flush(caches[n]), 0);
        CHECK_INT(storage_last_kind(&storage, STORAGE_CHECK), kinds[n]);
        CHECK_INT(storage_last_kind(&storage, STORAGE_WRITE), kinds[n]);
    }
    cache_drop(caches[0]);
    cache_drop(caches[1]);
    storage_free(&storage);
}

int main(void)
{
    test_begin();
    RUN(read_callback_can_use_the_cache);
    RUN(flush_callbacks_can_use_the_cache);
    RUN(flush_of_a_dependency_can_use_the_cache);
    RUN(corruption_callback_can_use_the_cache);
    RUN(victim_write_back_can_use_the_cache);
    RUN(callbacks_get_the_kind_of_their_cache);
    return test_end();
}
