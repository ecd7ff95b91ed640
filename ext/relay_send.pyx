# The sending behind relay_send.pxd. No allocation: a train is described once and shared by the messages to all receivers.
from libc.errno cimport EAGAIN, EINTR, EINVAL, EIO, EMSGSIZE, ENOBUFS, ENOPROTOOPT, EOPNOTSUPP, errno
from libc.stdint cimport INT64_MAX
from libc.string cimport memcpy, memset

from ext.atomics cimport count, load_ptr, store_u64_relaxed
from ext.relay cimport *
from ext.relay_wire cimport FORMAT_OPAQUE, FORMAT_RTP

cdef extern from * nogil:
    """
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
    """
    void acc_segment_control(void*, uint16_t)

cdef extern from "<sys/socket.h>" nogil:
    enum: MSG_DONTWAIT
    int sendmmsg(int, mmsghdr*, unsigned int, int)

cdef enum:
    # What an output that is paced by the measured rate may be behind: more than it, and it goes faster in proportion.
    PACE_LAG_NS = 100000000
    RATE_EVERY_NS = 200000000
    # A socket buffer that stays full this long belongs to a link that is down or far too slow: its packets are dropped. The
    # others have their turns meanwhile.
    FULL_NS = 2000000
    RETRY_NS = 200000
    # Where no train is due, one of two packets and more leaves before its hold is over by this part of it: so trains of many
    # relays that would be due together are spread over the time when nothing else is to be done. Decision 0240.
    EARLY_PART = 8
    # While the worker is short of time a packet that is alone waits for the next, by this part of its hold at most, and by
    # no more than PATIENCE_NS. Decision 0243.
    PATIENCE_PART = 2
    PATIENCE_NS = 2000000
    # Of an output, for each eight packets received: as much as 128 receivers need. More than that loses its own oldest packets
    # rather than the time of the other relays.
    RELIEF_PARTS = 8
    # So many receivers in a row whom trains are refused for, who take their packets one by one: the device can't do it.
    REFUSED_RUN = 8
    PROBE_BYTES = 1440          # what is refused because of its size says nothing of the device
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


cdef void describe(Sender* s, Relay* r, Output* o, Train* t, uint32_t most) noexcept nogil:
    """Describes the train at the output's cursor: as many packets as its bounds allow, at least one and at most `most`."""
    cdef Slot* slot
    cdef uint8_t* data
    cdef uint64_t at = o.cursor
    cdef uint32_t size
    cdef iovec* v
    memset(t, 0, sizeof(Train))
    t.per_packet = 2 if o.format == OUT_STAMP else 1
    t.is_even = True
    while at < r.n_ready and t.n_packets < most and t.n_packets < TRAIN_PACKETS:
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


cdef uint32_t transmit(Sender* s, Output* o, uint32_t n, uint32_t packets_each, bint* is_refused) noexcept nogil:
    """Sends messages 0..n; returns how many are settled: sent, or refused and counted. Fewer than n: the socket is full, or,
    by `is_refused`, the next message was refused for its segmentation."""
    cdef uint32_t at = 0
    cdef int sent
    cdef bint segmented = is_refused != NULL
    s.is_full = False
    while at < n:
        sent = sendmmsg(o.fd, s.messages + at, n - at, MSG_DONTWAIT)
        count(&o.counters[O_CALLS], 1)
        if sent > 0:
            at += <uint32_t>sent
            continue
        if errno == EINTR:
            continue
        if errno == EAGAIN or errno == ENOBUFS:
            s.is_full = True
            break
        if segmented and (errno == EIO or errno == EINVAL or errno == EOPNOTSUPP or errno == ENOPROTOOPT or errno == EMSGSIZE):
            is_refused[0] = True
            break
        count(&o.counters[O_DROP_SIZE if errno == EMSGSIZE else O_DROP_REFUSED], packets_each)
        at += 1
    return at


cdef bint tally(Sender* s, Output* o, uint32_t settled, uint32_t packets_each) noexcept nogil:
    """Counts what was sent of the settled messages: the kernel writes their length. Whether anything was."""
    cdef uint64_t n = 0, size = 0
    cdef uint32_t i
    for i in range(settled):
        if s.messages[i].msg_len:
            n += 1
            size += s.messages[i].msg_len
    count(&o.counters[O_PACKETS], n * packets_each)
    count(&o.counters[O_BYTES], size)
    if packets_each > 1:
        count(&o.counters[O_TRAINS], n)
    return n != 0


