/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * A QEMU-like coroutine host to test qcow2cache with: stackful coroutines, one event loop context
 * per thread, a fair coroutine mutex, a virtual clock that can stand still, poll-while with kick,
 * storage that yields in mid-request, and the q2c_host callbacks over all of it.
 *
 * Programs include this header; README.md describes the layers.
 */
#ifndef TESTHOST_H
#define TESTHOST_H
#include "adapter.h"
#include "co_storage.h"
#include "iothread.h"

#endif
