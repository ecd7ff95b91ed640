# The reading behind stream_reader.pxd. A cursor stands between two transport packets always: of one that a socket took
# a part of, the rest is copied to the connection, so that the window may go on over it.
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport INT64_MAX, int64_t
from libc.stdio cimport snprintf
from libc.string cimport memset

from ext.access cimport access_begin
from ext.atomics cimport *
from ext.connection cimport *
from ext.exchange cimport mailbox_hear
from ext.h2_answers cimport stream_answer, stream_short
from ext.layout cimport *
from ext.relay_wire cimport TS_BYTES
from ext.request cimport zone_of
from ext.respond cimport AS_PASSED, refresh_date, send_short
from ext.send cimport note_sent
from ext.sockets cimport iovec, msghdr
from ext.stream cimport *
from ext.tls cimport tls_flush
from ext.transport cimport transport_lost, transport_writev


cdef void reader_join(Connection* c, Stream* s) noexcept nogil:
    add_u32(&s.readers, 1)
    c.stream = s
    c.reading = READING_ENTRY


cdef void reader_leave(Connection* c) noexcept nogil:
    cdef Stream* s = c.stream
    c.stream = NULL
    add_u32(&s.readers, <uint32_t>-1)
    add_u64(&s.refs, <uint64_t>-1)


cdef int reader_begin(Worker* w, Connection* c, const uint8_t* data, uint32_t n, const RequestHead* head) noexcept nogil:
    cdef char text[1024]
    cdef iovec part
    cdef int used
    cdef Stream* s = c.stream
    count(&w.counters[C_REQUESTS], 1)
    count(&w.counters[C_PASSED], 1)
    count(&origin_row(w, c.log_origin)[0], 1)
    if s != NULL and c.carrier == NULL:
        c.close_after = 1       # the body ends with the connection: every player takes that, also of HTTP/1.0
    access_begin(w, c, 200, AS_PASSED, 0)
    c.log_first = 0
    c.offset = 0
    c.end = INT64_MAX
    c.is_chunked = 0
    refresh_date(w)
    used = snprintf(
        text, sizeof(text),
        "HTTP/1.1 200 OK\r\nDate: %s\r\nContent-Type: video/mp2t\r\nCache-Control: no-store\r\nAccept-Ranges: none\r\n"
        "Access-Control-Allow-Origin: *\r\nCache-Status: %.*s; fwd=bypass\r\n%s\r\n", w.date, <int>w.tables.site_length,
        <char*>w.tables.strings + w.tables.site,
        b"Connection: close\r\n" if c.carrier == NULL and c.close_after else b"")
    if s == NULL:
        return send_short(w, c, <const uint8_t*>text, <uint32_t>used)
    count(&w.counters[C_RELAY_READERS], 1)
    if c.carrier != NULL:
        part.iov_base = text
        part.iov_len = used
        return stream_answer(w, c, data, n, head.length, NULL, &part, 1, 0, INT64_MAX)
    c.head_length = head.length
    if not keep_input(w, c, data, n) or not keep_output(w, c, <const uint8_t*>text, <uint32_t>used):     # for the log
        count(&w.counters[C_CLOSED_MEMORY], 1)
        connection_close(w, c, True)
        return CLOSED
    return reader_write(w, c)


cdef int reader_place(Worker* w, Connection* c) noexcept nogil:
    """Looks whether the window has passed the cursor, and finds a place for who has none. CLOSED: no memory."""
    cdef Stream* s = c.stream
    cdef int64_t position
    cdef const uint8_t* tables
    cdef uint32_t n_tables
    if c.reading == READING_ON and stream_has_passed(s, c.offset):
        c.reading = READING_ENTRY
        add_u64_relaxed(&s.n_skips, 1)
        count(&w.counters[C_RELAY_SKIPS], 1)
    if c.reading != READING_ENTRY or not stream_enter(s, &position, &tables, &n_tables):
        return PENDING
    if n_tables and not keep_output(w, c, tables, n_tables):
        count(&w.counters[C_CLOSED_MEMORY], 1)
        connection_close(w, c, True)
        return CLOSED
    note_sent(w, c, n_tables)
    add_u64_relaxed(&s.n_bytes, n_tables)
    # The log's figure is the way from `log_first` to `offset`.
    c.log_first += position - c.offset - <int64_t>n_tables
    c.offset = position
    c.reading = READING_ON
    return PENDING


