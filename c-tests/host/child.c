/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "child.h"

#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "test.h"

host_program *program;
host_context *here;
host_adapter *host;
const q2c_host *vt;

int run_child(host_fn *fn, char *text, size_t size)
{
    int fds[2], status = 0;
    char rest[512];
    size_t length = 0;
    ssize_t n;
    pid_t pid;

    REQUIRE(pipe(fds) == 0);
    fflush(stdout);
    pid = fork();
    REQUIRE(pid >= 0);
    if (pid == 0) {
        host_adapter_config config = { .wake = HOST_RUN_QUEUED, .own_lock = true };
        prctl(PR_SET_DUMPABLE, 0);
        alarm(20);
        dup2(fds[1], STDERR_FILENO);
        close(fds[0]);
        close(fds[1]);
        config.program = program = host_program_new();
        here = host_context_new(program);
        host = host_adapter_new(&config);
        vt = host_adapter_vtable(host);
        fn(NULL);
        _exit(0);
    }
    close(fds[1]);
    while ((n = read(fds[0], rest, sizeof(rest))) > 0) {
        size_t fits = (size_t)n < size - 1 - length ? (size_t)n : size - 1 - length;
        memcpy(text + length, rest, fits);
        length += fits;
    }
    text[length] = 0;
    close(fds[0]);
    REQUIRE(waitpid(pid, &status, 0) == pid);
    return status;
}

void check_aborts(host_fn *fn, const char *why)
{
    char text[4096];
    int status = run_child(fn, text, sizeof(text));

    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
    CHECK_CONTAINS(text, why);
}

static void yield_once(void *arg)
{
    (void)arg;
    host_co_yield();
}

static void park_once(void *arg)
{
    *(void **)arg = vt->co_self(vt->opaque);
    vt->co_suspend(vt->opaque);
}

void do_nothing(void *arg)
{
    (void)arg;
}

void *parked_here(void)
{
    void *co = NULL;

    host_co_enter(host_co_create(park_once, &co));
    return co;
}

host_co *yielded_here(void)
{
    host_co *co = host_co_create(yield_once, NULL);

    host_co_enter(co);
    return co;
}
