/* The floor under hits.py: an epoll loop that answers every request with the same bytes from memory, and does nothing else.
 *
 *     bare_loop PORT BODY_BYTES SEND_BUFFER_BYTES [SPIN_US]
 *
 * One recv and one writev per request, as the edge worker does; no parsing, no routing, no table, no deadlines. A request
 * is whatever one recv gives. What a server costs above this is its own. With SPIN_US it looks for events that long before
 * it sleeps (busy polling of the queue; no network device of loopback could be polled). */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

struct connection {
    int fd;
    size_t sent, total;         /* of the response under way; total 0: none */
};

static char head[512], *body;
static size_t head_length, body_length;

static long now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000L + t.tv_nsec;
}

static void answer(struct connection *c) {
    while (c->sent < c->total) {
        struct iovec parts[2] = {{head, head_length}, {body, body_length}};
        struct iovec *first = parts;
        ssize_t n;
        if (c->sent >= head_length) {
            first = parts + 1;
            first->iov_base = body + (c->sent - head_length);
            first->iov_len = body_length - (c->sent - head_length);
        } else {
            first->iov_base = head + c->sent;
            first->iov_len = head_length - c->sent;
        }
        n = writev(c->fd, first, parts + 2 - first);
        if (n < 0 && errno == EAGAIN) return;
        if (n < 0) break;       /* the next recv says so too, and closes */
        c->sent += n;
    }
    c->total = 0;
}

int main(int argc, char **argv) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int listening = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), epoll = epoll_create1(0), one = 1, i, n;
    int buffer = argc >= 4 ? atoi(argv[3]) : 0;
    long spin_ns = argc == 5 ? atol(argv[4]) * 1000 : 0, idle_since = 0;
    static char input[65536];
    struct epoll_event events[256], event = {.events = EPOLLIN, .data.ptr = NULL};
    signal(SIGPIPE, SIG_IGN);
    if (argc < 4) { fprintf(stderr, "bare_loop PORT BODY_BYTES SEND_BUFFER_BYTES [SPIN_US]\n"); return 2; }
    address.sin_port = htons(atoi(argv[1]));
    body_length = atol(argv[2]);
    body = malloc(body_length + 1);
    memset(body, 'x', body_length);
    head_length = snprintf(head, sizeof head, "HTTP/1.1 200 OK\r\nContent-Type: video/iso.segment\r\nContent-Length: %zu\r\n"
                           "X-Padding: %.*s\r\n\r\n", body_length, 190, "0123456789012345678901234567890123456789"
                           "012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789"
                           "012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789");
    setsockopt(listening, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    setsockopt(listening, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (buffer) setsockopt(listening, SOL_SOCKET, SO_SNDBUF, &buffer, sizeof buffer);
    if (bind(listening, (void *)&address, sizeof address) || listen(listening, 4096)) { perror("listen"); return 1; }
    epoll_ctl(epoll, EPOLL_CTL_ADD, listening, &event);
    for (;;) {
        if (spin_ns) {
            n = epoll_wait(epoll, events, 256, now_ns() - idle_since < spin_ns ? 0 : -1);
            if (n == 0) continue;
            idle_since = now_ns();
        } else {
            n = epoll_wait(epoll, events, 256, -1);
        }
        for (i = 0; i < n; i++) {
            struct connection *c = events[i].data.ptr;
            ssize_t got;
            if (!c) {
                int fd = accept4(listening, NULL, NULL, SOCK_NONBLOCK);
                if (fd < 0) continue;
                c = calloc(1, sizeof *c);
                c->fd = fd;
                event.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET;
                event.data.ptr = c;
                epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
                continue;
            }
            if (c->total) {
                answer(c);
                if (c->total) continue;
            }
            if (!(events[i].events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR))) continue;
            got = recv(c->fd, input, sizeof input, MSG_DONTWAIT);
            if (got < 0 && errno == EAGAIN) continue;
            if (got <= 0) {
                close(c->fd);
                free(c);
                continue;
            }
            c->sent = 0;
            c->total = head_length + body_length;
            answer(c);
        }
    }
}
