# TLS of viewers' connections behind tls.pxd. Records are gathered in a buffer of the worker and leave by one write; what
# the socket doesn't take is kept as ciphertext, with how much plaintext it stands for. That is rare: a full socket is asked
# before a large batch is encrypted for it. No lock of ours is held anywhere.
from libc.errno cimport EAGAIN, ECONNRESET, EINTR, EIO, ENOMEM, EPROTO, errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memmove, memset

from ext.atomics cimport *
from ext.connection cimport charge, discharge, set_deadline
from ext.layout cimport *
from ext.sockets cimport MSG_DONTWAIT, MSG_NOSIGNAL, SHUT_WR, acc_set_errno, iovec, recv, send, shutdown, socket_has_room
from ext.tls_settings cimport tls_settings_release
from ext.tls_types cimport *
from ext.transport cimport PROTOCOL_H2, PROTOCOL_HTTP1

cdef extern from "<openssl/bio.h>" nogil:
    ctypedef struct BIO:
        pass
    ctypedef struct BIO_METHOD:
        pass
    enum: BIO_TYPE_SOURCE_SINK
    enum: BIO_CTRL_FLUSH
    enum: BIO_CTRL_EOF
    int BIO_get_new_index()
    BIO_METHOD* BIO_meth_new(int, const char*)
    int BIO_meth_set_write(BIO_METHOD*, int (*)(BIO*, const char*, int) noexcept nogil)
    int BIO_meth_set_read(BIO_METHOD*, int (*)(BIO*, char*, int) noexcept nogil)
    int BIO_meth_set_ctrl(BIO_METHOD*, long (*)(BIO*, int, long, void*) noexcept nogil)
    int BIO_meth_set_create(BIO_METHOD*, int (*)(BIO*) noexcept nogil)
    BIO* BIO_new(const BIO_METHOD*)
    void BIO_set_data(BIO*, void*)
    void* BIO_get_data(BIO*)
    void BIO_set_init(BIO*, int)
    void BIO_clear_retry_flags(BIO*)
    void BIO_set_retry_read(BIO*)
    int BIO_up_ref(BIO*)

cdef extern from "<openssl/err.h>" nogil:
    void ERR_clear_error()
    unsigned long ERR_peek_error()
    int ERR_GET_REASON(unsigned long)

cdef extern from "<openssl/ssl.h>" nogil:
    enum: SSL_ERROR_WANT_READ
    enum: SSL_ERROR_WANT_WRITE
    enum: SSL_ERROR_ZERO_RETURN
    enum: SSL_RECEIVED_SHUTDOWN
    enum: TLS1_2_VERSION
    enum: SSL_R_HTTP_REQUEST
    enum: SSL_R_HTTPS_PROXY_REQUEST
    enum: SSL_R_UNSUPPORTED_PROTOCOL
    enum: SSL_R_VERSION_TOO_LOW
    enum: SSL_R_INAPPROPRIATE_FALLBACK
    enum: SSL_R_NO_SHARED_CIPHER
    enum: SSL_R_NO_SUITABLE_KEY_SHARE
    enum: SSL_R_NO_SHARED_GROUPS
    enum: SSL_R_NO_SUITABLE_GROUPS
    enum: SSL_R_NO_SUITABLE_SIGNATURE_ALGORITHM
    enum: SSL_R_NO_SHARED_SIGNATURE_ALGORITHMS
    enum: SSL_R_NO_APPLICATION_PROTOCOL
    enum: SSL_AD_REASON_OFFSET
    SSL* SSL_new(SSL_CTX*)
    void SSL_free(SSL*)
    void SSL_set_accept_state(SSL*)
    void SSL_set_bio(SSL*, BIO*, BIO*)
    int SSL_set_app_data(SSL*, void*)
    void* SSL_get_app_data(SSL*)
    int SSL_read(SSL*, void*, int)
    int SSL_write(SSL*, const void*, int)
    int SSL_shutdown(SSL*)
    int SSL_get_error(const SSL*, int)
    int SSL_get_shutdown(const SSL*)
    int SSL_has_pending(const SSL*)
    int SSL_is_init_finished(const SSL*)
    int SSL_session_reused(const SSL*)
    int SSL_version(const SSL*)
    void SSL_get0_alpn_selected(const SSL*, const unsigned char**, unsigned int*)


cdef enum:
    RECORD_BYTES = 16384        # the most of one record (RFC 8446 section 5.1)
    GATHER_BYTES = 65536        # plaintext that leaves by one write (docs/decisions/0160-tls-in-the-worker.md)
    OUT_BYTES = 98304           # its records with one more that ends an answer, and a handshake's flight
    ASK_BYTES = 32768           # from so many on, the socket is asked before they are encrypted
    TLS_BYTES = 16384           # what an idle connection's SSL takes, counted against the memory limit


