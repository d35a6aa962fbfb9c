/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* q2c_cache_create: which arguments it accepts and which it rejects. */
#include <stdio.h>

#include "fixture.h"

static struct storage storage;

static q2c_cache_options good_options(void)
{
    return (q2c_cache_options){
        .struct_size = sizeof(q2c_cache_options),
        .tables = 4,
        .table_size = TABLE,
        .reserved_tables = 1,
    };
}

static q2c_cache *const untouched = (q2c_cache *)&storage;

/* Rejected with -EINVAL and a message; *cache keeps its value. */
static void check_refused(const char *what, const q2c_cache_options *options,
                          const q2c_storage *calls, const q2c_host *host)
{
    q2c_cache *cache = untouched;
    q2c_error error = { .code = 0, .message = "" };
    bool ok = CHECK_INT(q2c_cache_create(options, calls, host, &cache, &error), -EINVAL);

    ok = CHECK_PTR(cache, untouched) && ok;
    ok = CHECK_INT(error.code, EINVAL) && ok;
    ok = CHECK(error.message[0] != '\0') && ok;
    cache = untouched;
    ok = CHECK_INT(q2c_cache_create(options, calls, host, &cache, NULL), -EINVAL) && ok;
    if (!ok) {
        test_note("    with %s", what);
    }
}

static void check_taken(const q2c_cache_options *options, const q2c_storage *calls,
                        const q2c_host *host)
{
    q2c_cache *cache = NULL;

    MUST(q2c_cache_create(options, calls, host, &cache, NULL));
    REQUIRE(cache != NULL);
    cache_touch(cache, options->table_size);
    cache_drop(cache);
}

static void null_arguments_are_rejected(void)
{
    q2c_cache_options options = good_options();
    q2c_error error = { .code = 0 };

    check_refused("no options", NULL, &storage.calls, NULL);
    check_refused("no storage", &options, NULL, NULL);
    CHECK_INT(q2c_cache_create(&options, &storage.calls, NULL, NULL, &error), -EINVAL);
    CHECK_INT(error.code, EINVAL);
    CHECK_INT(q2c_cache_create(NULL, NULL, NULL, NULL, NULL), -EINVAL);
}

static void success_clears_the_error(void)
{
    q2c_cache_options options = good_options();
    q2c_error error = { .code = 77, .message = "from before" };
    q2c_cache *cache = NULL;

    CHECK_INT(q2c_cache_create(&options, &storage.calls, NULL, &cache, &error), 0);
    CHECK_INT(error.code, 0);
    CHECK_STR(error.message, "");
    cache_drop(cache);
}

static void table_size_is_checked(void)
{
    static const size_t bad[] = { 0,       1,   8,        256,     511,
                                  513,     768, 3 * 4096, 4 << 20, (size_t)1 << 40,
                                  SIZE_MAX };
    q2c_cache_options options = good_options();
    char what[64];

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        options.table_size = bad[i];
        snprintf(what, sizeof(what), "table size %zu", bad[i]);
        check_refused(what, &options, &storage.calls, NULL);
    }
    for (size_t good = 512; good <= 2 << 20; good *= 2) {
        options.table_size = good;
        check_taken(&options, &storage.calls, NULL);
    }
}

static void number_of_tables_is_checked(void)
{
    q2c_cache_options options = good_options();
    q2c_cache *cache = untouched;

    options.tables = 0;
    options.reserved_tables = 0;
    check_refused("no tables", &options, &storage.calls, NULL);
    options.tables = 1;
    check_taken(&options, &storage.calls, NULL);
    /* more than any address space holds: any error is right, a crash is not */
    options.tables = SIZE_MAX;
    CHECK(q2c_cache_create(&options, &storage.calls, NULL, &cache, NULL) < 0);
    options.tables = SIZE_MAX / TABLE + 2;
    CHECK(q2c_cache_create(&options, &storage.calls, NULL, &cache, NULL) < 0);
    CHECK_PTR(cache, untouched);
}

static void reserved_tables_do_not_exceed_the_tables(void)
{
    q2c_cache_options options = good_options();

    options.reserved_tables = 5;
    check_refused("5 of 4 tables reserved", &options, &storage.calls, NULL);
    options.reserved_tables = UINT32_MAX;
    check_refused("UINT32_MAX of 4 tables reserved", &options, &storage.calls, NULL);
    options.reserved_tables = 4;
    check_taken(&options, &storage.calls, NULL);
    options.reserved_tables = 0;
    check_taken(&options, &storage.calls, NULL);
}

