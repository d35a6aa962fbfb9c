/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* An image's state, for tests of the state and of option changes. */
#ifndef IMAGE_H
#define IMAGE_H

#include "cleaning.h"

/* 64 MiB in clusters of 4 KiB: 32 L2 tables, which are all cached by default. */
#define CLUSTER         UINT64_C(4096)
#define IMAGE_SIZE      (UINT64_C(64) << 20)
#define IMAGE_L2_TABLES 32

#define L2_KIND       21
#define REFCOUNT_KIND 22

/* The n-th cluster of the storage. */
#define CLUSTER_AT(n) ((n) * CLUSTER)

struct image {
    struct journal journal;
    struct storage l2_storage, refcount_storage; /* "l2:" and "rb:" in the journal */
    q2c_geometry geometry;
    q2c_options options;
    q2c_state_config config;
    q2c_state *state;
};

/*
 * Prepares all that image_open() needs; config and options may be changed in between. The cleaner
 * has the default interval, which is longer than any test.
 */
void image_init(struct image *image);
/* Opens the state. Ends the test if that fails. */
void image_open(struct image *image);
/* Discards all tables, checks that the state can be closed, and frees its storages. */
void image_close(struct image *image);

q2c_cache *image_l2(struct image *image);
q2c_cache *image_refcount(struct image *image);
bool image_cleaner_runs(struct image *image);

#endif