# --- the socket, as OpenSSL sees it -----------------------------------------------------------------------------------

cdef int bio_create(BIO* bio) noexcept nogil:
    BIO_set_init(bio, 1)
    return 1


cdef long bio_ctrl(BIO* bio, int command, long number, void* pointer) noexcept nogil:
    if command == BIO_CTRL_EOF:
        return (<Tls*>BIO_get_data(bio)).has_fin
    return command == BIO_CTRL_FLUSH    # what is gathered leaves at the end of each call


cdef int bio_read(BIO* bio, char* into, int most) noexcept nogil:
    cdef Tls* t = <Tls*>BIO_get_data(bio)
    cdef ssize_t n
    BIO_clear_retry_flags(bio)
    if t.is_drained:
        BIO_set_retry_read(bio)
        return -1
    while True:
        n = recv((<Connection*>t.connection).fd, into, <size_t>most, MSG_DONTWAIT)
        if n >= 0 or errno != EINTR:
            break
    if n < 0:
        if errno == EAGAIN:
            t.is_drained = 1
            BIO_set_retry_read(bio)
        return -1
    if n == 0:
        t.has_fin = 1
    elif n < most and not (<Connection*>t.connection).has_ended:
        t.is_drained = 1        # no more is there (epoll(7)); the next edge says when
    return <int>n


cdef int bio_write(BIO* bio, const char* data, int n) noexcept nogil:
    cdef Tls* t = <Tls*>BIO_get_data(bio)
    cdef Worker* w = <Worker*>t.worker
    cdef int rest = n
    cdef uint32_t room
    cdef ssize_t sent
    BIO_clear_retry_flags(bio)
    if t.is_alone and w.tls_out_length == 0:    # a whole answer in one record: it need not be gathered
        sent = send((<Connection*>t.connection).fd, data, <size_t>n, MSG_NOSIGNAL | MSG_DONTWAIT)
        if sent > 0:
            data += sent
            rest -= <int>sent
    while rest > 0:
        room = OUT_BYTES - w.tls_out_length
        if room == 0:
            if not spill(w, t):
                return -1
            continue
        if room > <uint32_t>rest:
            room = <uint32_t>rest
        memcpy(w.tls_out + w.tls_out_length, data, room)
        w.tls_out_length += room
        data += room
        rest -= <int>room
    return n


cdef BIO_METHOD* make_method() noexcept:
    cdef BIO_METHOD* method = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, b"viewer")
    if method != NULL:
        BIO_meth_set_create(method, bio_create)
        BIO_meth_set_read(method, bio_read)
        BIO_meth_set_write(method, bio_write)
        BIO_meth_set_ctrl(method, bio_ctrl)
    return method


cdef BIO_METHOD* viewer_method = make_method()


# --- what leaves ------------------------------------------------------------------------------------------------------

cdef enum:
    # An answer leaves nothing pending beyond one batch. What comes on top are replies of TLS itself, which a viewer can ask
    # for without end and not take: new keys (RFC 8446 section 4.6.3), refused renegotiations.
    PENDING_MOST = 196608

cdef bint send_pending(Worker* w, Tls* t) noexcept nogil:
    """Whether nothing is pending any more; if not, errno says why."""
    cdef ssize_t n
    while t.pending_offset < t.pending_length:
        n = send((<Connection*>t.connection).fd, t.pending + t.pending_offset, t.pending_length - t.pending_offset, MSG_NOSIGNAL | MSG_DONTWAIT)
        if n < 0:
            if errno == EINTR:
                continue
            if errno != EAGAIN:
                t.is_broken = 1
            return False
        t.pending_offset += <uint32_t>n
    drop_pending(w, t)
    return True


cdef void drop_pending(Worker* w, Tls* t) noexcept nogil:
    if t.pending != NULL:
        discharge(w, t.pending_capacity)
        free(t.pending)
        t.pending = NULL
    t.pending_offset = 0
    t.pending_length = 0
    t.pending_capacity = 0


cdef bint keep_pending(Worker* w, Tls* t, const uint8_t* data, uint32_t n) noexcept nogil:
    cdef uint32_t rest = t.pending_length - t.pending_offset
    cdef uint32_t capacity
    cdef uint8_t* room
    if rest + n > t.pending_capacity:
        capacity = (rest + n + 1023) & ~<uint32_t>1023
        if not charge(w, capacity):
            return False
        room = <uint8_t*>malloc(capacity)
        if room == NULL:
            discharge(w, capacity)
            return False
        if rest:
            memcpy(room, t.pending + t.pending_offset, rest)
        drop_pending(w, t)
        t.pending = room
        t.pending_capacity = capacity
    elif rest:
        memmove(t.pending, t.pending + t.pending_offset, rest)
    memcpy(t.pending + rest, data, n)
    t.pending_offset = 0
    t.pending_length = rest + n
    return True


