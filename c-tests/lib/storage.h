/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * A storage in memory. It records every call; a test can make calls fail, and can hold calls until
 * it releases them. All functions may be called from any thread.
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
    STORAGE_LATE = 16, /* for holds: after the data has been copied */
};

#define STORAGE_OPS      4
#define STORAGE_RULES    4
#define STORAGE_ANYWHERE UINT64_MAX

/* The calls in order, ranges in hex: "read 200+200; write 400+400; flush -> -28; ". */
struct journal {
    pthread_mutex_t mutex;
    char *text;
    size_t length, capacity;
};

#define JOURNAL_EMPTY { .mutex = PTHREAD_MUTEX_INITIALIZER }

void journal_clear(struct journal *journal);
void journal_free(struct journal *journal);
/* A copy of the text, valid until the next call of this function in any thread. */
const char *journal_text(struct journal *journal);

#define CHECK_JOURNAL(journal, expected)                                                           \
    test_check_str(TEST_SITE("journal of " #journal), journal_text(journal), expected)

struct storage_fault {
    int ops;   /* 0: none */
    int skip;  /* matching calls that pass first */
    int times; /* calls that fail then */
    int error; /* their result, below 0 */
};

struct storage_hold {
    int ops;         /* 0: none */
    uint64_t offset; /* held are calls that cover it; or STORAGE_ANYWHERE */
    unsigned held;   /* calls in the hold now */
};

struct storage_corruption {
    unsigned count;
    int reason, kind; /* these and the rest: of the last report */
    uint64_t offset;
    char message[256];
};

struct storage {
    q2c_storage calls; /* passed to the library */
    const char *name;  /* in front of each entry in the journal; "" for none */
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
    int last_kind[STORAGE_OPS]; /* of the last call; flush has none */
    pthread_t last_thread;      /* the last caller of preadv, pwritev, flush or pre_write_check */
    struct storage_corruption corruption;

    /* Optional. Called without a lock inside every callback; op is 0 for corruption. */
    void (*inside)(struct storage *storage, int op, uint64_t offset, void *argument);
    void *inside_argument;
};

/* Creates @size bytes; each word of 8 bytes is the storage_word() of its offset. */
void storage_init(struct storage *storage, size_t size);
/* As storage_init(), but records the calls, after @name, in a journal that storages share. */
void storage_init_shared(struct storage *storage, size_t size, const char *name,
                         struct journal *journal);
void storage_free(struct storage *storage);

/* The word at @offset before the first write. */
uint64_t storage_word(uint64_t offset);
/* The word at @offset now. */
uint64_t storage_peek(struct storage *storage, uint64_t offset);
/* Does [offset, offset + bytes) hold what storage_init() put there? */
bool storage_untouched(struct storage *storage, uint64_t offset, size_t bytes);

/* The number of calls of any of @ops so far. */
unsigned storage_count(struct storage *storage, int ops);
/* The kind that the last call of @op came with. */
int storage_last_kind(struct storage *storage, enum storage_op op);
/* The largest number of calls of @op that ran at the same time. */
unsigned storage_most_running(struct storage *storage, enum storage_op op);

/* Lets @skip calls of @ops pass, then fails @times of them with @error (below 0). */
void storage_fail(struct storage *storage, int ops, int skip, int times, int error);
/* Removes all faults. */
void storage_heal(struct storage *storage);

/*
 * Holds calls of @ops that cover @offset before they do anything (with STORAGE_LATE: before they
 * return). Returns the hold's number.
 */
int storage_hold(struct storage *storage, int ops, uint64_t offset);
/* Waits until @held calls or more are in the hold. */
void storage_await_held(struct storage *storage, int hold, unsigned held);
/* Releases the calls in the hold, and ends the hold. */
void storage_release(struct storage *storage, int hold);

#endif
