# Frames that viewers send, behind h2_requests.pxd: what floods cost, and field blocks and bodies on their way to being a
# request. Answers nothing itself; nghttp2 has checked each frame.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t, uintptr_t

from ext.access cimport access_serving
from ext.access_ring cimport NO_ORIGIN
from ext.atomics cimport *
from ext.connection cimport *
from ext.h2 cimport EARLY_PRIORITIES, MAX_STREAMS, engine_of, schedule, session_of
from ext.h2_head cimport Block, block_add, block_begin, block_end
from ext.h2_tunnel cimport stream_keep, stream_tunnel_data
from ext.http_head cimport parse_request
from ext.layout cimport *
from ext.nghttp2 cimport *
from ext.receive cimport end_body, take_data
from ext.respond cimport respond_error
from ext.serve cimport handle
from ext.session cimport give_up_waiting, settle
from ext.siphash cimport hash_bytes
from ext.upload cimport Upload, upload_waits

cdef enum:
    FRAMES_BURST = 2000         # frames that ask for nothing and bring nothing
    FRAMES_A_SECOND = 200
    FRAMES_A_DATA = 4           # what a DATA frame of ours makes up for: its viewer may well answer it by two windows
    UNKNOWN_BYTES = 131072      # of frames of types that we don't know (RFC 9113 section 5.5: they are passed over)
    UNKNOWN_A_SECOND = 16384
    RESETS_BURST = 200          # two full sets of streams, as a player that seeks twice takes back
    RESETS_A_SECOND = 20        # nghttp2's own limit, and that of others, is 33

cdef const char* BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"


# --- floods -----------------------------------------------------------------------------------------------------------
# Frames that ask for nothing cost a viewer nothing and us a little; each has a budget that time and answers refill.

cdef void budget_begin(Session* s) noexcept nogil:
    s.fault = -1
    s.frames_left = FRAMES_BURST
    s.resets_left = RESETS_BURST
    s.refilled_ns = s.worker.now_ns


