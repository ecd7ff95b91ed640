# Answers over HTTP/2, behind h2_answers.pxd: heads become fields, bodies DATA frames, by nghttp2's callbacks for what goes
# out. What is answered isn't decided here.
#
# A body isn't copied on its way: nghttp2 says how much may go, `send_data` puts the frame's head and a pointer into the
# body next to each other, and one write takes many frames (h2.pyx).
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy

from ext.access cimport access_end, access_refused
from ext.atomics cimport *
from ext.body cimport body_at
from ext.connection cimport *
from ext.h2 cimport MAX_IOVECS, SMALL_BYTES, Engine, Session, engine_of, schedule, session_of
from ext.h2_head cimport MAX_RESPONSE_FIELDS, response_fields
from ext.h2_requests cimport earn, spend_reset
from ext.layout cimport *
from ext.nghttp2 cimport *
from ext.receive cimport upload_leave
from ext.stream_reader cimport reader_frame
from ext.send cimport next_part, note_sent, wait_for_body

cdef enum:
    RECORD_PAYLOAD = 16375      # of a DATA frame that fills a TLS record (RFC 8446 section 5.1) with its head
    FRAME_ROOM = 64             # of Engine.small that is left free for frames' heads


# --- answers ----------------------------------------------------------------------------------------------------------

cdef ssize_t read_body(nghttp2_session* engine, int32_t stream_id, uint8_t* out, size_t length, uint32_t* flags,
                       nghttp2_data_source* source, void* user) noexcept nogil:
    """How much of an answer's body may go now, in this frame."""
    cdef Session* s = <Session*>user
    cdef Worker* w = s.worker
    cdef Connection* c = <Connection*>nghttp2_session_get_stream_user_data(engine, stream_id)
    cdef int64_t end, total
    cdef uint64_t n
    cdef int step
    cdef const uint8_t* data
    if c == NULL:
        return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE
    if length > RECORD_PAYLOAD and s.carrier.tls != NULL:
        length = RECORD_PAYLOAD
    while True:
        n = c.out_length - c.out_offset
        if n:                   # our own words: short answers, and what stands between parts
            if n > length:
                n = length
            memcpy(out, c.out + c.out_offset, n)
            c.out_offset += <uint32_t>n
            if c.out_offset == c.out_length:
                c.out_offset = 0
                c.out_length = 0
                if c.state == STATE_TUNNEL:
                    if c.is_shut:
                        flags[0] |= NGHTTP2_DATA_FLAG_EOF
                    elif c.list == NULL:
                        list_append(&w.ready, c)        # there is room for more
                elif c.object == NULL and c.stream == NULL:
                    flags[0] |= NGHTTP2_DATA_FLAG_EOF
            return <ssize_t>n
        if c.state == STATE_TUNNEL and not c.is_shut:
            return NGHTTP2_ERR_DEFERRED
        if c.stream != NULL:
            data = reader_frame(w, c, length, &n, &step)
            if data != NULL:
                break
            if step == PENDING:
                return NGHTTP2_ERR_DEFERRED
            if step == CLOSED:
                return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE
            if step == DONE:
                flags[0] |= NGHTTP2_DATA_FLAG_EOF
                return 0
            continue
        if c.object == NULL:
            flags[0] |= NGHTTP2_DATA_FLAG_EOF
            return 0
        end = c.end
        total = load_i64_seq(&c.object.total_length)
        if total >= 0 and end > total:
            end = total
        if total >= 0 and c.offset >= end:
            step = next_part(w, c)
            if step == PENDING:
                continue
            if step == CLOSED:
                return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE
            flags[0] |= NGHTTP2_DATA_FLAG_EOF
            return 0
        data = body_at(w.store, c.object, c.offset, &n)
        if data != NULL:
            break
        if c.list != NULL:
            list_remove(c)
        step = wait_for_body(w, c)
        if step == PENDING:
            return NGHTTP2_ERR_DEFERRED
        if step == CLOSED:
            return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE
    if c.stream == NULL and <int64_t>n > end - c.offset:
        n = <uint64_t>(end - c.offset)
    if n > length:
        n = length
    if c.stream == NULL and total >= 0 and c.offset + <int64_t>n == end and c.parts == NULL:
        flags[0] |= NGHTTP2_DATA_FLAG_EOF
    flags[0] |= NGHTTP2_DATA_FLAG_NO_COPY
    engine_of(w).data = data
    return <ssize_t>n


cdef void put_small(Engine* g, const uint8_t* data, size_t n) noexcept nogil:
    cdef iovec* last = &g.parts[g.n_parts - 1] if g.n_parts else NULL
    cdef uint8_t* at = g.small + g.n_small
    memcpy(at, data, n)
    g.n_small += <uint32_t>n
    g.n_bytes += n
    if last != NULL and <uint8_t*>last.iov_base + last.iov_len == at:
        last.iov_len += n
        return
    g.parts[g.n_parts].iov_base = at
    g.parts[g.n_parts].iov_len = n
    g.n_parts += 1


