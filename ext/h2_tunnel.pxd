# The viewer's side of a tunnel that is an HTTP/2 stream (RFC 8441). The same words as a socket's: bytes moved, 0 for the
# end, -1 with errno. carry.pyx moves the bytes.
from libc.stdint cimport uint8_t, uint32_t

from ext.connection cimport Connection, Worker

cdef bint stream_keep(Worker* w, Connection* c, const uint8_t* data, size_t n) noexcept nogil
cdef void stream_tunnel_data(Worker* w, Connection* c, bint is_end) noexcept nogil
cdef int stream_tunnel_begin(Worker* w, Connection* c, uint32_t early) noexcept nogil
cdef ssize_t stream_take(Worker* w, Connection* c, uint8_t* into, size_t most) noexcept nogil
cdef ssize_t stream_give(Worker* w, Connection* c, const uint8_t* data, uint32_t n) noexcept nogil
cdef void stream_shut(Worker* w, Connection* c) noexcept nogil
