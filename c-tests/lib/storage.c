/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "storage.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

__attribute__((format(printf, 2, 3))) static void journal_write(struct journal *journal,
                                                                const char *format, ...)
{
    char entry[160];
    va_list args;
    size_t length;

    va_start(args, format);
    vsnprintf(entry, sizeof(entry), format, args);
    va_end(args);
    length = strlen(entry);
    pthread_mutex_lock(&journal->mutex);
    if (journal->length + length + 1 > journal->capacity) {
        journal->capacity = 2 * journal->capacity + sizeof(entry);
        journal->text = realloc(journal->text, journal->capacity);
        REQUIRE(journal->text != NULL);
    }
    memcpy(journal->text + journal->length, entry, length + 1);
    journal->length += length;
    pthread_mutex_unlock(&journal->mutex);
}

void journal_clear(struct journal *journal)
{
    pthread_mutex_lock(&journal->mutex);
    journal->length = 0;
    if (journal->text != NULL) {
        journal->text[0] = '\0';
    }
    pthread_mutex_unlock(&journal->mutex);
}

void journal_free(struct journal *journal)
{
    free(journal->text);
    journal->text = NULL;
    journal->length = journal->capacity = 0;
}

const char *journal_text(struct journal *journal)
{
    static char copy[4096];

    pthread_mutex_lock(&journal->mutex);
    snprintf(copy, sizeof(copy), "%s", journal->text != NULL ? journal->text : "");
    pthread_mutex_unlock(&journal->mutex);
    return copy;
}

static unsigned op_index(int op)
{
    return (unsigned)__builtin_ctz((unsigned)op);
}

uint64_t storage_word(uint64_t offset)
{
    /* never 0, and different for every offset */
    return (offset + 8) * UINT64_C(0x9e3779b97f4a7c15);
}

static int fault_of(struct storage *storage, int op)
{
    int error = 0;

    for (int i = 0; i < STORAGE_RULES; i++) {
        struct storage_fault *fault = &storage->faults[i];

        if ((fault->ops & op) == 0) {
            continue;
        }
        if (fault->skip > 0) {
            fault->skip--;
        } else if (fault->times > 0) {
            fault->times--;
            error = fault->error;
        }
    }
    return error;
}

static void wait_while_held(struct storage *storage, int op, uint64_t offset, uint64_t bytes,
                            int late)
{
    for (int i = 0; i < STORAGE_RULES; i++) {
        struct storage_hold *hold = &storage->holds[i];
        bool here = hold->offset == STORAGE_ANYWHERE ||
                    (hold->offset >= offset && hold->offset - offset < bytes);

        if ((hold->ops & op) == 0 || (hold->ops & STORAGE_LATE) != late || !here) {
            continue;
        }
        hold->held++;
        pthread_cond_broadcast(&storage->changed);
        while ((hold->ops & op) != 0) {
            pthread_cond_wait(&storage->changed, &storage->mutex);
        }
        hold->held--;
        pthread_cond_broadcast(&storage->changed);
    }
}

static const char *const op_names[STORAGE_OPS] = { "read", "write", "flush", "check" };

/* The part of a call before the data is copied. Returns the error that the call ends with. */
static int begin(struct storage *storage, int op, int kind, uint64_t offset, uint64_t bytes)
{
    unsigned index = op_index(op);
    char range[48] = "";
    char result[24] = "";
    int error;

    pthread_mutex_lock(&storage->mutex);
    storage->count[index]++;
    storage->running[index]++;
    if (storage->most_running[index] < storage->running[index]) {
        storage->most_running[index] = storage->running[index];
    }
    storage->last_thread = pthread_self();
    storage->last_kind[index] = kind;
    error = fault_of(storage, op);
    if (op != STORAGE_FLUSH) {
        snprintf(range, sizeof(range), " %" PRIx64 "+%" PRIx64, offset, bytes);
    }
    if (error != 0) {
        snprintf(result, sizeof(result), " -> %d", error);
    }
    journal_write(storage->journal, "%s%s%s%s; ", storage->name, op_names[index], range, result);
    wait_while_held(storage, op, offset, bytes, 0);
    pthread_mutex_unlock(&storage->mutex);
    if (storage->inside != NULL) {
        storage->inside(storage, op, offset, storage->inside_argument);
    }
    return error;
}

