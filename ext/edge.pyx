# The edge worker's loop behind edge.pxd: accept, events, messages, deadlines. Requests are serve.pyx's, a connection's
# steps session.pyx's. No Python object, no lock held over a system call.
from libc.stdint cimport int32_t, int64_t, uint8_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset

from ext.accept cimport on_accept, on_listen, stop_listening, wake_listeners
from ext.access_ring cimport NO_ORIGIN, access_ring_free, access_ring_new
from ext.atomics cimport *
from ext.carry cimport on_tunnel_event, spread_closing
from ext.connection cimport *
from ext.exchange cimport *
from ext.h2 cimport h2_drain, h2_engine_free, h2_is_idle, h2_on_event
from ext.http_head cimport *
from ext.layout cimport *
from ext.reclaim cimport epoch_enter, epoch_leave
from ext.respond cimport refresh_date, respond_error
from ext.serve cimport MAX_TRIES, leave_bucket, now_ns
from ext.session cimport flush_interim, give_up_waiting, linger, on_body, on_deadline, on_interim, on_split, on_readable, resume, settle
from ext.store cimport *
from ext.stream cimport Stream
from ext.precedence cimport give_way
from ext.stream_reader cimport reader_end, reader_join, readers_wake
from ext.tls cimport tls_flush, tls_worker_close
from ext.tunnel cimport Tunnel, tunnel_free
from ext.upload cimport Upload, upload_release

cdef extern from "<sys/epoll.h>" nogil:
    enum: EPOLLIN
    enum: EPOLLOUT
    enum: EPOLLERR
    enum: EPOLLHUP
    enum: EPOLLRDHUP
    enum: EPOLLET
    enum: EPOLL_CTL_ADD
    enum: EPOLL_CTL_DEL
    enum: EPOLL_CLOEXEC
    ctypedef union epoll_data:
        void* ptr
    cdef struct epoll_event:
        uint32_t events
        epoll_data data
    int epoll_create1(int)
    int epoll_ctl(int, int, int, epoll_event*)
    int epoll_wait(int, epoll_event*, int, int)

cdef extern from "<sys/eventfd.h>" nogil:
    enum: EFD_NONBLOCK
    enum: EFD_CLOEXEC
    int eventfd(unsigned int, int)

cdef extern from "<unistd.h>" nogil:
    int close(int)
    ssize_t read(int, void*, size_t)

cdef enum:
    EVENTS = 256
    READY_PER_PASS = 256
    REFUSALS = 256              # that the security log may be behind
    HALF_CLOSED_NS = 10000000000


# --- messages ---------------------------------------------------------------------------------------------------------

cdef void on_answer(Worker* w, Message* m) noexcept nogil:
    cdef Exchange* e = &w.exchanges[m.index]
    cdef Connection* c
    cdef uint32_t disposition
    cdef Tunnel* tunnel = m.tunnel if m.disposition == ANSWER_TUNNEL else NULL
    cdef Stream* stream = <Stream*>m.stream if m.disposition == ANSWER_STREAM else NULL
    if e.is_free or e.generation != m.generation:
        lose_tunnel(w, tunnel)
        lose_stream(stream)
        return
    leave_bucket(w, e)
    if e.kind == EXCHANGE_REFRESH and e.object != NULL:
        exchange_u32(&e.object.refreshing, 0)
    while e.waiters.first != NULL:
        c = <Connection*>e.waiters.first
        list_remove(c)
        c.exchange = NULL
        c.fwd_status = <uint16_t>m.detail
        c.is_stored = <uint8_t>m.is_stored
        c.n_tries += 1
        disposition = m.disposition
        c.answer_status = <uint16_t>m.status
        if disposition == ANSWER_REFUSE:
            disposition = ANSWER_ERROR if c.is_leader else ANSWER_MATCH
        elif disposition == ANSWER_LEADER and not c.is_leader:
            disposition = ANSWER_MATCH
            if m.value >= 400:
                disposition = ANSWER_ERROR
                c.answer_status = <uint16_t>m.value
            elif m.value == OTHERS_ALONE:
                c.n_tries = MAX_TRIES
        elif disposition == ANSWER_MATCH:
            if m.value == OTHERS_ALONE:
                c.n_tries = MAX_TRIES
            elif m.value == MATCH_JOINED:
                c.is_joined = 1
            elif m.value == MATCH_RESTORED:
                c.is_restored = 1
        c.answer = <uint8_t>disposition
        if m.object != NULL and disposition != ANSWER_MATCH and disposition != ANSWER_ERROR:
            attach(c, m.object)
        if c.is_leader and tunnel != NULL:
            c.tunnel = tunnel
            tunnel = NULL
        if stream != NULL:
            reader_join(c, stream)
            stream = NULL
        c.state = STATE_ANSWERED
        list_append(&w.ready, c)
    lose_tunnel(w, tunnel)
    lose_stream(stream)
    exchange_give(w, e)


