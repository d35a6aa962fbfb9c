/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* q2c_cache_read copies entries without a pin; q2c_cache_store changes an entry of a pinned table.
 */
#include "fixture.h"
#include "threads.h"

static struct storage storage;
static q2c_cache *cache;

static void read_does_not_load_absent_tables(void)
{
    uint64_t word;

    journal_clear(storage.journal);
    CHECK_INT(q2c_cache_read(cache, AT(1), 0, &word, sizeof(word)), -EAGAIN);
    CHECK_JOURNAL(storage.journal, "");
}

static void read_copies_any_aligned_part(void)
{
    static const struct {
        size_t at, bytes;
    } parts[] = {
        { 0, 8 }, { 8, 8 }, { TABLE - 8, 8 }, { 0, TABLE }, { 16, 64 }, { TABLE - 64, 64 }
    };
    char copy[TABLE];

    cache_touch(cache, AT(2));
    for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
        memset(copy, 0, sizeof(copy));
        CHECK_INT(q2c_cache_read(cache, AT(2), parts[i].at, copy, parts[i].bytes), 0);
        CHECK(table_untouched(copy, AT(2) + parts[i].at, parts[i].bytes));
    }
    CHECK_U64(cache_stats(cache).pinned_tables, 0);
}

static void read_rejects_unaligned_and_outside_ranges(void)
{
    char copy[2 * TABLE];

    cache_touch(cache, AT(2));
    CHECK_INT(q2c_cache_read(cache, AT(2), 4, copy, 8), -EINVAL);
    CHECK_INT(q2c_cache_read(cache, AT(2), 0, copy, 4), -EINVAL);
    CHECK_INT(q2c_cache_read(cache, AT(2), 0, copy, 9), -EINVAL);
    CHECK_INT(q2c_cache_read(cache, AT(2), TABLE, copy, 8), -EINVAL);
    CHECK_INT(q2c_cache_read(cache, AT(2), 8, copy, TABLE), -EINVAL);
    CHECK_INT(q2c_cache_read(cache, AT(2), SIZE_MAX - 7, copy, 8), -EINVAL);
    CHECK_INT(q2c_cache_read(cache, AT(2), 8, copy, SIZE_MAX - 7), -EINVAL);
    CHECK_INT(q2c_cache_read(cache, AT(2), 0, NULL, 8), -EINVAL);
    CHECK_INT(q2c_cache_read(NULL, AT(2), 0, copy, 8), -EINVAL);
    CHECK_INT(q2c_cache_read(cache, 0, 0, copy, 8), -EINVAL);
    memset(&storage.corruption, 0, sizeof(storage.corruption));
    CHECK_INT(q2c_cache_read(cache, AT(2) + 8, 0, copy, 8), -EIO);
    CHECK_U64(storage.corruption.count, 1);
}

static void store_is_seen_by_read_and_by_pins(void)
{
    void *table = cache_pin(cache, AT(3));
    uint64_t word = 0;

    CHECK_INT(q2c_cache_store(cache, table, 0, 111), 0);
    CHECK_INT(q2c_cache_store(cache, table, TABLE - 8, 222), 0);
    CHECK_U64(table_word(table, 0), 111);
    CHECK_U64(table_word(table, TABLE - 8), 222);
    CHECK_U64(table_word(table, 8), storage_word(AT(3) + 8));
    CHECK_INT(q2c_cache_read(cache, AT(3), 0, &word, 8), 0);
    CHECK_U64(word, 111);
    CHECK_INT(q2c_cache_read(cache, AT(3), TABLE - 8, &word, 8), 0);
    CHECK_U64(word, 222);
    cache_unpin(cache, table);
}

static void store_does_not_mark_dirty(void)
{
    void *table = cache_pin(cache, AT(4));
    size_t dirty = cache_stats(cache).dirty_tables;

    CHECK_INT(q2c_cache_store(cache, table, 0, 1), 0);
    CHECK_U64(cache_stats(cache).dirty_tables, dirty);
    CHECK_INT(q2c_cache_mark_dirty(cache, table), 0);
    CHECK_U64(cache_stats(cache).dirty_tables, dirty + 1);
    cache_unpin(cache, table);
    CHECK_INT(q2c_cache_write(cache), 0);
    CHECK_U64(storage_peek(&storage, AT(4)), 1);
}

static void store_rejects_unpinned_tables_and_outside_offsets(void)
{
    uint64_t local[TABLE / 8] = { 0 };
    void *table = cache_pin(cache, AT(5));

    CHECK_INT(q2c_cache_store(NULL, table, 0, 1), -EINVAL);
    CHECK_INT(q2c_cache_store(cache, NULL, 0, 1), -EINVAL);
    CHECK_INT(q2c_cache_store(cache, local, 0, 1), -EINVAL);
    CHECK_INT(q2c_cache_store(cache, (char *)table + 8, 0, 1), -EINVAL);
    CHECK_INT(q2c_cache_store(cache, table, 4, 1), -EINVAL);
    CHECK_INT(q2c_cache_store(cache, table, TABLE, 1), -EINVAL);
    CHECK_INT(q2c_cache_store(cache, table, SIZE_MAX - 7, 1), -EINVAL);
    CHECK(table_untouched(table, AT(5), TABLE));
    CHECK_U64(local[0], 0);
    cache_unpin(cache, table);
    CHECK_INT(q2c_cache_store(cache, table, 0, 1), -EINVAL);
    table = cache_pin(cache, AT(5));
    CHECK(table_untouched(table, AT(5), TABLE));
    cache_unpin(cache, table);
}

