/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * The destruction of caches that depend on each other: it calls no storage. The cases are the same
 * on every host.
 */
#ifndef DESTRUCTION_H
#define DESTRUCTION_H

#include "storage.h"

/*
 * Every dependency between two caches, in both orders of destruction, with one storage for both and
 * with two, while every storage call fails.
 */
void destruction_on_dead_storage(const q2c_host *host);
/* The dependent's next write waits for a flush, also after that flush has failed. */
void destruction_leaves_a_flush_behind(const q2c_host *host);
/* What a destroyed cache wrote is not forgotten by the caches that are left. */
void destruction_hands_over_what_is_not_stable(const q2c_host *host);
/* The tables' memory is gone, also if a cleaner that never ran was told of the cache. */
void destruction_frees_the_memory(const q2c_host *host);

#endif
