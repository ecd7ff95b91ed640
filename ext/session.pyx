# A connection's requests one after the other, behind session.pxd: read, consume, answer in steps, finish, linger.
from libc.errno cimport EAGAIN, EINTR, EPROTO, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from ext.access cimport access_end, access_serving, is_framing_fault
from ext.access_ring cimport NO_ORIGIN
from ext.atomics cimport *
from ext.carry cimport carry, on_tunnel_deadline, tunnel_begin
from ext.connection cimport *
from ext.exchange cimport *
from ext.h2 cimport PREFACE_BEGINS, PREFACE_IS, h2_begin, h2_find_preface, h2_on_deadline, h2_resume
from ext.h2_answers cimport stream_interim, stream_is_stalled
from ext.h2_requests cimport stream_credit
from ext.http_head cimport *
from ext.layout cimport *
from ext.receive cimport RECEIVE_ENDED, RECEIVE_MORE, RECEIVE_WHOLE, receive_body, stays_behind, upload_leave
from ext.send cimport pump
from ext.respond cimport AS_COLLAPSED, AS_HIT, AS_MISS, AS_PASSED, respond_error, respond_object
from ext.serve cimport MAX_TRIES, ask_connect, handle, leave_bucket, now_ns
from ext.store cimport *
from ext.stream_reader cimport reader_begin, reader_is_silent
from ext.table cimport entry_match, hash_key, table_find
from ext.sockets cimport MSG_DONTWAIT, recv
from ext.transport cimport PROTOCOL_H2, transport_read, transport_shut, transport_write

cdef enum:
    READS_PER_TURN = 4          # of one connection, before the others
    LINGER_BYTES = 4194304      # of input thrown away after an answer that ends the connection
    LINGER_NS = 2000000000


cdef void settle(Worker* w, Connection* c, int result) noexcept nogil:
    """After a step on a connection whose response may have ended."""
    if result == CLOSED:
        return
    if result == PENDING:
        if c.state == STATE_WAIT:
            if c.upload != NULL and c.is_readable and c.carrier == NULL:
                on_body(w, c)   # its edge may have come before its turn did: pipelined, or judged first
            return
        # The window goes on through the steps of one response: a trickle must not move its end.
        if c.state != STATE_SEND:
            c.state = STATE_SEND
            c.window_bytes = 0
            clear_deadline(w, c)
            set_deadline(w, c, w.now_ns + w.tables.limits.send_window_ns)
        return
    access_end(w, c, False)
    if c.upload != NULL and stays_behind(w, c):
        c.close_after = 1
        c.must_linger = 1
    detach(w, c)
    release_output(w, c)
    c.n_tries = 0
    c.n_asked = 0
    c.is_authorising = 0
    if c.close_after:
        close_gently(w, c)
        return
    c.state = STATE_READ
    c.has_head_begun = 0
    set_deadline(w, c, w.now_ns + w.tables.limits.idle_timeout_ns)


cdef void close_gently(Worker* w, Connection* c) noexcept nogil:
    """Ends a connection whose answer is written. A close with unread input resets it, and a reset throws away what the
    viewer hasn't read yet (RFC 9112 section 9.6): then only the sending side is shut, and input thrown away for a while."""
    if not c.must_linger or c.has_ended:
        connection_close(w, c, False)
        return
    release_input(w, c)
    transport_shut(w, c)
    c.state = STATE_LINGER
    c.window_bytes = 0
    clear_deadline(w, c)
    set_deadline(w, c, w.now_ns + LINGER_NS)
    list_append(&w.ready, c)


cdef void give_up_waiting(Worker* w, Connection* c, uint32_t status) noexcept nogil:
    """Our own answer to who waits for the control plane's."""
    cdef int result
    list_remove(c)
    if c.exchange.waiters.n == 0:
        c.exchange.is_joinable = 0
        ring_push(&w.ring, RING_CANCEL, c.exchange.index, c.exchange.generation, NULL)
        w.must_ring = 1
    c.exchange = NULL
    if c.upload != NULL:
        count(&w.counters[C_UPLOADS_ABORTED], 1)
        upload_leave(w, c)
    c.state = STATE_READ
    result = respond_error(w, c, status, True)
    settle(w, c, result)