cdef bint spill(Worker* w, Tls* t) noexcept nogil:
    """What is gathered goes to the socket, and what that doesn't take, behind what is pending. False: it is broken."""
    cdef uint32_t sent = 0
    cdef ssize_t n
    cdef bint is_kept = True
    if t.pending == NULL or send_pending(w, t):
        while sent < w.tls_out_length and not t.is_broken:
            n = send((<Connection*>t.connection).fd, w.tls_out + sent, w.tls_out_length - sent, MSG_NOSIGNAL | MSG_DONTWAIT)
            if n >= 0:
                sent += <uint32_t>n
            elif errno == EAGAIN:
                break
            elif errno != EINTR:
                t.is_broken = 1
    if sent < w.tls_out_length and not t.is_broken:
        if t.pending_length - t.pending_offset + w.tls_out_length - sent > PENDING_MOST:
            t.is_broken = 1
            count(&w.counters[C_TLS_BROKEN], 1)
        elif not keep_pending(w, t, w.tls_out + sent, w.tls_out_length - sent):
            t.is_broken = 1     # a record with a hole is the end of the connection
            t.lacks_memory = 1
    w.tls_out_length = 0
    return not t.is_broken


cdef inline void forget_errors() noexcept nogil:
    """What SSL_get_error goes by must be empty before a call (SSL_get_error(3)). It mostly is, and clearing costs more."""
    if ERR_peek_error() != 0:
        ERR_clear_error()


cdef ssize_t tls_writev(Worker* w, Connection* c, const msghdr* message) noexcept nogil:
    """As sendmsg. Encrypts a batch, and says so only when the socket has taken all of it: until then the same bytes are
    offered again, and not encrypted again."""
    cdef Tls* t = c.tls
    cdef const iovec* part = message.msg_iov
    cdef const iovec* end = part + message.msg_iovlen
    cdef const iovec* each
    cdef const uint8_t* data = NULL
    cdef size_t left = 0        # of the part that `data` is in
    cdef size_t rest = 0        # of all parts
    cdef size_t n, most
    cdef uint32_t batch, filled
    cdef ssize_t done = 0
    if t.is_broken or not t.is_ready:
        acc_set_errno(ENOMEM if t.lacks_memory else EIO)
        return -1
    if t.pending != NULL and not send_pending(w, t):
        return -1
    while part < end:
        data = <const uint8_t*>part.iov_base
        left = part.iov_len
        if t.owed < left:
            data += t.owed
            left -= t.owed
            done += t.owed
            t.owed = 0
            break
        t.owed -= <uint32_t>left
        done += <ssize_t>left
        left = 0
        part += 1
    rest = left
    each = part + 1
    while each < end:
        rest += each.iov_len
        each += 1
    forget_errors()
    while part < end:
        # What was encrypted for a full socket must be kept, copied twice, and counted against the memory limit.
        if rest > ASK_BYTES and not socket_has_room(c.fd):
            if done:
                return done
            acc_set_errno(EAGAIN)
            return -1
        t.is_alone = rest <= RECORD_BYTES
        most = rest if rest <= GATHER_BYTES + RECORD_BYTES else GATHER_BYTES
        if t.is_tight:
            most = rest if rest <= RECORD_BYTES else RECORD_BYTES
        batch = 0
        while part < end and batch < most:
            if left >= RECORD_BYTES or (part + 1 == end and left > 0):
                n = left if left < most - batch else most - batch
                if n > RECORD_BYTES:
                    n -= n % RECORD_BYTES
                if SSL_write(t.ssl, data, <int>n) != <int>n:
                    return broken_write(w, t)
                data += n
                left -= n
                batch += <uint32_t>n
            else:               # a head and the beginning of its body share a record
                filled = 0
                while part < end and filled < RECORD_BYTES:
                    n = left if left < RECORD_BYTES - filled else RECORD_BYTES - filled
                    memcpy(w.tls_record + filled, data, n)
                    filled += <uint32_t>n
                    data += n
                    left -= n
                    if left == 0:
                        part += 1
                        if part < end:
                            data = <const uint8_t*>part.iov_base
                            left = part.iov_len
                if filled and SSL_write(t.ssl, w.tls_record, <int>filled) != <int>filled:
                    return broken_write(w, t)
                batch += filled
            while part < end and left == 0:
                part += 1
                if part < end:
                    data = <const uint8_t*>part.iov_base
                    left = part.iov_len
        t.is_alone = 0
        rest -= batch
        if w.tls_out_length and not spill(w, t):
            acc_set_errno(ENOMEM if t.lacks_memory else ECONNRESET)
            return -1
        t.is_tight = t.pending != NULL
        if t.is_tight:
            t.owed = batch
            break
        done += batch
    if done == 0 and t.owed:
        acc_set_errno(EAGAIN)
        return -1
    return done