cdef void send_segmented(Sender* s, Output* o, Train* t, Destination* to, uint32_t n) noexcept nogil:
    """One message a receiver, cut by the kernel or the device."""
    cdef uint32_t i, settled
    cdef uint32_t first = o.begun_at // t.n_packets
    cdef bint is_refused = False
    cdef mmsghdr* m
    acc_segment_control(s.control, <uint16_t>t.segment)
    n = n - first if n - first <= SEND_MOST else <uint32_t>SEND_BATCH
    for i in range(n):
        m = &s.messages[i]
        m.msg_len = 0
        m.msg_hdr.msg_name = to[first + i].address
        m.msg_hdr.msg_namelen = to[first + i].length
        m.msg_hdr.msg_iov = s.vectors
        m.msg_hdr.msg_iovlen = t.n_packets * t.per_packet
        m.msg_hdr.msg_control = s.control
        m.msg_hdr.msg_controllen = SEGMENT_CONTROL
    settled = transmit(s, o, n, t.n_packets, &is_refused)
    if tally(s, o, settled, t.n_packets):
        o.segments = SEGMENTS_ON
        o.n_refused = 0
        o.segment_good = max(o.segment_good, t.segment)
    o.begun_at += settled * t.n_packets
    if is_refused:
        send_refused(s, o, t, to)
    store_u64_relaxed(&o.counters[O_SEGMENTS], o.segments)


cdef void send_singly(Sender* s, Output* o, Train* t, Destination* to, uint32_t n) noexcept nogil:
    """One message a packet, a receiver's packets after each other."""
    cdef uint32_t i, settled
    cdef uint32_t total = n * t.n_packets - o.begun_at
    cdef uint32_t receiver = o.begun_at // t.n_packets
    cdef uint32_t packet = o.begun_at % t.n_packets
    cdef mmsghdr* m
    total = total if total <= SEND_MOST else <uint32_t>SEND_BATCH
    for i in range(total):
        m = &s.messages[i]
        m.msg_len = 0
        m.msg_hdr.msg_name = to[receiver].address
        m.msg_hdr.msg_namelen = to[receiver].length
        m.msg_hdr.msg_iov = &s.vectors[packet * t.per_packet]
        m.msg_hdr.msg_iovlen = t.per_packet
        m.msg_hdr.msg_control = NULL
        m.msg_hdr.msg_controllen = 0
        packet += 1
        if packet == t.n_packets:
            packet = 0
            receiver += 1
    settled = transmit(s, o, total, 1, NULL)
    tally(s, o, settled, 1)
    o.begun_at += settled


