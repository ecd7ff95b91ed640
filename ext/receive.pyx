# Bodies of requests behind receive.pxd. Reads from the socket only what the upload has room for, so that a slow origin
# holds the viewer back by TCP. Answers nothing: the caller does.
from libc.errno cimport EAGAIN, EINTR, errno
from libc.string cimport memmove, memset

from ext.atomics cimport *
from ext.chunked cimport CHUNKED_BAD, CHUNKED_DATA, CHUNKED_END, chunked_read
from ext.connection cimport READ_BYTES, STATE_WAIT, charge, keep_input, set_deadline
from ext.exchange cimport MESSAGE_ROOM, Message, mailbox_post, ring_is_half_full, ring_push_body
from ext.layout cimport *
from ext.transport cimport transport_read
from ext.upload cimport (
    UPLOAD_ABORTED,
    UPLOAD_WHOLE,
    upload_end,
    upload_filled,
    upload_new,
    upload_put,
    upload_release,
    upload_room,
    upload_size,
    upload_waits,
)

cdef enum:
    READS_PER_TURN = 16         # of one body, before the others


cdef void upload_tell(Worker* w, Upload* u) noexcept nogil:
    """Says that there is more of a body, or its end: once until the control plane has looked."""
    if exchange_u32(&u.is_told, 1):
        return
    add_u64(&u.refs, 1)
    if not ring_is_half_full(&w.ring) and ring_push_body(&w.ring, u):
        w.must_ring = 1
    else:                       # the control plane also looks at its uploads by a timer
        exchange_u32(&u.is_told, 0)
        upload_release(u)


cdef void upload_leave(Worker* w, Connection* c) noexcept nogil:
    """The rest of the body will never come from this connection."""
    cdef Upload* u = c.upload
    c.upload = NULL
    u.connection = NULL
    or_u32(&u.flags, UPLOAD_ABORTED)
    upload_tell(w, u)
    upload_release(u)


cdef int take_chunked(Worker* w, Upload* u, const uint8_t** at, const uint8_t* end) noexcept nogil:
    """Decodes into the upload, which has room for as many bytes as there are. RECEIVE_MORE, RECEIVE_WHOLE, -400, -413."""
    cdef const uint8_t* data
    cdef uint64_t n
    cdef int what
    while True:
        what = chunked_read(&u.decoder, at, end, &data, &n)
        if what == CHUNKED_BAD:
            return -400
        if what == CHUNKED_DATA:
            if n > u.limit - u.n_received:
                return -413
            u.n_received += n
            if not load_u32(&u.is_dropped):
                upload_put(u, data, n)
            continue
        return RECEIVE_WHOLE if what == CHUNKED_END else RECEIVE_MORE


cdef Upload* begin_body(Worker* w, Connection* c, uint8_t* data, uint32_t* n, const RequestHead* head, uint64_t limit, int* refused) noexcept nogil:
    """An upload with what of the body came with the head: `n` bytes from `data` on, of which the head and what comes
    after the body are left. Whole already: `flags` say so. NULL: `refused` is the status, 0 without memory."""
    cdef Upload* u
    cdef const uint8_t* at = data + head.length
    cdef const uint8_t* end = data + n[0]
    cdef uint64_t k
    cdef int what = RECEIVE_MORE
    refused[0] = 0
    if head.content_length >= 0 and <uint64_t>head.content_length > limit:
        refused[0] = 413
        return NULL
    if not charge(w, upload_size(head.content_length)):
        return NULL
    u = upload_new(&w.store.outside, w.index, head.content_length, limit)
    if u == NULL:
        add_u64_relaxed(&w.store.outside, -upload_size(head.content_length))
        return NULL
    if head.chunked and c.carrier == NULL:
        what = take_chunked(w, u, &at, end)
        if what < 0:
            refused[0] = -what
            upload_release(u)
            return NULL
    else:
        # A stream's body comes unpacked, and as long as it says, if it says so.
        k = <uint64_t>(end - at)
        if u.left >= 0 and k > <uint64_t>u.left:
            k = <uint64_t>u.left
        if k > limit:
            refused[0] = 413
            upload_release(u)
            return NULL
        upload_put(u, at, k)
        if u.left >= 0:
            u.left -= <int64_t>k
        u.n_received = k
        at += k
        if u.left == 0 or c.has_whole_request:
            what = RECEIVE_WHOLE
    count(&w.counters[C_BYTES_FROM_VIEWERS], u.n_received)
    memmove(data + head.length, at, end - at)
    n[0] = head.length + <uint32_t>(end - at)
    if what == RECEIVE_WHOLE:
        u.flags = UPLOAD_WHOLE
    else:
        u.connection = c
    return u