cdef ssize_t on_send(nghttp2_session* engine, const uint8_t* data, size_t n, int flags, void* user) noexcept nogil:
    cdef Session* s = <Session*>user
    cdef Engine* g = engine_of(s.worker)
    if n > SMALL_BYTES - FRAME_ROOM - g.n_small or g.n_parts >= MAX_IOVECS - 2:
        return NGHTTP2_ERR_WOULDBLOCK
    put_small(g, data, n)
    return <ssize_t>n


cdef int send_data(nghttp2_session* engine, nghttp2_frame* frame, const uint8_t* head, size_t n, nghttp2_data_source* source, void* user) noexcept nogil:
    """A DATA frame: its head is copied, its body pointed at. There is always room for one more."""
    cdef Session* s = <Session*>user
    cdef Worker* w = s.worker
    cdef Engine* g = engine_of(w)
    cdef Connection* c = <Connection*>nghttp2_session_get_stream_user_data(engine, frame.hd.stream_id)
    if c == NULL:
        return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE
    put_small(g, head, 9)
    if c.object != NULL and (g.n_held == 0 or g.held[g.n_held - 1] != c.object):
        # nghttp2 closes the stream of a last frame before anything is written. If its object was purged meanwhile, the
        # reference of the stream is all that keeps the body that the write still points into.
        add_u64(&c.object.refs, 1)
        g.held[g.n_held] = c.object
        g.n_held += 1
    g.parts[g.n_parts].iov_base = <void*>g.data
    g.parts[g.n_parts].iov_len = n
    g.n_parts += 1
    g.n_bytes += n
    c.offset += <int64_t>n
    c.window_bytes += n
    earn(s)
    note_sent(w, c, n)
    if g.n_bytes >= s.carrier.window_capacity or g.n_parts >= MAX_IOVECS - 4 or g.n_small >= SMALL_BYTES - 2 * FRAME_ROOM:
        return NGHTTP2_ERR_PAUSE
    return 0


cdef void answered(Session* s, Connection* c) noexcept nogil:
    """Our END_STREAM is on its way."""
    cdef Worker* w = s.worker
    c.is_answered = 1
    access_end(w, c, False)
    if c.has_whole_request:
        return
    if c.upload != NULL:
        store_u32_seq(&c.upload.is_dropped, 1)
        count(&w.counters[C_UPLOADS_CUT], 1)
        upload_leave(w, c)
    nghttp2_submit_rst_stream(s.engine, NGHTTP2_FLAG_NONE, c.stream_id, NGHTTP2_NO_ERROR)   # RFC 9113 section 8.1


cdef int on_frame_send(nghttp2_session* engine, const nghttp2_frame* frame, void* user) noexcept nogil:
    cdef Session* s = <Session*>user
    cdef Connection* c
    if (frame.hd.type == NGHTTP2_DATA or frame.hd.type == NGHTTP2_HEADERS) and frame.hd.flags & NGHTTP2_FLAG_END_STREAM:
        c = <Connection*>nghttp2_session_get_stream_user_data(engine, frame.hd.stream_id)
        if c != NULL:
            answered(s, c)
    elif frame.hd.type == NGHTTP2_GOAWAY and frame.goaway.error_code != NGHTTP2_NO_ERROR and not s.is_told:
        s.is_told = 1
        count(&s.worker.counters[C_H2_PROTOCOL_ERRORS], 1)
        access_refused(s.worker, s.carrier, 400)
    return 0


cdef int on_frame_not_send(nghttp2_session* engine, const nghttp2_frame* frame, int error, void* user) noexcept nogil:
    """A head that doesn't fit (RFC 9113 section 6.5.2), or whose stream went: nobody may wait for it."""
    cdef Session* s = <Session*>user
    cdef Connection* c
    if frame.hd.type == NGHTTP2_HEADERS:
        c = <Connection*>nghttp2_session_get_stream_user_data(engine, frame.hd.stream_id)
        if c != NULL and not s.is_gone:
            connection_close(s.worker, c, True)
    return 0


cdef int on_stream_close(nghttp2_session* engine, int32_t stream_id, uint32_t error, void* user) noexcept nogil:
    cdef Session* s = <Session*>user
    cdef Connection* c = <Connection*>nghttp2_session_get_stream_user_data(engine, stream_id)
    if s.is_gone:
        return 0
    if c == NULL or not c.is_answered:
        spend_reset(s)
    if c == NULL:
        return 0
    if not c.is_answered and (c.state == STATE_WAIT or c.state == STATE_ANSWERED or c.state == STATE_SEND):
        count(&s.worker.counters[C_CLOSED_BY_VIEWER], 1)
    c.stream_id = 0             # nghttp2 has let go of it
    connection_close(s.worker, c, error != NGHTTP2_NO_ERROR or not c.is_answered)
    return 0


