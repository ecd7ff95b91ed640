# HTTP/2 sessions behind h2.pxd: their life, what is read and written, deadlines, leaving. Frames that come in are
# h2_requests.pyx's, those that go out h2_answers.pyx's. nghttp2 keeps the protocol's state, windows and priorities.
#
# What a full socket leaves over of a write is copied, because pointers into bodies are good only until the pass ends: at
# most GATHER_BYTES, less once a socket was full.
from libc.errno cimport EAGAIN, EINTR, ENOMEM, errno
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from ext.access cimport access_refused
from ext.atomics cimport *
from ext.connection cimport *
from ext.h2_answers cimport on_frame_not_send, on_frame_send, on_send, on_stream_close, send_data
from ext.h2_head cimport COOKIE_BYTES, NAME_BYTES, TEXT_BYTES, Block
from ext.h2_requests cimport (
    budget_begin,
    on_begin_frame,
    on_begin_headers,
    on_data_chunk,
    on_frame_recv,
    on_header,
    on_invalid_header,
    spend_unknown,
)
from ext.layout cimport *
from ext.nghttp2 cimport *
from ext.session cimport close_gently
from ext.sockets cimport iovec, msghdr, socket_has_room
from ext.transport cimport transport_read, transport_writev

cdef extern from "<sys/epoll.h>" nogil:
    enum: EPOLLIN
    enum: EPOLLOUT
    enum: EPOLLERR
    enum: EPOLLHUP
    enum: EPOLLRDHUP

cdef extern from "<netinet/in.h>" nogil:
    enum: IPPROTO_TCP

cdef extern from "<netinet/tcp.h>" nogil:
    enum: TCP_NOTSENT_LOWAT

cdef extern from "<sys/socket.h>" nogil:
    int setsockopt(int, int, int, const void*, unsigned int)

cdef enum:
    READS_PER_TURN = 4
    CONNECTION_WINDOW = 1048576 # of all requests' bodies together; what is held back is held back by each stream's own
    SESSION_BYTES = 16384       # what an idle nghttp2 session takes, measured at 13 KiB
    GATHER_BYTES = 262144       # of one write
    GATHER_LEAST = 65536        # once the socket was full
    QUEUE_MOST = 256            # frames that wait for a full socket before we stop reading
    UNSENT_BYTES = 65536        # what the kernel may hold ahead of an urgent answer (docs/decisions/0195-which-loop.md)
    SETTLE_NS = 300000000       # between the two GOAWAYs (RFC 9113 section 6.8: at least a round trip)
    TOO_MANY_CONTINUATIONS = -905

cdef const char* PREFACE = b"PRI * HTTP/2.0\r\n"


cdef int h2_find_preface(const uint8_t* data, uint32_t n) noexcept nogil:
    cdef uint32_t i
    for i in range(16):
        if i == n:
            return PREFACE_BEGINS
        if data[i] != <uint8_t>PREFACE[i]:
            return PREFACE_NOT
    return PREFACE_IS


cdef bint h2_is_idle(Connection* c) noexcept nogil:
    return c.state == STATE_STREAMS and session_of(c).n_streams == 0


# --- the socket -------------------------------------------------------------------------------------------------------

cdef void schedule(Worker* w, Connection* carrier) noexcept nogil:
    """Something is to be written, once nghttp2 is not at work and the others had their turn."""
    if not session_of(carrier).is_feeding and carrier.list == NULL and carrier.state == STATE_STREAMS:
        list_append(&w.ready, carrier)


cdef bint keep_unsent(Worker* w, Connection* c, Engine* g, uint64_t sent) noexcept nogil:
    """What the socket didn't take, in a buffer of its own; nothing waits before it."""
    cdef uint64_t rest = g.n_bytes - sent
    cdef uint32_t capacity = <uint32_t>((rest + 255) & ~<uint64_t>255)
    cdef uint8_t* out
    cdef int i
    cdef uint64_t n, used = 0
    if not charge(w, capacity):
        return False
    out = <uint8_t*>malloc(capacity)
    if out == NULL:
        discharge(w, capacity)
        return False
    for i in range(g.n_parts):
        n = g.parts[i].iov_len
        if sent >= n:
            sent -= n
            continue
        memcpy(out + used, <uint8_t*>g.parts[i].iov_base + sent, n - sent)
        used += n - sent
        sent = 0
    release_output(w, c)
    c.out = out
    c.out_length = <uint32_t>used
    c.out_capacity = capacity
    return True