cdef int take_data(Worker* w, Connection* c, const uint8_t* data, uint64_t n) noexcept nogil:
    """What came of a stream's body; its window is no wider than the upload's room. RECEIVE_MORE, or -413."""
    cdef Upload* u = c.upload
    if n > u.limit - u.n_received:
        return -413
    count(&w.counters[C_BYTES_FROM_VIEWERS], n)
    if not load_u32(&u.is_dropped):
        upload_put(u, data, n)
    u.n_received += n
    if u.left >= 0:
        u.left -= <int64_t>n
    upload_tell(w, u)
    if c.state == STATE_WAIT:
        set_deadline(w, c, w.now_ns + w.tables.limits.body_timeout_ns)
    return RECEIVE_MORE


cdef void end_body(Worker* w, Connection* c) noexcept nogil:
    """Every byte has come."""
    cdef Upload* u = c.upload
    c.upload = NULL
    u.connection = NULL
    or_u32(&u.flags, UPLOAD_WHOLE)
    upload_tell(w, u)
    upload_release(u)
    c.is_readable = 1           # the next request may be there: its edge may have come with the body's


cdef bint keep_following(Worker* w, Connection* c, const uint8_t* data, uint32_t n) noexcept nogil:
    """What came after the body, kept behind the head."""
    memmove(w.input + READ_BYTES, data, n)
    cdef uint32_t before = c.buffer_length
    memmove(w.input + READ_BYTES - before, c.buffer, before)
    return keep_input(w, c, w.input + READ_BYTES - before, before + n)


cdef int receive_body(Worker* w, Connection* c) noexcept nogil:
    """Reads while there is room, bytes, and it is this one's turn."""
    cdef Upload* u = c.upload
    cdef uint64_t room, most, before = u.n_received
    cdef uint8_t* into
    cdef const uint8_t* at
    cdef ssize_t n
    cdef int result = RECEIVE_MORE
    cdef int turns = 0
    cdef Message message
    while True:
        room = READ_BYTES if load_u32(&u.is_dropped) else upload_room(u)
        if room == 0:
            if upload_waits(u):
                c.is_readable = 1
                break
            continue
        if turns == READS_PER_TURN:
            memset(&message, 0, sizeof(Message))
            message.kind = MESSAGE_ROOM
            message.upload = u
            add_u64(&u.refs, 1)
            if mailbox_post(&w.mailbox, &message):
                break
            upload_release(u)
        turns += 1
        into = w.input
        most = room if room < READ_BYTES else READ_BYTES
        if u.left >= 0:
            if not load_u32(&u.is_dropped):
                into = upload_end(u, &most)
            if most > <uint64_t>u.left:
                most = <uint64_t>u.left
        n = transport_read(w, c, into, most)
        if n < 0:
            if errno == EINTR:
                continue
            if errno != EAGAIN:
                result = RECEIVE_ENDED
            c.is_readable = 0
            break
        if n == 0:
            result = RECEIVE_ENDED
            break
        if u.left >= 0:
            u.left -= n
            u.n_received += <uint64_t>n
            if into != w.input:
                upload_filled(u, <uint64_t>n)
            if u.left == 0:
                result = RECEIVE_WHOLE
                break
            continue
        at = w.input
        result = take_chunked(w, u, &at, w.input + n)
        if result != RECEIVE_MORE:
            n -= at - w.input
            if result == RECEIVE_WHOLE and n and not keep_following(w, c, at, <uint32_t>n):
                result = RECEIVE_ENDED
            break
    if u.n_received != before:
        count(&w.counters[C_BYTES_FROM_VIEWERS], u.n_received - before)
        upload_tell(w, u)
    if c.state == STATE_WAIT and result == RECEIVE_MORE:
        set_deadline(w, c, w.now_ns + w.tables.limits.body_timeout_ns)
    if result == RECEIVE_WHOLE:
        end_body(w, c)
    return result


cdef bint stays_behind(Worker* w, Connection* c) noexcept nogil:
    """The answer is out before the body is: reads what is there of it. False: it is whole now. True: the rest isn't
    waited for, and the connection can't be used again (RFC 9112 section 9.3)."""
    store_u32_seq(&c.upload.is_dropped, 1)
    if receive_body(w, c) == RECEIVE_WHOLE:
        return False
    count(&w.counters[C_UPLOADS_CUT], 1)
    upload_leave(w, c)
    return True
