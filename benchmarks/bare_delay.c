/* What the machine can do at all, for relay_delay.py: many inputs, each held for a while and sent to its receivers in trains,
 * the oldest first, by the same system calls as a relay; no table, no counters, no repair.
 *
 *     bare_delay INPUTS RECEIVERS HOLD_US ADDRESS
 *
 * Input i is 127.0.0.1:6000+i; its receivers are RECEIVERS-1 addresses of 10.9.0.0/16, port 5004, and last ADDRESS:7000+i.
 * Ends when its standard input does; prints the packets that it sent. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif
enum { INPUTS = 64, SLOTS = 256, SIZE = 2048, TRAIN = 16, BATCH = 128, MOST = 4096 };

struct input {
    int fd;
    uint64_t head, tail;
    int64_t at[SLOTS];
    uint16_t size[SLOTS];
    char data[SLOTS][SIZE];
};

static struct input inputs[INPUTS];
static struct sockaddr_in to[INPUTS][MOST];
static long n_sent;

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void take(struct input *in) {
    static struct mmsghdr m[64];
    static struct iovec v[64];
    int room = (int)(SLOTS - (in->tail - in->head));
    if (room > 64) room = 64;
    for (int i = 0; i < room; i++) {
        v[i] = (struct iovec){in->data[(in->tail + (unsigned)i) % SLOTS], SIZE};
        m[i].msg_hdr = (struct msghdr){.msg_iov = &v[i], .msg_iovlen = 1};
    }
    int n = room ? recvmmsg(in->fd, m, (unsigned)room, MSG_DONTWAIT, NULL) : 0;
    int64_t now = now_ns();
    for (int i = 0; i < n; i++, in->tail++) {
        in->at[in->tail % SLOTS] = now;
        in->size[in->tail % SLOTS] = (uint16_t)m[i].msg_len;
    }
}

static void send_train(int out, struct input *in, struct sockaddr_in *to_, int receivers) {
    static struct mmsghdr m[BATCH];
    struct iovec v[TRAIN];
    union { struct cmsghdr head; char room[CMSG_SPACE(sizeof(uint16_t))]; } control;
    int n = (int)(in->tail - in->head);
    if (n > TRAIN) n = TRAIN;
    for (int i = 0; i < n; i++) v[i] = (struct iovec){in->data[(in->head + (unsigned)i) % SLOTS], in->size[(in->head + (unsigned)i) % SLOTS]};
    control.head = (struct cmsghdr){.cmsg_level = SOL_UDP, .cmsg_type = UDP_SEGMENT, .cmsg_len = CMSG_LEN(sizeof(uint16_t))};
    uint16_t size = (uint16_t)v[0].iov_len;
    memcpy(CMSG_DATA(&control.head), &size, sizeof size);
    for (int first = 0; first < receivers;) {
        int batch = receivers - first < BATCH ? receivers - first : BATCH;
        for (int i = 0; i < batch; i++) {
            m[i].msg_hdr = (struct msghdr){.msg_name = &to_[first + i], .msg_namelen = sizeof *to_, .msg_iov = v, .msg_iovlen = (size_t)n};
            if (n > 1) { m[i].msg_hdr.msg_control = &control; m[i].msg_hdr.msg_controllen = sizeof control.room; }
        }
        int sent = sendmmsg(out, m, (unsigned)batch, 0);
        if (sent < 0) { if (errno == EINTR) continue; perror("sendmmsg"); exit(1); }
        first += sent;
    }
    in->head += (unsigned)n;
    n_sent += (long)n * receivers;
}

int main(int argc, char **argv) {
    if (argc != 5) return 2;
    int n = atoi(argv[1]), receivers = atoi(argv[2]);
    int64_t hold = atol(argv[3]) * 1000;
    if (n > INPUTS || receivers > MOST) return 2;
    int out = socket(AF_INET, SOCK_DGRAM, 0), poll_ = epoll_create1(0), large = 32 << 20;
    setsockopt(out, SOL_SOCKET, SO_SNDBUFFORCE, &large, sizeof large);
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = INPUTS};
    epoll_ctl(poll_, EPOLL_CTL_ADD, 0, &event);
    for (int i = 0; i < n; i++) {
        struct sockaddr_in own = {.sin_family = AF_INET, .sin_port = htons((uint16_t)(6000 + i)), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        inputs[i].fd = socket(AF_INET, SOCK_DGRAM, 0);
        setsockopt(inputs[i].fd, SOL_SOCKET, SO_RCVBUFFORCE, &large, sizeof large);
        if (bind(inputs[i].fd, (struct sockaddr *)&own, sizeof own)) { perror("bind"); return 1; }
        event.data.u32 = (uint32_t)i;
        epoll_ctl(poll_, EPOLL_CTL_ADD, inputs[i].fd, &event);
        for (int r = 0; r < receivers - 1; r++)
            to[i][r] = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(5004), .sin_addr.s_addr = htonl(0x0a090000u + (unsigned)r)};
        to[i][receivers - 1] = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)(7000 + i)), .sin_addr.s_addr = inet_addr(argv[4])};
    }
    puts("ready");
    fflush(stdout);
    for (int64_t wait = 1000000000;;) {
        struct epoll_event events[INPUTS + 1];
        struct timespec t = {.tv_sec = wait / 1000000000, .tv_nsec = wait % 1000000000};
        int got = epoll_pwait2(poll_, events, INPUTS + 1, &t, NULL);
        for (int i = 0; i < got; i++) {
            if (events[i].data.u32 == INPUTS) { printf("%ld\n", n_sent); return 0; }
            take(&inputs[events[i].data.u32]);
        }
        int64_t now = now_ns(), due = now + 1000000000;
        int oldest = -1;
        for (int i = 0; i < n; i++) {
            struct input *in = &inputs[i];
            if (in->head == in->tail) continue;
            int64_t of = in->tail - in->head >= TRAIN ? now : in->at[in->head % SLOTS] + hold;
            if (of < due) { due = of; oldest = i; }
        }
        wait = due - now;
        if (wait > 0) continue;
        send_train(out, &inputs[oldest], to[oldest], receivers);
        wait = 0;
    }
}