cdef void refill(Session* s) noexcept nogil:
    cdef int64_t passed_ns = s.worker.now_ns - s.refilled_ns
    cdef uint64_t frames, resets
    if passed_ns < 100000000:
        return
    s.refilled_ns = s.worker.now_ns
    if passed_ns > 60000000000LL:
        passed_ns = 60000000000LL
    frames = s.frames_left + <uint64_t>passed_ns * FRAMES_A_SECOND // 1000000000
    resets = s.resets_left + <uint64_t>passed_ns * RESETS_A_SECOND // 1000000000
    s.unknown -= <int64_t>(<uint64_t>passed_ns * UNKNOWN_A_SECOND // 1000000000)
    if s.unknown < 0:
        s.unknown = 0
    s.frames_left = <uint32_t>(frames if frames < FRAMES_BURST else FRAMES_BURST)
    s.resets_left = <uint32_t>(resets if resets < RESETS_BURST else RESETS_BURST)


cdef bint spend(Session* s, uint32_t cost, int32_t counter) noexcept nogil:
    """False: there have been too many, which is what `counter` will count."""
    if s.frames_left < cost:
        refill(s)
    if s.frames_left < cost:
        if s.fault < 0:
            s.fault = counter
        return False
    s.frames_left -= cost
    return True


cdef void spend_reset(Session* s) noexcept nogil:
    """A stream has ended before its answer, by whoever's RST_STREAM: a fault that makes us reset costs as much as a
    reset (CVE-2023-44487, CVE-2025-8671)."""
    refill(s)
    if s.resets_left:
        s.resets_left -= 1
    elif s.fault < 0:
        s.fault = C_H2_FLOOD_RESETS


cdef void earn(Session* s) noexcept nogil:
    """A DATA frame of ours is out."""
    if s.frames_left < FRAMES_BURST - FRAMES_A_DATA:
        s.frames_left += FRAMES_A_DATA


cdef void spend_unknown(Session* s) noexcept nogil:
    """After a read: s.unknown says how much of all input was in frames of no use."""
    if s.unknown > UNKNOWN_BYTES:
        refill(s)
    if s.unknown > UNKNOWN_BYTES and s.fault < 0:
        s.fault = C_H2_FLOOD_UNKNOWN


cdef int on_begin_frame(nghttp2_session* engine, const nghttp2_frame_hd* head, void* user) noexcept nogil:
    cdef Session* s = <Session*>user
    cdef bint may = True
    if s.is_gone or s.fault >= 0:
        return NGHTTP2_ERR_CALLBACK_FAILURE
    s.unknown -= 9 + <int64_t>head.length
    if head.type == NGHTTP2_DATA:
        may = head.length > 0 or (head.flags & NGHTTP2_FLAG_END_STREAM) != 0 or spend(s, 1, C_H2_FLOOD_EMPTY_DATA)
    elif head.type == NGHTTP2_HEADERS:
        may = s.n_streams < MAX_STREAMS or spend(s, 4, C_H2_FLOOD_RESETS)   # refused: RST_STREAM goes back
    elif head.type == NGHTTP2_WINDOW_UPDATE:
        may = spend(s, 1, C_H2_FLOOD_WINDOWS)
    elif head.type == NGHTTP2_PING:
        may = spend(s, 4, C_H2_FLOOD_PINGS)
    elif head.type == NGHTTP2_SETTINGS:
        may = spend(s, 16, C_H2_FLOOD_SETTINGS)
    elif head.type == NGHTTP2_PRIORITY or head.type == NGHTTP2_PRIORITY_UPDATE:
        may = spend(s, 1, C_H2_FLOOD_PRIORITIES)
    elif head.type == NGHTTP2_CONTINUATION:
        may = spend(s, 8, C_H2_FLOOD_CONTINUATIONS)
    return 0 if may else NGHTTP2_ERR_CALLBACK_FAILURE


# --- requests ---------------------------------------------------------------------------------------------------------

cdef int on_begin_headers(nghttp2_session* engine, const nghttp2_frame* frame, void* user) noexcept nogil:
    cdef Session* s = <Session*>user
    cdef Worker* w = s.worker
    cdef Connection* c
    cdef Block* b = &engine_of(w).block
    b.stream_id = 0
    if frame.hd.type != NGHTTP2_HEADERS or frame.headers.cat != NGHTTP2_HCAT_REQUEST:
        return 0                # trailers, which are dropped
    c = connection_new(w, s.carrier)
    if c == NULL:
        count(&w.counters[C_CLOSED_MEMORY], 1)
        return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE
    c.stream_id = frame.hd.stream_id
    c.next_stream = s.streams
    if s.streams != NULL:
        s.streams.previous_stream = c
    s.streams = c
    s.n_streams += 1
    nghttp2_session_set_stream_user_data(engine, frame.hd.stream_id, c)
    count(&w.counters[C_H2_STREAMS], 1)
    block_begin(b, frame.hd.stream_id)
    return 0


cdef int on_header(nghttp2_session* engine, const nghttp2_frame* frame, const uint8_t* name, size_t n, const uint8_t* value,
                   size_t value_length, uint8_t flags, void* user) noexcept nogil:
    cdef Session* s = <Session*>user
    cdef Block* b = &engine_of(s.worker).block
    if b.stream_id != frame.hd.stream_id:
        return 0
    if block_add(b, name, n, value, value_length):
        return 0
    count(&s.worker.counters[C_H2_FLOOD_FIELDS], 1)
    b.stream_id = 0
    return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE


cdef int on_invalid_header(nghttp2_session* engine, const nghttp2_frame* frame, const uint8_t* name, size_t n,
                           const uint8_t* value, size_t value_length, uint8_t flags, void* user) noexcept nogil:
    """nghttp2 would leave the field out; whoever made it wanted two readers to differ."""
    engine_of((<Session*>user).worker).block.stream_id = 0
    return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE


cdef void rank(Session* s, int32_t stream_id, bint has_priority) noexcept nogil:
    """Who says nothing of priorities (RFC 9218) takes turns with the rest: the default there, one after the other, would
    hold a playlist back behind a film of a viewer who has never heard of it."""
    cdef nghttp2_extpri priority
    cdef uint32_t i
    for i in range(s.n_early):
        if s.early[i] == stream_id:
            s.n_early -= 1
            s.early[i] = s.early[s.n_early]
            return
    if has_priority:
        return
    priority.urgency = 3
    priority.inc = 1
    nghttp2_session_change_extpri_stream_priority(s.engine, stream_id, &priority, 0)


cdef void draw_key(Worker* w, Connection* c, char* key) noexcept nogil:
    """A handshake's key towards the origin (RFC 6455 section 4.1: 16 bytes, drawn for each) as 24 characters."""
    cdef uint64_t salt[4]
    cdef uint64_t drawn
    cdef uint32_t i
    salt[0] = <uint64_t>w.now_ns
    salt[1] = <uint64_t><uintptr_t>c
    salt[2] = <uint64_t>c.stream_id
    for i in range(22):
        if i % 10 == 0:
            salt[3] = i
            drawn = hash_bytes(w.shared.addresses.secret, <const uint8_t*>salt, sizeof(salt))
        key[i] = BASE64[drawn & (63 if i < 21 else 48)]     # the last one has two bits of the 128 only
        drawn >>= 6
    key[22] = key[23] = c"="


cdef void begin_request(Session* s, Connection* c, bint is_whole) noexcept nogil:
    """Its fields are complete: from here on it is a request like any other."""
    cdef Worker* w = s.worker
    cdef Block* b = &engine_of(w).block
    cdef int length, result
    cdef uint8_t* data
    cdef bint has_priority = b.has_priority
    cdef char key[24]
    if b.is_websocket or not b.has_line:
        draw_key(w, c, key)
    length = block_end(b, not is_whole, key)
    c.is_extended = b.is_websocket
    data = b.text + b.start
    b.stream_id = 0
    c.has_whole_request = is_whole
    rank(s, c.stream_id, has_priority)
    w.origin = NULL
    if length > 0:
        result = parse_request(data, length, &w.head)
        # More or less than one request: a field has ended the head.
        length = result if result == length or result < 0 else -400
    if length < 0:
        c.minor = 1
        c.arrival_ns = w.now_ns
        c.log_origin = NO_ORIGIN
        settle(w, c, respond_error(w, c, <uint32_t>-length, True))
        return
    access_serving(w, c, data)
    result = handle(w, c, data, <uint32_t>length)
    access_serving(w, NULL, NULL)
    if result != CLOSED:
        s.carrier.zone = c.zone
        s.carrier.zone_generation = c.zone_generation
    settle(w, c, result)


cdef void body_ended(Worker* w, Connection* c) noexcept nogil:
    c.has_whole_request = 1
    if c.upload != NULL:
        end_body(w, c)
    elif c.state == STATE_TUNNEL:
        stream_tunnel_data(w, c, True)


cdef int on_frame_recv(nghttp2_session* engine, const nghttp2_frame* frame, void* user) noexcept nogil:
    cdef Session* s = <Session*>user
    cdef Connection* c
    cdef nghttp2_ext_priority_update* update
    if s.is_gone:
        return NGHTTP2_ERR_CALLBACK_FAILURE
    if frame.hd.type == NGHTTP2_HEADERS and frame.headers.cat == NGHTTP2_HCAT_REQUEST:
        c = <Connection*>nghttp2_session_get_stream_user_data(engine, frame.hd.stream_id)
        if c != NULL and engine_of(s.worker).block.stream_id == frame.hd.stream_id:
            begin_request(s, c, (frame.hd.flags & NGHTTP2_FLAG_END_STREAM) != 0)
    elif frame.hd.type == NGHTTP2_DATA or frame.hd.type == NGHTTP2_HEADERS:
        c = <Connection*>nghttp2_session_get_stream_user_data(engine, frame.hd.stream_id)
        if c != NULL and frame.hd.flags & NGHTTP2_FLAG_END_STREAM:
            body_ended(s.worker, c)
    elif frame.hd.type == NGHTTP2_PRIORITY_UPDATE:
        update = <nghttp2_ext_priority_update*>frame.ext.payload
        if nghttp2_session_get_stream_user_data(engine, update.stream_id) == NULL and s.n_early < EARLY_PRIORITIES:
            s.early[s.n_early] = update.stream_id
            s.n_early += 1
    return 0


cdef int on_data_chunk(nghttp2_session* engine, uint8_t flags, int32_t stream_id, const uint8_t* data, size_t n, void* user) noexcept nogil:
    cdef Session* s = <Session*>user
    cdef Worker* w = s.worker
    cdef Connection* c = <Connection*>nghttp2_session_get_stream_user_data(engine, stream_id)
    # Each stream's own window holds it back; this one would let one that is held back hold all.
    nghttp2_session_consume_connection(engine, n)
    if c == NULL:
        return 0
    if c.upload != NULL:
        if take_data(w, c, data, n) < 0:
            if c.state == STATE_WAIT:
                give_up_waiting(w, c, 413)
            else:
                connection_close(w, c, True)
            return 0
        stream_credit(w, c)
    elif c.state == STATE_WAIT or c.state == STATE_ANSWERED or c.state == STATE_TUNNEL:
        # A tunnel's; or it isn't known yet whether the viewer may send it, and it waits behind the head as in HTTP/1.1.
        if not stream_keep(w, c, data, n):
            count(&w.counters[C_CLOSED_MEMORY], 1)
            connection_close(w, c, True)
        elif c.state == STATE_TUNNEL:
            stream_tunnel_data(w, c, False)
    return 0


cdef void stream_credit(Worker* w, Connection* c) noexcept nogil:
    """Opens the viewer's window again by what the origin has taken."""
    cdef Upload* u = c.upload
    cdef Session* s = session_of(c.carrier)
    cdef int64_t taken
    if u == NULL:
        return
    taken = <int64_t>u.n_received if load_u32(&u.is_dropped) else load_i64_seq(<int64_t*>&u.tail)
    if taken > c.credited:
        nghttp2_session_consume_stream(s.engine, c.stream_id, <size_t>(taken - c.credited))
        c.credited = taken
        schedule(w, c.carrier)
    if not load_u32(&u.is_dropped):
        # "There is enough room" is less than half a window of unread bytes: then the viewer has the other half still.
        upload_waits(u)
