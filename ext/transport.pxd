# The one place through which a viewer's connection reads and writes: plain, or through TLS (tls.pyx). Both keep the
# socket's own words: bytes moved, 0 for the end, -1 with errno, EAGAIN for an empty or full one. No HTTP here.
from libc.errno cimport ENOMEM, errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from ext.atomics cimport count
from ext.connection cimport Connection, Worker, connection_close
from ext.layout cimport C_BYTES_BY_REFERENCE, C_CLOSED_BY_VIEWER, C_CLOSED_MEMORY
from ext.sendable cimport sendable_writev
from ext.sockets cimport MSG_DONTWAIT, MSG_NOSIGNAL, SHUT_WR, iovec, msghdr, recv, send, shutdown
from ext.tls cimport tls_read, tls_shut, tls_writev

cdef enum:                      # Connection.protocol: what ALPN agreed on (RFC 7301); HTTP/1.1 where nothing was said
    PROTOCOL_HTTP1 = 0
    PROTOCOL_H2 = 1

# What a read must do, since events are edges: go on until `most` bytes are there or the socket is empty. So a short
# read means that nothing more is there, unless c.has_ended. What a write must do: say that bytes are written only when
# all that carries them has been taken by the socket; whoever writes offers the others again, the same ones first.

cdef inline ssize_t transport_read(Worker* w, Connection* c, void* into, size_t most) noexcept nogil:
    if c.tls != NULL:
        return tls_read(w, c, <uint8_t*>into, most)
    return recv(c.fd, into, most, MSG_DONTWAIT)


cdef inline ssize_t transport_writev(Worker* w, Connection* c, const msghdr* message) noexcept nogil:
    cdef uint64_t n_by_reference = 0
    cdef ssize_t written
    if c.tls != NULL:
        return tls_writev(w, c, message)
    written = sendable_writev(&w.store.arena.pool, c.fd, message, &n_by_reference)
    if n_by_reference:
        count(&w.counters[C_BYTES_BY_REFERENCE], n_by_reference)
    return written


cdef inline ssize_t transport_write(Worker* w, Connection* c, const uint8_t* data, uint32_t n) noexcept nogil:
    cdef iovec part
    cdef msghdr message
    if c.tls != NULL:
        part.iov_base = <void*>data
        part.iov_len = n
        message.msg_iov = &part
        message.msg_iovlen = 1
        return tls_writev(w, c, &message)
    return send(c.fd, data, n, MSG_NOSIGNAL | MSG_DONTWAIT)


cdef inline void transport_lost(Worker* w, Connection* c) noexcept nogil:
    """A write has failed; errno says why. Whom there was no memory for has not left, and must not take a part for all."""
    cdef bint is_ours = errno == ENOMEM
    count(&w.counters[C_CLOSED_MEMORY if is_ours else C_CLOSED_BY_VIEWER], 1)
    connection_close(w, c, is_ours)


cdef inline void transport_shut(Worker* w, Connection* c) noexcept nogil:
    """Nothing more will be written."""
    if c.tls != NULL:
        tls_shut(w, c)
    else:
        shutdown(c.fd, SHUT_WR)
