/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Arguments that q2c_state_open rejects, and NULL for every other function. */
#include "image.h"

static struct image image;

static void check_refused(const char *what, const char *part)
{
    q2c_state *const untouched = (q2c_state *)&image;
    q2c_state *state = untouched;
    q2c_error error = { .code = 0, .message = "" };
    bool ok = CHECK_INT(q2c_state_open(&image.config, &state, &error), -EINVAL);

    ok = CHECK_PTR(state, untouched) && ok;
    ok = CHECK_INT(error.code, EINVAL) && ok;
    ok = CHECK(error.message[0] != '\0') && ok;
    ok = CHECK_CONTAINS(error.message, part) && ok;
    ok = CHECK_INT(q2c_state_open(&image.config, &state, NULL), -EINVAL) && ok;
    if (!ok) {
        test_note("    with %s", what);
    }
    storage_free(&image.l2_storage);
    storage_free(&image.refcount_storage);
    image_init(&image);
}

static void wrong_configurations_are_rejected(void)
{
    q2c_host host = { .struct_size = sizeof(host), .kind = 9 };

    image_init(&image);
    image.config.struct_size = 0;
    check_refused("a configuration of size 0", "");
    image.config.struct_size = sizeof(image.config) - 1;
    check_refused("a configuration too small", "");
    image.config.l2_storage = NULL;
    check_refused("no storage", "");
    image.config.geometry = NULL;
    check_refused("no geometry", "");
    image.config.host = &host;
    check_refused("host kind 9", "");
    image.l2_storage.calls.preadv = NULL;
    check_refused("no preadv for L2", "");
    image.refcount_storage.calls.struct_size = 8;
    check_refused("a refcount storage too small", "");
    image.geometry.cluster_size = 1000;
    check_refused("clusters of 1000 bytes", "cluster");
    image.geometry.struct_size = 0;
    check_refused("a geometry of size 0", "");
    image.options.struct_size = 0;
    check_refused("options of size 0", "");
    image.options.set = Q2C_OPTION_L2_CACHE_ENTRY_SIZE;
    image.options.l2_cache_entry_size = 100;
    check_refused("an entry size of 100", "l2-cache-entry-size");
    CHECK_INT(q2c_state_open(NULL, &image.state, NULL), -EINVAL);
    CHECK_INT(q2c_state_open(&image.config, NULL, NULL), -EINVAL);
    image_close(&image);
}

static void longer_structs_are_accepted(void)
{
    struct {
        q2c_state_config config;
        uint64_t tail[4];
    } longer;

    image_init(&image);
    memset(&longer, 0, sizeof(longer));
    longer.config = image.config;
    longer.config.struct_size = sizeof(longer);
    CHECK_INT(q2c_state_open(&longer.config, &image.state, NULL), 0);
    image_close(&image);
}

static void configuration_is_copied(void)
{
    image_init(&image);
    image_open(&image);
    memset(&image.geometry, 0xff, sizeof(image.geometry));
    memset(&image.options, 0xff, sizeof(image.options));
    memset(&image.config, 0xff, sizeof(image.config));
    memset(&image.l2_storage.calls, 0xff, sizeof(q2c_storage));
    cache_dirty(image_l2(&image), CLUSTER_AT(1), 9);
    CHECK_INT(q2c_cache_flush(image_l2(&image)), 0);
    CHECK_U64(storage_peek(&image.l2_storage, CLUSTER_AT(1)), 9);
    image_close(&image);
}

static bool always(void *argument)
{
    (void)argument;
    return true;
}

static void nothing(void *argument)
{
    (void)argument;
}

static void null_states_are_rejected_or_ignored(void)
{
    q2c_state *none = NULL;
    q2c_update *update = NULL;
    q2c_error error = { .code = 0, .message = "" };

    CHECK_INT(q2c_state_close(NULL), 0);
    CHECK_INT(q2c_state_close(&none), 0);
    CHECK_INT(q2c_state_invalidate(NULL), -EINVAL);
    CHECK_INT(q2c_state_attach_context(NULL, NULL), -EINVAL);
    CHECK_INT(q2c_state_detach_context(NULL), -EINVAL);
    CHECK_INT(q2c_state_lock(NULL), -EINVAL);
    CHECK_INT(q2c_state_unlock(NULL), -EINVAL);
    CHECK_PTR(q2c_state_l2_cache(NULL), NULL);
    CHECK_PTR(q2c_state_refcount_cache(NULL), NULL);
    CHECK_PTR(q2c_state_cleaner(NULL), NULL);
    CHECK_INT(q2c_update_options_prepare(NULL, NULL, NULL, 0, &update, &error), -EINVAL);
    CHECK_INT(error.code, EINVAL);
    CHECK_PTR(update, NULL);
    CHECK_INT(q2c_update_options_commit(NULL, &update, false), -EINVAL);
    CHECK_INT(q2c_update_options_abort(NULL, NULL), 0);
    CHECK_INT(q2c_poll_until_done(NULL, always, NULL), -EINVAL);
    CHECK_INT(q2c_poll_kick(NULL), -EINVAL);
    CHECK_INT(q2c_run_until_done(NULL, nothing, NULL), -EINVAL);
}

static void null_arguments_are_rejected_or_ignored(void)
{
    q2c_update *update = NULL;

    image_init(&image);
    image_open(&image);
    CHECK_INT(q2c_update_options_prepare(image.state, NULL, NULL, 0, NULL, NULL), -EINVAL);
    CHECK_INT(q2c_update_options_commit(image.state, NULL, false), -EINVAL);
    CHECK_INT(q2c_update_options_commit(image.state, &update, false), -EINVAL);
    CHECK_INT(q2c_update_options_abort(image.state, NULL), 0);
    CHECK_INT(q2c_update_options_abort(image.state, &update), 0);
    CHECK_INT(q2c_poll_until_done(image.state, NULL, NULL), -EINVAL);
    CHECK_INT(q2c_run_until_done(image.state, NULL, NULL), -EINVAL);
    image_close(&image);
}

int main(void)
{
    test_begin();
    RUN(wrong_configurations_are_rejected);
    RUN(longer_structs_are_accepted);
    RUN(configuration_is_copied);
    RUN(null_states_are_rejected_or_ignored);
    RUN(null_arguments_are_rejected_or_ignored);
    return test_end();
}
