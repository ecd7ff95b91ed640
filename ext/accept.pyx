# Listeners behind accept.pxd: which sockets a worker accepts from, who is taken, and who is turned away at the door.
from libc.errno cimport EMFILE, ENFILE, ENOBUFS, ENOMEM, errno
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memcpy

from ext.addresses cimport address_enter, address_leave
from ext.atomics cimport *
from ext.connection cimport *
from ext.exchange cimport Message
from ext.layout cimport *
from ext.sockets cimport MSG_DONTWAIT, MSG_NOSIGNAL, SHUT_WR, recv, send, shutdown
from ext.tls cimport tls_begin
from ext.tls_types cimport TlsSettings

cdef extern from "<sys/epoll.h>" nogil:
    enum: EPOLLIN
    enum: EPOLLOUT
    enum: EPOLLRDHUP
    enum: EPOLLET
    enum: EPOLL_CTL_ADD
    enum: EPOLL_CTL_DEL
    ctypedef union epoll_data:
        void* ptr
    cdef struct epoll_event:
        uint32_t events
        epoll_data data
    int epoll_ctl(int, int, int, epoll_event*)

cdef extern from * nogil:
    """
    #include <sys/epoll.h>
    #ifndef EPOLLEXCLUSIVE
    #define EPOLLEXCLUSIVE (1u << 28)
    #endif
    static const uint32_t acc_exclusive = EPOLLEXCLUSIVE;
    """
    uint32_t acc_exclusive

cdef extern from * nogil:
    """
    #define _GNU_SOURCE 1
    #include <sys/socket.h>
    #include <netinet/in.h>
    #include <string.h>
    #include <stdint.h>
    int accept4(int, struct sockaddr *, socklen_t *, int);
    /* A connection and its peer's address as 16 bytes (IPv4 mapped). */
    static int acc_accept(int fd, uint8_t *address) {
        struct sockaddr_storage peer;
        socklen_t n = sizeof(peer);
        int s = accept4(fd, (struct sockaddr *)&peer, &n, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (s < 0) return s;
        memset(address, 0, 16);
        if (peer.ss_family == AF_INET) {
            address[10] = address[11] = 0xff;
            memcpy(address + 12, &((struct sockaddr_in *)&peer)->sin_addr, 4);
        } else if (peer.ss_family == AF_INET6)
            memcpy(address, &((struct sockaddr_in6 *)&peer)->sin6_addr, 16);
        return s;
    }
    """
    int acc_accept(int, uint8_t*)

cdef extern from "<sys/eventfd.h>" nogil:
    enum: EFD_CLOEXEC
    int eventfd(unsigned int, int)

cdef extern from "<unistd.h>" nogil:
    int close(int)

cdef enum:
    ACCEPTS_PER_PASS = 64
    ACCEPT_REST_NS = 250000000
    SURPLUS_MOST = 32           # connections above a cap that are told so over TLS, of one worker at once,
    SURPLUS_PER_S = 50          # and begun in one second (docs/decisions/0185-turned-away-over-tls.md)
    ANY_NUMBER = 4294967295


cdef void on_listen(Worker* w, Message* m) noexcept nogil:
    cdef Listener* listener
    cdef uint32_t i
    for i in range(<uint32_t>MAX_LISTENERS):
        listener = &w.listeners[i]
        if listener.fd < 0:
            listener.is_what = IS_LISTENER
            listener.fd = <int>m.detail
            listener.index = m.index
            if not w.accept_again_ns:
                watch_listener(w, listener)
            return


cdef void stop_listening(Worker* w, int32_t index) noexcept nogil:
    """`index` -1: everywhere. The descriptor belongs to the control plane."""
    cdef uint32_t i
    cdef epoll_event event
    for i in range(<uint32_t>MAX_LISTENERS):
        if w.listeners[i].fd >= 0 and (index < 0 or w.listeners[i].index == <uint32_t>index):
            epoll_ctl(w.epoll, EPOLL_CTL_DEL, w.listeners[i].fd, &event)
            w.listeners[i].fd = -1


cdef inline TlsSettings* settings_of(Worker* w, uint32_t listener) noexcept nogil:
    return <TlsSettings*>w.tables.tls[listener] if listener < w.tables.n_listeners else NULL


cdef void turn_away(Worker* w, Listener* listener, int fd, int counter) noexcept nogil:
    """A connection above a cap: one 503 where the socket takes it, then closed. Nothing is kept of it. Over TLS nothing
    can be said without a handshake: see explains()."""
    cdef char text[512]
    cdef int n = snprintf(
        text, sizeof(text),
        "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 2\r\nContent-Length: 0\r\nCache-Control: no-store\r\n"
        "Cache-Status: %.*s\r\nConnection: close\r\n\r\n", <int>w.tables.site_length, <char*>w.tables.strings + w.tables.site)
    count(&w.counters[counter], 1)
    if settings_of(w, listener.index) == NULL:
        send(fd, text, n, MSG_NOSIGNAL | MSG_DONTWAIT)
    shutdown(fd, SHUT_WR)
    recv(fd, w.input, READ_BYTES, MSG_DONTWAIT)     # a close with unread input would reset the answer away
    close(fd)


