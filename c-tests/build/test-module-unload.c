/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * dlclose() of a module that contains the static library, while the background thread, which stays
 * for a second, still runs its code. usage: test-module-unload MODULE
 */
#include <dirent.h>
#include <dlfcn.h>

#include "test.h"

static const char *path;

static unsigned threads_of_this_process(void)
{
    DIR *tasks = opendir("/proc/self/task");
    unsigned count = 0;

    REQUIRE(tasks != NULL);
    for (struct dirent *task; (task = readdir(tasks)) != NULL;) {
        count += task->d_name[0] != '.';
    }
    closedir(tasks);
    return count;
}

static void module_can_be_unloaded_while_the_thread_stays(void)
{
    unsigned before = threads_of_this_process();

    for (int round = 0; round < 20; round++) {
        void *module = dlopen(path, RTLD_NOW | RTLD_LOCAL);
        int (*use)(void);

        REQUIRE(module != NULL);
        *(void **)&use = dlsym(module, "module_use");
        REQUIRE(use != NULL);
        CHECK_INT(use(), 0);
        CHECK(threads_of_this_process() > before);
        CHECK_INT(dlclose(module), 0);
        if (round % 10 == 9) {
            EVENTUALLY(threads_of_this_process() == before);
        }
    }
}

int main(int argc, char **argv)
{
    REQUIRE(argc == 2);
    path = argv[1];
    test_begin();
    RUN(module_can_be_unloaded_while_the_thread_stays);
    return test_end();
}