cdef ssize_t broken_write(Worker* w, Tls* t) noexcept nogil:
    if not t.is_broken:         # else it was the socket
        count(&w.counters[C_TLS_BROKEN], 1)
    t.is_broken = 1
    t.is_alone = 0
    w.tls_out_length = 0
    acc_set_errno(ENOMEM if t.lacks_memory else EIO)
    return -1


cdef void tls_flush(Worker* w, Connection* c) noexcept nogil:
    """The socket has room. What is pending of a response is its writer's to go on with."""
    if c.tls.pending != NULL and not c.tls.owed:
        send_pending(w, c.tls)


# --- what comes -------------------------------------------------------------------------------------------------------

cdef ssize_t tls_read(Worker* w, Connection* c, uint8_t* into, size_t most) noexcept nogil:
    """As recv, and does the handshake first. EPROTO: a request in plain HTTP came instead, and the connection is plain."""
    cdef Tls* t = c.tls
    cdef size_t total = 0
    cdef int n = 0
    cdef int why = 0
    if t.is_broken:
        acc_set_errno(EIO)
        return -1
    if t.has_left:
        return 0
    t.is_drained = 0
    forget_errors()
    acc_set_errno(0)
    while total < most:
        n = SSL_read(t.ssl, into + total, <int>(most - total if most - total < (1 << 30) else 1 << 30))
        if n <= 0:
            break
        total += <size_t>n
        if t.is_drained and SSL_has_pending(t.ssl) == 0:
            break               # to be told so by OpenSSL costs 150 ns
    if n <= 0:
        why = SSL_get_error(t.ssl, n)
    if not t.is_ready and SSL_is_init_finished(t.ssl):
        on_ready(w, c)
    if n > 0 or why == SSL_ERROR_WANT_READ or why == SSL_ERROR_WANT_WRITE:
        if w.tls_out_length and not spill(w, t):
            if t.lacks_memory:
                t.is_judged = 1
                count(&w.counters[C_CLOSED_MEMORY], 1)
            acc_set_errno(ECONNRESET)
            return -1 if total == 0 else <ssize_t>total
        if total:
            return <ssize_t>total
        acc_set_errno(EAGAIN)
        return -1
    # The end, of one kind or another.
    if w.tls_out_length:
        spill(w, t)             # an alert, so that the viewer knows why
    c.has_ended = 1             # who has read less than he asked for must come again
    if why == SSL_ERROR_ZERO_RETURN and t.is_ready:
        t.has_left = 1
        return <ssize_t>total
    if not t.is_ready:
        return on_failure(w, c, why == SSL_ERROR_ZERO_RETURN or t.has_fin)
    if t.lacks_memory:
        count(&w.counters[C_CLOSED_MEMORY], 1)
    elif ERR_peek_error() != 0 and not t.is_broken:     # else it was the socket, or is counted
        count(&w.counters[C_TLS_BROKEN], 1)
        t.is_broken = 1
    elif not t.is_broken:
        t.has_left = 1
    ERR_clear_error()
    if total:
        return <ssize_t>total
    acc_set_errno(EIO if t.is_broken else ECONNRESET)
    return -1


cdef void on_ready(Worker* w, Connection* c) noexcept nogil:
    cdef Tls* t = c.tls
    cdef const unsigned char* name
    cdef unsigned int n
    cdef int version = SSL_version(t.ssl)
    t.is_ready = 1
    t.is_judged = 1
    SSL_get0_alpn_selected(t.ssl, &name, &n)
    c.protocol = PROTOCOL_H2 if n == 2 and memcmp(name, b"h2", 2) == 0 else PROTOCOL_HTTP1
    count(&w.counters[C_TLS_HANDSHAKES], 1)
    if SSL_session_reused(t.ssl):
        count(&w.counters[C_TLS_RESUMED], 1)
    t.generation = 3
    if version == TLS1_2_VERSION:
        t.generation = 2
        count(&w.counters[C_TLS_VERSION_12], 1)
    elif version < TLS1_2_VERSION:
        t.generation = 1
        count(&w.counters[C_TLS_VERSION_OLD], 1)
    if not c.is_surplus:
        set_deadline(w, c, w.now_ns + w.tables.limits.head_timeout_ns)


