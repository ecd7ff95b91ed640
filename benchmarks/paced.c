/* Many viewers who ask at their own pace, on one thread: N keep-alive connections, each of which asks for its paths in turn
 * every INTERVAL_MS, spread evenly over the interval.
 *
 *     paced PORT CONNECTIONS INTERVAL_MS SECONDS plain|tls PATH [PATH]
 *
 * With two paths the second is asked for when the first has come whole (a playlist, then the part that it names). Bodies are
 * read and dropped. Prints one line of JSON: answers, first-byte and whole-round times in ms from when a request was due (so
 * that a late load generator can't hide a late server), rounds that were not over when the next one was due. TLS is 1.3,
 * TLS_AES_128_GCM_SHA256, no verification. Nothing but HTTP/1.1 with Content-Length is understood. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/ssl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { HEAD_BYTES = 4096, SCRATCH_BYTES = 262144, WARM_UP_MS = 2000 };

struct viewer {
    int fd, step, is_busy, is_head_whole, status;
    uint32_t head_length;
    int64_t left;               /* body bytes to come */
    double due_ms, asked_ms;    /* of the round; of the request */
    int has_first;
    SSL *ssl;
    char head[HEAD_BYTES + 1];
};

static const char *paths[2];
static int n_paths, port, is_tls, n_viewers;
static double start_ms, measure_from_ms;
static float *firsts, *wholes;
static size_t n_firsts, n_wholes, capacity;
static uint64_t n_answers, n_errors, n_late, n_bytes;
static char scratch[SCRATCH_BYTES];

static double now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e3 + t.tv_nsec / 1e6 - start_ms;
}

static void fail(const char *what) {
    printf("{\"error\": \"%s: %s\"}\n", what, errno ? strerror(errno) : "no");
    exit(1);
}

static ssize_t put(struct viewer *v, const char *data, size_t n) {
    return v->ssl ? SSL_write(v->ssl, data, (int)n) : send(v->fd, data, n, MSG_NOSIGNAL);
}

/* Bytes read; 0: nothing there now; -1: the connection is over. */
static ssize_t take(struct viewer *v, char *data, size_t n) {
    ssize_t got;
    if (v->ssl) {
        got = SSL_read(v->ssl, data, (int)n);
        if (got > 0) return got;
        return SSL_get_error(v->ssl, (int)got) == SSL_ERROR_WANT_READ ? 0 : -1;
    }
    got = recv(v->fd, data, n, 0);
    if (got > 0) return got;
    return got < 0 && errno == EAGAIN ? 0 : -1;
}

static void ask(struct viewer *v) {
    char text[1024];
    int n = snprintf(text, sizeof text, "GET %s HTTP/1.1\r\nHost: bench\r\n\r\n", paths[v->step]);
    v->head_length = 0;
    v->is_head_whole = v->has_first = 0;
    v->asked_ms = v->step ? now_ms() : v->due_ms;
    v->is_busy = 1;
    if (put(v, text, n) != n) n_errors++;
}

static void head_done(struct viewer *v, const char *end) {
    char *line = strchr(v->head, '\n');
    v->status = atoi(v->head + 9);
    v->left = -1;
    while (line && line < end) {
        if (!strncasecmp(line + 1, "content-length:", 15)) v->left = atoll(line + 16);
        line = strchr(line + 1, '\n');
    }
    if (v->status != 200 || v->left < 0) n_errors++, v->left = v->left < 0 ? 0 : v->left;
    v->is_head_whole = 1;
}

static void note(float *list, size_t *n, double ms) {
    if (*n < capacity) list[(*n)++] = (float)ms;
}

static void read_on(struct viewer *v) {
    for (;;) {
        ssize_t n;
        char *end;
        size_t in_head;
        if (!v->is_head_whole) {
            n = take(v, v->head + v->head_length, HEAD_BYTES - v->head_length);
        } else {
            n = take(v, scratch, (int64_t)sizeof scratch < v->left ? sizeof scratch : (size_t)v->left);
        }
        if (n == 0) return;
        if (n < 0) {
            n_errors++;
            close(v->fd);
            v->fd = -1;
            return;
        }
        if (!v->has_first) {
            v->has_first = 1;
            if (v->due_ms >= measure_from_ms) note(firsts, &n_firsts, now_ms() - v->asked_ms);
        }
        n_bytes += n;
        if (!v->is_head_whole) {
            v->head_length += n;
            v->head[v->head_length] = 0;
            end = strstr(v->head, "\r\n\r\n");
            if (!end) {
                if (v->head_length == HEAD_BYTES) fail("head too long");
                continue;
            }
            head_done(v, end);
            in_head = end + 4 - v->head;
            v->left -= v->head_length - in_head;
        } else {
            v->left -= n;
        }
        if (v->left == 0) {
            v->is_busy = 0;
            if (v->due_ms >= measure_from_ms) n_answers++;
            if (++v->step < n_paths) {
                ask(v);
            } else {
                v->step = 0;
                if (v->due_ms >= measure_from_ms) note(wholes, &n_wholes, now_ms() - v->due_ms);
                return;
            }
        }
    }
}

