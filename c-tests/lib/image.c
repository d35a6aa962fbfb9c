/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "image.h"

void image_init(struct image *image)
{
    *image = (struct image){
        .journal = JOURNAL_EMPTY,
        .geometry =
            {
                .struct_size = sizeof(q2c_geometry),
                .virtual_size = IMAGE_SIZE,
                .cluster_size = CLUSTER,
                .l2_entry_size = 8,
            },
        .config =
            {
                .struct_size = sizeof(q2c_state_config),
                .l2_kind = L2_KIND,
                .refcount_kind = REFCOUNT_KIND,
            },
    };
    storage_init_shared(&image->l2_storage, 64 * CLUSTER, "l2:", &image->journal);
    storage_init_shared(&image->refcount_storage, 64 * CLUSTER, "rb:", &image->journal);
    MUST(q2c_options_init(&image->options));
    image->config.l2_storage = &image->l2_storage.calls;
    image->config.refcount_storage = &image->refcount_storage.calls;
    image->config.geometry = &image->geometry;
    image->config.options = &image->options;
}

void image_open(struct image *image)
{
    q2c_error error = { .message = "" };

    if (q2c_state_open(&image->config, &image->state, &error) != 0) {
        test_note("q2c_state_open: %s", error.message);
    }
    REQUIRE(image->state != NULL);
}

void image_close(struct image *image)
{
    if (image->state != NULL) {
        CHECK_INT(q2c_cache_discard_range(image_l2(image), 0, UINT64_MAX), 0);
        CHECK_INT(q2c_cache_discard_range(image_refcount(image), 0, UINT64_MAX), 0);
        CHECK_INT(q2c_state_close(&image->state), 0);
        CHECK_PTR(image->state, NULL);
    }
    storage_free(&image->l2_storage);
    storage_free(&image->refcount_storage);
    journal_free(&image->journal);
}

q2c_cache *image_l2(struct image *image)
{
    q2c_cache *cache = q2c_state_l2_cache(image->state);

    REQUIRE(cache != NULL);
    return cache;
}

q2c_cache *image_refcount(struct image *image)
{
    q2c_cache *cache = q2c_state_refcount_cache(image->state);

    REQUIRE(cache != NULL);
    return cache;
}

bool image_cleaner_runs(struct image *image)
{
    int running = q2c_cleaner_is_running(q2c_state_cleaner(image->state));

    CHECK_BETWEEN(running, 0, 1);
    return running == 1;
}