static void end(struct storage *storage, int op, uint64_t offset, uint64_t bytes)
{
    pthread_mutex_lock(&storage->mutex);
    wait_while_held(storage, op, offset, bytes, STORAGE_LATE);
    storage->running[op_index(op)]--;
    pthread_mutex_unlock(&storage->mutex);
}

static uint64_t total(const struct iovec *iov, int iovcnt)
{
    uint64_t bytes = 0;

    for (int i = 0; i < iovcnt; i++) {
        bytes += iov[i].iov_len;
    }
    return bytes;
}

/*
 * Copies word by word, each word atomically. The kernel does so, too, and a driver's own storage
 * must if other threads use q2c_cache_read() and q2c_cache_store() meanwhile.
 */
static void copy_words(void *to, const void *from, size_t bytes)
{
    uint64_t *target = to;
    const uint64_t *source = from;

    REQUIRE(bytes % 8 == 0 && (uintptr_t)to % 8 == 0 && (uintptr_t)from % 8 == 0);
    for (size_t i = 0; i < bytes / 8; i++) {
        uint64_t word = __atomic_load_n(source + i, __ATOMIC_RELAXED);

        __atomic_store_n(target + i, word, __ATOMIC_RELAXED);
    }
}

static int storage_preadv(void *opaque, int kind, uint64_t offset, const struct iovec *iov,
                          int iovcnt)
{
    struct storage *storage = opaque;
    uint64_t bytes = total(iov, iovcnt);
    int error = begin(storage, STORAGE_READ, kind, offset, bytes);
    uint64_t at = offset;

    if (error == 0 && (offset > storage->size || bytes > storage->size - offset)) {
        error = -ENXIO;
    }
    for (int i = 0; error == 0 && i < iovcnt; i++) {
        copy_words(iov[i].iov_base, storage->data + at, iov[i].iov_len);
        at += iov[i].iov_len;
    }
    end(storage, STORAGE_READ, offset, bytes);
    return error;
}

static int storage_pwritev(void *opaque, int kind, uint64_t offset, const struct iovec *iov,
                           int iovcnt)
{
    struct storage *storage = opaque;
    uint64_t bytes = total(iov, iovcnt);
    int error = begin(storage, STORAGE_WRITE, kind, offset, bytes);
    uint64_t at = offset;

    if (error == 0 && (offset > storage->size || bytes > storage->size - offset)) {
        error = -ENXIO;
    }
    for (int i = 0; error == 0 && i < iovcnt; i++) {
        copy_words(storage->data + at, iov[i].iov_base, iov[i].iov_len);
        at += iov[i].iov_len;
    }
    end(storage, STORAGE_WRITE, offset, bytes);
    return error;
}

static int storage_flush(void *opaque)
{
    struct storage *storage = opaque;
    int error = begin(storage, STORAGE_FLUSH, 0, 0, 0);

    end(storage, STORAGE_FLUSH, 0, 0);
    return error;
}

static int storage_pre_write_check(void *opaque, int kind, uint64_t offset, uint64_t bytes)
{
    struct storage *storage = opaque;
    int error = begin(storage, STORAGE_CHECK, kind, offset, bytes);

    end(storage, STORAGE_CHECK, offset, bytes);
    return error;
}

static void storage_corruption(void *opaque, int reason, int kind, uint64_t offset,
                               const char *message)
{
    struct storage *storage = opaque;
    struct storage_corruption *seen = &storage->corruption;

    pthread_mutex_lock(&storage->mutex);
    seen->count++;
    seen->reason = reason;
    seen->kind = kind;
    seen->offset = offset;
    snprintf(seen->message, sizeof(seen->message), "%s", message != NULL ? message : "");
    pthread_mutex_unlock(&storage->mutex);
    if (storage->inside != NULL) {
        storage->inside(storage, 0, offset, storage->inside_argument);
    }
}

