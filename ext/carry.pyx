# Tunnels under way, behind carry.pxd: bytes both ways through the worker's own buffer, ends and resets passed on, Close
# frames at frame boundaries. An idle tunnel has no buffer. Nothing is parsed but WebSocket frame headers (frames.pyx).
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint8_t, uint64_t, uintptr_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memmove

from ext.access cimport access_is_on, access_write
from ext.atomics cimport *
from ext.connection cimport *
from ext.frames cimport follow_frame, is_at_boundary
from ext.h2_tunnel cimport stream_give, stream_shut, stream_take, stream_tunnel_begin
from ext.layout cimport *
from ext.respond cimport AS_PASSED
from ext.siphash cimport hash_bytes
from ext.sockets cimport MSG_DONTWAIT, MSG_NOSIGNAL, SHUT_WR, recv, send, shutdown
from ext.transport cimport transport_read, transport_shut, transport_write
from ext.tunnel cimport CLOSE_DUE, CLOSE_NOT, CLOSE_SENT, CLOSE_WANTED, Tunnel, Way, way_release

cdef extern from "<sys/socket.h>" nogil:
    enum: SOL_SOCKET
    enum: SO_KEEPALIVE
    int setsockopt(int, int, int, const void*, unsigned int)

cdef extern from "<netinet/in.h>" nogil:
    enum: IPPROTO_TCP

cdef extern from "<netinet/tcp.h>" nogil:
    enum: TCP_KEEPIDLE
    enum: TCP_KEEPINTVL
    enum: TCP_KEEPCNT
    enum: TCP_USER_TIMEOUT
    enum: TCP_NODELAY

cdef extern from "<sys/epoll.h>" nogil:
    enum: EPOLLIN
    enum: EPOLLOUT
    enum: EPOLLERR
    enum: EPOLLHUP
    enum: EPOLLRDHUP
    enum: EPOLLET
    enum: EPOLL_CTL_ADD
    ctypedef union epoll_data:
        void* ptr
    cdef struct epoll_event:
        uint32_t events
        epoll_data data
    int epoll_ctl(int, int, int, epoll_event*)

cdef enum:
    CARRY_BYTES = 16384         # of one read, so what waits for a full socket
    TURN_BYTES = 262144         # of one way of a tunnel, before the others have their turn
    GOODBYE_NS = 2000000000     # from our Close to the end, whatever the peers do
    LATE_NS = 1000000000        # a tunnel that opens while we drain
    STEP_NS = 20000000          # between two Close frames of a drain, where there is time for it

cdef enum:                      # what `move` did
    OPEN = 0
    MORE = 1                    # its share of the turn is used up
    GONE = 2


# --- memory -----------------------------------------------------------------------------------------------------------

cdef bint keep(Worker* w, Tunnel* t, Way* way, const uint8_t* data, uint32_t n) noexcept nogil:
    """Puts bytes behind those that wait. False: no memory."""
    cdef uint32_t rest = way.length - way.offset
    cdef uint32_t capacity
    cdef uint8_t* room
    if rest + n > way.capacity:
        capacity = (rest + n + 511) & ~<uint32_t>511
        if not charge(w, capacity):
            return False
        room = <uint8_t*>malloc(capacity)
        if room == NULL:
            discharge(w, capacity)
            return False
        if rest:
            memcpy(room, way.pending + way.offset, rest)
        drop(w, t, way)
        t.charged += capacity
        way.pending = room
        way.capacity = capacity
    elif rest:
        memmove(way.pending, way.pending + way.offset, rest)
    memcpy(way.pending + rest, data, n)
    way.offset = 0
    way.length = rest + n
    return True


cdef void drop(Worker* w, Tunnel* t, Way* way) noexcept nogil:
    discharge(w, way.capacity)
    t.charged -= way.capacity
    way_release(way)


# --- WebSocket --------------------------------------------------------------------------------------------------------

cdef uint32_t follow(Tunnel* t, Way* way, const uint8_t* data, uint32_t n) noexcept nogil:
    """Follows the frames in `data`. Returns how much of it goes on: all, nothing after our Close, and where that is
    wanted, all up to the first boundary."""
    cdef uint32_t used = 0
    cdef uint32_t going = 0 if way.is_dead or way.closing == CLOSE_SENT else n
    if not t.is_websocket:
        return going
    while used < n:
        used += <uint32_t>follow_frame(&way.frames, data + used, n - used)
        if way.closing == CLOSE_WANTED and is_at_boundary(&way.frames):
            way.closing = CLOSE_DUE
            going = used
    return going


