/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* A loop holds one descriptor until it is freed. */
#include <dirent.h>
#include <fcntl.h>
#include <sys/resource.h>

#include "looping.h"

static unsigned descriptors(void)
{
    DIR *directory = opendir("/proc/self/fd");
    unsigned count = 0;

    REQUIRE(directory != NULL);
    while (readdir(directory) != NULL) {
        count++;
    }
    closedir(directory);
    return count;
}

static void loop_holds_one_descriptor_until_it_is_freed(void)
{
    unsigned before = descriptors();
    q2c_loop *loops[20] = { NULL };

    for (unsigned i = 0; i < 20; i++) {
        MUST(q2c_loop_new(&loops[i], NULL));
        CHECK_INT(fcntl(q2c_loop_fd(loops[i]), F_GETFD), FD_CLOEXEC);
    }
    CHECK_U64(descriptors(), before + 20);
    for (unsigned i = 0; i < 20; i++) {
        CHECK_INT(q2c_loop_free(&loops[i]), 0);
        CHECK_PTR(loops[i], NULL);
    }
    CHECK_U64(descriptors(), before);
    for (unsigned i = 0; i < 1000; i++) {
        MUST(q2c_loop_new(&loops[0], NULL));
        MUST(q2c_loop_kick(loops[0]));
        MUST(q2c_loop_free(&loops[0]));
    }
    CHECK_U64(descriptors(), before);
}

static void loop_new_is_emfile_without_free_descriptors(void)
{
    q2c_loop *const untouched = (q2c_loop *)&loop_host;
    q2c_loop *loop = untouched;
    q2c_error error = { .code = 0, .message = "" };
    struct rlimit limit, none;

    MUST(getrlimit(RLIMIT_NOFILE, &limit));
    none = limit;
    none.rlim_cur = 0;
    MUST(setrlimit(RLIMIT_NOFILE, &none));
    CHECK_INT(q2c_loop_new(&loop, &error), -EMFILE);
    CHECK_INT(q2c_loop_new(&loop, NULL), -EMFILE);
    MUST(setrlimit(RLIMIT_NOFILE, &limit));
    CHECK_PTR(loop, untouched);
    CHECK_INT(error.code, EMFILE);
    CHECK(error.message[0] != '\0');
    CHECK_INT(q2c_loop_new(&loop, &error), 0);
    CHECK_INT(error.code, 0);
    CHECK_STR(error.message, "");
    CHECK_INT(q2c_loop_free(&loop), 0);
}

static void cleaner_outlives_its_loop(void)
{
    q2c_cleaner *cleaner = loop_cleaner_new();

    for (unsigned i = 0; i < 3; i++) {
        q2c_loop *loop = loop_new();

        CHECK_INT(q2c_cleaner_start(cleaner, loop, FOREVER), 0);
        CHECK_INT(q2c_loop_free(&loop), -EBUSY); /* not run yet */
        loop_settle(loop);
        CHECK_INT(q2c_loop_free(&loop), -EBUSY); /* asleep */
        CHECK_INT(q2c_cleaner_request_stop(cleaner), 0);
        while (cleaner_stats(cleaner).instances > 0) {
            CHECK(q2c_loop_poll(loop, -1) >= 0);
        }
        loop_drop(loop);
        CHECK_INT(q2c_cleaner_del_and_wait(cleaner), 0); /* finds no instance */
    }
    CHECK_U64(cleaner_stats(cleaner).starts, 3);
    cleaner_drop(cleaner);
}

int main(void)
{
    test_begin();
    RUN(loop_holds_one_descriptor_until_it_is_freed);
    RUN(loop_new_is_emfile_without_free_descriptors);
    RUN(cleaner_outlives_its_loop);
    return test_end();
}