void storage_init_shared(struct storage *storage, size_t size, const char *name,
                         struct journal *journal)
{
    *storage = (struct storage){
        .calls =
            {
                .struct_size = sizeof(q2c_storage),
                .opaque = storage,
                .preadv = storage_preadv,
                .pwritev = storage_pwritev,
                .flush = storage_flush,
                .pre_write_check = storage_pre_write_check,
                .corruption = storage_corruption,
            },
        .name = name,
        .own_journal = JOURNAL_EMPTY,
        .mutex = PTHREAD_MUTEX_INITIALIZER,
        .changed = PTHREAD_COND_INITIALIZER,
        .size = size,
        .data = malloc(size),
    };
    storage->journal = journal != NULL ? journal : &storage->own_journal;
    REQUIRE(storage->data != NULL);
    for (uint64_t offset = 0; offset + 8 <= size; offset += 8) {
        uint64_t word = storage_word(offset);

        memcpy(storage->data + offset, &word, sizeof(word));
    }
}

void storage_init(struct storage *storage, size_t size)
{
    storage_init_shared(storage, size, "", NULL);
}

void storage_free(struct storage *storage)
{
    journal_free(&storage->own_journal);
    free(storage->data);
    storage->data = NULL;
}

uint64_t storage_peek(struct storage *storage, uint64_t offset)
{
    uint64_t word;

    copy_words(&word, storage->data + offset, sizeof(word));
    return word;
}

bool storage_untouched(struct storage *storage, uint64_t offset, size_t bytes)
{
    for (size_t at = 0; at < bytes; at += 8) {
        if (storage_peek(storage, offset + at) != storage_word(offset + at)) {
            return false;
        }
    }
    return true;
}

unsigned storage_count(struct storage *storage, int ops)
{
    unsigned count = 0;

    pthread_mutex_lock(&storage->mutex);
    for (unsigned i = 0; i < STORAGE_OPS; i++) {
        count += (ops & (1 << i)) != 0 ? storage->count[i] : 0;
    }
    pthread_mutex_unlock(&storage->mutex);
    return count;
}

int storage_last_kind(struct storage *storage, enum storage_op op)
{
    int kind;

    pthread_mutex_lock(&storage->mutex);
    kind = storage->last_kind[op_index(op)];
    pthread_mutex_unlock(&storage->mutex);
    return kind;
}

unsigned storage_most_running(struct storage *storage, enum storage_op op)
{
    unsigned most;

    pthread_mutex_lock(&storage->mutex);
    most = storage->most_running[op_index(op)];
    pthread_mutex_unlock(&storage->mutex);
    return most;
}

void storage_fail(struct storage *storage, int ops, int skip, int times, int error)
{
    int i = 0;

    pthread_mutex_lock(&storage->mutex);
    while (i < STORAGE_RULES && storage->faults[i].ops != 0) {
        i++;
    }
    REQUIRE(i < STORAGE_RULES);
    storage->faults[i] = (struct storage_fault){ ops, skip, times, error };
    pthread_mutex_unlock(&storage->mutex);
}

void storage_heal(struct storage *storage)
{
    pthread_mutex_lock(&storage->mutex);
    memset(storage->faults, 0, sizeof(storage->faults));
    pthread_mutex_unlock(&storage->mutex);
}

int storage_hold(struct storage *storage, int ops, uint64_t offset)
{
    int i = 0;

    pthread_mutex_lock(&storage->mutex);
    while (i < STORAGE_RULES && (storage->holds[i].ops != 0 || storage->holds[i].held != 0)) {
        i++;
    }
    REQUIRE(i < STORAGE_RULES);
    storage->holds[i] = (struct storage_hold){ .ops = ops, .offset = offset };
    pthread_mutex_unlock(&storage->mutex);
    return i;
}

void storage_await_held(struct storage *storage, int hold, unsigned held)
{
    pthread_mutex_lock(&storage->mutex);
    while (storage->holds[hold].held < held) {
        pthread_cond_wait(&storage->changed, &storage->mutex);
    }
    pthread_mutex_unlock(&storage->mutex);
}

void storage_release(struct storage *storage, int hold)
{
    pthread_mutex_lock(&storage->mutex);
    storage->holds[hold].ops = 0;
    pthread_cond_broadcast(&storage->changed);
    pthread_mutex_unlock(&storage->mutex);
}