cdef bint say_goodbye(Worker* w, Tunnel* t, Way* way) noexcept nogil:
    """Close 1001, going away (RFC 6455 section 7.4.1); towards the origin masked, as a client's (section 5.3)."""
    cdef uint8_t frame[8]
    cdef uint64_t key
    cdef uintptr_t salt[2]
    way.closing = CLOSE_SENT
    frame[0] = 0x88
    if way == &t.to_viewer:
        frame[1] = 2
        frame[2] = 0x03
        frame[3] = 0xe9
        return keep(w, t, way, frame, 4)
    salt[0] = <uintptr_t>t
    salt[1] = <uintptr_t>w.now_ns
    key = hash_bytes(w.shared.addresses.secret, <const uint8_t*>salt, sizeof(salt))
    frame[1] = 0x82
    memcpy(frame + 2, &key, 4)
    frame[6] = 0x03 ^ frame[2]
    frame[7] = 0xe9 ^ frame[3]
    return keep(w, t, way, frame, 8)


cdef void begin_closing(Worker* w, Connection* c) noexcept nogil:
    """Tells both sides to go where the protocol has words for it; from then on nothing but our Close goes on."""
    cdef Tunnel* t = c.tunnel
    if not t.is_websocket:
        connection_close(w, c, w.is_draining != 0)
        return
    t.is_closing = 1
    # A side that has had a Close must not get another one (RFC 6455 section 5.5.1).
    t.to_viewer.closing = CLOSE_SENT if t.to_viewer.frames.has_closed else CLOSE_WANTED
    t.to_origin.closing = CLOSE_SENT if t.to_origin.frames.has_closed else CLOSE_WANTED
    set_deadline(w, c, w.now_ns + GOODBYE_NS)
    carry(w, c)