static void struct_sizes_are_checked(void)
{
    struct {
        q2c_cache_options options;
        uint64_t tail[4];
    } longer = { .options = good_options() };
    struct {
        q2c_storage calls;
        uint64_t tail[4];
    } longer_storage = { .calls = storage.calls };
    q2c_host host = { .struct_size = sizeof(host) };

    longer.options.struct_size = 0;
    check_refused("options of size 0", &longer.options, &storage.calls, NULL);
    longer.options.struct_size = sizeof(q2c_cache_options) - 1;
    check_refused("options too small", &longer.options, &storage.calls, NULL);
    longer.options.struct_size = sizeof(longer);
    check_taken(&longer.options, &storage.calls, NULL);

    longer_storage.calls.struct_size = 0;
    check_refused("storage of size 0", &longer.options, &longer_storage.calls, NULL);
    longer_storage.calls.struct_size = offsetof(q2c_storage, flush);
    check_refused("storage too small", &longer.options, &longer_storage.calls, NULL);
    longer_storage.calls.struct_size = sizeof(longer_storage);
    check_taken(&longer.options, &longer_storage.calls, NULL);

    check_taken(&longer.options, &storage.calls, &host);
    host.struct_size = 0;
    check_refused("host of size 0", &longer.options, &storage.calls, &host);
    host.struct_size = sizeof(size_t);
    check_refused("host too small", &longer.options, &storage.calls, &host);
}

static void required_callbacks_are_checked(void)
{
    q2c_cache_options options = good_options();
    q2c_storage calls = storage.calls;

    calls.preadv = NULL;
    check_refused("no preadv", &options, &calls, NULL);
    calls = storage.calls;
    calls.pwritev = NULL;
    check_refused("no pwritev", &options, &calls, NULL);
    calls = storage.calls;
    calls.flush = NULL;
    check_refused("no flush", &options, &calls, NULL);
    calls = storage.calls;
    calls.pre_write_check = NULL;
    calls.corruption = NULL;
    check_taken(&options, &calls, NULL);
    calls.max_iov = -1;
    check_refused("max_iov -1", &options, &calls, NULL);
}

static void host_kind_is_checked(void)
{
    q2c_cache_options options = good_options();
    q2c_host host = { .struct_size = sizeof(host), .kind = Q2C_HOST_THREADS };

    check_taken(&options, &storage.calls, &host);
    host.kind = 3;
    check_refused("host kind 3", &options, &storage.calls, &host);
    host.kind = UINT32_MAX;
    check_refused("host kind UINT32_MAX", &options, &storage.calls, &host);
    host.kind = Q2C_HOST_COROUTINES;
    check_refused("coroutine host without callbacks", &options, &storage.calls, &host);
}

static void arguments_are_copied(void)
{
    q2c_cache_options options = good_options();
    q2c_storage calls = storage.calls;
    q2c_host host = { .struct_size = sizeof(host), .kind = Q2C_HOST_THREADS };
    q2c_cache *cache = NULL;

    MUST(q2c_cache_create(&options, &calls, &host, &cache, NULL));
    memset(&options, 0xff, sizeof(options));
    memset(&calls, 0xff, sizeof(calls));
    memset(&host, 0xff, sizeof(host));
    cache_dirty(cache, AT(1), 1);
    CHECK_INT(q2c_cache_flush(cache), 0);
    CHECK_U64(storage_peek(&storage, AT(1)), 1);
    cache_drop(cache);
}

static void create_does_no_io(void)
{
    unsigned before = storage_count(&storage, STORAGE_ANY);
    q2c_cache *cache = cache_new(&storage, 16, TABLE, 1);

    CHECK_U64(storage_count(&storage, STORAGE_ANY), before);
    cache_drop(cache);
    CHECK_U64(storage_count(&storage, STORAGE_ANY), before);
}

int main(void)
{
    test_begin();
    storage_init(&storage, 8 << 20);
    RUN(null_arguments_are_rejected);
    RUN(success_clears_the_error);
    RUN(table_size_is_checked);
    RUN(number_of_tables_is_checked);
    RUN(reserved_tables_do_not_exceed_the_tables);
    RUN(struct_sizes_are_checked);
    RUN(required_callbacks_are_checked);
    RUN(host_kind_is_checked);
    RUN(arguments_are_copied);
    RUN(create_does_no_io);
    storage_free(&storage);
    return test_end();
}