static int by_value(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return x < y ? -1 : x > y;
}

static float at(float *sorted, size_t n, double share) {
    return n ? sorted[(size_t)(share * (n - 1))] : 0;
}

static void connect_one(struct viewer *v, SSL_CTX *context) {
    struct sockaddr_in peer = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int one = 1;
    v->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (v->fd < 0 || connect(v->fd, (struct sockaddr *)&peer, sizeof peer)) fail("connect");
    setsockopt(v->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (context) {
        v->ssl = SSL_new(context);
        SSL_set_fd(v->ssl, v->fd);
        SSL_set_tlsext_host_name(v->ssl, "bench");
        if (SSL_connect(v->ssl) != 1) fail("handshake");
    }
    fcntl(v->fd, F_SETFL, fcntl(v->fd, F_GETFL) | O_NONBLOCK);
}

int main(int argc, char **argv) {
    double interval_ms, seconds, next_ms;
    struct viewer *viewers;
    struct epoll_event events[512], event;
    SSL_CTX *context = NULL;
    int i, n, epoll, next = 0;
    double round_ms;
    if (argc < 7) return 2;
    port = atoi(argv[1]);
    n_viewers = atoi(argv[2]);
    interval_ms = atof(argv[3]);
    seconds = atof(argv[4]);
    is_tls = !strcmp(argv[5], "tls");
    n_paths = argc - 6 > 2 ? 2 : argc - 6;
    for (i = 0; i < n_paths; i++) paths[i] = argv[6 + i];
    viewers = calloc(n_viewers, sizeof *viewers);
    capacity = (size_t)(n_viewers * (seconds * 1000 / interval_ms + 3) * n_paths);
    firsts = malloc(capacity * sizeof *firsts);
    wholes = malloc(capacity * sizeof *wholes);
    epoll = epoll_create1(0);
    if (is_tls) {
        context = SSL_CTX_new(TLS_client_method());
        SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION);
        SSL_CTX_set_ciphersuites(context, "TLS_AES_128_GCM_SHA256");
        SSL_CTX_set_mode(context, SSL_MODE_RELEASE_BUFFERS);
    }
    for (i = 0; i < n_viewers; i++) {
        connect_one(&viewers[i], context);
        event.events = EPOLLIN;
        event.data.ptr = &viewers[i];
        epoll_ctl(epoll, EPOLL_CTL_ADD, viewers[i].fd, &event);
    }
    start_ms = now_ms();
    /* First what warms windows and caches, then what counts. The caller reads the server's CPU time between the two lines. */
    measure_from_ms = interval_ms > WARM_UP_MS ? interval_ms : WARM_UP_MS;
    round_ms = 0;
    next_ms = 0;
    n = 0;
    while (1) {
        double t = now_ms();
        double wait_ms;
        struct timespec wait;
        if (n == 0 && t >= measure_from_ms) {
            printf("go\n");
            fflush(stdout);
            n = 1;
        }
        if (t >= measure_from_ms + seconds * 1000) break;
        while (next_ms <= t) {
            struct viewer *v = &viewers[next];
            if (v->fd >= 0) {
                if (v->is_busy || v->step) {
                    n_late++;
                } else {
                    v->due_ms = next_ms;
                    ask(v);
                }
            }
            if (++next == n_viewers) next = 0, round_ms += interval_ms;
            next_ms = round_ms + next * interval_ms / n_viewers;
        }
        wait_ms = next_ms - now_ms();
        wait.tv_sec = wait_ms > 0 ? (time_t)(wait_ms / 1e3) : 0;
        wait.tv_nsec = wait_ms > 0 ? (long)((wait_ms - wait.tv_sec * 1e3) * 1e6) : 0;
        i = epoll_pwait2(epoll, events, 512, &wait, NULL);
        while (i > 0) {
            struct viewer *v = events[--i].data.ptr;
            if (v->fd >= 0) read_on(v);
        }
    }
    qsort(firsts, n_firsts, sizeof *firsts, by_value);
    qsort(wholes, n_wholes, sizeof *wholes, by_value);
    printf("{\"answers\": %llu, \"errors\": %llu, \"late\": %llu, \"bytes\": %llu, \"first_ms\": [%.3f, %.3f, %.3f],"
           " \"round_ms\": [%.3f, %.3f, %.3f]}\n",
           (unsigned long long)n_answers, (unsigned long long)n_errors, (unsigned long long)n_late,
           (unsigned long long)n_bytes, at(firsts, n_firsts, 0.5), at(firsts, n_firsts, 0.99), at(firsts, n_firsts, 1),
           at(wholes, n_wholes, 0.5), at(wholes, n_wholes, 0.99), at(wholes, n_wholes, 1));
    return 0;
}
