# Connections behind connection.pxd: lists, the timer wheel, buffers, and `pump`, the only place that writes bodies.
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport INT64_MAX, uintptr_t
from libc.stdio cimport snprintf
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memmove, memset

from ext.access cimport access_end
from ext.addresses cimport address_leave
from ext.atomics cimport *
from ext.exchange cimport EXCHANGE_WANT, RING_BODY, RING_CANCEL, RING_NUDGE, RING_REQUEST, ring_is_half_full, ring_push, ring_push_body
from ext.layout cimport *
from ext.multipart cimport part_text
from ext.body cimport body_at, body_passed, body_wait
from ext.store cimport OBJECT_FAILED, OBJECT_FILLING, Directory, Store
from ext.transport cimport iovec, msghdr, transport_writev
from ext.tunnel cimport tunnel_free, tunnel_shut
from ext.upload cimport UPLOAD_ABORTED, upload_release

cdef extern from "<sys/socket.h>" nogil:
    enum: SOL_SOCKET
    enum: SO_LINGER
    cdef struct linger:
        int l_onoff
        int l_linger
    int setsockopt(int, int, int, const void*, unsigned int)

cdef extern from "<sys/epoll.h>" nogil:
    enum: EPOLL_CTL_DEL
    cdef struct epoll_event:
        uint32_t events
    int epoll_ctl(int, int, int, epoll_event*)

cdef extern from "<unistd.h>" nogil:
    int close(int)


cdef const char* CHUNK_END = b"\r\n"


# --- lists ------------------------------------------------------------------------------------------------------------

cdef void list_append(List* list, Connection* c) noexcept nogil:
    c.list = list
    c.next = NULL
    c.previous = <Connection*>list.last
    if list.last != NULL:
        (<Connection*>list.last).next = c
    else:
        list.first = c
    list.last = c
    list.n += 1


cdef void list_remove(Connection* c) noexcept nogil:
    cdef List* list = c.list
    if list == NULL:
        return
    if c.previous != NULL:
        c.previous.next = c.next
    else:
        list.first = c.next
    if c.next != NULL:
        c.next.previous = c.previous
    else:
        list.last = c.previous
    list.n -= 1
    c.list = NULL
    c.next = NULL
    c.previous = NULL


cdef List* waiting_list(Worker* w, Object* object) noexcept nogil:
    return &w.waiting[(<uintptr_t>object >> 6) * 0x9E3779B97F4A7C15ULL >> 54 & (WAIT_BUCKETS - 1)]


# --- the timer wheel --------------------------------------------------------------------------------------------------
# A later deadline only changes the number: the slot is looked at when it comes, and the connection put further on.

cdef void unlink_timer(Worker* w, Connection* c) noexcept nogil:
    if c.timer_slot < 0:
        return
    if c.previous_timer != NULL:
        c.previous_timer.next_timer = c.next_timer
    else:
        w.wheel[c.timer_slot] = c.next_timer
    if c.next_timer != NULL:
        c.next_timer.previous_timer = c.previous_timer
    c.timer_slot = -1


cdef void set_deadline(Worker* w, Connection* c, int64_t deadline_ns) noexcept nogil:
    cdef int64_t tick = deadline_ns // WHEEL_TICK_NS + 1
    cdef bint is_later = c.timer_slot >= 0 and deadline_ns >= c.deadline_ns
    c.deadline_ns = deadline_ns
    if is_later:
        return
    unlink_timer(w, c)
    if tick <= w.wheel_tick:
        tick = w.wheel_tick + 1
    if tick >= w.wheel_tick + WHEEL_SLOTS:
        tick = w.wheel_tick + WHEEL_SLOTS - 1
    c.timer_slot = <int32_t>(tick & (WHEEL_SLOTS - 1))
    c.previous_timer = NULL
    c.next_timer = w.wheel[c.timer_slot]
    if c.next_timer != NULL:
        c.next_timer.previous_timer = c
    w.wheel[c.timer_slot] = c


cdef void clear_deadline(Worker* w, Connection* c) noexcept nogil:
    unlink_timer(w, c)


# --- life -------------------------------------------------------------------------------------------------------------