cdef void on_body(Worker* w, Connection* c) noexcept nogil:
    """More of a body may be there, or room for it."""
    cdef int result
    if c.carrier != NULL:
        stream_credit(w, c)     # its body comes by itself, as far as its window is open
        return
    result = receive_body(w, c)
    if result == RECEIVE_WHOLE and c.state == STATE_WAIT:
        set_deadline(w, c, w.now_ns + w.tables.origins[c.exchange.origin].wait_ns)
    elif result < 0 and c.state == STATE_WAIT:
        give_up_waiting(w, c, <uint32_t>-result)
    elif result == RECEIVE_ENDED or result < 0:     # an answer is under way: a cut one is the only way to say so
        count(&w.counters[C_CLOSED_BY_VIEWER], 1)
        connection_close(w, c, result < 0)


cdef void on_interim(Worker* w, Message* m) noexcept nogil:
    """A 1xx head for the exchange's leader; HTTP/1.0 knows none (RFC 9110 section 15.2)."""
    cdef Exchange* e = &w.exchanges[m.index]
    cdef Connection* c
    if e.is_free or e.generation != m.generation:
        return
    c = <Connection*>e.waiters.first
    while c != NULL and not c.is_leader:
        c = c.next
    if c == NULL or c.minor == 0:
        return
    if c.carrier != NULL:
        stream_interim(w, c, m.bytes, m.n_bytes)
        count(&w.counters[C_INTERIM_SENT], 1)
        return
    if not keep_output(w, c, m.bytes, m.n_bytes):
        return
    count(&w.counters[C_INTERIM_SENT], 1)
    flush_interim(w, c)


cdef void on_split(Worker* w, Message* m) noexcept nogil:
    """Those who have joined an exchange ask for themselves; its leader waits on."""
    cdef Exchange* e = &w.exchanges[m.index]
    cdef Connection* c
    cdef Connection* following
    if e.is_free or e.generation != m.generation:
        return
    leave_bucket(w, e)
    e.is_joinable = 0
    c = <Connection*>e.waiters.first
    while c != NULL:
        following = c.next
        if not c.is_leader:
            list_remove(c)
            c.exchange = NULL
            c.n_tries = MAX_TRIES
            c.answer = ANSWER_MATCH
            c.state = STATE_ANSWERED
            list_append(&w.ready, c)
        c = following
    if e.waiters.n == 0:        # the leader had left
        ring_push(&w.ring, RING_CANCEL, e.index, e.generation, NULL)
        w.must_ring = 1


cdef void flush_interim(Worker* w, Connection* c) noexcept nogil:
    cdef ssize_t n
    while c.out_length > c.out_offset:
        n = transport_write(w, c, c.out + c.out_offset, c.out_length - c.out_offset)
        if n < 0:
            return              # full: the next edge goes on; broken: the next event says so
        c.out_offset += <uint32_t>n
    release_output(w, c)


cdef void linger(Worker* w, Connection* c) noexcept nogil:
    cdef ssize_t n
    cdef int i
    for i in range(READS_PER_TURN):
        n = recv(c.fd, w.input, READ_BYTES, MSG_DONTWAIT)
        if n < 0 and (errno == EAGAIN or errno == EINTR):
            return
        if n > 0:
            c.window_bytes += <uint64_t>n
        if n <= 0 or c.window_bytes > LINGER_BYTES:
            connection_close(w, c, False)
            return
    list_append(&w.ready, c)


cdef void finish_request(Worker* w, Connection* c) noexcept nogil:
    """A response that took several steps is out: what came after its request is next."""
    cdef uint32_t rest
    settle(w, c, DONE)
    if c.state != STATE_READ:
        return
    rest = c.buffer_length - c.head_length
    keep_input(w, c, c.buffer + c.head_length, rest)
    c.head_length = 0
    if (rest or c.is_readable) and c.list == NULL:
        list_append(&w.ready, c)


