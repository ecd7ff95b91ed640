# Writing behind send.pxd: what there is of a response leaves, and the connection waits for the rest.
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport INT64_MAX
from libc.stdio cimport snprintf
from libc.string cimport memset

from ext.atomics cimport *
from ext.body cimport body_at, body_passed, body_wait
from ext.connection cimport *
from ext.h2_answers cimport stream_pump
from ext.layout cimport *
from ext.multipart cimport Parts, part_text
from ext.store cimport OBJECT_FAILED, OBJECT_FILLING, Object
from ext.sockets cimport iovec, msghdr
from ext.stream_reader cimport reader_write
from ext.transport cimport transport_lost, transport_writev


cdef const char* CHUNK_END = b"\r\n"


cdef int wait_for_body(Worker* w, Connection* c) noexcept nogil:
    """Waits for more of the body. DONE: there is more already; CLOSED: there never will be."""
    cdef Object* object = c.object
    if load_u32(&object.flags) & OBJECT_FAILED:
        count(&w.counters[C_BROKEN_TRANSFERS], 1)
        connection_close(w, c, True)
        return CLOSED
    list_append(waiting_list(w, object), c)
    if body_wait(w.store, object, c.offset, w.index):
        list_remove(c)
        return DONE
    if load_i64_seq(&object.resume_at) != INT64_MAX:
        nudge(w, object)
    if not ask_slice(w, c):
        list_remove(c)
        count(&w.counters[C_BROKEN_TRANSFERS], 1)
        connection_close(w, c, True)
        return CLOSED
    c.is_blocked = 0
    return PENDING


cdef int next_part(Worker* w, Connection* c) noexcept nogil:
    """After a part: the text of the next one, and its place. DONE: there is none; PENDING: there is; CLOSED: no memory."""
    cdef Parts* parts = c.parts
    cdef uint8_t text[512]      # MAX_PART_TEXT
    cdef uint32_t n
    if parts == NULL or parts.begun > parts.n:
        return DONE
    n = part_text(parts, parts.begun, text)
    if not keep_output(w, c, text, n):
        count(&w.counters[C_CLOSED_MEMORY], 1)
        connection_close(w, c, True)
        return CLOSED
    # These bytes are of the body too, and the log's figure is the way from `log_first` to `offset`.
    count(&w.counters[C_BYTES_TO_VIEWERS], n)
    count(&origin_row(w, c.object.origin)[2], n)
    c.log_first -= n
    if parts.begun < parts.n:
        c.log_first += parts.ranges[parts.begun].first - c.offset
        c.offset = parts.ranges[parts.begun].first
        c.end = parts.ranges[parts.begun].last + 1
    parts.begun += 1
    return PENDING


