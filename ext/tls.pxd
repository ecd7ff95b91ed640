# TLS of viewers' connections, server side, by OpenSSL: handshakes, records, tickets. Behind transport.pxd, whose words it
# keeps. No HTTP, no files, no policy: what a listener's handshakes go by is made by tls_context.pyx.
from libc.stdint cimport uint8_t

from ext.connection cimport Connection, Worker
from ext.sockets cimport msghdr
from ext.tls_types cimport TlsSettings

cdef bint tls_begin(Worker* w, Connection* c, TlsSettings* settings) noexcept nogil
cdef ssize_t tls_read(Worker* w, Connection* c, uint8_t* into, size_t most) noexcept nogil
cdef ssize_t tls_writev(Worker* w, Connection* c, const msghdr* message) noexcept nogil
cdef void tls_flush(Worker* w, Connection* c) noexcept nogil
cdef void tls_shut(Worker* w, Connection* c) noexcept nogil
cdef void tls_end(Worker* w, Connection* c, bint is_in_order) noexcept nogil
cdef void tls_worker_close(Worker* w) noexcept nogil