cdef bint charge(Worker* w, uint64_t bytes) noexcept nogil:
    """Counts `bytes` against the memory limit; False: they would pass it. Objects leave a reserve free, so this comes
    only when connections have used that up; the control plane is told at half, and evicts."""
    cdef Store* store = w.store
    cdef uint64_t sum = add_u64_relaxed(&store.outside, bytes) + bytes + load_u64_relaxed(&store.arena.mapped)
    cdef uint64_t half = store.reserve // 2
    if sum > store.arena.limit:
        add_u64_relaxed(&store.outside, -bytes)
        w.must_ring = 1
        return False
    if sum + half > store.arena.limit and sum - bytes + half <= store.arena.limit:
        w.must_ring = 1
    return True


cdef void discharge(Worker* w, uint64_t bytes) noexcept nogil:
    add_u64_relaxed(&w.store.outside, -bytes)


cdef Connection* connection_new(Worker* w) noexcept nogil:
    """A zeroed connection, linked into the worker's list of all. NULL: no memory."""
    cdef Connection* c
    if not charge(w, sizeof(Connection)):
        return NULL
    c = <Connection*>malloc(sizeof(Connection))
    if c == NULL:
        discharge(w, sizeof(Connection))
        return NULL
    memset(c, 0, sizeof(Connection))
    c.timer_slot = -1
    c.zone = -1
    c.next_all = w.all
    if w.all != NULL:
        w.all.previous_all = c
    w.all = c
    store_u64_relaxed(&w.n_connections, w.n_connections + 1)
    return c


cdef void connection_close(Worker* w, Connection* c, bint abruptly) noexcept nogil:
    """Closes the socket and lets go of everything; the memory is freed when the pass ends, because this pass's events
    may still name it. `abruptly`: by reset, so that nobody takes a cut body for a whole one."""
    cdef linger option
    cdef epoll_event event
    cdef Exchange* e = c.exchange
    if c.state == STATE_CLOSED:
        return
    access_end(w, c, True)
    if abruptly:
        option.l_onoff = 1
        option.l_linger = 0
        setsockopt(c.fd, SOL_SOCKET, SO_LINGER, &option, sizeof(option))
    # Closing alone leaves it in the epoll set while a child that was forked just now still has the descriptor.
    epoll_ctl(w.epoll, EPOLL_CTL_DEL, c.fd, &event)
    close(c.fd)
    unlink_timer(w, c)
    list_remove(c)
    if e != NULL:
        c.exchange = NULL
        if e.waiters.n == 0:
            count(&w.counters[C_EXCHANGES_CANCELLED], 1)
            e.is_joinable = 0
            ring_push(&w.ring, RING_CANCEL, e.index, e.generation, NULL)
            w.must_ring = 1
    if c.upload != NULL:
        count(&w.counters[C_UPLOADS_ABORTED], 1)
        upload_leave(w, c)
    if c.tunnel != NULL:
        discharge(w, c.tunnel.charged)
        tunnel_shut(c.tunnel, w.epoll, abruptly)
        count(&origin_row(w, c.tunnel.origin)[ORIGIN_TUNNELS_ENDED], 1)
        count(&w.counters[C_TUNNELS_CLOSED], 1)
    detach(w, c)
    release_input(w, c)
    release_output(w, c)
    address_leave(&w.shared.addresses, c.address)
    add_u64_relaxed(&w.shared.n_connections, <uint64_t>-1)
    store_u64_relaxed(&w.n_connections, w.n_connections - 1)
    count(&w.counters[C_CONNECTIONS_CLOSED], 1)
    if c.previous_all != NULL:
        c.previous_all.next_all = c.next_all
    else:
        w.all = c.next_all
    if c.next_all != NULL:
        c.next_all.previous_all = c.previous_all
    c.state = STATE_CLOSED
    c.next_all = w.graveyard
    w.graveyard = c


cdef void bury(Worker* w) noexcept nogil:
    """Frees the connections that were closed in this pass; its events are behind."""
    cdef Connection* c
    while w.graveyard != NULL:
        c = w.graveyard
        w.graveyard = c.next_all
        if c.tunnel != NULL:
            tunnel_free(c.tunnel)
        free(c)
        discharge(w, sizeof(Connection))


# --- buffers ----------------------------------------------------------------------------------------------------------