cdef void lose_stream(Stream* stream) noexcept nogil:
    if stream != NULL:
        add_u64(&stream.refs, <uint64_t>-1)


cdef void lose_tunnel(Worker* w, Tunnel* tunnel) noexcept nogil:
    """The viewer has left while it was made."""
    if tunnel != NULL:
        count(&origin_row(w, tunnel.origin)[ORIGIN_TUNNELS_ENDED], 1)
        tunnel_free(tunnel)


cdef void on_wake(Worker* w, Object* object) noexcept nogil:
    cdef Connection* c = <Connection*>waiting_list(w, object).first
    cdef Connection* following
    while c != NULL:
        following = c.next
        if c.object == object:
            list_remove(c)
            list_append(&w.ready, c)
            c.window_bytes = 0      # until now there was nothing that the viewer could have read
            set_deadline(w, c, w.now_ns + w.tables.limits.send_window_ns)
        c = following


cdef void on_drain(Worker* w, uint32_t idle_ms, int64_t period_ms) noexcept nogil:
    """`idle_ms` 0: who is idle is closed at once. Else another process serves at our addresses already, and who is idle
    has that long to ask once more: a request that is on its way while we close would be lost."""
    cdef Connection* c = w.all
    cdef Connection* following
    cdef int64_t until_ns = w.now_ns + <int64_t>idle_ms * 1000000
    stop_listening(w, -1)
    w.is_draining = DRAIN_HANDED_OVER if idle_ms else DRAIN_ENDING
    while c != NULL:
        following = c.next_all
        if c.stream != NULL:
            reader_end(w, c)
        if c.carrier != NULL or c.state == STATE_STREAMS:
            if c.carrier == NULL:
                h2_drain(w, c, idle_ms)
            c = following
            continue
        if c.state == STATE_READ and c.list == NULL:
            on_readable(w, c)       # a request that is here already is answered
        if c.state == STATE_READ and not c.has_head_begun and c.list == NULL and c.buffer_length == 0:
            if not idle_ms:
                connection_close(w, c, False)
            elif c.deadline_ns > until_ns:
                clear_deadline(w, c)
                set_deadline(w, c, until_ns)
        elif c.state != STATE_READ:
            c.close_after = 1
        c = following
    spread_closing(w, period_ms * 1000000)


cdef void on_room(Worker* w, Upload* u) noexcept nogil:
    cdef Connection* c = <Connection*>u.connection
    if c != NULL:               # it lets go of its upload before it goes
        on_body(w, c)


cdef void read_mail(Worker* w) noexcept nogil:
    cdef Message* m = mailbox_take(&w.mailbox)
    cdef Message* following
    while m != NULL:
        following = m.next
        if m.kind == MESSAGE_ANSWER:
            on_answer(w, m)
        elif m.kind == MESSAGE_WAKE:
            on_wake(w, m.object)
        elif m.kind == MESSAGE_LISTEN:
            on_listen(w, m)
        elif m.kind == MESSAGE_UNLISTEN:
            stop_listening(w, <int32_t>m.index)
        elif m.kind == MESSAGE_DRAIN:
            on_drain(w, m.detail, m.value)
        elif m.kind == MESSAGE_ROOM:
            on_room(w, m.upload)
        elif m.kind == MESSAGE_SPLIT:
            on_split(w, m)
        elif m.kind == MESSAGE_INTERIM:
            on_interim(w, m)
        elif m.kind == MESSAGE_CLOSE:
            w.is_closing = 1
        free(m.bytes)
        if m.upload != NULL:
            upload_release(m.upload)
        if m.object != NULL:
            add_u64(&m.object.refs, <uint64_t>-1)
        free(m)
        m = following


# --- the loop ---------------------------------------------------------------------------------------------------------

cdef bint is_gone(Worker* w, Connection* c) noexcept nogil:
    """Whether who has ended his side has left. Of an endless stream there is no other sign until the next event; a
    long poll's viewer gets a moment more for an answer, as a half-closed connection may have asked (RFC 9112 section 9.6)."""
    if c.state == STATE_SEND:
        return c.stream != NULL or c.object != NULL and load_u32(&c.object.flags) & OBJECT_STREAM != 0
    if c.state == STATE_WAIT and c.exchange.kind == EXCHANGE_STREAM:
        return True             # the group that he waits for may be left
    if c.state == STATE_WAIT and c.upload == NULL and (c.exchange.kind == EXCHANGE_ALONE or c.exchange.kind == EXCHANGE_PASS):
        set_deadline(w, c, w.now_ns + HALF_CLOSED_NS)
    return False


