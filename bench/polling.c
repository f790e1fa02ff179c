/* Preloaded into the load generators: an epoll_wait() that polls instead of sleeping.
 *
 * A load generator without work sleeps, and the server's send() then pays for waking its core: 11 of
 * 90 us for a hello of Django, on a virtual machine. Across a network, the client's machine pays.
 * Servers that send responses one by one paid this for each response; servers that send several at
 * once paid it for a tenth of them. */

#define _GNU_SOURCE
#include <signal.h>
#include <stddef.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static long long now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000LL + now.tv_nsec / 1000000;
}

int epoll_wait(int fd, struct epoll_event *events, int size, int timeout_ms)
{
    long long end = timeout_ms > 0 ? now_ms() + timeout_ms : 0;
    for (;;) {
        int found = (int)syscall(SYS_epoll_pwait, fd, events, size, 0, NULL, _NSIG / 8);
        if (found != 0 || timeout_ms == 0 || (timeout_ms > 0 && now_ms() >= end))
            return found;
    }
}
