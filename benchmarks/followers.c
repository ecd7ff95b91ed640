/* The viewers of collapse.py: N keep-alive connections that ask for one object at the same moment, on one thread.
 *
 *     followers PORT CONNECTIONS WARM_PATH PATH
 *
 * Each connection first gets WARM_PATH, so that all are open and known; then all ask for PATH. The body is dropped in the
 * kernel (MSG_TRUNC), so that the client is no bottleneck; some connections keep theirs, for a checksum. Prints one line of
 * JSON; times are ms since the first request of PATH left. Nothing but plain HTTP/1.1 with Content-Length is understood. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { HEAD_BYTES = 4096, KEPT = 8, LIMIT_S = 60 };

struct viewer {
    int fd, status;
    uint32_t head_length;
    int is_head_whole, is_done;
    int64_t length, received;
    double head_ms, first_ms, last_ms;
    char *kept;                 /* the whole body, where it is checked */
    char head[HEAD_BYTES + 1];
};

static double start_ms;

static double now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e3 + t.tv_nsec / 1e6 - start_ms;
}

static void fail(const char *what) {
    printf("{\"error\": \"%s: %s\"}\n", what, errno ? strerror(errno) : "no");
    exit(1);
}

static void ask(struct viewer *v, int port, const char *path) {
    char text[1024];
    int n = snprintf(text, sizeof text, "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n", path, port);
    v->head_length = 0;
    v->is_head_whole = v->is_done = 0;
    v->length = -1;
    v->received = 0;
    v->first_ms = -1;
    if (send(v->fd, text, n, MSG_NOSIGNAL) != n) fail("send");
}

static void note(struct viewer *v, int64_t n) {
    if (n > 0 && v->first_ms < 0) v->first_ms = now_ms();
    v->received += n;
    if (v->received == v->length) {
        v->last_ms = now_ms();
        v->is_done = 1;
    }
}

/* Reads what there is, at most a share, so that no connection waits for another's body. 1: done now. */
static int on_readable(struct viewer *v) {
    ssize_t n;
    if (!v->is_head_whole) {
        char *end, *line;
        n = recv(v->fd, v->head + v->head_length, HEAD_BYTES - v->head_length, MSG_DONTWAIT);
        if (n < 0 && errno == EAGAIN) return 0;
        if (n <= 0) { errno = n ? errno : 0; fail("connection closed in a head"); }
        v->head_length += n;
        v->head[v->head_length] = 0;
        end = strstr(v->head, "\r\n\r\n");
        if (!end) {
            if (v->head_length == HEAD_BYTES) fail("head too long");
            return 0;
        }
        v->is_head_whole = 1;
        v->head_ms = now_ms();
        v->status = atoi(v->head + 9);
        for (line = v->head; line < end; line = strstr(line, "\r\n") + 2)
            if (!strncasecmp(line, "content-length:", 15)) v->length = atoll(line + 15);
        if (v->length < 0) { errno = 0; fail("no Content-Length"); }
        end += 4;
        n = v->head + v->head_length - end;
        if (v->kept) memcpy(v->kept, end, n < v->length ? n : v->length);
        note(v, n);
        return v->is_done;
    }
    if (v->kept)
        n = recv(v->fd, v->kept + v->received, v->length - v->received, MSG_DONTWAIT);
    else
        n = recv(v->fd, NULL, 262144 < v->length - v->received ? 262144 : v->length - v->received, MSG_DONTWAIT | MSG_TRUNC);
    if (n < 0 && errno == EAGAIN) return 0;
    if (n <= 0) { errno = n ? errno : 0; fail("connection closed in a body"); }
    note(v, n);
    return v->is_done;
}

static void finish_all(int epoll, int n) {
    struct epoll_event events[64];
    int left = n, i, m;
    while (left) {
        m = epoll_wait(epoll, events, 64, 1000);
        if (now_ms() > LIMIT_S * 1e3) { errno = 0; fail("took too long"); }
        for (i = 0; i < m; i++) {
            struct viewer *v = events[i].data.ptr;
            if (!v->is_done) left -= on_readable(v);
            else if (events[i].events & (EPOLLIN | EPOLLHUP)) { errno = 0; fail("bytes or end after the response"); }
        }
    }
}

static uint32_t adler32(const char *data, int64_t n) {
    uint32_t a = 1, b = 0;
    int64_t i;
    for (i = 0; i < n; i++) {
        a = (a + (uint8_t)data[i]) % 65521;
        b = (b + a) % 65521;
    }
    return b << 16 | a;
}

int main(int argc, char **argv) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int port = argc == 5 ? atoi(argv[1]) : 0, n = argc == 5 ? atoi(argv[2]) : 0, epoll = epoll_create1(0), one = 1, i;
    struct viewer *viewers = calloc(n ? n : 1, sizeof *viewers);
    int n_ok = 0, first = 0, slowest = 0, last = 0;
    int64_t bytes = -1;
    if (!port || !n || !viewers) { fprintf(stderr, "followers PORT CONNECTIONS WARM_PATH PATH\n"); return 2; }
    address.sin_port = htons(port);
    start_ms = now_ms();
    for (i = 0; i < n; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &viewers[i]};
        viewers[i].fd = socket(AF_INET, SOCK_STREAM, 0);
        if (viewers[i].fd < 0 || connect(viewers[i].fd, (void *)&address, sizeof address)) fail("connect");
        setsockopt(viewers[i].fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        if (epoll_ctl(epoll, EPOLL_CTL_ADD, viewers[i].fd, &event)) fail("epoll_ctl");
        ask(&viewers[i], port, argv[3]);
    }
    finish_all(epoll, n);
    for (i = 0; i < n; i++)
        if (viewers[i].status != 200) { errno = 0; fail("the warm-up was not answered 200"); }
    for (i = 0; i < KEPT && i < n; i++) viewers[(int64_t)i * (n - 1) / (KEPT - 1)].kept = malloc(64 << 20);
    start_ms += now_ms();
    for (i = 0; i < n; i++) ask(&viewers[i], port, argv[4]);
    double asked_ms = now_ms();
    finish_all(epoll, n);
    for (i = 0; i < n; i++) {
        if (viewers[i].first_ms < viewers[first].first_ms) first = i;
        if (viewers[i].first_ms > viewers[slowest].first_ms) slowest = i;
        if (viewers[i].last_ms > viewers[last].last_ms) last = i;
    }
    bytes = viewers[0].length;
    for (i = 0; i < n; i++) n_ok += viewers[i].status == 200 && viewers[i].length == bytes;
    printf("{\"connections\": %d, \"ok\": %d, \"bytes\": %lld, \"all_asked_ms\": %.3f, \"first_ms\": %.3f, "
           "\"slowest_ms\": %.3f, \"last_byte_ms\": %.3f, \"first_connection\": %d, \"slowest_connection\": %d, \"adler32\": [",
           n, n_ok, (long long)bytes, asked_ms, viewers[first].first_ms, viewers[slowest].first_ms, viewers[last].last_ms,
           first, slowest);
    int is_more = 0;
    for (i = 0; i < n; i++)
        if (viewers[i].kept) printf("%s%u", is_more++ ? ", " : "", adler32(viewers[i].kept, viewers[i].length));
    printf("]}\n");
    return 0;
}