cdef ssize_t on_failure(Worker* w, Connection* c, bint has_gone) noexcept nogil:
    """Why a handshake failed, told by a counter."""
    cdef unsigned long error = ERR_peek_error()
    cdef int reason = ERR_GET_REASON(error) if error else 0
    cdef int column = C_TLS_FAILED_BROKEN
    c.tls.is_broken = 1
    c.tls.is_judged = 1
    ERR_clear_error()
    acc_set_errno(EIO)
    if reason == SSL_R_HTTP_REQUEST or reason == SSL_R_HTTPS_PROXY_REQUEST:
        count(&w.counters[C_TLS_FAILED_PLAIN], 1)
        tls_end(w, c, False)
        c.has_ended = 0
        acc_set_errno(EPROTO)
        return -1
    if error == 0 or has_gone:
        column = C_TLS_FAILED_LEFT
    elif reason == SSL_R_UNSUPPORTED_PROTOCOL or reason == SSL_R_VERSION_TOO_LOW or reason == SSL_R_INAPPROPRIATE_FALLBACK:
        column = C_TLS_FAILED_VERSION
    elif (reason == SSL_R_NO_SHARED_CIPHER or reason == SSL_R_NO_SUITABLE_KEY_SHARE or reason == SSL_R_NO_SHARED_GROUPS
            or reason == SSL_R_NO_SUITABLE_GROUPS or reason == SSL_R_NO_SUITABLE_SIGNATURE_ALGORITHM
            or reason == SSL_R_NO_SHARED_SIGNATURE_ALGORITHMS or reason == SSL_R_NO_APPLICATION_PROTOCOL):
        column = C_TLS_FAILED_SUITE
    elif reason >= SSL_AD_REASON_OFFSET:
        column = C_TLS_FAILED_REFUSED
    count(&w.counters[column], 1)
    return -1


# --- life -------------------------------------------------------------------------------------------------------------

cdef bint tls_begin(Worker* w, Connection* c, TlsSettings* settings) noexcept nogil:
    """Makes an accepted connection one that expects a handshake. False: no memory."""
    cdef Tls* t
    cdef BIO* bio
    if w.tls_out == NULL:
        w.tls_out = <uint8_t*>malloc(OUT_BYTES + RECORD_BYTES)
        if w.tls_out == NULL:
            return False
        w.tls_record = w.tls_out + OUT_BYTES
        w.tls_out_length = 0
    if not charge(w, TLS_BYTES):
        return False
    t = <Tls*>malloc(sizeof(Tls))
    if t == NULL:
        discharge(w, TLS_BYTES)
        return False
    memset(t, 0, sizeof(Tls))
    t.ssl = SSL_new(settings.certificates[0])
    bio = BIO_new(viewer_method) if t.ssl != NULL else NULL
    if bio == NULL or SSL_set_app_data(t.ssl, t) != 1:
        SSL_free(t.ssl)
        free(t)
        discharge(w, TLS_BYTES)
        ERR_clear_error()
        return False
    BIO_set_data(bio, t)
    SSL_set_bio(t.ssl, bio, bio)
    SSL_set_accept_state(t.ssl)
    t.worker = w
    t.connection = c
    add_u64(&settings.refs, 1)
    t.settings = settings
    c.tls = t
    return True


cdef void tls_shut(Worker* w, Connection* c) noexcept nogil:
    """close_notify, then the socket's own end."""
    say_end(w, c.tls)
    shutdown(c.fd, SHUT_WR)


cdef void say_end(Worker* w, Tls* t) noexcept nogil:
    if t.is_ready and not t.is_broken and t.pending == NULL:
        ERR_clear_error()
        SSL_shutdown(t.ssl)
        if w.tls_out_length:
            spill(w, t)
        ERR_clear_error()


cdef void tls_end(Worker* w, Connection* c, bint is_in_order) noexcept nogil:
    """The connection ends, or goes on without TLS. `is_in_order`: the viewer may take what it got for whole."""
    cdef Tls* t = c.tls
    if is_in_order:
        say_end(w, t)
    if not t.is_judged and not w.is_draining:
        count(&w.counters[C_TLS_FAILED_LEFT], 1)
    c.tls = NULL
    SSL_free(t.ssl)
    drop_pending(w, t)
    tls_settings_release(t.settings)
    free(t)
    discharge(w, TLS_BYTES)


cdef void tls_worker_close(Worker* w) noexcept nogil:
    free(w.tls_out)
    w.tls_out = NULL
