# Connections behind connection.pxd: lists, the timer wheel, buffers, what they ask of the control plane. send.pyx writes.
from libc.stdint cimport uintptr_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memmove, memset

from ext.access cimport access_end
from ext.addresses cimport address_leave
from ext.atomics cimport *
from ext.h2 cimport h2_close, h2_free
from ext.h2_answers cimport stream_left
from ext.exchange cimport EXCHANGE_WANT, RING_CANCEL, RING_NUDGE, RING_REQUEST, ring_is_half_full, ring_push
from ext.layout cimport *
from ext.stream_reader cimport reader_leave
from ext.store cimport OBJECT_FILLING, Directory, Store
from ext.tls cimport tls_end
from ext.tunnel cimport tunnel_free, tunnel_shut
from ext.receive cimport upload_leave
from ext.upload cimport upload_release

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


cdef Connection* connection_new(Worker* w, Connection* carrier) noexcept nogil:
    """A zeroed connection, linked into the worker's list of all; with a carrier, one of its streams, which counts as none
    but for its memory. NULL: no memory."""
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
    if carrier == NULL:
        store_u64_relaxed(&w.n_connections, w.n_connections + 1)
        return c
    c.fd = -1
    c.carrier = carrier
    c.listener = carrier.listener
    c.zone = carrier.zone
    c.zone_generation = carrier.zone_generation
    memcpy(c.address, carrier.address, sizeof(c.address))
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
    if c.session != NULL:
        h2_close(w, c)
    if c.carrier != NULL:
        stream_left(w, c, abruptly)
    else:
        if abruptly:
            option.l_onoff = 1
            option.l_linger = 0
            setsockopt(c.fd, SOL_SOCKET, SO_LINGER, &option, sizeof(option))
        if c.tls != NULL:
            tls_end(w, c, not abruptly)
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
    if c.carrier == NULL:
        address_leave(&w.shared.addresses, c.address)
        add_u64_relaxed(&w.shared.n_connections, <uint64_t>-1)
        store_u64_relaxed(&w.n_connections, w.n_connections - 1)
        count(&w.counters[C_CONNECTIONS_CLOSED], 1)
        if c.is_surplus:
            w.n_surplus -= 1
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
        if c.session != NULL:
            h2_free(w, c)
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
    if c.stream != NULL:
        reader_leave(c)
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


cdef uint32_t put_head(Connection* c, uint8_t* out, const uint8_t* data, uint32_t n) noexcept nogil:
    """A request's head as it goes to the control plane: without the URL prefix. How long it is."""
    memcpy(out, data, c.cut_at)
    memcpy(out + c.cut_at, data + c.cut_at + c.cut, n - c.cut_at - c.cut)
    return n - c.cut


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
    e.head_length = put_head(c, e.bytes, c.buffer, c.head_length)
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
