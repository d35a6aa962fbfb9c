/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "notifier.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

bool host_notifier_init(host_notifier *notifier)
{
    atomic_init(&notifier->set, false);
    notifier->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return notifier->fd >= 0;
}

void host_notifier_destroy(host_notifier *notifier)
{
    close(notifier->fd);
}

/*
 * The exchange pairs with the one in host_notifier_wait(): either it finds the flag clear, and the
 * write ends the wait, or the thread that clears the flag sees what was done before this call.
 */
void host_notifier_set(host_notifier *notifier)
{
    uint64_t one = 1;

    if (!atomic_exchange(&notifier->set, true)) {
        if (write(notifier->fd, &one, sizeof(one)) != sizeof(one)) {
            host_die("cannot write an eventfd");
        }
    }
}

void host_notifier_wait(host_notifier *notifier, int64_t timeout_ns)
{
    struct timespec ts = { .tv_sec = timeout_ns / 1000000000, .tv_nsec = timeout_ns % 1000000000 };
    struct pollfd pfd = { .fd = notifier->fd, .events = POLLIN };
    uint64_t n;

    if (ppoll(&pfd, 1, timeout_ns < 0 ? NULL : &ts, NULL) == 1) {
        if (read(notifier->fd, &n, sizeof(n)) != sizeof(n)) {
            host_die("an eventfd that was readable cannot be read");
        }
        atomic_exchange(&notifier->set, false); /* pairs with host_notifier_set() */
    }
}