cdef bint explains(Worker* w, Listener* listener) noexcept nogil:
    """Whether one more who is turned away is told so over TLS: he gets a handshake, a 503 to what he asks, and the end.
    Bounded, because a handshake costs what there is no room for."""
    if settings_of(w, listener.index) == NULL or w.n_surplus >= SURPLUS_MOST:
        return False
    if w.now_ns - w.surplus_since_ns >= 1000000000:
        w.surplus_since_ns = w.now_ns
        w.surplus_begun = 0
    if w.surplus_begun >= SURPLUS_PER_S:
        return False
    w.surplus_begun += 1
    return True


cdef void rest_listeners(Worker* w) noexcept nogil:
    """A listener that can't be accepted from would wake the worker without end. Who connects meanwhile waits."""
    cdef uint32_t i
    cdef epoll_event event
    w.accept_again_ns = w.now_ns + ACCEPT_REST_NS
    for i in range(<uint32_t>MAX_LISTENERS):
        if w.listeners[i].fd >= 0:
            epoll_ctl(w.epoll, EPOLL_CTL_DEL, w.listeners[i].fd, &event)


cdef void wake_listeners(Worker* w) noexcept nogil:
    cdef uint32_t i
    w.accept_again_ns = 0
    if w.spare_fd < 0:
        w.spare_fd = eventfd(0, EFD_CLOEXEC)
    for i in range(<uint32_t>MAX_LISTENERS):
        if w.listeners[i].fd >= 0:
            watch_listener(w, &w.listeners[i])


cdef void watch_listener(Worker* w, Listener* listener) noexcept nogil:
    cdef epoll_event event
    event.events = EPOLLIN | acc_exclusive
    event.data.ptr = listener
    epoll_ctl(w.epoll, EPOLL_CTL_ADD, listener.fd, &event)


cdef void on_accept(Worker* w, Listener* listener) noexcept nogil:
    cdef int i, fd, because     # `because`: the counter of why it is turned away, or -1
    cdef uint64_t before
    cdef uint8_t address[16]
    cdef epoll_event event
    cdef Connection* c
    cdef TlsSettings* settings
    for i in range(ACCEPTS_PER_PASS):
        if listener.fd < 0:
            return
        fd = acc_accept(listener.fd, address)
        if fd < 0 and (errno == EMFILE or errno == ENFILE) and w.spare_fd >= 0:
            # Left in the queue it would wake the worker for ever: take it with the spare descriptor, and turn it away.
            close(w.spare_fd)
            fd = acc_accept(listener.fd, address)
            if fd >= 0:
                turn_away(w, listener, fd, C_REFUSED_CONNECTIONS_ALL)
            w.spare_fd = eventfd(0, EFD_CLOEXEC)
            if fd >= 0:
                continue
        if fd < 0:
            if errno == EMFILE or errno == ENFILE or errno == ENOBUFS or errno == ENOMEM:
                rest_listeners(w)
            return
        because = -1
        before = add_u64(&w.shared.n_connections, 1)
        if load_u32_relaxed(&w.shared.overload) >= OVERLOAD_REFUSE:
            because = C_REFUSED_CONNECTIONS_OVERLOAD
        elif before >= w.tables.limits.connections:
            because = C_REFUSED_CONNECTIONS_ALL
        elif not address_enter(&w.shared.addresses, address, w.tables.limits.connections_per_address):
            because = C_REFUSED_CONNECTIONS_ADDRESS
        if because >= 0:
            if not explains(w, listener) or not address_enter(&w.shared.addresses, address, ANY_NUMBER):
                add_u64_relaxed(&w.shared.n_connections, <uint64_t>-1)
                turn_away(w, listener, fd, because)
                continue
            count(&w.counters[because], 1)
        c = connection_new(w, NULL)
        if c == NULL:
            address_leave(&w.shared.addresses, address)
            add_u64_relaxed(&w.shared.n_connections, <uint64_t>-1)
            turn_away(w, listener, fd, C_CLOSED_MEMORY)
            continue
        # From here on closing it gives back all that was counted, the address too.
        c.fd = fd
        c.is_what = IS_CONNECTION
        c.listener = listener.index
        memcpy(c.address, address, 16)
        count(&w.counters[C_CONNECTIONS_ACCEPTED], 1)
        if because >= 0:
            c.is_surplus = 1
            w.n_surplus += 1
        settings = settings_of(w, listener.index)
        if settings != NULL and not tls_begin(w, c, settings):
            count(&w.counters[C_CLOSED_MEMORY], 1)
            connection_close(w, c, True)
            continue
        event.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET
        event.data.ptr = c
        if epoll_ctl(w.epoll, EPOLL_CTL_ADD, fd, &event) < 0:
            connection_close(w, c, False)
            continue
        set_deadline(w, c, w.now_ns + (SURPLUS_NS if c.is_surplus else w.tables.limits.head_timeout_ns))