cdef ssize_t write_parts(Worker* w, Connection* c, iovec* parts, int n) noexcept nogil:
    """-1: a full socket (EAGAIN), or an error."""
    cdef msghdr message
    cdef ssize_t written
    memset(&message, 0, sizeof(message))
    message.msg_iov = parts
    message.msg_iovlen = n
    while True:
        written = transport_writev(w, c, &message)
        if written >= 0 or errno != EINTR:
            return written


cdef void cut(Worker* w, Connection* c, int column) noexcept nogil:
    """We end it, for the reason that `column` counts: its streams' viewers have not left."""
    session_of(c).is_cut = 1
    count(&w.counters[column], 1)
    connection_close(w, c, True)


cdef void lost(Worker* w, Connection* c) noexcept nogil:
    """A write has failed; errno says why."""
    if errno == ENOMEM:         # over TLS: none for what the socket didn't take
        cut(w, c, C_CLOSED_MEMORY)
    else:
        connection_close(w, c, False)


cdef void blocked(Worker* w, Connection* c) noexcept nogil:
    if not c.is_blocked:
        c.is_blocked = 1
        c.window_bytes = 0
        c.window_ns = w.now_ns
    c.window_capacity = GATHER_LEAST


cdef void let_held(Engine* g) noexcept nogil:
    """The write is over: the bodies that it pointed into may go."""
    cdef int i
    for i in range(g.n_held):
        add_u64(&g.held[i].refs, <uint64_t>-1)
    g.n_held = 0


cdef void flush(Worker* w, Connection* c) noexcept nogil:
    """Sends what there is, until the socket is full, all is out, or it is the others' turn."""
    flush_on(w, c)
    let_held(engine_of(w))


cdef void flush_on(Worker* w, Connection* c) noexcept nogil:
    cdef Session* s = session_of(c)
    cdef Engine* g = engine_of(w)
    cdef iovec part
    cdef ssize_t written
    cdef uint64_t spent = 0
    cdef int result
    while True:
        while c.out_length > c.out_offset:
            part.iov_base = c.out + c.out_offset
            part.iov_len = c.out_length - c.out_offset
            written = write_parts(w, c, &part, 1)
            if written < 0:
                if errno != EAGAIN:
                    lost(w, c)
                    return
                blocked(w, c)
                return
            c.out_offset += <uint32_t>written
            c.window_bytes += <uint64_t>written
        if c.out != NULL:
            release_output(w, c)
        # What a full socket doesn't take must be copied, and over TLS encrypted in vain: it is asked first.
        if (spent or c.is_blocked) and nghttp2_session_want_write(s.engine) and not socket_has_room(c.fd):
            blocked(w, c)
            return
        c.is_blocked = 0
        let_held(g)
        g.n_parts = 0
        g.n_small = 0
        g.n_bytes = 0
        s.is_feeding = 1
        result = nghttp2_session_send(s.engine)
        s.is_feeding = 0
        if result != 0:         # of our callbacks none ends a session, so that memory is all that can be short
            cut(w, c, C_CLOSED_MEMORY)
            return
        if g.n_bytes == 0:
            return
        written = write_parts(w, c, g.parts, g.n_parts)
        if written < 0:
            if errno != EAGAIN:
                lost(w, c)
                return
            written = 0
        c.window_bytes += <uint64_t>written
        if <uint64_t>written < g.n_bytes:
            if not keep_unsent(w, c, g, <uint64_t>written):
                cut(w, c, C_CLOSED_MEMORY)
                return
            blocked(w, c)
            return
        if c.window_capacity < GATHER_BYTES and c.tls == NULL:
            c.window_capacity *= 2
        spent += g.n_bytes
        if spent >= share_of_pass(w):
            if c.list == NULL:
                list_append(&w.ready, c)
            return