cdef void on_event(Worker* w, Connection* c, uint32_t events) noexcept nogil:
    if c.state == STATE_CLOSED:
        return
    if events & EPOLLRDHUP:
        c.has_ended = 1
        if c.state != STATE_TUNNEL and is_gone(w, c):
            count(&w.counters[C_CLOSED_BY_VIEWER], 1)
            connection_close(w, c, False)
            return
    if c.state == STATE_STREAMS:
        h2_on_event(w, c, events)
        return
    if c.state == STATE_TUNNEL:
        on_tunnel_event(w, c, False, events)
        return
    if events & (EPOLLERR | EPOLLHUP):
        if c.tls != NULL and not c.tls.is_ready and c.state == STATE_READ and c.list == NULL:
            on_readable(w, c)       # why: the alert lies before the reset
            if c.state == STATE_CLOSED:
                return
        if c.state == STATE_WAIT or c.state == STATE_ANSWERED or c.state == STATE_SEND:
            count(&w.counters[C_CLOSED_BY_VIEWER], 1)
        connection_close(w, c, False)
        return
    if events & EPOLLOUT and c.state == STATE_SEND and c.list == NULL and c.is_blocked:
        c.is_blocked = 0
        resume(w, c)
        if c.state == STATE_CLOSED:
            return
    if events & EPOLLOUT and c.tls != NULL:
        tls_flush(w, c)
    if events & EPOLLOUT and c.state == STATE_WAIT and c.out_length > c.out_offset:
        flush_interim(w, c)
    if events & (EPOLLIN | EPOLLRDHUP) and c.upload != NULL:
        on_body(w, c)
    elif events & (EPOLLIN | EPOLLRDHUP):
        # A half-closed viewer still gets its answer (RFC 9112 section 9.6 lets it say "no more requests" this way).
        if c.state == STATE_READ and c.list == NULL:
            on_readable(w, c)
        elif c.state == STATE_LINGER and c.list == NULL:
            linger(w, c)
        else:
            c.is_readable = 1


cdef void turn_wheel(Worker* w) noexcept nogil:
    cdef int64_t tick = w.now_ns // WHEEL_TICK_NS
    cdef Connection* c
    cdef Connection* following
    while w.wheel_tick < tick:
        w.wheel_tick += 1
        c = w.wheel[w.wheel_tick & (WHEEL_SLOTS - 1)]
        while c != NULL:
            following = c.next_timer
            clear_deadline(w, c)
            if c.deadline_ns > w.now_ns:
                set_deadline(w, c, c.deadline_ns)
            else:
                on_deadline(w, c)
            c = following


cdef int64_t ms_to_tick(Worker* w) noexcept nogil:
    return ((w.wheel_tick + 1) * WHEEL_TICK_NS - w.now_ns) // 1000000 + 1


cdef inline void step_aside(Worker* w) noexcept nogil:
    """Between two connections, as one may be given 4 MiB: what that takes is what a relay worker waits at most."""
    cdef uint32_t times = give_way(&w.shared.precedence, &w.patience)
    if times:
        count(&w.counters[C_GAVE_WAY], times)


cdef void edge_run(Worker* w) noexcept nogil:
    """The loop (docs/architecture.md, "A worker's pass")."""
    cdef epoll_event events[EVENTS]
    cdef int n, i, wait_ms
    cdef uint32_t ready
    cdef uint64_t ignored
    cdef bint is_asleep
    cdef Connection* c
    cdef Tunnel* tunnel
    while True:
        wait_ms = 0
        is_asleep = w.ready.n == 0 and mailbox_may_sleep(&w.mailbox)
        if is_asleep:
            wait_ms = <int>ms_to_tick(w) if w.all != NULL or w.accept_again_ns else 1000
            if wait_ms < 0:
                wait_ms = 0
        if w.must_ring:
            w.must_ring = 0
            bell_ring(&w.shared.bell)
        epoch_leave(w.store, w.index)
        step_aside(w)
        n = epoll_wait(w.epoll, events, EVENTS, wait_ms)
        epoch_enter(w.store, w.index)
        if is_asleep:
            mailbox_awake(&w.mailbox)
        w.now_ns = now_ns()
        w.tables = <Tables*>load_ptr(<void**>&w.shared.tables)
        w.origin = NULL
        w.pass_bytes = 0
        store_u64_relaxed(&w.progress, w.progress + 1)
        count(&w.counters[C_PASSES], 1)
        for i in range(n):
            step_aside(w)
            if (<uint32_t*>events[i].data.ptr)[0] == IS_CONNECTION:
                on_event(w, <Connection*>events[i].data.ptr, events[i].events)
            elif (<uint32_t*>events[i].data.ptr)[0] == IS_LISTENER:
                on_accept(w, <Listener*>events[i].data.ptr)
            elif (<uint32_t*>events[i].data.ptr)[0] == IS_TUNNEL:
                tunnel = <Tunnel*>events[i].data.ptr
                if tunnel.fd >= 0:
                    on_tunnel_event(w, <Connection*>tunnel.connection, True, events[i].events)
            else:
                read(w.mailbox.fd, &ignored, 8)
        read_mail(w)
        readers_wake(w)
        ready = w.ready.n if w.ready.n < READY_PER_PASS else READY_PER_PASS
        while ready and w.ready.first != NULL:
            ready -= 1
            c = <Connection*>w.ready.first
            list_remove(c)
            step_aside(w)
            resume(w, c)
        turn_wheel(w)
        if w.accept_again_ns and w.now_ns >= w.accept_again_ns:
            wake_listeners(w)
        bury(w)
        if w.is_closing:
            break
    while w.all != NULL:
        connection_close(w, w.all, w.all.state != STATE_READ and not h2_is_idle(w.all))
    bury(w)
    epoch_leave(w.store, w.index)
    if w.must_ring:
        bell_ring(&w.shared.bell)