cdef void keep_rest(Worker* w, Connection* c, const uint8_t* data, uint32_t n) noexcept nogil:
    """Keeps the beginning of a head; the time for the whole of it runs from its first byte."""
    if not keep_input(w, c, data, n):
        count(&w.counters[C_CLOSED_MEMORY], 1)
        connection_close(w, c, True)
        return
    if n and not c.has_head_begun:
        c.has_head_begun = 1
        if not c.is_surplus:
            clear_deadline(w, c)
            set_deadline(w, c, w.now_ns + w.tables.limits.head_timeout_ns)


cdef bint may_prior_knowledge(Worker* w, Connection* c) noexcept nogil:
    """Whether the listener's policy lets viewers begin with HTTP/2 without TLS (RFC 9113 section 3.3)."""
    return (c.tls == NULL and c.listener < w.tables.n_listeners
            and w.tables.listeners[c.listener].http2 == HTTP2_CLEARTEXT)


cdef int refuse_head(Worker* w, Connection* c, uint32_t status) noexcept nogil:
    """Of a request that couldn't be read nothing is known."""
    c.is_head = 0
    c.minor = 1
    c.head_length = 0
    c.arrival_ns = w.now_ns
    c.log_origin = NO_ORIGIN
    c.fwd_reason = FWD_NONE
    return respond_error(w, c, status, True)


cdef uint32_t consume(Worker* w, Connection* c, const uint8_t* data, uint32_t n) noexcept nogil:
    """Answers the requests in `data` one after the other (pipelining). Returns the bytes used up; what a pending
    response needs of the rest is kept already."""
    cdef uint32_t used = 0
    cdef int length, result
    if c.protocol == PROTOCOL_H2:       # agreed on by ALPN: nothing else may come
        h2_begin(w, c, data, n)
        return n
    while used < n and c.state == STATE_READ:
        w.origin = NULL
        length = parse_request(data + used, n - used, &w.head)
        if length == HEAD_INCOMPLETE:
            break
        if length == -501 and w.tables.limits.may_connect:
            length = parse_connect(data + used, n - used, &w.head)
            if length == HEAD_INCOMPLETE:
                break
            if length > 0:
                access_serving(w, c, data + used)
                result = ask_connect(w, c, data + used, n - used)
                access_serving(w, NULL, NULL)
                if result != CLOSED:
                    settle(w, c, result)
                return n
        if length == -505 and c.arrival_ns == 0 and may_prior_knowledge(w, c):
            result = h2_find_preface(data + used, n - used)
            if result == PREFACE_BEGINS:
                break
            if result == PREFACE_IS:
                h2_begin(w, c, data + used, n - used)
                return n
        if length < 0:
            w.is_framing_fault = is_framing_fault(data + used, n - used)
            result = refuse_head(w, c, <uint32_t>-length)
            w.is_framing_fault = 0
            if result == PENDING:
                keep_input(w, c, data, 0)
            settle(w, c, result)
            return n
        access_serving(w, c, data + used)
        result = handle(w, c, data + used, n - used)
        if result == PENDING:
            access_serving(w, NULL, NULL)
            if c.state != STATE_WAIT and c.buffer == NULL:
                # A short answer that the socket didn't take whole: keep what follows.
                c.head_length = 0
                if not keep_input(w, c, data + used + length, n - used - <uint32_t>length):
                    count(&w.counters[C_CLOSED_MEMORY], 1)
                    connection_close(w, c, True)
                    return n
            settle(w, c, result)
            return n
        if result == CLOSED:
            access_serving(w, NULL, NULL)
            return n
        settle(w, c, DONE)
        access_serving(w, NULL, NULL)
        release_input(w, c)     # a response of several steps kept its request: `data` has it still
        c.head_length = 0
        used += <uint32_t>length
    return used