cdef void send_refused(Sender* s, Output* o, Train* t, Destination* to) noexcept nogil:
    """The next receiver has the train packet by packet. That is the device's fault only if these were taken, and smaller
    ones never were: packets above the path's MTU, and receivers who can't be reached, take trains from nobody else."""
    cdef uint64_t before = o.counters[O_PACKETS]
    send_singly(s, o, t, to, o.begun_at // t.n_packets + 1)
    if o.counters[O_PACKETS] == before:
        return
    if t.segment > PROBE_BYTES or (o.segment_good and t.segment > o.segment_good):
        o.segment_limit = t.segment
    else:
        o.n_refused += 1
        if o.n_refused >= REFUSED_RUN:
            o.segments = SEGMENTS_OFF


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


cdef void end_train(Relay* r, Output* o, Train* t, uint64_t pace, int64_t now) noexcept nogil:
    cdef int64_t takes_ns
    if o.begun_packets:
        r.n_begun -= 1
    o.begun_packets = o.begun_at = 0
    o.cursor += t.n_packets
    if pace:
        # Late is made up for by one train at most: a burst is what pacing is there to prevent.
        takes_ns = <int64_t>(t.n_bytes * <uint64_t>1000000000 // pace)
        if o.next_send_ns < now - takes_ns:
            o.next_send_ns = now
        o.next_send_ns += takes_ns


cdef void send_part(Sender* s, Relay* r, FanoutRow* row, int64_t now) noexcept nogil:
    cdef Output* o = &r.outputs[row.output]
    cdef Destination* to = r.seen.destinations + row.first
    cdef uint64_t pace = pace_of(r, o)
    cdef uint32_t total, before = o.begun_at
    cdef Train t
    if o.begun_packets:
        o.sequence = o.begun_sequence           # the same packets, the same headers
        describe(s, r, o, &t, o.begun_packets)
    else:
        o.begun_sequence = o.sequence
        describe(s, r, o, &t, o.train_packets)
    total = t.n_packets * row.n
    if t.n_packets == 1 or o.segments == SEGMENTS_OFF or (o.segment_limit and t.segment >= o.segment_limit):
        send_singly(s, o, &t, to, row.n)
    elif o.begun_at % t.n_packets:              # of one for whom it was refused
        send_singly(s, o, &t, to, o.begun_at // t.n_packets + 1)
    else:
        send_segmented(s, o, &t, to, row.n)
    if not s.is_full or o.begun_at != before:
        o.full_ns = 0
    if s.is_full:
        if o.full_ns == 0:
            o.full_ns = now
        o.retry_ns = now + RETRY_NS
        if now - o.full_ns >= FULL_NS:
            count(&o.counters[O_DROP_FULL], total - o.begun_at)
            o.begun_at = total
            o.full_ns = o.retry_ns = 0
    if o.begun_at == total:
        end_train(r, o, &t, pace, now)
    elif o.begun_packets == 0:
        o.begun_packets = t.n_packets
        r.n_begun += 1


cdef void relay_see(Relay* r) noexcept nogil:
    cdef uint32_t i
    cdef Output* o
    if r.n_begun:
        return
    r.seen = <Fanout*>load_ptr(<void**>&r.fanout)
    if r.seen == NULL:
        return
    for i in range(r.seen.n_rows):
        o = &r.outputs[r.seen.rows[i].output]
        if o.is_new:
            o.is_new = 0
            o.cursor = r.n_ready


cdef int64_t patience_of(Relay* r, Output* o, int64_t held_until) noexcept nogil:
    """How much longer a single packet is held so that it leaves with the next: a train of two costs what one packet does.
    0 where the next isn't expected by then."""
    cdef int64_t patience = o.hold_ns // PATIENCE_PART
    cdef Slot* slot = &r.slots[r.ready[o.cursor & r.mask] & r.mask]
    cdef int64_t between
    if r.rate_bytes_s == 0:
        return 0
    if patience > PATIENCE_NS:
        patience = PATIENCE_NS
    between = <int64_t>(slot.payload_bytes * <uint64_t>1000000000 // r.rate_bytes_s)
    return patience if slot.arrival_ns + between + between // 8 <= held_until + patience else 0


cdef bint output_due(Relay* r, Output* o, bint is_pressed, int64_t now, int64_t* due) noexcept nogil:
    cdef uint64_t pace
    cdef bint is_full
    cdef int64_t leaves
    due[0] = INT64_MAX
    if o.retry_ns > now:
        due[0] = o.retry_ns
        return False
    if o.begun_packets:
        due[0] = o.begun_due_ns + o.begun_used_ns
        return True
    # A train is begun with the newest receivers, for which the trains of the old ones must be through.
    if o.cursor == r.n_ready or (r.n_begun and <Fanout*>load_ptr(<void**>&r.fanout) != r.seen):
        return False
    pace = pace_of(r, o)
    due[0] = r.slots[r.ready[o.cursor & r.mask] & r.mask].arrival_ns + o.hold_ns
    is_full = r.n_ready - o.cursor >= o.train_packets
    if pace and o.next_send_ns > now:
        if is_full or o.next_send_ns > due[0]:
            due[0] = o.next_send_ns
        return False
    if is_full:
        return True
    leaves = due[0]
    if r.n_ready - o.cursor > 1:
        leaves -= o.hold_ns // EARLY_PART
    elif is_pressed and o.train_packets > 1:
        leaves += patience_of(r, o, leaves)
    if leaves <= now:
        return True
    due[0] = leaves
    return False


cdef void relay_relieve(Sender* s, Relay* r, int64_t now) noexcept nogil:
    cdef uint32_t i, parts
    cdef Output* o
    cdef int64_t due
    if r.seen == NULL:
        return
    for i in range(r.seen.n_rows):
        o = &r.outputs[r.seen.rows[i].output]
        parts = 0
        while r.seen.rows[i].n and r.n_ready - o.cursor > r.mask // 4 and parts < RELIEF_PARTS and output_due(r, o, False, now, &due):
            send_part(s, r, &r.seen.rows[i], now)
            parts += 1
