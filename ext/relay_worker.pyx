# The loop behind relay_worker.pxd: receive, take, send, sleep until a packet or a deadline. What a datagram means is
# relay_input's, how it leaves relay_send's.
from libc.errno cimport EAGAIN, errno
from libc.stdint cimport INT64_MAX, int64_t, uint16_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memset

from ext.atomics cimport *
from ext.precedence cimport claim
from ext.relay cimport *
from ext.relay_ask cimport ASK_BYTES, ask_write
from ext.relay_input cimport relay_expire, relay_gauges, relay_take, source_allowed
from ext.relay_send cimport *
from ext.relay_turns cimport W_PASSES, acc_now_ns, turns_gather, turns_rested, turns_spread, turns_take

cdef extern from * nogil:
    """
    #include <sys/epoll.h>
    #include <netinet/in.h>
    #include <netinet/udp.h>
    #include <stdint.h>
    #include <time.h>
    #ifndef UDP_GRO
    #define UDP_GRO 104
    #endif
    #ifndef SOL_UDP
    #define SOL_UDP 17
    #endif
    #ifndef SO_RXQ_OVFL
    #define SO_RXQ_OVFL 40
    #endif
    extern int epoll_pwait2(int, struct epoll_event *, int, const struct timespec *, const sigset_t *);
    static int acc_epoll_wait_ns(int poll, struct epoll_event *events, int most, int64_t ns) {
        struct timespec t = { .tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000 };
        return epoll_pwait2(poll, events, most, &t, 0);
    }
    /* Size of the joined datagrams (0: not joined), how many the socket dropped in all (-1: not said), where it came by
       (0: not said) and to which address. */
    static uint32_t acc_received(struct msghdr *h, int64_t *dropped, uint32_t *link, uint8_t *to) {
        uint32_t size = 0;
        *dropped = -1;
        *link = 0;
        for (struct cmsghdr *c = CMSG_FIRSTHDR(h); c; c = CMSG_NXTHDR(h, c)) {
            if (c->cmsg_level == SOL_UDP && c->cmsg_type == UDP_GRO) {
                int n;
                __builtin_memcpy(&n, CMSG_DATA(c), sizeof n);
                if (n > 0) size = (uint32_t)n;
            } else if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SO_RXQ_OVFL) {
                uint32_t n;
                __builtin_memcpy(&n, CMSG_DATA(c), sizeof n);
                *dropped = n;
            } else if (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_PKTINFO) {
                struct in6_pktinfo info;
                __builtin_memcpy(&info, CMSG_DATA(c), sizeof info);
                *link = info.ipi6_ifindex;
                __builtin_memcpy(to, &info.ipi6_addr, 16);
            }
        }
        return size;
    }
    static void acc_send_to(int fd, const void *data, uint32_t size, const void *to, uint32_t to_size) {
        sendto(fd, data, size, MSG_DONTWAIT, (const struct sockaddr *)to, to_size);
    }
    /* The sender as 16 bytes (IPv4 mapped) and port; -1 for what is neither family. */
    static int acc_source(const void *name, uint8_t *address) {
        const struct sockaddr *s = name;
        if (s->sa_family == AF_INET) {
            const struct sockaddr_in *in = name;
            __builtin_memset(address, 0, 10);
            address[10] = address[11] = 0xff;
            __builtin_memcpy(address + 12, &in->sin_addr, 4);
            return ntohs(in->sin_port);
        }
        if (s->sa_family == AF_INET6) {
            const struct sockaddr_in6 *in = name;
            __builtin_memcpy(address, &in->sin6_addr, 16);
            return ntohs(in->sin6_port);
        }
        return -1;
    }
    """
    ctypedef union epoll_data:
        uint64_t u64
    cdef struct epoll_event:
        uint32_t events
        epoll_data data
    enum: EPOLLIN
    enum: EPOLL_CTL_ADD
    enum: EPOLL_CTL_DEL
    enum: EPOLL_CLOEXEC
    int epoll_create1(int)
    int epoll_ctl(int, int, int, epoll_event*)
    int acc_epoll_wait_ns(int, epoll_event*, int, int64_t)
    uint32_t acc_received(msghdr*, int64_t*, uint32_t*, uint8_t*)
    int acc_source(const void*, uint8_t*)
    void acc_send_to(int, const void*, uint32_t, const void*, uint32_t)
    enum: MSG_TRUNC
    enum: MSG_DONTWAIT
    int recvmmsg(int, mmsghdr*, unsigned int, int, void*)

