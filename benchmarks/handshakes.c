/* Viewers who come and go over TLS, on one thread, one after the other: connect, handshake, one GET, the whole answer, close.
 *
 *     handshakes PORT SECONDS full|resumed PATH BODY_BYTES
 *
 * full: nothing is remembered. resumed: each connection brings the ticket that the one before was given, so that all but the
 * first are resumed; one that is not counts as an error. TLS 1.3, TLS_AES_128_GCM_SHA256, X25519, no verification. Prints one
 * line of JSON: connections, errors. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/ssl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static SSL_SESSION *session;
static char answer[262144];

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static int keep(SSL *ssl, SSL_SESSION *fresh) {
    (void)ssl;
    SSL_SESSION_free(session);
    session = fresh;
    return 1;
}

int main(int n, char **words) {
    struct sockaddr_in to = {.sin_family = AF_INET};
    char request[1024];
    long done = 0, errors = 0;
    if (n != 6) {
        fprintf(stderr, "handshakes PORT SECONDS full|resumed PATH BODY_BYTES\n");
        return 2;
    }
    to.sin_port = htons(atoi(words[1]));
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int is_resuming = strcmp(words[3], "resumed") == 0;
    size_t body_bytes = strtoul(words[5], NULL, 10);
    int request_bytes = snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: bench\r\n\r\n", words[4]);
    SSL_CTX *context = SSL_CTX_new(TLS_client_method());
    SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION);
    SSL_CTX_set_ciphersuites(context, "TLS_AES_128_GCM_SHA256");
    SSL_CTX_set1_groups_list(context, "X25519");
    SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
    if (is_resuming)
        SSL_CTX_sess_set_new_cb(context, keep);
    double end_s = now_s() + atof(words[2]);
    while (now_s() < end_s) {
        int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        SSL *ssl = SSL_new(context);
        SSL_set_fd(ssl, fd);
        SSL_set_tlsext_host_name(ssl, "bench");
        int had_session = is_resuming && session != NULL;
        if (had_session)
            SSL_set_session(ssl, session);
        size_t got = 0, whole = 0;
        int is_good = fd >= 0 && connect(fd, (struct sockaddr *)&to, sizeof to) == 0 && SSL_connect(ssl) == 1
            && SSL_write(ssl, request, request_bytes) == request_bytes;
        while (is_good && (whole == 0 || got < whole)) {
            int more = SSL_read(ssl, answer + got, (int)(sizeof answer - 1 - got));
            if (more <= 0) {
                is_good = 0;
                break;
            }
            got += (size_t)more;
            answer[got] = 0;
            char *head_end = whole ? NULL : strstr(answer, "\r\n\r\n");
            if (head_end)
                whole = (size_t)(head_end + 4 - answer) + body_bytes;
        }
        if (is_good)
            is_good = got == whole && strncmp(answer, "HTTP/1.1 200 ", 13) == 0
                && (!had_session || SSL_session_reused(ssl));
        SSL_shutdown(ssl);
        SSL_free(ssl);
        close(fd);
        done += is_good;
        errors += !is_good;
    }
    printf("{\"connections\": %ld, \"errors\": %ld}\n", done, errors);
    return 0;
}