cdef void on_readable(Worker* w, Connection* c) noexcept nogil:
    """Reads until a short read, which means that the socket is empty (epoll(7), edge-triggered use) unless the viewer
    has ended its side, or until it is the others' turn."""
    cdef uint32_t before, used, total, room
    cdef ssize_t n
    cdef int turns = 0
    while c.state == STATE_READ:
        before = c.buffer_length
        if before:
            memcpy(w.input, c.buffer, before)
        room = READ_BYTES
        n = transport_read(w, c, w.input + before, room)
        if n < 0:
            if errno == EINTR:
                continue
            if errno == EAGAIN:
                c.is_readable = 0
            elif errno == EPROTO and c.tls == NULL:
                c.is_misplaced = 1
                settle(w, c, refuse_head(w, c, 400))
            else:
                connection_close(w, c, False)
            return
        turns += 1
        if n == 0:
            connection_close(w, c, False)
            return
        total = before + <uint32_t>n
        if before:
            release_input(w, c)
        used = consume(w, c, w.input, total)
        if c.state == STATE_CLOSED:
            return
        if c.state != STATE_READ:
            c.is_readable = 1       # look again once the response is out
            return
        if used < total:
            keep_rest(w, c, w.input + used, total - used)
            if c.state == STATE_CLOSED:
                return
        if n < <ssize_t>room and not c.has_ended:
            c.is_readable = 0
            return
        if turns == READS_PER_TURN:
            c.is_readable = 1
            list_append(&w.ready, c)
            return


cdef void begin_stream(Worker* w, Connection* c) noexcept nogil:
    cdef int result
    c.state = STATE_READ
    if parse_request(c.buffer, c.head_length, &w.head) <= 0:
        result = respond_error(w, c, 400, True)
    else:
        c.is_head = w.head.method == METHOD_HEAD
        c.minor = w.head.minor
        c.close_after = not w.head.keep_alive or is_last_answer(w)
        result = reader_begin(w, c, c.buffer, c.buffer_length, &w.head)
    if result == DONE:
        finish_request(w, c)
    elif result == PENDING:
        settle(w, c, result)


cdef void resume(Worker* w, Connection* c) noexcept nogil:
    """A connection from the ready list."""
    cdef int result
    cdef Object* object
    cdef uint32_t n, used
    if c.state == STATE_STREAMS:
        h2_resume(w, c)
        return
    if c.state == STATE_SEND:
        result = pump(w, c)
        if result == DONE:
            finish_request(w, c)
        elif result == PENDING:
            settle(w, c, result)
        return
    if c.state == STATE_TUNNEL:
        carry(w, c)
        return
    if c.state == STATE_ANSWERED and c.answer == ANSWER_STREAM:
        begin_stream(w, c)
        return
    if c.state == STATE_ANSWERED and c.tunnel != NULL:
        tunnel_begin(w, c)
        return
    if c.state == STATE_ANSWERED:
        c.state = STATE_READ
        n = c.buffer_length
        object = c.object           # carried by reference since the answer
        c.object = NULL
        if parse_request(c.buffer, c.head_length, &w.head) <= 0:    # a CONNECT that leads nowhere
            result = respond_error(w, c, c.answer_status if c.answer == ANSWER_ERROR else 400, True)
        else:
            c.is_head = w.head.method == METHOD_HEAD
            c.minor = w.head.minor
            c.close_after = not w.head.keep_alive or is_last_answer(w)
            if c.answer == ANSWER_ALL and not c.is_leader and (w.head.known[FIELD_AUTHORIZATION] or w.head.known[FIELD_COOKIE]):
                # What an anonymous request got says nothing of one with credentials.
                c.n_tries = MAX_TRIES
                result = handle(w, c, c.buffer, n)
            elif c.answer == ANSWER_ERROR:
                # Refused before its body was read: what follows the head is no next request.
                result = respond_error(w, c, c.answer_status,
                                       c.is_authorising and (w.head.content_length > 0 or w.head.chunked))
            elif object != NULL and c.answer == ANSWER_STALE:
                # Waiters are of one key, not of one variant: only whom this object would match gets it.
                w.permitted = object
                result = handle(w, c, c.buffer, n)
                w.permitted = NULL
            elif object != NULL:
                result = respond_object(w, c, c.buffer, n, &w.head, object,
                                        AS_PASSED if c.answer == ANSWER_LEADER else (AS_MISS if c.is_leader else AS_COLLAPSED))
            else:
                result = handle(w, c, c.buffer, n)
        if object != NULL:
            let_go(w, object)
        if result == DONE:
            finish_request(w, c)
        elif result == PENDING:
            settle(w, c, result)
        return
    if c.state == STATE_READ:
        if c.buffer_length:
            n = c.buffer_length
            memcpy(w.input, c.buffer, n)
            release_input(w, c)
            used = consume(w, c, w.input, n)
            if c.state != STATE_READ:
                return
            if used < n:
                keep_rest(w, c, w.input + used, n - used)
        if c.is_readable and c.state == STATE_READ:
            on_readable(w, c)
        return
    if c.state == STATE_LINGER:
        linger(w, c)