cdef void end(Worker* w, Connection* c) noexcept nogil:
    """The last frame is out: as HTTP/1.1 ends a connection whose viewer may be sending still."""
    if c.out_length > c.out_offset:
        connection_close(w, c, False)
        return
    h2_close(w, c)
    list_remove(c)
    c.must_linger = session_of(c).is_told   # else nothing is under way, or may be asked again elsewhere
    close_gently(w, c)


cdef void fail(Worker* w, Connection* c, ssize_t error) noexcept nogil:
    """nghttp2 can't go on, or we don't want to."""
    cdef Session* s = session_of(c)
    cdef uint32_t code = NGHTTP2_ENHANCE_YOUR_CALM
    cdef int32_t counter = s.fault
    if counter < 0:
        if error == TOO_MANY_CONTINUATIONS:
            counter = C_H2_FLOOD_CONTINUATIONS
        elif error == NGHTTP2_ERR_FLOODED:
            counter = C_H2_FLOOD_PINGS
        elif error == NGHTTP2_ERR_TOO_MANY_SETTINGS:
            counter = C_H2_FLOOD_SETTINGS
        elif error == NGHTTP2_ERR_NOMEM:
            counter = C_CLOSED_MEMORY
            code = NGHTTP2_INTERNAL_ERROR
        else:
            counter = C_H2_PROTOCOL_ERRORS
            code = NGHTTP2_PROTOCOL_ERROR
    if not s.is_told:
        s.is_told = 1
        count(&w.counters[counter], 1)
        access_refused(w, c, 400)
    nghttp2_session_terminate_session(s.engine, code)
    flush(w, c)
    if c.state == STATE_STREAMS:
        end(w, c)


cdef bint keep_block(Worker* w, Session* s, const Block* b) noexcept nogil:
    """An unfinished field block, until the rest comes."""
    cdef uint64_t bytes = <uint64_t>b.length + b.cookie_length
    if not charge(w, bytes):
        return False
    s.kept = b[0]
    s.kept.text = <uint8_t*>malloc(bytes + 1)
    if s.kept.text == NULL:
        discharge(w, bytes)
        s.kept.stream_id = 0
        return False
    s.kept_bytes = bytes
    s.kept.cookies = s.kept.text + b.length
    memcpy(s.kept.text, b.text, b.length)
    memcpy(s.kept.cookies, b.cookies, b.cookie_length)
    return True


cdef void drop_block(Worker* w, Session* s) noexcept nogil:
    if s.kept.stream_id:
        free(s.kept.text)
        discharge(w, s.kept_bytes)
        s.kept.stream_id = 0


cdef void feed(Worker* w, Connection* c, const uint8_t* data, size_t n) noexcept nogil:
    cdef Session* s = session_of(c)
    cdef Block* b = &engine_of(w).block
    cdef uint8_t* text = b.text
    cdef uint8_t* cookies = b.cookies
    cdef ssize_t result
    b.stream_id = 0
    if s.kept.stream_id:
        b[0] = s.kept
        b.text = text
        b.cookies = cookies
        memcpy(text, s.kept.text, b.length)
        memcpy(cookies, s.kept.cookies, b.cookie_length)
        drop_block(w, s)
    s.unknown += <int64_t>n     # on_begin_frame takes off what it knows
    s.is_feeding = 1
    result = nghttp2_session_mem_recv(s.engine, data, n)
    s.is_feeding = 0
    spend_unknown(s)
    if c.state != STATE_STREAMS:
        return
    if result < 0 or s.fault >= 0:
        fail(w, c, result)
        return
    if b.stream_id == 0:
        s.block_ns = 0
        return
    if s.block_ns == 0:
        s.block_ns = w.now_ns
    if not keep_block(w, s, b):
        cut(w, c, C_CLOSED_MEMORY)