cdef void stream_left(Worker* w, Connection* c, bint abruptly) noexcept nogil:
    """A stream is closed: connection_close does the rest."""
    cdef Session* s = session_of(c.carrier)
    if c.previous_stream != NULL:
        c.previous_stream.next_stream = c.next_stream
    else:
        s.streams = c.next_stream
    if c.next_stream != NULL:
        c.next_stream.previous_stream = c.previous_stream
    s.n_streams -= 1
    s.busy_ns = w.now_ns
    if s.is_gone or c.stream_id == 0:
        return
    if nghttp2_session_set_stream_user_data(s.engine, c.stream_id, NULL) == 0:
        nghttp2_submit_rst_stream(s.engine, NGHTTP2_FLAG_NONE, c.stream_id, NGHTTP2_INTERNAL_ERROR if abruptly else NGHTTP2_CANCEL)
    schedule(w, c.carrier)


cdef int stream_pump(Worker* w, Connection* c) noexcept nogil:
    """There is more to send: nghttp2 takes it when it is this one's turn."""
    nghttp2_session_resume_data(session_of(c.carrier).engine, c.stream_id)
    schedule(w, c.carrier)
    return PENDING


cdef bint stream_is_stalled(Connection* c) noexcept nogil:
    """Whether it is the viewer who lets nothing through, by his windows."""
    cdef Session* s = session_of(c.carrier)
    return c.list == NULL and (nghttp2_session_get_stream_remote_window_size(s.engine, c.stream_id) <= 0
                               or nghttp2_session_get_remote_window_size(s.engine) <= 0)


cdef int submit(Worker* w, Connection* c, const nghttp2_nv* fields, uint32_t n_fields, bint has_body) noexcept nogil:
    cdef nghttp2_data_provider provider
    provider.source.ptr = NULL
    provider.read_callback = read_body
    if nghttp2_submit_response(session_of(c.carrier).engine, c.stream_id, fields, n_fields, &provider if has_body else NULL) != 0:
        connection_close(w, c, True)
        return CLOSED
    schedule(w, c.carrier)
    return PENDING


cdef int stream_answer(Worker* w, Connection* c, const uint8_t* data, uint32_t n, uint32_t head_length, Object* object,
                       const iovec* parts, int n_parts, int64_t first, int64_t end) noexcept nogil:
    """Begins an answer of which `parts` are the head, with the bytes from `first` to `end` of `object`; NULL: none."""
    cdef nghttp2_nv fields[MAX_RESPONSE_FIELDS]
    cdef uint32_t n_fields = 0, n_names = 0
    cdef int i
    for i in range(n_parts):
        n_fields = response_fields(<const uint8_t*>parts[i].iov_base, parts[i].iov_len, i == 0, fields, n_fields,
                                   engine_of(w).names, &n_names)
    c.head_length = head_length
    if not keep_input(w, c, data, n):       # a want may need it, and the log
        count(&w.counters[C_CLOSED_MEMORY], 1)
        connection_close(w, c, True)
        return CLOSED
    c.is_blocked = 0
    c.end = end
    c.offset = first if object != NULL else c.log_first
    if object != NULL:
        attach(c, object)
    return submit(w, c, fields, n_fields, object != NULL or c.stream != NULL)


cdef int stream_short(Worker* w, Connection* c, const uint8_t* text, uint32_t n) noexcept nogil:
    """A whole short answer as HTTP/1.1 has it."""
    cdef nghttp2_nv fields[MAX_RESPONSE_FIELDS]
    cdef uint32_t n_fields, n_names = 0, head = 4
    while head < n and not (text[head - 4] == 13 and text[head - 2] == 13 and text[head - 1] == 10):
        head += 1
    n_fields = response_fields(text, head, True, fields, 0, engine_of(w).names, &n_names)
    c.object = NULL
    release_output(w, c)
    if n > head and not keep_output(w, c, text + head, n - head):
        count(&w.counters[C_CLOSED_MEMORY], 1)
        connection_close(w, c, True)
        return CLOSED
    c.offset = c.log_first + (n - head)
    access_end(w, c, False)     # while the request is there
    return submit(w, c, fields, n_fields, n > head)


cdef void stream_interim(Worker* w, Connection* c, const uint8_t* text, uint32_t n) noexcept nogil:
    cdef nghttp2_nv fields[MAX_RESPONSE_FIELDS]
    cdef uint32_t n_names = 0
    cdef uint32_t n_fields = response_fields(text, n, True, fields, 0, engine_of(w).names, &n_names)
    if n_fields == 0 or is_switching(fields[0].value):
        return                  # RFC 9113 section 8.6: 101 doesn't exist here
    nghttp2_submit_headers(session_of(c.carrier).engine, NGHTTP2_FLAG_NONE, c.stream_id, NULL, fields, n_fields, NULL)
    schedule(w, c.carrier)


cdef inline bint is_switching(const uint8_t* status) noexcept nogil:
    return status[0] == 49 and status[1] == 48 and status[2] == 49