cdef void spread_closing(Worker* w, int64_t period_ns) noexcept nogil:
    """A drain: WebSocket tunnels are closed one after the other over most of it, so that their viewers don't come back
    in one instant; other tunnels at its end."""
    cdef Connection* c = w.all
    cdef int64_t n = 0, i = 0, step_ns
    while c != NULL:
        n += c.state == STATE_TUNNEL
        c = c.next_all
    step_ns = period_ns * 4 // 5 // n if n else 0
    if step_ns > STEP_NS:
        step_ns = STEP_NS
    c = w.all
    while c != NULL:
        if c.state == STATE_TUNNEL and not c.tunnel.is_closing:
            clear_deadline(w, c)
            set_deadline(w, c, w.now_ns + (i * step_ns if c.tunnel.is_websocket else period_ns * 9 // 10))
            i += 1
        c = c.next_all


# --- moving bytes -----------------------------------------------------------------------------------------------------

cdef void count_bytes(Worker* w, Tunnel* t, Way* way, uint64_t n) noexcept nogil:
    if way == &t.to_viewer:
        count(&w.counters[C_TUNNEL_BYTES_TO_VIEWERS], n)
        count(&origin_row(w, t.origin)[ORIGIN_TUNNEL_BYTES_TO_VIEWERS], n)
    else:
        count(&w.counters[C_TUNNEL_BYTES_TO_ORIGINS], n)
        count(&origin_row(w, t.origin)[ORIGIN_TUNNEL_BYTES_TO_ORIGIN], n)


cdef void sink_broke(Worker* w, Connection* c, Way* way) noexcept nogil:
    """A side takes nothing any more: what is for it is thrown away. What it sent before is still in its socket, and
    what comes after that says whether it ended in good order or by a reset, which is passed on (see `move`)."""
    cdef Tunnel* t = c.tunnel
    cdef Way* back = &t.to_origin if way == &t.to_viewer else &t.to_viewer
    drop(w, t, way)
    way.is_dead = 1
    if back.has_ended:
        hurry(w, c)
        return
    back.is_readable = 1
    back.may_end = 1
    if c.list == NULL:
        list_append(&w.ready, c)


cdef void hurry(Worker* w, Connection* c) noexcept nogil:
    """One side is gone altogether; the other has a moment to read what was passed on, and to close."""
    clear_deadline(w, c)
    set_deadline(w, c, w.now_ns + GOODBYE_NS)


cdef inline ssize_t take(Worker* w, Connection* c, Way* way) noexcept nogil:
    if way == &c.tunnel.to_viewer:
        return recv(c.tunnel.fd, w.input, CARRY_BYTES, MSG_DONTWAIT)
    if c.carrier != NULL:
        return stream_take(w, c, w.input, CARRY_BYTES)
    return transport_read(w, c, w.input, CARRY_BYTES)


cdef inline ssize_t give(Worker* w, Connection* c, Way* way, const uint8_t* data, uint32_t n) noexcept nogil:
    if way == &c.tunnel.to_viewer:
        return transport_write(w, c, data, n) if c.carrier == NULL else stream_give(w, c, data, n)
    return send(c.tunnel.fd, data, n, MSG_NOSIGNAL | MSG_DONTWAIT)


cdef int move(Worker* w, Connection* c, Way* way) noexcept nogil:
    """One way of a tunnel: what waits first, then what is there to read, until a socket is full or empty."""
    cdef Tunnel* t = c.tunnel
    cdef ssize_t n, sent
    cdef uint32_t going, spent = 0
    while True:
        while way.offset < way.length:
            n = give(w, c, way, way.pending + way.offset, way.length - way.offset)
            if n < 0:
                if errno == EINTR:
                    continue
                if errno == EAGAIN:
                    return OPEN
                sink_broke(w, c, way)
                break
            way.offset += <uint32_t>n
            count_bytes(w, t, way, <uint64_t>n)
        if way.pending != NULL:
            drop(w, t, way)
        if way.closing == CLOSE_DUE or (way.closing == CLOSE_WANTED and is_at_boundary(&way.frames)):
            if not say_goodbye(w, t, way):
                count(&w.counters[C_CLOSED_MEMORY], 1)
                connection_close(w, c, True)
                return GONE
            continue
        if way.has_ended:
            if not way.is_shut:
                if not way.is_dead and way == &t.to_viewer and c.carrier != NULL:
                    stream_shut(w, c)
                elif not way.is_dead and way == &t.to_viewer:
                    transport_shut(w, c)
                elif not way.is_dead:
                    shutdown(t.fd, SHUT_WR)
                way.is_shut = 1
            return OPEN
        if not way.is_readable:
            return OPEN
        if spent >= TURN_BYTES:
            return MORE
        n = take(w, c, way)
        if n < 0:
            if errno == EINTR:
                continue
            if errno == EAGAIN:
                way.is_readable = 0
                return OPEN
            connection_close(w, c, True)
            return GONE
        if n == 0:
            way.has_ended = 1
            way.is_readable = 0
            if t.to_viewer.is_dead or t.to_origin.is_dead:
                hurry(w, c)
            continue
        # Over TLS the end may be told before the socket's own is.
        if n < CARRY_BYTES and not way.may_end and not (way == &t.to_origin and c.has_ended):
            way.is_readable = 0
        spent += <uint32_t>n
        if t.idle_ns and not t.is_closing and not w.is_draining:
            set_deadline(w, c, w.now_ns + t.idle_ns)
        going = follow(t, way, w.input, <uint32_t>n)
        sent = 0
        while going:
            sent = give(w, c, way, w.input, going)
            if sent >= 0 or errno != EINTR:
                break
        if sent < 0:
            if errno != EAGAIN:
                sink_broke(w, c, way)
                continue
            sent = 0
        if sent:
            count_bytes(w, t, way, <uint64_t>sent)
        if <uint32_t>sent < going:
            if not keep(w, t, way, w.input + sent, going - <uint32_t>sent):
                count(&w.counters[C_CLOSED_MEMORY], 1)
                connection_close(w, c, True)
                return GONE
            return OPEN         # an edge comes when there is room


cdef void finish(Worker* w, Connection* c) noexcept nogil:
    """A stream has what waits for it to send yet, and closes when its END_STREAM is out."""
    if c.carrier != NULL:
        stream_shut(w, c)
    else:
        connection_close(w, c, False)


cdef void carry(Worker* w, Connection* c) noexcept nogil:
    """A tunnel's turn."""
    cdef Tunnel* t = c.tunnel
    cdef int down, up
    down = move(w, c, &t.to_viewer)
    if down == GONE:
        return
    up = move(w, c, &t.to_origin)
    if up == GONE:
        return
    if t.to_viewer.is_shut and t.to_origin.is_shut:
        finish(w, c)
    elif t.is_closing and t.to_viewer.closing == CLOSE_SENT and t.to_viewer.pending == NULL and t.to_origin.frames.has_closed:
        finish(w, c)            # the server closes first (RFC 6455 section 7.1.1)
    elif (down == MORE or up == MORE) and c.list == NULL:
        list_append(&w.ready, c)


# --- what happens to a tunnel -----------------------------------------------------------------------------------------

cdef void watch_peer(int fd) noexcept nogil:
    """Peers that died without a word are found: idle ones after two minutes, those that acknowledge nothing or take
    nothing after five. A local socket has none of these options."""
    cdef int on = 1, idle_s = 60, interval_s = 15, n = 4, timeout_ms = 300000
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on))
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on))
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof(idle_s))
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval_s, sizeof(interval_s))
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &n, sizeof(n))
    setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &timeout_ms, sizeof(timeout_ms))