static void read_fails_for_dropped_tables(void)
{
    q2c_cache *small = cache_new(&storage, 1, TABLE, 0);
    uint64_t word;

    cache_touch(small, AT(6));
    CHECK_INT(q2c_cache_discard_offset(small, AT(6)), 0);
    CHECK_INT(q2c_cache_read(small, AT(6), 0, &word, 8), -EAGAIN);
    cache_touch(small, AT(6));
    CHECK_INT(q2c_cache_read(small, AT(6), 0, &word, 8), 0);
    CHECK_U64(word, storage_word(AT(6)));
    cache_touch(small, AT(7)); /* in the only slot */
    CHECK_INT(q2c_cache_read(small, AT(6), 0, &word, 8), -EAGAIN);
    CHECK_INT(q2c_cache_read(small, AT(7), 0, &word, 8), 0);
    CHECK_U64(word, storage_word(AT(7)));
    CHECK_INT(q2c_cache_empty(small), 0);
    CHECK_INT(q2c_cache_read(small, AT(7), 0, &word, 8), -EAGAIN);
    cache_drop(small);
}

static void load_table_8(void *argument)
{
    (void)argument;
    cache_touch(cache, AT(8));
}

static void read_does_not_wait_for_a_load(void)
{
    int hold = storage_hold(&storage, STORAGE_READ, AT(8));
    struct thread thread;
    uint64_t word = 1;

    thread_start(&thread, load_table_8, NULL);
    storage_await_held(&storage, hold, 1);
    CHECK_INT(q2c_cache_read(cache, AT(8), 0, &word, 8), -EAGAIN);
    storage_release(&storage, hold);
    thread_join(&thread);
    CHECK_INT(q2c_cache_read(cache, AT(8), 0, &word, 8), 0);
    CHECK_U64(word, storage_word(AT(8)));
}

/* For the last case. A reader copies words of the right table, or gets -EAGAIN. */
#define READERS 3
#define ROUNDS  3000
static atomic_bool stop_reading;
static atomic_uint copies;

static void read_all_over(void *argument)
{
    uint64_t state = 1 + (uintptr_t)argument;

    while (!atomic_load(&stop_reading)) {
        uint64_t offset = AT(40 + test_random(&state) % 16);
        size_t at = test_random(&state) % (TABLE / 8 - 1) * 8;
        uint64_t words[2];
        int result = q2c_cache_read(cache, offset, at, words, sizeof(words));

        if (result == 0) {
            /* the upper half of each word is the number of its table */
            CHECK_U64(words[0] >> 32, offset / TABLE);
            CHECK_U64(words[1] >> 32, offset / TABLE);
            atomic_fetch_add(&copies, 1);
        } else if (result != -EAGAIN) {
            CHECK_INT(result, -EAGAIN);
        }
    }
}

static void read_never_returns_words_of_another_table(void)
{
    struct thread readers[READERS];
    uint64_t state = 99;

    for (uint64_t offset = AT(40); offset < AT(56); offset += 8) {
        uint64_t word = offset / TABLE << 32;

        memcpy(storage.data + offset, &word, sizeof(word));
    }
    for (uintptr_t i = 0; i < READERS; i++) {
        thread_start(&readers[i], read_all_over, (void *)i);
    }
    /* half of the tables fit: each round evicts or discards tables that readers look at */
    for (uint64_t i = 0; i < ROUNDS || atomic_load(&copies) == 0; i++) {
        uint64_t offset = AT(40 + test_random(&state) % 16);
        void *table = cache_pin(cache, offset);

        CHECK_INT(q2c_cache_store(cache, table, i % (TABLE / 8) * 8,
                                  offset / TABLE << 32 | (i & UINT32_MAX)),
                  0);
        CHECK_INT(q2c_cache_mark_dirty(cache, table), 0);
        cache_unpin(cache, table);
        if (i % 7 == 0) {
            CHECK_INT(q2c_cache_discard_offset(cache, offset), 0);
        }
    }
    atomic_store(&stop_reading, true);
    for (unsigned i = 0; i < READERS; i++) {
        thread_join(&readers[i]);
    }
    CHECK(atomic_load(&copies) > 0);
}

int main(void)
{
    test_begin();
    storage_init(&storage, 1 << 16);
    cache = cache_new(&storage, 8, TABLE, 1);
    RUN(read_does_not_load_absent_tables);
    RUN(read_copies_any_aligned_part);
    RUN(read_rejects_unaligned_and_outside_ranges);
    RUN(store_is_seen_by_read_and_by_pins);
    RUN(store_does_not_mark_dirty);
    RUN(store_rejects_unpinned_tables_and_outside_offsets);
    RUN(read_fails_for_dropped_tables);
    RUN(read_does_not_wait_for_a_load);
    RUN(read_never_returns_words_of_another_table);
    cache_drop(cache);
    storage_free(&storage);
    return test_end();
}
