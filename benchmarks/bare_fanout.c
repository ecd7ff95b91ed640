/* The floor under relay_fanout.py: recvmmsg in, sendmmsg out to N receivers, and nothing else.
 *
 *     bare_fanout PORT RECEIVERS TRAIN PACKETS
 *
 * Receivers are 10.9.0.0/16 in order, port 5004. TRAIN 1: a message per packet and receiver; above 1: so many packets are
 * gathered and cut by UDP_SEGMENT. Answers each batch with how many packets it has sent on; ends after PACKETS. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif
enum { BATCH = 64, SIZE = 2048, MOST = 1024 };

static char data[BATCH][SIZE];
static struct sockaddr_in to[MOST * 16];

static void send_all(int fd, struct mmsghdr *messages, int n) {
    for (int at = 0; at < n;) {
        int sent = sendmmsg(fd, messages + at, (unsigned)(n - at), 0);
        if (sent < 0) { perror("sendmmsg"); exit(1); }
        at += sent;
    }
}

int main(int argc, char **argv) {
    if (argc != 5) return 2;
    int receivers = atoi(argv[2]), train = atoi(argv[3]);
    long wanted = atol(argv[4]), done = 0;
    int in = socket(AF_INET, SOCK_DGRAM, 0), out = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in own = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (bind(in, (struct sockaddr *)&own, sizeof own)) { perror("bind"); return 1; }
    for (int i = 0; i < receivers; i++)
        to[i] = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(5004), .sin_addr.s_addr = htonl(0x0a090000u + (unsigned)i)};
    static struct mmsghdr taken[BATCH], messages[MOST];
    static struct iovec into[BATCH], from[BATCH];
    struct sockaddr_in sender;
    union { struct cmsghdr head; char room[CMSG_SPACE(sizeof(uint16_t))]; } control;
    puts("ready");
    fflush(stdout);
    while (done < wanted) {
        for (int i = 0; i < BATCH; i++) {
            into[i] = (struct iovec){data[i], SIZE};
            taken[i].msg_hdr = (struct msghdr){.msg_name = &sender, .msg_namelen = sizeof sender, .msg_iov = &into[i], .msg_iovlen = 1};
        }
        int n = recvmmsg(in, taken, (unsigned)(train > 1 ? train : BATCH), train > 1 ? 0 : MSG_WAITFORONE, NULL);
        if (n <= 0) { perror("recvmmsg"); return 1; }
        for (int i = 0; i < n; i++) from[i] = (struct iovec){data[i], taken[i].msg_len};
        if (train > 1) {
            control.head = (struct cmsghdr){.cmsg_level = SOL_UDP, .cmsg_type = UDP_SEGMENT, .cmsg_len = CMSG_LEN(sizeof(uint16_t))};
            uint16_t size = (uint16_t)taken[0].msg_len;
            memcpy(CMSG_DATA(&control.head), &size, sizeof size);
            for (int r = 0; r < receivers; r++)
                messages[r].msg_hdr = (struct msghdr){.msg_name = &to[r], .msg_namelen = sizeof to[r], .msg_iov = from, .msg_iovlen = (size_t)n,
                                                      .msg_control = &control, .msg_controllen = sizeof control.room};
            send_all(out, messages, receivers);
        } else {
            for (int i = 0; i < n; i++) {
                for (int r = 0; r < receivers; r++)
                    messages[r].msg_hdr = (struct msghdr){.msg_name = &to[r], .msg_namelen = sizeof to[r], .msg_iov = &from[i], .msg_iovlen = 1};
                send_all(out, messages, receivers);
            }
        }
        done += n;
        sendto(in, &done, sizeof done, 0, (struct sockaddr *)&sender, sizeof sender);
    }
    return 0;
}