cdef bint edge_open(Worker* w, Shared* shared, uint32_t index, uint64_t* counters, uint32_t n_slots) noexcept nogil:
    cdef epoll_event event
    cdef uint32_t i
    memset(w, 0, sizeof(Worker))
    w.index = index
    w.shared = shared
    w.store = &shared.store
    w.counters = counters
    w.tables = shared.tables
    w.now_ns = now_ns()
    w.wheel_tick = w.now_ns // WHEEL_TICK_NS
    w.epoll = epoll_create1(EPOLL_CLOEXEC)
    w.mailbox.fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
    w.spare_fd = eventfd(0, EFD_CLOEXEC)
    w.is_mailbox = IS_MAILBOX
    w.input = <uint8_t*>malloc(READ_BYTES + MAX_HEAD_BYTES + READ_BYTES)
    w.scratch = <uint8_t*>malloc(MAX_HEAD_BYTES)
    w.key = <uint8_t*>malloc(MAX_HEAD_BYTES)
    w.by_origin = <uint64_t*>calloc(MAX_ORIGINS * ORIGIN_COLUMNS, sizeof(uint64_t))
    w.exchanges = <Exchange*>calloc(EXCHANGE_SLOTS, sizeof(Exchange))
    w.free_exchanges = <uint32_t*>malloc(EXCHANGE_SLOTS * sizeof(uint32_t))
    w.refusals = access_ring_new(REFUSALS)
    if (w.refusals == NULL or w.epoll < 0 or w.mailbox.fd < 0 or w.input == NULL or w.scratch == NULL or w.key == NULL or w.exchanges == NULL or w.by_origin == NULL
            or w.free_exchanges == NULL or not ring_open(&w.ring, 4 * EXCHANGE_SLOTS)):
        return False
    for i in range(EXCHANGE_SLOTS):
        w.free_exchanges[i] = n_slots - 1 - i if i < n_slots else 0
        w.exchanges[i].is_free = 1
    w.n_free_exchanges = n_slots
    for i in range(<uint32_t>MAX_LISTENERS):
        w.listeners[i].fd = -1
    event.events = EPOLLIN
    event.data.ptr = &w.is_mailbox
    return epoll_ctl(w.epoll, EPOLL_CTL_ADD, w.mailbox.fd, &event) == 0


cdef void edge_close(Worker* w) noexcept nogil:
    """Frees what the worker had; its thread has ended."""
    cdef uint32_t i
    cdef RingItem item
    read_mail(w)
    if w.exchanges != NULL:
        for i in range(EXCHANGE_SLOTS):
            if not w.exchanges[i].is_free:
                exchange_give(w, &w.exchanges[i])
    if w.ring.items != NULL:
        while ring_pop(&w.ring, &item):
            if item.object != NULL:
                add_u64(&item.object.refs, <uint64_t>-1)
            if item.upload != NULL:
                upload_release(item.upload)
        ring_close(&w.ring)
    h2_engine_free(w)
    access_ring_free(w.refusals)
    access_ring_free(w.access)
    free(w.input)
    free(w.scratch)
    free(w.key)
    tls_worker_close(w)
    free(w.exchanges)
    free(w.by_origin)
    free(w.free_exchanges)
    if w.epoll >= 0:
        close(w.epoll)
    if w.spare_fd >= 0:
        close(w.spare_fd)
    if w.mailbox.fd >= 0:
        close(w.mailbox.fd)
