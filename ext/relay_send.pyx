# The sending behind relay_send.pxd. No allocation: a train is described once and shared by the messages to all receivers.
from libc.errno cimport EAGAIN, EINTR, EINVAL, EIO, EMSGSIZE, ENOBUFS, ENOPROTOOPT, EOPNOTSUPP, errno
from libc.stdint cimport INT64_MAX
from libc.string cimport memcpy, memset

from ext.atomics cimport count, load_ptr, store_u64_relaxed
from ext.relay cimport *
from ext.stream cimport Stream, stream_publish
from ext.relay_wire cimport FORMAT_OPAQUE, FORMAT_RTP

cdef extern from * nogil:
    """
    #include <poll.h>
    #include <netinet/udp.h>
    #ifndef UDP_SEGMENT
    #define UDP_SEGMENT 103
    #endif
    #ifndef SOL_UDP
    #define SOL_UDP 17
    #endif
    static void acc_segment_control(void *at, uint16_t size) {
        struct cmsghdr *c = at;
        c->cmsg_level = SOL_UDP;
        c->cmsg_type = UDP_SEGMENT;
        c->cmsg_len = CMSG_LEN(sizeof(uint16_t));
        __builtin_memcpy(CMSG_DATA(c), &size, sizeof(size));
    }
    static int acc_wait_writable(int fd, int ms) {
        struct pollfd p = { .fd = fd, .events = POLLOUT };
        return poll(&p, 1, ms);
    }
    """
    void acc_segment_control(void*, uint16_t)
    int acc_wait_writable(int, int)

cdef extern from "<sys/socket.h>" nogil:
    enum: MSG_DONTWAIT
    int sendmmsg(int, mmsghdr*, unsigned int, int)

cdef enum:
    # What an output that is paced by the measured rate may be behind: more than it, and it goes faster in proportion.
    PACE_LAG_NS = 100000000
    RATE_EVERY_NS = 200000000
    # A socket buffer that stays full this long belongs to a link that is down or far too slow: its packets are dropped,
    # for the other relays of this worker wait meanwhile.
    WRITABLE_MS = 2
    SUPER_PACKET_MAX = 65000    # below 65,507, what a UDP datagram over IPv4 holds
    RTP_TS = 33                 # RFC 3551: MP2T
    RTP_DYNAMIC = 96


cdef struct Train:
    uint32_t n_packets
    uint32_t per_packet         # vectors of a packet
    uint32_t n_bytes
    uint32_t segment            # size of all but the last, which may be smaller
    bint is_even


cdef void stamp(Relay* r, Output* o, Slot* slot, uint8_t* header) noexcept nogil:
    """RFC 3550 section 5.1; the time is the source's where it has one, else arrival at 90 kHz (RFC 2250 section 2)."""
    cdef uint8_t kind = RTP_TS if r.format != FORMAT_RTP else r.seen_type
    if r.format == FORMAT_OPAQUE:
        kind = RTP_DYNAMIC
    header[0] = 0x80
    header[1] = kind
    if r.format == FORMAT_RTP and slot.header_bytes:
        header[1] |= slot_data(r, slot.sequence)[1] & 0x80
    header[2] = <uint8_t>(o.sequence >> 8)
    header[3] = <uint8_t>o.sequence
    header[4] = <uint8_t>(slot.timestamp >> 24)
    header[5] = <uint8_t>(slot.timestamp >> 16)
    header[6] = <uint8_t>(slot.timestamp >> 8)
    header[7] = <uint8_t>slot.timestamp
    header[8] = <uint8_t>(o.ssrc >> 24)
    header[9] = <uint8_t>(o.ssrc >> 16)
    header[10] = <uint8_t>(o.ssrc >> 8)
    header[11] = <uint8_t>o.ssrc
    o.sequence += 1


