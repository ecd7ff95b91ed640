/* The floor under relay_http.py: datagrams into one ring, and what came within a step out to every TCP connection.
 *
 *     bare_ring UDP_PORT TCP_PORT CONNECTIONS STEP_MS
 *
 * Accepts CONNECTIONS, answers each request by a head without looking at it, and then copies. Nothing is parsed, nobody's
 * window is watched; a connection that is behind gets more in its next step. Ends with its standard input. */
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
#include <sys/timerfd.h>
#include <unistd.h>

enum { RING = 4 << 20, BATCH = 64, SIZE = 2048 };

static char ring[RING];
static char data[BATCH][SIZE];
static const char HEAD[] = "HTTP/1.1 200 OK\r\nContent-Type: video/mp2t\r\nConnection: close\r\n\r\n";

static void watch(int poll, int fd) {
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    if (epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event)) { perror("epoll_ctl"); exit(1); }
}

int main(int argc, char **argv) {
    if (argc != 5) return 2;
    int wanted = atoi(argv[3]), n = 0, buffer = 256 << 10, on = 1;
    int *fds = calloc((size_t)wanted, sizeof(int));
    uint64_t *cursors = calloc((size_t)wanted, sizeof(uint64_t)), written = 0;
    int in = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0), listening = socket(AF_INET, SOCK_STREAM, 0), poll = epoll_create1(0);
    struct sockaddr_in own = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    setsockopt(in, SOL_SOCKET, SO_RCVBUFFORCE, &(int){4 << 20}, sizeof(int));
    if (bind(in, (struct sockaddr *)&own, sizeof own)) { perror("bind"); return 1; }
    own.sin_port = htons((uint16_t)atoi(argv[2]));
    setsockopt(listening, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    setsockopt(listening, SOL_SOCKET, SO_SNDBUF, &buffer, sizeof buffer);
    if (bind(listening, (struct sockaddr *)&own, sizeof own) || listen(listening, 4096)) { perror("listen"); return 1; }
    puts("ready");
    fflush(stdout);
    while (n < wanted) {
        char request[4096];
        int fd = accept4(listening, NULL, NULL, 0);
        if (fd < 0 || recv(fd, request, sizeof request, 0) <= 0) { perror("accept"); return 1; }
        if (send(fd, HEAD, sizeof HEAD - 1, MSG_NOSIGNAL) < 0) { perror("send"); return 1; }
        fds[n++] = fd;
    }
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    struct timespec step = {.tv_nsec = atol(argv[4]) * 1000000};
    timerfd_settime(timer, 0, &(struct itimerspec){step, step}, NULL);
    watch(poll, in);
    watch(poll, timer);
    watch(poll, 0);
    static struct mmsghdr taken[BATCH];
    static struct iovec into[BATCH];
    for (int i = 0; i < BATCH; i++) {
        into[i] = (struct iovec){data[i], SIZE};
        taken[i].msg_hdr = (struct msghdr){.msg_iov = &into[i], .msg_iovlen = 1};
    }
    for (;;) {
        struct epoll_event events[8];
        int ready = epoll_wait(poll, events, 8, -1);
        for (int e = 0; e < ready; e++) {
            if (events[e].data.fd == 0) return 0;
            if (events[e].data.fd == in) {
                int got = recvmmsg(in, taken, BATCH, MSG_DONTWAIT, NULL);
                for (int i = 0; i < got; i++) {
                    for (uint32_t at = 0; at < taken[i].msg_len; at++, written++) ring[written % RING] = data[i][at];
                }
                continue;
            }
            uint64_t ticks;
            if (read(timer, &ticks, 8) != 8) continue;
            for (int i = 0; i < n; i++) {
                if (fds[i] < 0) continue;
                while (cursors[i] < written) {
                    uint64_t at = cursors[i] % RING, left = written - cursors[i];
                    if (left > RING - at) left = RING - at;
                    ssize_t sent = send(fds[i], ring + at, left, MSG_NOSIGNAL | MSG_DONTWAIT);
                    if (sent < 0 && errno != EAGAIN) { close(fds[i]); fds[i] = -1; }
                    if (sent <= 0) break;
                    cursors[i] += (uint64_t)sent;
                }
            }
        }
    }
}