cdef bint keep_input(Worker* w, Connection* c, const uint8_t* data, uint32_t n) noexcept nogil:
    """Keeps exactly these bytes (they may lie in the buffer itself). False: no memory."""
    cdef uint32_t capacity
    cdef uint8_t* buffer
    if n == 0:
        release_input(w, c)
        return True
    if c.buffer != NULL and n <= c.buffer_capacity:
        memmove(c.buffer, data, n)
        c.buffer_length = n
        return True
    capacity = (n + 511) & ~<uint32_t>511
    if not charge(w, capacity):
        return False
    buffer = <uint8_t*>malloc(capacity)
    if buffer == NULL:
        discharge(w, capacity)
        return False
    memcpy(buffer, data, n)
    release_input(w, c)
    c.buffer = buffer
    c.buffer_capacity = capacity
    c.buffer_length = n
    return True


cdef void release_input(Worker* w, Connection* c) noexcept nogil:
    if c.buffer != NULL:
        discharge(w, c.buffer_capacity)
        free(c.buffer)
        c.buffer = NULL
    c.buffer_length = 0
    c.buffer_capacity = 0


cdef Parts* keep_parts(Worker* w, Connection* c, uint32_t type_length) noexcept nogil:
    """Room for the parts of an answer; release_output gives it back. NULL: no memory."""
    cdef uint32_t size = <uint32_t>sizeof(Parts) + type_length
    if not charge(w, size):
        return NULL
    c.parts = <Parts*>malloc(size)
    if c.parts == NULL:
        discharge(w, size)
        return NULL
    memset(c.parts, 0, sizeof(Parts))
    c.parts.size = size
    c.parts.type_length = type_length
    return c.parts


cdef void release_output(Worker* w, Connection* c) noexcept nogil:
    if c.parts != NULL:
        discharge(w, c.parts.size)
        free(c.parts)
        c.parts = NULL
    if c.out != NULL:
        discharge(w, c.out_capacity)
        free(c.out)
        c.out = NULL
    c.out_offset = 0
    c.out_length = 0
    c.out_capacity = 0


cdef bint keep_output(Worker* w, Connection* c, const uint8_t* data, uint32_t n) noexcept nogil:
    """Queues bytes before the body. False: no memory."""
    cdef uint32_t rest = c.out_length - c.out_offset
    cdef uint32_t capacity
    cdef uint8_t* out
    if rest + n > c.out_capacity:
        capacity = (rest + n + 255) & ~<uint32_t>255
        if not charge(w, capacity):
            return False
        out = <uint8_t*>malloc(capacity)
        if out == NULL:
            discharge(w, capacity)
            return False
        if rest:
            memcpy(out, c.out + c.out_offset, rest)
        discharge(w, c.out_capacity)
        free(c.out)
        c.out = out
        c.out_capacity = capacity
    elif rest:
        memmove(c.out, c.out + c.out_offset, rest)
    memcpy(c.out + rest, data, n)
    c.out_offset = 0
    c.out_length = rest + n
    return True


cdef void attach(Connection* c, Object* object) noexcept nogil:
    """Called while the object can't go: within the pass that found it, or under another reference."""
    add_u64(&object.refs, 1)
    add_u32(&object.readers, 1)
    c.object = object


cdef void detach(Worker* w, Connection* c) noexcept nogil:
    cdef Object* object = c.object
    if object == NULL:
        return
    c.object = NULL
    let_go(w, object)


cdef void let_go(Worker* w, Object* object) noexcept nogil:
    """The other half of attach. The object may be gone when this returns."""
    if add_u32(&object.readers, <uint32_t>-1) == 1 and load_u32(&object.flags) & OBJECT_FILLING:
        nudge(w, object)
    add_u64(&object.refs, <uint64_t>-1)


cdef void nudge(Worker* w, Object* object) noexcept nogil:
    if ring_is_half_full(&w.ring) or exchange_u32(&object.nudged, 1):
        return                  # requests and cancellations need the other half
    add_u64(&object.refs, 1)
    if ring_push(&w.ring, RING_NUDGE, 0, 0, object):
        w.must_ring = 1
    else:                       # the control plane also looks at its fills by a timer
        add_u64(&object.refs, <uint64_t>-1)
        exchange_u32(&object.nudged, 0)