cdef void on_deadline(Worker* w, Connection* c) noexcept nogil:
    cdef int result
    if c.state == STATE_STREAMS:
        h2_on_deadline(w, c)
        return
    if c.state == STATE_READ and c.list != NULL:
        set_deadline(w, c, w.now_ns + WHEEL_TICK_NS)    # its turn comes first
        return
    if c.state == STATE_READ:
        if c.tls != NULL and not c.tls.is_ready:
            c.tls.is_judged = 1
            count(&w.counters[C_TLS_FAILED_SLOW], 1)
            connection_close(w, c, False)
        elif c.has_head_begun:
            count(&w.counters[C_CLOSED_SLOW_HEAD], 1)
            c.arrival_ns = w.now_ns - w.tables.limits.head_timeout_ns
            c.log_origin = NO_ORIGIN
            c.fwd_reason = FWD_NONE
            c.is_head = 0
            c.minor = 1
            release_input(w, c)
            c.head_length = 0
            result = respond_error(w, c, 408, True)
            settle(w, c, result)
        else:
            count(&w.counters[C_CLOSED_IDLE], 1)
            connection_close(w, c, False)
    elif c.state == STATE_WAIT:
        if c.upload == NULL and c.has_ended:
            count(&w.counters[C_CLOSED_BY_VIEWER], 1)
            connection_close(w, c, False)
        elif c.upload == NULL:
            give_up_waiting(w, c, 504)
        elif load_u32(&c.upload.is_full):       # the origin's fault, on whom the control plane has time-outs
            set_deadline(w, c, w.now_ns + w.tables.limits.body_timeout_ns)
        else:
            count(&w.counters[C_CLOSED_SLOW_BODY], 1)
            give_up_waiting(w, c, 408)
    elif c.state == STATE_LINGER:
        connection_close(w, c, False)
    elif c.state == STATE_TUNNEL:
        on_tunnel_deadline(w, c)
    elif c.state == STATE_SEND:
        # Only a full socket is the viewer's fault; a body that isn't there yet has the control plane's time-outs.
        if c.stream != NULL and reader_is_silent(w, c):
            count(&w.counters[C_RELAY_SILENT], 1)
            connection_close(w, c, False)
            return
        if c.carrier != NULL:
            c.is_blocked = stream_is_stalled(c)
        if c.is_blocked and c.list == NULL and c.window_bytes < w.tables.limits.send_window_bytes:
            count(&w.counters[C_CLOSED_SLOW_READER], 1)
            if c.carrier != NULL:
                count(&w.counters[C_H2_STALLED], 1)
            connection_close(w, c, True)
            return
        c.window_bytes = 0
        set_deadline(w, c, w.now_ns + w.tables.limits.send_window_ns)