cdef void describe(Sender* s, Relay* r, Output* o, Train* t) noexcept nogil:
    """Describes the next train of an output: as many packets as its bounds allow, at least one."""
    cdef Slot* slot
    cdef uint8_t* data
    cdef uint64_t at = o.cursor
    cdef uint32_t size
    cdef iovec* v
    memset(t, 0, sizeof(Train))
    t.per_packet = 2 if o.format == OUT_STAMP else 1
    t.is_even = True
    while at < r.n_ready and t.n_packets < o.train_packets and t.n_packets < TRAIN_PACKETS:
        slot = &r.slots[r.ready[at & r.mask] & r.mask]
        data = slot_data(r, r.ready[at & r.mask])
        if o.format == OUT_KEEP:
            size = slot.length
        else:
            size = slot.payload_bytes + (12 if o.format == OUT_STAMP else 0)
        if t.n_packets:
            if t.n_bytes + size > SUPER_PACKET_MAX or (o.train_bytes and t.n_bytes + size > o.train_bytes):
                break
            # The kernel cuts at one size; only the last piece may be smaller.
            if size > t.segment or not t.is_even:
                if o.segments != SEGMENTS_OFF:
                    break
            if size != t.segment:
                t.is_even = False
        else:
            t.segment = size
        v = &s.vectors[t.n_packets * t.per_packet]
        if o.format == OUT_KEEP:
            v.iov_base = data
            v.iov_len = size
        elif o.format == OUT_STRIP:
            v.iov_base = data + slot.header_bytes
            v.iov_len = size
        else:
            stamp(r, o, slot, s.headers[t.n_packets])
            v.iov_base = s.headers[t.n_packets]
            v.iov_len = 12
            v[1].iov_base = data + slot.header_bytes
            v[1].iov_len = slot.payload_bytes
        t.n_packets += 1
        t.n_bytes += size
        at += 1


cdef int transmit(Sender* s, Output* o, uint32_t n, uint32_t packets_each, bint segmented) noexcept nogil:
    """Sends messages 0..n. -1: done; -2: the socket stays full, the rest is counted as dropped; 0 and above: that message
    was refused for its segmentation. Messages refused for other reasons are counted and left out."""
    cdef uint32_t at = 0
    cdef int sent
    while at < n:
        sent = sendmmsg(o.fd, s.messages + at, n - at, MSG_DONTWAIT)
        count(&o.counters[O_CALLS], 1)
        if sent > 0:
            at += <uint32_t>sent
            continue
        if errno == EINTR:
            continue
        if errno == EAGAIN or errno == ENOBUFS:
            if errno == EAGAIN and acc_wait_writable(o.fd, WRITABLE_MS) > 0:
                continue
            count(&o.counters[O_DROP_FULL], <uint64_t>(n - at) * packets_each)
            return -2
        if segmented and (errno == EIO or errno == EINVAL or errno == EOPNOTSUPP or errno == ENOPROTOOPT or errno == EMSGSIZE):
            return <int>at
        count(&o.counters[O_DROP_SIZE if errno == EMSGSIZE else O_DROP_REFUSED], packets_each)
        at += 1
    return -1


cdef void send_segmented(Sender* s, Output* o, Train* t, Destination* to, uint32_t n, uint32_t* begun) noexcept nogil:
    """One message a receiver, cut by the kernel or the device. `begun` says for how many it is done; fewer than n when
    segmentation was refused, or dropped when the socket is full."""
    cdef uint32_t batch, i, done = 0
    cdef int said
    cdef mmsghdr* m
    acc_segment_control(s.control, <uint16_t>t.segment)
    while done < n:
        batch = n - done if n - done < SEND_BATCH else <uint32_t>SEND_BATCH
        for i in range(batch):
            m = &s.messages[i]
            m.msg_hdr.msg_name = to[done + i].address
            m.msg_hdr.msg_namelen = to[done + i].length
            m.msg_hdr.msg_iov = s.vectors
            m.msg_hdr.msg_iovlen = t.n_packets * t.per_packet
            m.msg_hdr.msg_control = s.control
            m.msg_hdr.msg_controllen = SEGMENT_CONTROL
        said = transmit(s, o, batch, t.n_packets, True)
        if said >= 0:
            o.segments = SEGMENTS_OFF
            begun[0] = done + <uint32_t>said
            return
        done += batch
        if said == -2:
            count(&o.counters[O_DROP_FULL], <uint64_t>(n - done) * t.n_packets)
            break
    o.segments = SEGMENTS_ON
    begun[0] = n


cdef void send_singly(Sender* s, Output* o, Train* t, Destination* to, uint32_t n) noexcept nogil:
    """One message a packet, a receiver's packets after each other."""
    cdef uint32_t i, p, filled = 0
    cdef mmsghdr* m
    for i in range(n):
        for p in range(t.n_packets):
            m = &s.messages[filled]
            m.msg_hdr.msg_name = to[i].address
            m.msg_hdr.msg_namelen = to[i].length
            m.msg_hdr.msg_iov = &s.vectors[p * t.per_packet]
            m.msg_hdr.msg_iovlen = t.per_packet
            m.msg_hdr.msg_control = NULL
            m.msg_hdr.msg_controllen = 0
            filled += 1
        if filled + t.n_packets > SEND_BATCH or i + 1 == n:
            if transmit(s, o, filled, 1, False) == -2:
                count(&o.counters[O_DROP_FULL], <uint64_t>(n - i - 1) * t.n_packets)
                return
            filled = 0