cdef int pump(Worker* w, Connection* c) noexcept nogil:
    """Sends what there is. DONE: the response is out; PENDING: it waits for the socket, the body or its turn; CLOSED."""
    cdef iovec parts[16]
    cdef msghdr message
    cdef char text[32]
    cdef int n_parts, step
    cdef uint64_t n, head_bytes, body_bytes, tail, budget = share_of_pass(w)
    cdef bint ends_chunk
    cdef int64_t offset, end, total
    cdef uint8_t* data
    cdef ssize_t written
    if c.carrier != NULL:
        return stream_pump(w, c)
    if c.stream != NULL:
        return reader_write(w, c)
    if w.ready.n >= CROWD and c.offset < FIRST_SHARE_BYTES:
        budget = FIRST_SHARE_BYTES
    memset(&message, 0, sizeof(message))
    message.msg_iov = parts
    while True:
        n_parts = 0
        body_bytes = 0
        if c.object != NULL and not c.is_head:
            end = c.end
            total = load_i64_seq(&c.object.total_length)
            if total >= 0 and end > total:
                end = total
            if c.is_chunked and c.chunk_left == 0 and c.chunk_phase < 2 and c.out_length == c.out_offset:
                data = body_at(w.store, c.object, c.offset, &n) if c.offset < end else NULL
                if data != NULL:
                    if n > <uint64_t>w.store.slice_bytes:
                        n = w.store.slice_bytes
                    c.chunk_left = n
                    step = snprintf(text, sizeof(text), "%s%llx\r\n", b"\r\n" if c.chunk_phase else b"", <unsigned long long>n)
                    c.chunk_phase = 1
                    if not keep_output(w, c, <uint8_t*>text, step):
                        count(&w.counters[C_CLOSED_MEMORY], 1)
                        connection_close(w, c, True)
                        return CLOSED
                elif c.offset == end and total >= 0:
                    step = snprintf(text, sizeof(text), "%s0\r\n\r\n", b"\r\n" if c.chunk_phase else b"")
                    c.chunk_phase = 2
                    if not keep_output(w, c, <uint8_t*>text, step):
                        count(&w.counters[C_CLOSED_MEMORY], 1)
                        connection_close(w, c, True)
                        return CLOSED
            if c.is_chunked and end > c.offset + <int64_t>c.chunk_left:
                end = c.offset + <int64_t>c.chunk_left
        else:
            end = c.offset
        head_bytes = c.out_length - c.out_offset
        if head_bytes:
            parts[0].iov_base = c.out + c.out_offset
            parts[0].iov_len = head_bytes
            n_parts = 1
        offset = c.offset
        while n_parts < 16 and offset < end and body_bytes < budget:
            data = body_at(w.store, c.object, offset, &n)
            if data == NULL:
                break
            if <int64_t>n > end - offset:
                n = <uint64_t>(end - offset)
            if n > budget - body_bytes:
                n = budget - body_bytes
            parts[n_parts].iov_base = data
            parts[n_parts].iov_len = n
            n_parts += 1
            offset += <int64_t>n
            body_bytes += n
        # A chunk's own end goes with it: an event that waited for the next one to be whole would come one too late.
        ends_chunk = body_bytes and c.is_chunked and body_bytes == c.chunk_left and n_parts < 16
        if ends_chunk:
            parts[n_parts].iov_base = <void*>CHUNK_END
            parts[n_parts].iov_len = 2
            n_parts += 1
        if n_parts == 0:
            if c.object == NULL or c.is_head or (c.is_chunked and c.chunk_phase == 2):
                return DONE
            if not c.is_chunked and load_i64_seq(&c.object.total_length) >= 0 and c.offset >= end:
                step = next_part(w, c)
                if step == PENDING:
                    continue
                return step
            step = wait_for_body(w, c)
            if step == DONE:
                continue
            return step
        message.msg_iovlen = n_parts
        written = transport_writev(w, c, &message)
        if written < 0:
            if errno == EINTR:
                continue
            if errno == EAGAIN:
                c.is_blocked = 1
                return PENDING
            transport_lost(w, c)
            return CLOSED
        n = <uint64_t>written
        c.window_bytes += n
        if n < head_bytes:
            c.out_offset += <uint32_t>n
            c.is_blocked = 1
            return PENDING
        c.out_offset = 0
        c.out_length = 0
        n -= head_bytes
        tail = n - body_bytes if n > body_bytes else 0
        n -= tail
        c.offset += <int64_t>n
        if c.is_chunked:
            c.chunk_left -= n
        if ends_chunk and n == body_bytes:
            c.chunk_phase = 0
            if tail < 2 and not keep_output(w, c, <const uint8_t*>CHUNK_END + tail, <uint32_t>(2 - tail)):
                count(&w.counters[C_CLOSED_MEMORY], 1)
                connection_close(w, c, True)
                return CLOSED
        note_sent(w, c, n)
        if n < body_bytes or (ends_chunk and tail < 2):
            c.is_blocked = 1
            return PENDING
        if n >= budget:
            list_append(&w.ready, c)        # the others first
            return PENDING
        budget -= n


cdef void note_sent(Worker* w, Connection* c, uint64_t n) noexcept nogil:
    """`n` bytes of the body, up to c.offset, are on their way."""
    w.pass_bytes += n
    count(&w.counters[C_BYTES_TO_VIEWERS], n)
    if c.stream != NULL:
        count(&origin_row(w, c.log_origin)[2], n)
    if c.object == NULL:
        return
    count(&origin_row(w, c.object.origin)[2], n)
    if body_passed(w.store, c.object, c.offset - <int64_t>n, c.offset):
        nudge(w, c.object)
    if load_u32(&c.object.flags) & OBJECT_FILLING:
        note_progress(w, c)


cdef void note_progress(Worker* w, Connection* c) noexcept nogil:
    """Tells the fill how far its readers are, and that it may go on."""
    if c.offset > load_i64_relaxed(&c.object.want):
        store_i64_relaxed(&c.object.want, c.offset)
    if c.offset >= load_i64_relaxed(&c.object.resume_at):
        nudge(w, c.object)