cdef extern from "<sys/eventfd.h>" nogil:
    enum: EFD_NONBLOCK
    enum: EFD_CLOEXEC
    int eventfd(unsigned int, int)

cdef extern from "<unistd.h>" nogil:
    int close(int)
    ssize_t read(int, void*, size_t)
    ssize_t write(int, const void*, size_t)

cdef enum:
    EVENTS = 64
    BATCHES_PER_EVENT = 4       # then the other relays have their turn; epoll is level-triggered
    SLEEP_MAX_NS = 1000000000
    GAUGES_NS = 200000000
    WAKE = 0xFFFFFFFF
    # So long trains may overlap before no new one is begun: what was published waits for the end of those that are.
    PASS_MAX_NS = 50000000


cdef bint worker_open(RelayWorker* w, uint64_t* global_epoch, uint64_t* row) noexcept nogil:
    cdef epoll_event event
    cdef uint32_t i
    memset(w, 0, sizeof(RelayWorker))
    w.global_epoch = global_epoch
    w.passes = row + W_PASSES
    w.turns.row = row
    w.poll = epoll_create1(EPOLL_CLOEXEC)
    w.wake = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
    w.buffers = <uint8_t*>malloc(RECEIVE_BATCH * RECEIVE_BYTES)
    if w.poll < 0 or w.wake < 0 or w.buffers == NULL:
        return False
    for i in range(<uint32_t>RECEIVE_BATCH):
        w.vectors[i].iov_base = w.buffers + <uint64_t>i * RECEIVE_BYTES
        w.vectors[i].iov_len = RECEIVE_BYTES
        w.messages[i].msg_hdr.msg_iov = &w.vectors[i]
        w.messages[i].msg_hdr.msg_iovlen = 1
        w.messages[i].msg_hdr.msg_name = w.names[i]
        w.messages[i].msg_hdr.msg_control = w.controls[i]
    memset(&event, 0, sizeof(event))
    event.events = EPOLLIN
    event.data.u64 = WAKE
    return epoll_ctl(w.poll, EPOLL_CTL_ADD, w.wake, &event) == 0


cdef void worker_close(RelayWorker* w) noexcept nogil:
    if w.poll >= 0:
        close(w.poll)
    if w.wake >= 0:
        close(w.wake)
    free(w.buffers)
    w.buffers = NULL


cdef void worker_wake(RelayWorker* w) noexcept nogil:
    cdef uint64_t one = 1
    write(w.wake, &one, 8)


cdef bint worker_watch(RelayWorker* w, int fd, Relay* r, uint32_t leg) noexcept nogil:
    cdef epoll_event event
    memset(&event, 0, sizeof(event))
    event.events = EPOLLIN
    event.data.u64 = (<uint64_t>leg << 32) | r.id
    return epoll_ctl(w.poll, EPOLL_CTL_ADD, fd, &event) == 0


cdef void worker_unwatch(RelayWorker* w, int fd) noexcept nogil:
    epoll_ctl(w.poll, EPOLL_CTL_DEL, fd, NULL)


