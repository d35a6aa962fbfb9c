#define _DEFAULT_SOURCE
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>
#include <qcow2cache.h>

static int image_preadv(void *fd, uint64_t at, const struct iovec *iov, int n) {
    size_t want = 0;
    for (int i = 0; i < n; i++) want += iov[i].iov_len;
    ssize_t got = preadv(*(int *)fd, iov, n, (off_t)at);
    return got < 0 ? -errno : (size_t)got == want ? 0 : -EIO;
}
static int image_pwritev(void *fd, uint64_t at, const struct iovec *iov, int n) {
    return pwritev(*(int *)fd, iov, n, (off_t)at) < 0 ? -errno : 0;
}
static int image_flush(void *fd) { return fdatasync(*(int *)fd) ? -errno : 0; }

int main(int argc, char **argv) {
    struct { uint32_t magic, version; uint64_t backing; uint32_t backing_len, cluster_bits; uint64_t size;
             uint32_t crypt, l1_size; uint64_t l1, reftable; } header; /* big-endian, as on disk */
    int fd = argc == 2 ? open(argv[1], O_RDWR) : -1;
    if (pread(fd, &header, sizeof header, 0) != sizeof header || be32toh(header.magic) != 0x514649fb) return 2;
    uint64_t l1_entry = 0, refcount_block = 0, l2_entry = 0;
    void *block;
    q2c_error error;
    q2c_state *state = NULL;
    q2c_geometry geometry = { sizeof geometry, be64toh(header.size), 1u << be32toh(header.cluster_bits), 8 };
    q2c_storage storage = { .struct_size = sizeof storage, .opaque = &fd, .preadv = image_preadv,
                            .pwritev = image_pwritev, .flush = image_flush };
    q2c_state_config config = { .struct_size = sizeof config, .l2_storage = &storage, .geometry = &geometry };
    if (q2c_state_open(&config, &state, &error)) return fprintf(stderr, "%s\n", error.message), 1;
    /* The cleaner runs now: every 600 s it frees what nobody used. The image's first cluster: */
    if (pread(fd, &l1_entry, 8, (off_t)be64toh(header.l1)) != 8) return 1;
    uint64_t l2_table = be64toh(l1_entry) & 0x00fffffffffffe00, at = 0;
    if (l2_table && q2c_cache_read(q2c_state_l2_cache(state), l2_table, 0, &l2_entry, 8) == -EAGAIN) {
        void *table; /* not resident: load it, without the state lock; the pin keeps it while we look */
        if (q2c_cache_get_unlocked(q2c_state_l2_cache(state), l2_table, &table)) return 1;
        l2_entry = *(uint64_t *)table;
        q2c_cache_put(q2c_state_l2_cache(state), &table);
    }
    printf("guest offset 0 is at host offset %llu\n", (unsigned long long)(at = be64toh(l2_entry) & 0x00fffffffffffe00));
    q2c_state_lock(state); /* what changes tables, or may write one back, holds the state lock */
    if (pread(fd, &refcount_block, 8, (off_t)be64toh(header.reftable)) != 8) return 1;
    if (q2c_cache_get(q2c_state_refcount_cache(state), be64toh(refcount_block), &block)) return 1;
    printf("cluster 0, the header, has refcount %u\n", be16toh(*(uint16_t *)block)); /* refcount_bits=16 */
    q2c_cache_put(q2c_state_refcount_cache(state), &block);
    q2c_state_unlock(state);
    return q2c_state_close(&state) ? 1 : 0; /* stops the cleaner and waits, writes what is dirty, frees */
}