cdef void send_train(Sender* s, Relay* r, Output* o, Destination* to, uint32_t n, uint64_t pace, int64_t now) noexcept nogil:
    cdef Train t
    cdef uint32_t begun = 0
    describe(s, r, o, &t)
    if t.n_packets > 1 and o.segments != SEGMENTS_OFF:
        send_segmented(s, o, &t, to, n, &begun)
        if begun == n:
            count(&o.counters[O_TRAINS], n)
    if begun < n:
        send_singly(s, o, &t, to + begun, n - begun)
    o.cursor += t.n_packets
    count(&o.counters[O_PACKETS], <uint64_t>t.n_packets * n)
    count(&o.counters[O_BYTES], <uint64_t>t.n_bytes * n)
    store_u64_relaxed(&o.counters[O_SEGMENTS], o.segments)
    if pace:
        # Late is made up for by one train at most: a burst is what pacing is there to prevent.
        if o.next_send_ns < now - <int64_t>(t.n_bytes * <uint64_t>1000000000 // pace):
            o.next_send_ns = now
        o.next_send_ns += <int64_t>(t.n_bytes * <uint64_t>1000000000 // pace)


cdef void relay_rate(Relay* r, int64_t now) noexcept nogil:
    cdef uint64_t bytes = r.counters[R_PACKET_BYTES]
    cdef int64_t rate
    if now - r.rate_ns < RATE_EVERY_NS:
        return
    if r.rate_ns:
        rate = <int64_t>((bytes - r.rate_bytes) * <uint64_t>1000000000 // <uint64_t>(now - r.rate_ns))
        r.rate_bytes_s = <uint64_t>rate if r.rate_bytes_s == 0 else <uint64_t>(<int64_t>r.rate_bytes_s + (rate - <int64_t>r.rate_bytes_s) // 4)
    r.rate_bytes = bytes
    r.rate_ns = now


cdef inline uint64_t pace_of(Relay* r, Output* o) noexcept nogil:
    """Bytes a second; 0: not paced. By what was measured and a sixteenth, or what clears the backlog within PACE_LAG_NS: so a
    stream that grows, or comes in bursts, is spread and never falls behind."""
    cdef uint64_t pace, backlog
    if not o.is_pace_measured:
        return o.pace_bytes_s
    if r.rate_bytes_s == 0:
        return 0
    pace = r.rate_bytes_s + r.rate_bytes_s // 16
    backlog = (r.n_ready - o.cursor) * r.slots[r.ready[o.cursor & r.mask] & r.mask].length * <uint64_t>1000000000 // PACE_LAG_NS
    return backlog if backlog > pace else pace


cdef void relay_see(Relay* r) noexcept nogil:
    cdef uint32_t i
    cdef Output* o
    r.seen = <Fanout*>load_ptr(<void**>&r.fanout)
    if r.seen == NULL:
        return
    for i in range(r.seen.n_rows):
        o = &r.outputs[r.seen.rows[i].output]
        if o.is_new:
            o.is_new = 0
            o.cursor = r.n_ready


cdef void relay_pump(Sender* s, Relay* r, int64_t now) noexcept nogil:
    cdef uint32_t i
    cdef Output* o
    cdef FanoutRow* row
    cdef int64_t due
    cdef Stream* stream = <Stream*>load_ptr(<void**>&r.stream)
    cdef uint64_t pace
    r.due_ns = r.hole_ns + r.wait_ns if r.hole_ns != INT64_MAX else INT64_MAX
    if stream != NULL:
        due = stream_publish(stream, now)
        if due < r.due_ns:
            r.due_ns = due
    if r.seen == NULL:
        return
    for i in range(r.seen.n_rows):
        row = &r.seen.rows[i]
        o = &r.outputs[row.output]
        if row.n == 0:
            o.cursor = r.n_ready
            continue
        while o.cursor < r.n_ready:
            pace = pace_of(r, o)
            due = r.slots[r.ready[o.cursor & r.mask] & r.mask].arrival_ns + o.hold_ns
            if pace and o.next_send_ns > due:
                due = o.next_send_ns
            if due > now and (r.n_ready - o.cursor < o.train_packets or (pace and o.next_send_ns > now)):
                if pace and r.n_ready - o.cursor >= o.train_packets:
                    due = o.next_send_ns
                if due < r.due_ns:
                    r.due_ns = due
                break
            send_train(s, r, o, r.seen.destinations + row.first, row.n, pace, now)
