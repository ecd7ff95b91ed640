/* bare_loop.c's question to io_uring: answers every request with the same bytes from memory, and does nothing else.
 *
 *     bare_uring PORT BODY_BYTES SEND_BUFFER_BYTES
 *
 * What a new server would use: multishot accept and recv, a ring of provided buffers, one sendmsg per response with
 * MSG_WAITALL, completions taken in batches, tasks run when we wait (DEFER_TASKRUN). No parsing, no deadlines. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <liburing.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

enum { ENTRIES = 4096, BUFFERS = 1024, BUFFER_BYTES = 4096, GROUP = 0 };
enum what { ACCEPT, RECV, SEND };

struct connection {
    int fd, is_sending, has_ended;
    unsigned waiting;           /* requests that came while a response was under way */
    struct iovec parts[2];
    struct msghdr message;
};

static char head[512], *body;
static size_t head_length, body_length;
static struct io_uring ring;

/* The pointer's lowest bits say what it was that completed. */
static void *tag(struct connection *c, enum what what) { return (void *)((uintptr_t)c | what); }

static struct io_uring_sqe *entry(void) {
    struct io_uring_sqe *sqe = io_uring_get_sqe(&ring);
    if (!sqe) {
        io_uring_submit(&ring);
        sqe = io_uring_get_sqe(&ring);
    }
    return sqe;
}

static void want_recv(struct connection *c) {
    struct io_uring_sqe *sqe = entry();
    io_uring_prep_recv_multishot(sqe, c->fd, NULL, 0, 0);
    sqe->flags |= IOSQE_BUFFER_SELECT;
    sqe->buf_group = GROUP;
    io_uring_sqe_set_data(sqe, tag(c, RECV));
}

static void answer(struct connection *c) {
    struct io_uring_sqe *sqe = entry();
    c->is_sending = 1;
    c->parts[0] = (struct iovec){head, head_length};
    c->parts[1] = (struct iovec){body, body_length};
    c->message = (struct msghdr){.msg_iov = c->parts, .msg_iovlen = 2};
    io_uring_prep_sendmsg(sqe, c->fd, &c->message, MSG_WAITALL | MSG_NOSIGNAL);
    io_uring_sqe_set_data(sqe, tag(c, SEND));
}

static void end(struct connection *c) {
    c->has_ended = 1;
    if (c->is_sending) return;
    close(c->fd);
    free(c);
}

int main(int argc, char **argv) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct io_uring_params params = {.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_CQSIZE,
                                     .cq_entries = 4 * ENTRIES};
    struct io_uring_buf_ring *buffers;
    struct io_uring_buf_reg registered = {.ring_entries = BUFFERS, .bgid = GROUP};
    struct io_uring_sqe *sqe;
    int listening = socket(AF_INET, SOCK_STREAM, 0), one = 1, i, buffer, status;
    char *memory;
    if (argc != 4) { fprintf(stderr, "bare_uring PORT BODY_BYTES SEND_BUFFER_BYTES\n"); return 2; }
    signal(SIGPIPE, SIG_IGN);
    address.sin_port = htons(atoi(argv[1]));
    body_length = atol(argv[2]);
    buffer = atoi(argv[3]);
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
    status = io_uring_queue_init_params(ENTRIES, &ring, &params);
    if (status < 0) { fprintf(stderr, "io_uring: %s\n", strerror(-status)); return 1; }
    memory = malloc((size_t)BUFFERS * BUFFER_BYTES);
    if (posix_memalign((void **)&buffers, 4096, BUFFERS * sizeof(struct io_uring_buf))) return 1;
    io_uring_buf_ring_init(buffers);
    registered.ring_addr = (uintptr_t)buffers;
    status = io_uring_register_buf_ring(&ring, &registered, 0);
    if (status < 0) { fprintf(stderr, "io_uring buffers: %s\n", strerror(-status)); return 1; }
    for (i = 0; i < BUFFERS; i++)
        io_uring_buf_ring_add(buffers, memory + (size_t)i * BUFFER_BYTES, BUFFER_BYTES, i, BUFFERS - 1, i);
    io_uring_buf_ring_advance(buffers, BUFFERS);
    sqe = entry();
    io_uring_prep_multishot_accept(sqe, listening, NULL, NULL, 0);
    io_uring_sqe_set_data(sqe, tag(NULL, ACCEPT));
    for (;;) {
        struct io_uring_cqe *cqe;
        unsigned cursor, n = 0;
        status = io_uring_submit_and_wait(&ring, 1);
        if (status < 0 && status != -EINTR && status != -EBUSY) { fprintf(stderr, "wait: %s\n", strerror(-status)); return 1; }
        io_uring_for_each_cqe(&ring, cursor, cqe) {
            uintptr_t data = (uintptr_t)io_uring_cqe_get_data(cqe);
            enum what what = data & 3;
            struct connection *c = (void *)(data & ~(uintptr_t)3);
            n++;
            if (what == ACCEPT) {
                if (cqe->res >= 0) {
                    c = calloc(1, sizeof *c);
                    c->fd = cqe->res;
                    want_recv(c);
                }
                if (!(cqe->flags & IORING_CQE_F_MORE)) {
                    sqe = entry();
                    io_uring_prep_multishot_accept(sqe, listening, NULL, NULL, 0);
                    io_uring_sqe_set_data(sqe, tag(NULL, ACCEPT));
                }
            } else if (what == RECV) {
                if (cqe->flags & IORING_CQE_F_BUFFER) {
                    int id = cqe->flags >> IORING_CQE_BUFFER_SHIFT;
                    io_uring_buf_ring_add(buffers, memory + (size_t)id * BUFFER_BYTES, BUFFER_BYTES, id, BUFFERS - 1, 0);
                    io_uring_buf_ring_advance(buffers, 1);
                }
                if (cqe->res > 0) {
                    if (c->is_sending) c->waiting++;
                    else answer(c);
                    if (!(cqe->flags & IORING_CQE_F_MORE)) want_recv(c);
                } else if (cqe->res == -ENOBUFS) {
                    want_recv(c);
                } else if (!(cqe->flags & IORING_CQE_F_MORE)) {
                    end(c);
                }
            } else {
                c->is_sending = 0;
                if (c->has_ended) end(c);
                else if (cqe->res > 0 && c->waiting) {
                    c->waiting--;
                    answer(c);
                }
            }
        }
        io_uring_cq_advance(&ring, n);
    }
}
