/* The viewers of relay_http.py: N connections that ask for one endless stream, on one thread, and drop it in the kernel.
 *
 *     ring_readers PORT CONNECTIONS PATH
 *
 * For each line of its standard input it prints one: bytes taken of all since the beginning, connections open, and the
 * least that one of them has taken. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    int wanted = atoi(argv[2]), open = 0, poll = epoll_create1(0);
    uint64_t *taken = calloc((size_t)wanted, sizeof(uint64_t)), total = 0;
    int *fds = calloc((size_t)wanted, sizeof(int));
    char request[512];
    int length = snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%s\r\n\r\n", argv[3], argv[1]);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = UINT32_MAX}, events[256];
    epoll_ctl(poll, EPOLL_CTL_ADD, 0, &event);
    for (int i = 0; i < wanted; i++, open++) {
        fds[i] = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(fds[i], (struct sockaddr *)&to, sizeof to) || send(fds[i], request, (size_t)length, MSG_NOSIGNAL) != length) {
            perror("connect");
            return 1;
        }
        event.data.u32 = (uint32_t)i;
        epoll_ctl(poll, EPOLL_CTL_ADD, fds[i], &event);
    }
    puts("asked");
    fflush(stdout);
    for (;;) {
        int n = epoll_wait(poll, events, 256, -1);
        for (int e = 0; e < n; e++) {
            uint32_t i = events[e].data.u32;
            if (i == UINT32_MAX) {
                char line[64];
                if (read(0, line, sizeof line) <= 0) return 0;
                uint64_t least = UINT64_MAX;
                for (int k = 0; k < wanted; k++) if (taken[k] < least) least = taken[k];
                printf("%llu %d %llu\n", (unsigned long long)total, open, (unsigned long long)least);
                fflush(stdout);
                continue;
            }
            ssize_t got = recv(fds[i], NULL, 1 << 20, MSG_TRUNC | MSG_DONTWAIT);
            if (got > 0) {
                taken[i] += (uint64_t)got;
                total += (uint64_t)got;
            } else if (got == 0 || errno != EAGAIN) {
                epoll_ctl(poll, EPOLL_CTL_DEL, fds[i], NULL);
                close(fds[i]);
                open--;
            }
        }
    }
}