cdef void read_on(Worker* w, Connection* c) noexcept nogil:
    cdef Session* s = session_of(c)
    cdef ssize_t n
    cdef int turns = 0
    while c.state == STATE_STREAMS:
        if c.is_blocked and nghttp2_session_get_outbound_queue_size(s.engine) > QUEUE_MOST:
            c.is_readable = 1   # who doesn't read what he asks for may not ask for more
            return
        if turns == READS_PER_TURN:
            c.is_readable = 1
            if c.list == NULL:
                list_append(&w.ready, c)
            return
        turns += 1
        n = transport_read(w, c, w.input, READ_BYTES)
        if n < 0:
            if errno == EINTR:
                continue
            if errno == EAGAIN:
                c.is_readable = 0
            else:
                connection_close(w, c, False)
            return
        if n == 0:
            connection_close(w, c, False)
            return
        feed(w, c, w.input, <size_t>n)
        if n < READ_BYTES and not c.has_ended:
            c.is_readable = 0
            return


cdef void advance(Worker* w, Connection* c) noexcept nogil:
    """After whatever happened: write, and see whether it is over, and when to look again."""
    cdef Session* s = session_of(c)
    if c.state != STATE_STREAMS:
        return
    if (is_last_answer(w) or c.is_surplus) and not s.leaving:
        leave(w, c, SETTLE_NS)
    flush(w, c)
    if c.state != STATE_STREAMS:
        return
    if s.fault >= 0:
        fail(w, c, 0)
        return
    if (not nghttp2_session_want_read(s.engine) and not nghttp2_session_want_write(s.engine)
            and c.out_length == c.out_offset):
        end(w, c)
        return
    arm(w, c)


cdef void h2_resume(Worker* w, Connection* c) noexcept nogil:
    if c.is_readable:
        read_on(w, c)
    advance(w, c)


cdef void h2_on_event(Worker* w, Connection* c, uint32_t events) noexcept nogil:
    if events & (EPOLLERR | EPOLLHUP):
        connection_close(w, c, False)
        return
    if events & (EPOLLIN | EPOLLRDHUP):
        c.is_readable = 1
    if events & EPOLLOUT and c.is_blocked:
        flush(w, c)             # what waits may be why nothing is read
        if c.state != STATE_STREAMS:
            return
    if c.is_readable and c.list == NULL:
        read_on(w, c)
    advance(w, c)


# --- life -------------------------------------------------------------------------------------------------------------

cdef bint engine_open(Worker* w) noexcept nogil:
    """What the sessions of a worker share; made with its first one."""
    cdef Engine* g
    if w.h2 != NULL:
        return True
    g = <Engine*>calloc(1, sizeof(Engine))
    if g == NULL:
        return False
    w.h2 = g
    g.block.text = <uint8_t*>malloc(TEXT_BYTES)
    g.block.cookies = <uint8_t*>malloc(COOKIE_BYTES)
    g.names = <uint8_t*>malloc(NAME_BYTES)
    g.small = <uint8_t*>malloc(SMALL_BYTES)
    if (g.block.text == NULL or g.block.cookies == NULL or g.names == NULL or g.small == NULL
            or nghttp2_session_callbacks_new(&g.callbacks) != 0 or nghttp2_option_new(&g.option) != 0):
        h2_engine_free(w)
        return False
    nghttp2_session_callbacks_set_send_callback(g.callbacks, on_send)
    nghttp2_session_callbacks_set_send_data_callback(g.callbacks, send_data)
    nghttp2_session_callbacks_set_on_begin_frame_callback(g.callbacks, on_begin_frame)
    nghttp2_session_callbacks_set_on_begin_headers_callback(g.callbacks, on_begin_headers)
    nghttp2_session_callbacks_set_on_header_callback(g.callbacks, on_header)
    nghttp2_session_callbacks_set_on_invalid_header_callback(g.callbacks, on_invalid_header)
    nghttp2_session_callbacks_set_on_frame_recv_callback(g.callbacks, on_frame_recv)
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(g.callbacks, on_data_chunk)
    nghttp2_session_callbacks_set_on_frame_send_callback(g.callbacks, on_frame_send)
    nghttp2_session_callbacks_set_on_frame_not_send_callback(g.callbacks, on_frame_not_send)
    nghttp2_session_callbacks_set_on_stream_close_callback(g.callbacks, on_stream_close)
    nghttp2_option_set_no_auto_window_update(g.option, 1)
    nghttp2_option_set_no_closed_streams(g.option, 1)
    nghttp2_option_set_builtin_recv_extension_type(g.option, NGHTTP2_PRIORITY_UPDATE)
    nghttp2_option_set_stream_reset_rate_limit(g.option, 1000000, 1000000)     # ours is counted, and stricter
    return True