cdef int wait(Worker* w, Connection* c, int64_t seen) noexcept nogil:
    """PENDING: it will be woken; DONE: there is more already, or the stream has ended."""
    list_append(&w.stream_waiting[c.stream.index % BELL_BITS], c)
    if stream_wait(c.stream, seen, w.index):
        list_remove(c)
        return DONE
    c.is_blocked = 0
    return PENDING


cdef bint keep_torn(Worker* w, Connection* c, const uint8_t* data, uint64_t n) noexcept nogil:
    """After `n` bytes at the cursor have left: keeps the rest of a packet that was cut. False: no memory, and closed."""
    cdef uint32_t rest = <uint32_t>(TS_BYTES - n % TS_BYTES) if n % TS_BYTES else 0
    c.offset += <int64_t>(n + rest)
    note_sent(w, c, n + rest)
    add_u64_relaxed(&c.stream.n_bytes, n + rest)
    if rest and not keep_output(w, c, data + n, rest):
        count(&w.counters[C_CLOSED_MEMORY], 1)
        connection_close(w, c, True)
        return False
    return True


cdef int reader_write(Worker* w, Connection* c) noexcept nogil:
    cdef Stream* s = c.stream
    cdef iovec parts[2]
    cdef msghdr message
    cdef uint64_t n, head_bytes, left, budget = share_of_pass(w)
    cdef int64_t seen
    cdef const uint8_t* data
    cdef ssize_t written
    cdef bint is_full
    memset(&message, 0, sizeof(message))
    message.msg_iov = parts
    while True:
        seen = load_i64_seq(&s.published)
        if c.reading != READING_LAST and reader_place(w, c) == CLOSED:
            return CLOSED
        n = 0
        data = NULL
        if c.reading == READING_ON:
            data = stream_at(s, c.offset, &n)
            if n > budget:
                n = budget - budget % TS_BYTES
        message.msg_iovlen = 0
        head_bytes = c.out_length - c.out_offset
        if head_bytes:
            parts[0].iov_base = c.out + c.out_offset
            parts[0].iov_len = head_bytes
            message.msg_iovlen = 1
        if n:
            parts[message.msg_iovlen].iov_base = <void*>data
            parts[message.msg_iovlen].iov_len = n
            message.msg_iovlen += 1
        if message.msg_iovlen == 0:
            if c.reading == READING_LAST or (load_u32_seq(&s.is_closed) and seen == load_i64_seq(&s.published)):
                if c.tls != NULL:
                    tls_flush(w, c)
                    if c.tls.pending != NULL:   # what is encrypted already goes before the end
                        c.is_blocked = 1
                        return PENDING
                return DONE
            if wait(w, c, seen) == PENDING:
                return PENDING
            continue
        written = transport_writev(w, c, &message)
        is_full = False
        if c.tls != NULL and c.tls.owed:
            # Encrypted already: it will leave whatever becomes of the window, so it counts as sent.
            written = (written if written > 0 else 0) + c.tls.owed
            c.tls.owed = 0
            is_full = True
        if written < 0:
            if errno == EINTR:
                continue
            if errno == EAGAIN:
                c.is_blocked = 1
                return PENDING
            transport_lost(w, c)
            return CLOSED
        left = <uint64_t>written
        c.window_bytes += left
        if left < head_bytes:
            c.out_offset += <uint32_t>left
            c.is_blocked = 1
            return PENDING
        left -= head_bytes
        if head_bytes:
            release_output(w, c)
        if left and not keep_torn(w, c, data, left):
            return CLOSED
        if is_full or left < n:
            c.is_blocked = 1
            return PENDING
        if left + TS_BYTES > budget:
            list_append(&w.ready, c)        # the others first
            return PENDING
        budget -= left