cdef bint is_own(RelayWorker* w, const uint8_t* address, int port) noexcept nogil:
    """Whether one of our own outputs sent it: a relay that reads it would make a loop (split horizon)."""
    cdef OwnSockets* own = <OwnSockets*>load_ptr(<void**>&w.own)
    cdef uint32_t i, b
    cdef bint is_any
    if own == NULL or not own.ports[port >> 6] >> (port & 63) & 1:
        return False
    for i in range(own.n):
        if own.port[i] == port:
            is_any = True
            for b in range(16):
                if own.address[16 * i + b]:
                    is_any = False
                    break
            if is_any or memcmp(own.address + 16 * i, address, 16) == 0:
                return True
    return False


cdef void take_message(RelayWorker* w, Relay* r, uint32_t leg, uint32_t i, int64_t now) noexcept nogil:
    cdef mmsghdr* m = &w.messages[i]
    cdef const uint8_t* data = <const uint8_t*>w.vectors[i].iov_base
    cdef uint8_t address[16]
    cdef uint8_t to[16]
    cdef int64_t dropped
    cdef uint32_t link
    cdef uint32_t segment = acc_received(&m.msg_hdr, &dropped, &link, to)
    cdef uint32_t at = 0, size
    cdef int port
    if dropped >= 0:
        store_u64_relaxed(&r.legs[leg].counters[L_DROP_KERNEL], <uint64_t>dropped)
    if segment == 0:
        segment = m.msg_len
    # The kernel gives an IPv6 socket what comes to its group by any interface where anybody on this host has joined it
    # (inet6_mc_check() compares no interface): another network's video.
    if r.legs[leg].is_held and (link == 0 or link != load_u32(&r.legs[leg].link) or memcmp(to, r.legs[leg].group, 16) != 0):
        count(&r.counters[R_DROP_LINK], (m.msg_len + segment - 1) // segment if segment else 1)
        return
    if m.msg_len == 0:
        relay_take(r, leg, data, 0, now)
        return
    port = acc_source(m.msg_hdr.msg_name, address)
    if port < 0 or not source_allowed(&r.legs[leg], address):
        count(&r.counters[R_DROP_SOURCE], (m.msg_len + segment - 1) // segment)
        return
    if is_own(w, address, port):
        count(&r.counters[R_DROP_OWN], (m.msg_len + segment - 1) // segment)
        return
    if m.msg_hdr.msg_flags & MSG_TRUNC:
        count(&r.counters[R_DROP_OVERSIZE], 1)
        return
    memcpy(r.came_from, address, 16)
    while at < m.msg_len:
        size = segment if m.msg_len - at > segment else m.msg_len - at
        relay_take(r, leg, data + at, size, now)
        at += size
        # A full train leaves before its slots are taken again. One who sends far more than can be sent on would keep the
        # worker here: what is published, and who is taken away, would never be seen.
        if r.n_ready & 7 == 0 and acc_now_ns() - w.entered_ns < PASS_MAX_NS:
            relay_relieve(&w.sender, r, now)


cdef void receive(RelayWorker* w, Relay* r, uint32_t leg) noexcept nogil:
    cdef int n, i, batch
    cdef int64_t now
    for batch in range(BATCHES_PER_EVENT):
        for i in range(<int>RECEIVE_BATCH):
            w.messages[i].msg_hdr.msg_namelen = 28
            w.messages[i].msg_hdr.msg_controllen = CONTROL_BYTES
        n = recvmmsg(r.legs[leg].fd, w.messages, RECEIVE_BATCH, MSG_DONTWAIT, NULL)
        if n <= 0:
            return
        now = acc_now_ns()
        # After the receive, so that no packet meets receivers that were gone before it came.
        relay_see(r)
        perturb()
        for i in range(n):
            take_message(w, r, leg, i, now)
        r.due_ns = 0
        if n < RECEIVE_BATCH:
            return


cdef void ask(Relay* r, int64_t now) noexcept nogil:
    """Asks for what is missing and due. One that can't be sent is as one that was lost: it is asked again."""
    cdef uint8_t packet[ASK_BYTES]
    cdef uint32_t size = ask_write(r, now, packet)
    if size:
        acc_send_to(r.legs[r.ask_leg].fd, packet, size, r.ask_to, r.ask_length)


cdef void attend(RelayWorker* w, RelayList* relays, int64_t now, bint with_gauges) noexcept nogil:
    """What time brings: holes given up, requests, trains that may leave."""
    cdef Relay* r
    cdef uint32_t i
    for i in range(relays.n):
        r = relays.relays[i]
        if r == NULL:
            continue
        if with_gauges:
            relay_gauges(r)
            relay_rate(r, now)
        if r.due_ns <= now:
            relay_see(r)
            relay_expire(r, now)
            turns_gather(&w.turns, r, now)
        if r.ask_ns <= now:
            ask(r, now)


cdef int64_t earliest(RelayList* relays, uint32_t* n_begun) noexcept nogil:
    """When to look again, and how many trains are begun. Where none is, what was seen is let go."""
    cdef int64_t due = INT64_MAX
    cdef uint32_t i
    cdef Relay* r
    n_begun[0] = 0
    for i in range(relays.n):
        r = relays.relays[i]
        if r == NULL:
            continue
        due = min(due, r.due_ns, r.ask_ns)
        n_begun[0] += r.n_begun
        if r.n_begun == 0:
            r.seen = NULL
    return due


cdef void worker_run(RelayWorker* w) noexcept nogil:
    cdef epoll_event events[EVENTS]
    cdef RelayList* relays = NULL
    cdef Relay* r
    cdef uint32_t id, slot, n_begun = 0
    cdef uint64_t drained
    cdef int64_t now = acc_now_ns(), gauges_ns = 0, wait_ns = 0, woken_ns
    cdef int n, i
    w.turns.window_ns = now
    while not load_u32(&w.closing):
        # What the control plane has published since stays unseen while a train is begun: its receivers must stay.
        if n_begun == 0:
            store_u64(&w.epoch, 0)
        if w.claim != NULL:
            claim(w.claim, now + wait_ns)
        n = acc_epoll_wait_ns(w.poll, events, EVENTS, wait_ns)
        woken_ns = acc_now_ns()
        turns_rested(&w.turns, woken_ns, woken_ns - now if wait_ns else 0)
        if w.claim != NULL:
            claim(w.claim, woken_ns)
        if n_begun == 0:
            # Read-modify-write, as ext/reclaim.pyx says: whoever frees either sees us awake, or we see what it published.
            exchange_u64(&w.epoch, load_u64_seq(w.global_epoch))
            relays = <RelayList*>load_ptr_seq(<void**>&w.list)
            w.entered_ns = acc_now_ns()
        perturb()
        for i in range(n if n > 0 else 0):
            id = <uint32_t>events[i].data.u64
            if id == WAKE:
                read(w.wake, &drained, 8)
                continue
            slot = id % MAX_RELAYS
            r = relays.relays[slot] if slot < relays.n else NULL
            if r == NULL or r.id != id:         # of a relay that was taken away since, or that is to be seen yet
                continue
            receive(w, r, <uint32_t>(events[i].data.u64 >> 32))
        now = acc_now_ns()
        w.turns.is_ending = now - w.entered_ns > PASS_MAX_NS
        attend(w, relays, now, now - gauges_ns >= GAUGES_NS)
        if now - gauges_ns >= GAUGES_NS:
            gauges_ns = now
        if w.turns.n == 0:                      # otherwise there would be nothing to do
            turns_spread(&w.turns, relays, now)
        turns_take(&w.turns, &w.sender, now)
        count(w.passes, 1)
        wait_ns = earliest(relays, &n_begun)
        now = acc_now_ns()
        wait_ns = wait_ns - now if wait_ns else 0
        wait_ns = 0 if wait_ns < 0 else (SLEEP_MAX_NS if wait_ns > SLEEP_MAX_NS else wait_ns)
    store_u64(&w.epoch, 0)