cdef void h2_engine_free(Worker* w) noexcept nogil:
    cdef Engine* g = engine_of(w)
    if g == NULL:
        return
    if g.callbacks != NULL:
        nghttp2_session_callbacks_del(g.callbacks)
    if g.option != NULL:
        nghttp2_option_del(g.option)
    free(g.block.text)
    free(g.block.cookies)
    free(g.names)
    free(g.small)
    free(g)
    w.h2 = NULL


cdef void h2_begin(Worker* w, Connection* c, const uint8_t* data, uint32_t n) noexcept nogil:
    """From here on the connection speaks HTTP/2; `data`, from the preface on, has come already."""
    cdef Session* s = NULL
    cdef int unsent = UNSENT_BYTES
    cdef nghttp2_settings_entry settings[5]
    if not engine_open(w) or not charge(w, sizeof(Session) + SESSION_BYTES):
        count(&w.counters[C_CLOSED_MEMORY], 1)
        connection_close(w, c, True)
        return
    s = <Session*>calloc(1, sizeof(Session))
    if s == NULL or nghttp2_session_server_new2(&s.engine, engine_of(w).callbacks, s, engine_of(w).option) != 0:
        free(s)
        discharge(w, sizeof(Session) + SESSION_BYTES)
        count(&w.counters[C_CLOSED_MEMORY], 1)
        connection_close(w, c, True)
        return
    count(&w.counters[C_H2_CONNECTIONS], 1)
    s.worker = w
    s.carrier = c
    budget_begin(s)
    s.busy_ns = w.now_ns
    c.session = s
    c.state = STATE_STREAMS
    c.has_head_begun = 0
    c.window_capacity = GATHER_BYTES if c.tls == NULL else GATHER_LEAST    # a batch of records: tls.pyx
    release_input(w, c)
    clear_deadline(w, c)
    setsockopt(c.fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &unsent, sizeof(unsent))
    settings[0].settings_id = NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS
    settings[0].value = MAX_STREAMS
    settings[1].settings_id = NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE
    settings[1].value = STREAM_WINDOW
    settings[2].settings_id = NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE
    settings[2].value = 32768   # http_head.MAX_HEAD_BYTES
    settings[3].settings_id = NGHTTP2_SETTINGS_NO_RFC7540_PRIORITIES
    settings[3].value = 1
    settings[4].settings_id = NGHTTP2_SETTINGS_ENABLE_CONNECT_PROTOCOL     # RFC 8441
    settings[4].value = 1
    nghttp2_submit_settings(s.engine, NGHTTP2_FLAG_NONE, settings, 5)
    nghttp2_session_set_local_window_size(s.engine, NGHTTP2_FLAG_NONE, 0, CONNECTION_WINDOW)
    c.is_readable = 1           # more may be there, and no other edge comes for it
    if n:
        feed(w, c, data, n)
    if c.state == STATE_STREAMS and c.list == NULL:
        list_append(&w.ready, c)


cdef void h2_close(Worker* w, Connection* c) noexcept nogil:
    """Ends all its streams; nghttp2 isn't asked any more. h2_free when nobody can be within it."""
    cdef Session* s = session_of(c)
    if s.is_gone:
        return
    s.is_gone = 1
    while s.streams != NULL:
        if not s.is_cut and (s.streams.state == STATE_WAIT or s.streams.state == STATE_ANSWERED or s.streams.state == STATE_SEND):
            count(&w.counters[C_CLOSED_BY_VIEWER], not s.streams.is_answered)
        connection_close(w, s.streams, True)
    drop_block(w, s)


cdef void h2_free(Worker* w, Connection* c) noexcept nogil:
    cdef Session* s = session_of(c)
    nghttp2_session_del(s.engine)
    free(s)
    discharge(w, sizeof(Session) + SESSION_BYTES)
    c.session = NULL