cdef const uint8_t* reader_frame(Worker* w, Connection* c, size_t length, uint64_t* n, int* step) noexcept nogil:
    """For a DATA frame of at most `length` bytes, when nothing of the connection's own waits: whole packets at the
    cursor, or NULL, and `step` says why: DONE, the stream has ended; PENDING, it waits; CLOSED; and -1, look again."""
    cdef Stream* s = c.stream
    cdef int64_t seen = load_i64_seq(&s.published)
    cdef const uint8_t* data = NULL
    n[0] = 0
    step[0] = -1
    if c.reading != READING_LAST and reader_place(w, c) == CLOSED:
        step[0] = CLOSED
        return NULL
    if c.out_length > c.out_offset:
        return NULL
    if c.reading == READING_ON:
        data = stream_at(s, c.offset, n)
    if data == NULL:
        if c.reading == READING_LAST or (load_u32_seq(&s.is_closed) and seen == load_i64_seq(&s.published)):
            step[0] = DONE
        else:
            if c.list != NULL:
                list_remove(c)
            step[0] = PENDING if wait(w, c, seen) == PENDING else -1
        return NULL
    if length < TS_BYTES:       # a small window: the packet waits as a copy
        if not keep_output(w, c, data, TS_BYTES):
            count(&w.counters[C_CLOSED_MEMORY], 1)
            connection_close(w, c, True)
            step[0] = CLOSED
            return NULL
        keep_torn(w, c, data, TS_BYTES)
        return NULL
    if n[0] > length:
        n[0] = length - length % TS_BYTES
    add_u64_relaxed(&s.n_bytes, n[0])
    return data


cdef void reader_end(Worker* w, Connection* c) noexcept nogil:
    """It gets no more than what it has the beginning of."""
    c.reading = READING_LAST
    c.close_after = 1
    if c.state == STATE_SEND and not c.is_blocked and c.list != &w.ready:
        list_remove(c)
        list_append(&w.ready, c)


cdef bint may_read_on(Worker* w, Connection* c) noexcept nogil:
    """Whether the policy that is in force now still lets this viewer have it."""
    cdef uint64_t mask
    if c.zone_generation == w.tables.generation:
        return True
    c.zone = zone_of(w.tables, c.address)
    c.zone_generation = w.tables.generation
    if c.log_origin >= w.tables.n_origins or not w.tables.origins[c.log_origin].is_relay or c.listener >= w.tables.n_listeners:
        return False
    mask = w.tables.origins[c.log_origin].zone_mask
    if mask and (c.zone < 0 or not (mask >> c.zone) & 1):
        return False
    mask = w.tables.listeners[c.listener].zone_mask
    return mask == 0 or (c.zone >= 0 and (mask >> c.zone) & 1)


cdef void readers_wake(Worker* w) noexcept nogil:
    """Some streams have more: who waits for them writes on."""
    cdef uint64_t bits = mailbox_hear(&w.mailbox)
    cdef uint32_t bit
    cdef Connection* c
    cdef Connection* following
    for bit in range(BELL_BITS):
        if not bits >> bit & 1:
            continue
        c = <Connection*>w.stream_waiting[bit].first
        while c != NULL:
            following = c.next
            list_remove(c)
            list_append(&w.ready, c)
            if not may_read_on(w, c):
                reader_end(w, c)
            c.window_bytes = 0      # until now there was nothing that the viewer could have read
            set_deadline(w, c, w.now_ns + w.tables.limits.send_window_ns)
            c = following


cdef bint reader_is_silent(Worker* w, Connection* c) noexcept nogil:
    return c.list != NULL and w.now_ns - load_i64_relaxed(&c.stream.published_ns) > c.stream.silence_ns
