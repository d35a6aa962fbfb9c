/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* q2c_cleaner_create, q2c_cleaner_destroy and q2c_cleaner_set_caches: their arguments. */
#include "cleaning.h"

static struct storage storage;

static void host_is_checked_and_copied(void)
{
    q2c_cleaner *const untouched = (q2c_cleaner *)&storage;
    q2c_host host = { .struct_size = sizeof(host), .kind = Q2C_HOST_THREADS };
    q2c_cleaner *cleaner = untouched;
    q2c_error error = { .code = 0, .message = "" };

    host.kind = 9;
    CHECK_INT(q2c_cleaner_create(&host, &cleaner, &error), -EINVAL);
    CHECK_INT(error.code, EINVAL);
    CHECK(error.message[0] != '\0');
    CHECK_PTR(cleaner, untouched);
    host.kind = Q2C_HOST_COROUTINES;
    CHECK_INT(q2c_cleaner_create(&host, &cleaner, NULL), -EINVAL);
    host.kind = Q2C_HOST_THREADS;
    host.struct_size = 0;
    CHECK_INT(q2c_cleaner_create(&host, &cleaner, NULL), -EINVAL);
    CHECK_PTR(cleaner, untouched);
    host.struct_size = sizeof(host);
    CHECK_INT(q2c_cleaner_create(&host, &cleaner, NULL), 0);
    memset(&host, 0xff, sizeof(host));
    CHECK_INT(q2c_cleaner_start(cleaner, NULL, FOREVER), 0);
    CHECK_INT(q2c_cleaner_del_and_wait(cleaner), 0);
    cleaner_drop(cleaner);
}

static void null_arguments_are_rejected_or_ignored(void)
{
    q2c_error error = { .code = 0, .message = "" };
    q2c_cleaner *cleaner = NULL;

    CHECK_INT(q2c_cleaner_create(NULL, NULL, &error), -EINVAL);
    CHECK_INT(error.code, EINVAL);
    CHECK_INT(q2c_cleaner_destroy(NULL), 0);
    CHECK_INT(q2c_cleaner_destroy(&cleaner), 0);
    CHECK_INT(q2c_cleaner_del_and_wait(NULL), 0);
    CHECK_INT(q2c_cleaner_co_del_and_wait(NULL), 0);
    CHECK_INT(q2c_cleaner_co_locked_del_and_wait(NULL), 0);
    CHECK_INT(q2c_cleaner_request_stop(NULL), 0);
    CHECK_INT(q2c_cleaner_set_caches(NULL, NULL, 0), -EINVAL);
    CHECK_INT(q2c_cleaner_lock(NULL), -EINVAL);
    CHECK_INT(q2c_cleaner_unlock(NULL), -EINVAL);
    CHECK_INT(q2c_cleaner_start(NULL, NULL, FOREVER), -EINVAL);
    CHECK_INT(q2c_cleaner_is_running(NULL), -EINVAL);
    CHECK_INT(q2c_cleaner_set_interval(NULL, FOREVER), -EINVAL);
    CHECK_INT(q2c_cleaner_get_stats(NULL, &(q2c_cleaner_stats){ .struct_size = 64 }), -EINVAL);
}

static void destroy_is_busy_while_an_instance_lives(void)
{
    q2c_cleaner *cleaner = cleaner_new();

    CHECK_INT(q2c_cleaner_start(cleaner, NULL, FOREVER), 0);
    CHECK_INT(q2c_cleaner_destroy(&cleaner), -EBUSY);
    REQUIRE(cleaner != NULL);
    CHECK_INT(q2c_cleaner_is_running(cleaner), 1);
    CHECK_INT(q2c_cleaner_del_and_wait(cleaner), 0);
    CHECK_INT(q2c_cleaner_destroy(&cleaner), 0);
    CHECK_PTR(cleaner, NULL);
}

static void destroy_is_busy_while_the_lock_is_held(void)
{
    q2c_cleaner *cleaner = cleaner_new();

    MUST(q2c_cleaner_lock(cleaner));
    CHECK_INT(q2c_cleaner_destroy(&cleaner), -EBUSY);
    REQUIRE(cleaner != NULL);
    CHECK_INT(q2c_cleaner_unlock(cleaner), 0);
    cleaner_drop(cleaner);
}

static void set_caches_checks_its_arguments(void)
{
    q2c_cleaner *cleaner = cleaner_new();
    q2c_cache *cache = cache_new(&storage, 4, TABLE, 1);
    q2c_cache *caches[] = { cache, NULL };

    CHECK_INT(q2c_cleaner_set_caches(cleaner, NULL, 0), 0);
    CHECK_INT(q2c_cleaner_set_caches(cleaner, NULL, 1), -EINVAL);
    CHECK_INT(q2c_cleaner_set_caches(cleaner, caches, 2), -EINVAL);
    CHECK_INT(q2c_cleaner_set_caches(cleaner, caches, 1), 0);
    cleaner_drop(cleaner);
    cache_drop(cache);
}

static void cleaner_never_started_has_zero_statistics(void)
{
    q2c_cleaner *cleaner = cleaner_new();
    q2c_cleaner_stats stats = cleaner_stats(cleaner);

    CHECK_U64(stats.starts + stats.passes + stats.tables_cleaned + stats.instances, 0);
    CHECK_INT(q2c_cleaner_is_running(cleaner), 0);
    cleaner_drop(cleaner);
}

int main(void)
{
    test_begin();
    storage_init(&storage, 1 << 14);
    RUN(host_is_checked_and_copied);
    RUN(null_arguments_are_rejected_or_ignored);
    RUN(destroy_is_busy_while_an_instance_lives);
    RUN(destroy_is_busy_while_the_lock_is_held);
    RUN(set_caches_checks_its_arguments);
    RUN(cleaner_never_started_has_zero_statistics);
    storage_free(&storage);
    return test_end();
}