cdef void tunnel_begin(Worker* w, Connection* c) noexcept nogil:
    """The control plane's answer is here: c.tunnel."""
    cdef Tunnel* t = c.tunnel
    cdef epoll_event event
    cdef uint64_t bytes = sizeof(Tunnel) + t.to_viewer.capacity
    cdef uint32_t first = c.buffer_length - c.head_length
    count(&w.counters[C_REQUESTS], 1)
    count(&w.counters[C_PASSED], 1)
    count(&w.counters[C_TUNNELS_OPENED], 1)
    count(&origin_row(w, t.origin)[0], 1)
    c.state = STATE_TUNNEL
    clear_deadline(w, c)
    if not charge(w, bytes):
        count(&w.counters[C_CLOSED_MEMORY], 1)
        connection_close(w, c, True)
        return
    t.charged = bytes
    # What the viewer sent behind its request is the new protocol's.
    if first:
        follow(t, &t.to_origin, c.buffer + c.head_length, first)
        if not keep(w, t, &t.to_origin, c.buffer + c.head_length, first):
            count(&w.counters[C_CLOSED_MEMORY], 1)
            connection_close(w, c, True)
            return
    if access_is_on(w):         # at its beginning: until its end the request would take memory
        access_write(w, c, 101, AS_PASSED, t.origin, 0, False)
    release_input(w, c)
    release_output(w, c)
    c.head_length = 0
    c.n_tries = 0
    t.is_what = IS_TUNNEL
    t.connection = c
    t.to_origin.is_readable = c.is_readable
    t.to_origin.may_end = c.has_ended
    if c.carrier != NULL and stream_tunnel_begin(w, c, first) == CLOSED:
        return
    if c.carrier == NULL:
        watch_peer(c.fd)
    watch_peer(t.fd)
    event.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET
    event.data.ptr = t
    if epoll_ctl(w.epoll, EPOLL_CTL_ADD, t.fd, &event) < 0:
        connection_close(w, c, True)
        return
    t.is_watched = 1
    if w.is_draining:
        set_deadline(w, c, w.now_ns + LATE_NS)
    elif t.idle_ns:
        set_deadline(w, c, w.now_ns + t.idle_ns)
    carry(w, c)


cdef void on_tunnel_event(Worker* w, Connection* c, bint is_origin, uint32_t events) noexcept nogil:
    cdef Tunnel* t = c.tunnel
    cdef Way* way = &t.to_viewer if is_origin else &t.to_origin
    cdef Way* back = &t.to_origin if is_origin else &t.to_viewer
    if events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR) and not way.has_ended:
        way.is_readable = 1
    if events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR):
        way.may_end = 1
    if events & EPOLLERR and not back.is_dead:
        sink_broke(w, c, back)
    carry(w, c)


cdef void on_tunnel_deadline(Worker* w, Connection* c) noexcept nogil:
    cdef Tunnel* t = c.tunnel
    if t.is_closing:
        connection_close(w, c, t.to_viewer.closing != CLOSE_SENT or t.to_viewer.pending != NULL)
    elif t.to_viewer.is_dead or t.to_origin.is_dead:
        connection_close(w, c, False)
    else:
        if not w.is_draining:
            count(&w.counters[C_TUNNELS_ENDED_IDLE], 1)
        begin_closing(w, c)