# --- exchanges --------------------------------------------------------------------------------------------------------

cdef Exchange* exchange_take(Worker* w, uint32_t bytes) noexcept nogil:
    """A free slot with room for `bytes`; NULL: none, or no memory."""
    cdef Exchange* e
    cdef uint8_t* room
    cdef uint32_t index, generation
    if w.n_free_exchanges == 0:
        return NULL
    if not charge(w, bytes):
        return NULL
    room = <uint8_t*>malloc(bytes)
    if room == NULL:
        discharge(w, bytes)
        return NULL
    w.n_free_exchanges -= 1
    index = w.free_exchanges[w.n_free_exchanges]
    e = &w.exchanges[index]
    generation = e.generation + 1
    memset(e, 0, sizeof(Exchange))
    e.index = index
    e.generation = generation
    e.worker = w.index
    e.bytes = room
    e.bytes_size = bytes
    e.range_first = -1
    e.range_last = -1
    e.tables_generation = w.tables.generation
    return e


cdef void exchange_give(Worker* w, Exchange* e) noexcept nogil:
    discharge(w, e.bytes_size)
    free(e.bytes)
    e.bytes = NULL
    if e.upload != NULL:
        upload_release(e.upload)
        e.upload = NULL
    if e.object != NULL:
        add_u64(&e.object.refs, <uint64_t>-1)
        e.object = NULL
    e.is_free = 1
    w.free_exchanges[w.n_free_exchanges] = e.index
    w.n_free_exchanges += 1


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


cdef bint ask_slice(Worker* w, Connection* c) noexcept nogil:
    """Asks the control plane for the slice that a reader is at, unless somebody has. False: it can't be asked for."""
    cdef Object* object = c.object
    cdef Directory* directory = <Directory*>load_ptr(<void**>&object.directory)
    cdef uint64_t index = <uint64_t>c.offset // w.store.slice_bytes
    cdef Exchange* e
    if index >= directory.n or exchange_u32(&directory.slices[index].wanted, 1):
        return True
    e = exchange_take(w, c.head_length) if c.buffer != NULL else NULL
    if e == NULL:
        count(&w.counters[C_EXCHANGES_EXHAUSTED], 1)
        exchange_u32(&directory.slices[index].wanted, 0)
        return False
    memcpy(e.bytes, c.buffer, c.head_length)
    e.head_length = c.head_length
    e.kind = EXCHANGE_WANT
    e.origin = object.origin
    e.listener = c.listener
    e.zone = c.zone
    e.arrival_ns = w.now_ns
    e.offset = c.offset
    e.range_first = c.offset
    e.range_last = c.end - 1
    e.object = object
    add_u64(&object.refs, 1)
    count(&w.counters[C_SLICES_WANTED], 1)
    ring_push(&w.ring, RING_REQUEST, e.index, e.generation, NULL)
    w.must_ring = 1
    return True


# --- writing ----------------------------------------------------------------------------------------------------------

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
    cdef uint64_t n, head_bytes, body_bytes, tail, budget = PUMP_BYTES
    cdef bint ends_chunk
    cdef int64_t offset, end, total
    cdef uint8_t* data
    cdef ssize_t written
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
            count(&w.counters[C_CLOSED_BY_VIEWER], 1)
            connection_close(w, c, False)
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
        count(&w.counters[C_BYTES_TO_VIEWERS], n)
        if c.object != NULL:
            count(&origin_row(w, c.object.origin)[2], n)
            body_passed(w.store, c.object, c.offset - <int64_t>n, c.offset)
        if c.object != NULL and load_u32(&c.object.flags) & OBJECT_FILLING:
            note_progress(w, c)
        if n < body_bytes or (ends_chunk and tail < 2):
            c.is_blocked = 1
            return PENDING
        if n >= budget:
            list_append(&w.ready, c)        # the others first
            return PENDING
        budget -= n


cdef void note_progress(Worker* w, Connection* c) noexcept nogil:
    """Tells the fill how far its readers are, and that it may go on."""
    if c.offset > load_i64_relaxed(&c.object.want):
        store_i64_relaxed(&c.object.want, c.offset)
    if c.offset >= load_i64_relaxed(&c.object.resume_at):
        nudge(w, c.object)
