/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* dlclose() after every handle is closed: what the library left in threads causes no harm. */
#include <stdlib.h>

#include "cleaning.h"
#include "threads.h"

static struct storage storage;

static void load(void)
{
    char message[256] = "";

    if (q2c_dl_load(getenv("Q2C_TEST_LIBRARY"), message, sizeof(message)) != 0) {
        test_note("%s", message);
    }
    REQUIRE(q2c_dl_shared.handle != NULL);
}

/* Uses all that may leave something behind: waits, the cleaner's thread, a cache's mapping. */
static void use_the_library(void)
{
    q2c_cleaner *cleaner = cleaner_new();
    q2c_cache *cache = cache_new(&storage, 4, 4096, 1);

    CHECK_INT(q2c_cleaner_set_caches(cleaner, &cache, 1), 0);
    CHECK_INT(q2c_cleaner_start(cleaner, NULL, MILLISECOND), 0);
    cache_touch(cache, 4096);
    EVENTUALLY(!cache_resident(cache, 4096));
    CHECK_INT(q2c_cleaner_del_and_wait(cleaner), 0);
    cleaner_drop(cleaner);
    cache_drop(cache);
}

static void library_loads_and_unloads_repeatedly(void)
{
    for (unsigned i = 0; i < 30; i++) {
        use_the_library();
        q2c_dl_unload();
        CHECK_PTR(q2c_dl_shared.handle, NULL);
        load();
    }
}

static struct gate used = GATE_CLOSED;

static void use_then_outlive_it(void *argument)
{
    (void)argument;
    use_the_library();
    gate_wait(&used);
}

static void threads_that_used_the_library_end_after_unload(void)
{
    struct thread threads[4];

    for (unsigned i = 0; i < 4; i++) {
        thread_start(&threads[i], use_then_outlive_it, NULL);
    }
    gate_await(&used, 4);
    q2c_dl_unload();
    gate_open(&used);
    for (unsigned i = 0; i < 4; i++) {
        thread_join(&threads[i]);
        CHECK(atomic_load(&threads[i].done));
    }
    load();
}

static void second_load_is_ealready(void)
{
    char message[64] = "";
    void *handle = q2c_dl_shared.handle;

    CHECK_INT(q2c_dl_load(NULL, message, sizeof(message)), -EALREADY);
    CHECK(message[0] != '\0');
    CHECK_PTR(q2c_dl_shared.handle, handle);
    CHECK_STR(q2c_version(), Q2C_VERSION);
}

static void functions_have_addresses(void)
{
    const char *(*version)(void) = q2c_version;

    CHECK_STR(version(), Q2C_VERSION);
    CHECK_STR((*q2c_dl_shared.version)(), Q2C_VERSION);
}

int main(void)
{
    test_begin();
    storage_init(&storage, 1 << 14);
    RUN(library_loads_and_unloads_repeatedly);
    RUN(threads_that_used_the_library_end_after_unload);
    RUN(second_load_is_ealready);
    RUN(functions_have_addresses);
    storage_free(&storage);
    return test_end();
}
