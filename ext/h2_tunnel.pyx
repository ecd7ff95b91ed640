# Tunnels over streams, behind h2_tunnel.pxd. What the viewer sends waits in the stream's input, bounded by its window,
# which opens as the origin's socket takes it; what is for the viewer in its output, at most one read's worth.
from libc.errno cimport EAGAIN, ENOMEM
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memmove

from ext.connection cimport *
from ext.h2 cimport engine_of, schedule, session_of
from ext.h2_answers cimport stream_pump, submit
from ext.h2_head cimport MAX_RESPONSE_FIELDS, response_fields
from ext.nghttp2 cimport nghttp2_nv, nghttp2_session_consume_stream
from ext.tunnel cimport Way
from ext.sockets cimport acc_set_errno


cdef bint stream_keep(Worker* w, Connection* c, const uint8_t* data, size_t n) noexcept nogil:
    """Puts bytes behind those of the stream's input. The stream's window bounds them. False: no memory."""
    cdef uint32_t capacity
    cdef uint8_t* buffer
    if c.state == STATE_TUNNEL and c.head_length:       # taken already
        c.buffer_length -= c.head_length
        memmove(c.buffer, c.buffer + c.head_length, c.buffer_length)
        c.head_length = 0
    if n > c.buffer_capacity - c.buffer_length:
        capacity = 2 * (c.buffer_length + <uint32_t>n)
        if not charge(w, capacity):
            return False
        buffer = <uint8_t*>malloc(capacity)
        if buffer == NULL:
            discharge(w, capacity)
            return False
        if c.buffer != NULL:
            memcpy(buffer, c.buffer, c.buffer_length)
            discharge(w, c.buffer_capacity)
            free(c.buffer)
        c.buffer = buffer
        c.buffer_capacity = capacity
    memcpy(c.buffer + c.buffer_length, data, n)
    c.buffer_length += <uint32_t>n
    return True


cdef void stream_tunnel_data(Worker* w, Connection* c, bint is_end) noexcept nogil:
    """There is something to take, or the end."""
    c.tunnel.to_origin.is_readable = 1
    if is_end:
        c.tunnel.to_origin.may_end = 1
    if c.list == NULL:
        list_append(&w.ready, c)


cdef int stream_tunnel_begin(Worker* w, Connection* c, uint32_t early) noexcept nogil:
    """The origin's 101 becomes a 200 (RFC 8441 section 5); `early` bytes have been taken with the request."""
    cdef nghttp2_nv fields[MAX_RESPONSE_FIELDS]
    cdef Way* way = &c.tunnel.to_viewer
    cdef uint32_t n_fields, n_names = 0, head = 4
    while head < way.length and not (way.pending[head - 4] == 13 and way.pending[head - 2] == 13 and way.pending[head - 1] == 10):
        head += 1
    n_fields = response_fields(way.pending, head, True, fields, 0, engine_of(w).names, &n_names)
    fields[0].value = <uint8_t*>b"200"
    way.offset = head
    if early:
        nghttp2_session_consume_stream(session_of(c.carrier).engine, c.stream_id, early)
    c.tunnel.to_origin.is_readable = c.has_whole_request
    c.tunnel.to_origin.may_end = c.has_whole_request
    return submit(w, c, fields, n_fields, True)


cdef ssize_t stream_take(Worker* w, Connection* c, uint8_t* into, size_t most) noexcept nogil:
    cdef size_t n = c.buffer_length - c.head_length
    if n == 0:
        if c.has_whole_request:
            return 0
        acc_set_errno(EAGAIN)
        return -1
    if n > most:
        n = most
    memcpy(into, c.buffer + c.head_length, n)
    c.head_length += <uint32_t>n
    if c.head_length == c.buffer_length:
        release_input(w, c)
        c.head_length = 0
    nghttp2_session_consume_stream(session_of(c.carrier).engine, c.stream_id, n)
    schedule(w, c.carrier)
    return <ssize_t>n


cdef ssize_t stream_give(Worker* w, Connection* c, const uint8_t* data, uint32_t n) noexcept nogil:
    if c.out_length > c.out_offset:
        acc_set_errno(EAGAIN)   # read_body comes back when it is gone
        return -1
    if not keep_output(w, c, data, n):
        acc_set_errno(ENOMEM)
        return -1
    stream_pump(w, c)
    return n


cdef void stream_shut(Worker* w, Connection* c) noexcept nogil:
    """Nothing more comes for the viewer: END_STREAM, behind what waits."""
    if not c.is_shut:
        c.is_shut = 1
        stream_pump(w, c)
