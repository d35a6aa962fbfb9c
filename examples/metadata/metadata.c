#define _DEFAULT_SOURCE
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <unistd.h>

#include <qcow2cache.h>

/* Reads or writes all bytes of all buffers: the kernel may do less at a time. */
static int image_io(bool write, int fd, uint64_t at, const struct iovec *iov, int n)
{
    for (int i = 0; i < n; i++) {
        char *bytes = iov[i].iov_base;
        for (size_t done = 0; done < iov[i].iov_len;) {
            size_t left = iov[i].iov_len - done;
            ssize_t now = write ? pwrite(fd, bytes + done, left, (off_t)at)
                                : pread(fd, bytes + done, left, (off_t)at);
            if (now < 0 && errno == EINTR)
                continue;
            if (now <= 0)
                return now < 0 ? -errno : -EIO; /* 0: the end of the file */
            done += (size_t)now;
            at += (uint64_t)now;
        }
    }
    return 0;
}

static int image_preadv(void *fd, int kind, uint64_t at, const struct iovec *iov, int n)
{
    (void)kind; /* L2 tables and refcount blocks are in the same file */
    return image_io(false, *(int *)fd, at, iov, n);
}

static int image_pwritev(void *fd, int kind, uint64_t at, const struct iovec *iov, int n)
{
    (void)kind;
    return image_io(true, *(int *)fd, at, iov, n);
}

static int image_flush(void *fd)
{
    return fdatasync(*(int *)fd) < 0 ? -errno : 0;
}

/* The fields of a qcow2 header that this program needs; big-endian, as on disk. */
struct header {
    uint32_t magic, version;
    uint64_t backing_offset;
    uint32_t backing_bytes, cluster_bits;
    uint64_t size;
    uint32_t crypt_method, l1_entries;
    uint64_t l1_offset, refcount_table_offset;
};

int main(int argc, char **argv)
{
    struct header header;
    int fd = argc == 2 ? open(argv[1], O_RDWR) : -1;
    if (pread(fd, &header, sizeof(header), 0) != sizeof(header) ||
        be32toh(header.magic) != 0x514649fb)
        return 2;

    q2c_geometry geometry = { .struct_size = sizeof(geometry),
                              .virtual_size = be64toh(header.size),
                              .cluster_size = 1u << be32toh(header.cluster_bits),
                              .l2_entry_size = 8 };
    q2c_storage storage = { .struct_size = sizeof(storage),
                            .opaque = &fd,
                            .preadv = image_preadv,
                            .pwritev = image_pwritev,
                            .flush = image_flush };
    q2c_state_config config = { .struct_size = sizeof(config),
                                .l2_storage = &storage,
                                .geometry = &geometry };
    q2c_state *state = NULL;
    q2c_error error;
    if (q2c_state_open(&config, &state, &error) < 0) {
        fprintf(stderr, "%s\n", error.message);
        return 1;
    }
    /* The cleaner runs now: every 600 s it drops the tables that nobody used. */

    /* Where is guest offset 0? A lookup takes no lock. */
    q2c_cache *l2_cache = q2c_state_l2_cache(state);
    uint64_t l1_entry, l2_entry = 0;
    if (pread(fd, &l1_entry, 8, (off_t)be64toh(header.l1_offset)) != 8)
        return 1;
    uint64_t l2_table = be64toh(l1_entry) & 0x00fffffffffffe00;
    if (l2_table && q2c_cache_read(l2_cache, l2_table, 0, &l2_entry, 8) == -EAGAIN) {
        void *table; /* not resident: load it; the pin keeps it in place */
        q2c_state_lock(state);
        if (q2c_cache_get(l2_cache, l2_table, &table) < 0)
            return 1;
        l2_entry = *(uint64_t *)table;
        q2c_cache_put(l2_cache, &table);
        q2c_state_unlock(state);
    }
    printf("guest offset 0 is at host offset %llu\n",
           (unsigned long long)(be64toh(l2_entry) & 0x00fffffffffffe00));

    /* What changes tables, or may write one back, holds the state lock. */
    q2c_cache *refcount_cache = q2c_state_refcount_cache(state);
    uint64_t refcount_block;
    void *block;
    if (pread(fd, &refcount_block, 8, (off_t)be64toh(header.refcount_table_offset)) != 8)
        return 1;
    q2c_state_lock(state);
    if (q2c_cache_get(refcount_cache, be64toh(refcount_block), &block) < 0)
        return 1;
    printf("cluster 0, the header, has refcount %u\n", be16toh(*(uint16_t *)block));
    q2c_cache_put(refcount_cache, &block);
    q2c_state_unlock(state);

    /* Stops the cleaner and waits for its end, writes what is dirty, frees the caches. */
    return q2c_state_close(&state) < 0 ? 1 : 0;
}