cdef void leave(Worker* w, Connection* c, int64_t settle_ns) noexcept nogil:
    """Two steps (RFC 9113 section 6.8): a first GOAWAY that refuses nothing, then, when what was on its way has come, one
    that says which requests were taken."""
    cdef Session* s = session_of(c)
    if s.leaving == LEAVING_NOT:
        s.leaving = LEAVING_SOON
        s.leave_ns = w.now_ns + settle_ns
        nghttp2_submit_shutdown_notice(s.engine)
    if s.leaving == LEAVING_SOON and w.now_ns >= s.leave_ns:
        s.leaving = LEAVING_NOW
        nghttp2_submit_goaway(s.engine, NGHTTP2_FLAG_NONE, nghttp2_session_get_last_proc_stream_id(s.engine),
                              NGHTTP2_NO_ERROR, NULL, 0)


cdef void h2_drain(Worker* w, Connection* c, uint32_t idle_ms) noexcept nogil:
    """Another process serves at our addresses, or none will. `idle_ms` 0: who asks for nothing is closed at once."""
    cdef Session* s = session_of(c)
    if c.is_readable or c.list == NULL:
        read_on(w, c)           # a request that is here already is answered
        if c.state != STATE_STREAMS:
            return
    leave(w, c, 0 if not idle_ms and s.n_streams == 0 else SETTLE_NS)
    advance(w, c)


cdef void arm(Worker* w, Connection* c) noexcept nogil:
    """Sets the carrier's deadline to the earliest of what may be due."""
    cdef Session* s = session_of(c)
    cdef int64_t due = w.now_ns + w.tables.limits.idle_timeout_ns
    if s.n_streams == 0:
        due = s.busy_ns + w.tables.limits.idle_timeout_ns
    if s.block_ns and s.block_ns + w.tables.limits.head_timeout_ns < due:
        due = s.block_ns + w.tables.limits.head_timeout_ns
    if c.is_blocked and c.window_ns + w.tables.limits.send_window_ns < due:
        due = c.window_ns + w.tables.limits.send_window_ns
    if s.leaving == LEAVING_SOON and s.leave_ns < due:
        due = s.leave_ns
    if c.is_surplus and s.leave_ns + SURPLUS_NS < due:
        due = s.leave_ns + SURPLUS_NS
    if c.timer_slot >= 0 and due < c.deadline_ns:
        clear_deadline(w, c)
    if c.timer_slot < 0:
        set_deadline(w, c, due)


cdef void h2_on_deadline(Worker* w, Connection* c) noexcept nogil:
    cdef Session* s = session_of(c)
    if c.is_blocked and w.now_ns >= c.window_ns + w.tables.limits.send_window_ns:
        if c.window_bytes < w.tables.limits.send_window_bytes:
            cut(w, c, C_CLOSED_SLOW_READER)
            return
        c.window_bytes = 0
        c.window_ns = w.now_ns
    if s.block_ns and w.now_ns >= s.block_ns + w.tables.limits.head_timeout_ns:
        count(&w.counters[C_CLOSED_SLOW_HEAD], 1)
        s.is_told = 1
        access_refused(w, c, 408)
        nghttp2_session_terminate_session(s.engine, NGHTTP2_ENHANCE_YOUR_CALM)
        flush(w, c)
        if c.state == STATE_STREAMS:
            end(w, c)
        return
    if s.n_streams == 0 and w.now_ns >= s.busy_ns + w.tables.limits.idle_timeout_ns:
        count(&w.counters[C_CLOSED_IDLE], 1)
        nghttp2_session_terminate_session(s.engine, NGHTTP2_NO_ERROR)
        flush(w, c)
        if c.state == STATE_STREAMS:
            end(w, c)
        return
    if c.is_surplus and w.now_ns >= s.leave_ns + SURPLUS_NS:    # he could shut his window on our 503
        count(&w.counters[C_CLOSED_IDLE], 1)
        connection_close(w, c, True)
        return
    if s.leaving == LEAVING_SOON:
        leave(w, c, 0)
    advance(w, c)
