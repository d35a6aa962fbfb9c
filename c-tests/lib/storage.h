/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * A storage in memory: it writes down every call, fails those it was told to fail, and holds those
 * it was told to hold until they are released. All functions may be called from any thread.
 */
#ifndef STORAGE_H
#define STORAGE_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "test.h"

enum storage_op {
    STORAGE_READ = 1,
    STORAGE_WRITE = 2,
    STORAGE_FLUSH = 4,
    STORAGE_CHECK = 8, /* pre_write_check */
    STORAGE_ANY = 15,
    STORAGE_LATE = 16, /* for holds: once the data has been moved */
};

#define STORAGE_OPS 4
#define STORAGE_RULES 4
#define STORAGE_ANYWHERE UINT64_MAX

/* What was called, in order: "read 200+200; write 400+400; flush -> -28; ", numbers in hex. */
struct journal {
    pthread_mutex_t mutex;
    char *text;
    size_t length, capacity;
};

#define JOURNAL_EMPTY {.mutex = PTHREAD_MUTEX_INITIALIZER}

void journal_clear(struct journal *journal);
void journal_free(struct journal *journal);
/* A copy of the text, which stays until the next call in any thread that makes such copies. */
const char *journal_text(struct journal *journal);

#define CHECK_JOURNAL(journal, expected)                                                           \
    test_check_str(TEST_SITE("journal of " #journal), journal_text(journal), expected)

struct storage_fault {
    int ops; /* 0: none */
    int skip; /* so many matching calls pass first */
    int times; /* then so many fail */
    int error; /* with this, below 0 */
};

struct storage_hold {
    int ops; /* 0: none */
    uint64_t offset; /* of the calls that it holds (those that cover it), or STORAGE_ANYWHERE */
    unsigned held;
};

struct storage_corruption {
    unsigned count;
    int reason, kind; /* and so on: of the last one */
    uint64_t offset;
    char message[256];
};

struct storage {
    q2c_storage calls; /* what the library is given */
    const char *name; /* in front of each entry in the journal; "" for none */
    struct journal *journal;
    struct journal own_journal;
    uint8_t *data;
    size_t size;

    pthread_mutex_t mutex;
    pthread_cond_t changed;
    struct storage_fault faults[STORAGE_RULES];
    struct storage_hold holds[STORAGE_RULES];
    unsigned count[STORAGE_OPS]; /* calls that began */
    unsigned running[STORAGE_OPS], most_running[STORAGE_OPS];
    int last_kind; /* of pre_write_check */
    pthread_t last_thread; /* that called preadv, pwritev, flush or pre_write_check */
    struct storage_corruption corruption;

    /* Called without a lock inside every callback, corruption's included (op 0); optional. */
    void (*inside)(struct storage *storage, int op, uint64_t offset, void *argument);
    void *inside_argument;
};

/* @size bytes, each word of 8 bytes being storage_word(its offset). @name NULL: own journal. */
void storage_init(struct storage *storage, size_t size);
/* The same, its calls written to a journal that several share. */
void storage_init_shared(struct storage *storage, size_t size, const char *name,
                         struct journal *journal);
void storage_free(struct storage *storage);

/* What the word at @offset is before anybody writes it. */
uint64_t storage_word(uint64_t offset);
/* The word at @offset now. */
uint64_t storage_peek(struct storage *storage, uint64_t offset);
/* Does [offset, offset + bytes) hold what storage_init() put there? */
bool storage_untouched(struct storage *storage, uint64_t offset, size_t bytes);

/* Calls of any of @ops so far. */
unsigned storage_count(struct storage *storage, int ops);
/* The most calls of one op that ever ran at once. */
unsigned storage_most_running(struct storage *storage, enum storage_op op);

/* Of the calls in @ops, let @skip pass, then fail @times with @error (below 0). */
void storage_fail(struct storage *storage, int ops, int skip, int times, int error);
/* No faults any more. */
void storage_heal(struct storage *storage);

/*
 * Hold calls in @ops that touch @offset, before they do anything (with STORAGE_LATE: before they
 * return); returns the hold's number.
 */
int storage_hold(struct storage *storage, int ops, uint64_t offset);
/* Until the hold has caught so many that are still in it. */
void storage_await_held(struct storage *storage, int hold, unsigned held);
/* Let go, and hold no more. */
void storage_release(struct storage *storage, int hold);

#endif
