# A viewer who reads a stream: his answer's head, his cursor, and what happens when he is slower than the stream. The ring
# is stream.pyx's; writing to sockets is transport.pxd's and, over HTTP/2, nghttp2's.
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from ext.connection cimport Connection, Worker
from ext.http_head cimport RequestHead
from ext.stream cimport Stream

cdef enum:                      # Connection.reading
    READING_ENTRY = 0           # has no place yet, or lost it: begins at the newest random access point
    READING_ON = 1
    READING_LAST = 2            # what is begun of a packet is sent, then it ends

cdef void reader_join(Connection* c, Stream* stream) noexcept nogil         # takes over one reference
cdef void reader_leave(Connection* c) noexcept nogil
# Answers a GET by the stream that the connection has joined; a HEAD, which has joined none, by the same head.
cdef int reader_begin(Worker* w, Connection* c, const uint8_t* data, uint32_t n, const RequestHead* head) noexcept nogil
cdef int reader_write(Worker* w, Connection* c) noexcept nogil              # as pump
cdef int reader_place(Worker* w, Connection* c) noexcept nogil
cdef const uint8_t* reader_frame(Worker* w, Connection* c, size_t length, uint64_t* n, int* step) noexcept nogil
cdef void reader_end(Worker* w, Connection* c) noexcept nogil
cdef void readers_wake(Worker* w) noexcept nogil
cdef bint reader_is_silent(Worker* w, Connection* c) noexcept nogil
