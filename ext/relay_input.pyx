# The window behind relay_input.pxd. Every datagram that is dropped here is counted under the name of its reason.
from libc.stdint cimport INT64_MAX, int16_t, uint16_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, memset

from ext.atomics cimport count, load_ptr, store_u64_relaxed
from ext.relay cimport *
from ext.relay_align cimport (
    align_close, align_lost, align_number, align_passed, align_slip, align_take, content_of, is_apart,
)
from ext.relay_ask cimport ask_missed, ask_take
from ext.relay_fec cimport fec_came, fec_close, fec_forget, fec_open, fec_take
from ext.relay_wire cimport *
from ext.stream cimport Stream, stream_take

cdef enum:
    # A video's largest frame comes at line rate; so much of it passes a cap that the stream keeps on average.
    CAP_BURST_NS = 250000000
    SILENCE_NS = 2000000000     # after this the next packet begins a stream: nothing is known of it any more
    # Window numbers begin here, so that none is 0 and none runs below it.
    FIRST_NUMBER = 1048576
    OTHER_RUN = 8               # this many datagrams of another form in a row: the first one was a stray


cdef inline uint32_t ticks_at(Relay* r, int64_t now) noexcept nogil:
    """The time in units of the relay's RTP clock. Seconds apart, as nanoseconds times 90,000 leave 63 bits after 3 years."""
    return <uint32_t>(<uint64_t>(now // 1000000000) * r.clock_hz + <uint64_t>(now % 1000000000) * r.clock_hz // 1000000000)


cdef bint relay_open(Relay* r, uint64_t window_packets, bint has_fec) noexcept nogil:
    r.mask = window_packets - 1
    r.next = FIRST_NUMBER
    r.newest = FIRST_NUMBER - 1
    r.oldest_unsent = FIRST_NUMBER
    r.hole_ns = r.due_ns = r.ask_ns = INT64_MAX
    r.seen_type = 255
    r.format = r.wanted_format
    r.ready = <uint64_t*>calloc(window_packets, sizeof(uint64_t))
    r.slots = <Slot*>calloc(window_packets, sizeof(Slot))
    r.data = <uint8_t*>malloc(window_packets * r.slot_bytes)
    r.ts = <TsState*>calloc(1, sizeof(TsState))
    if r.ready == NULL or r.slots == NULL or r.data == NULL or r.ts == NULL or (has_fec and not fec_open(r, window_packets)):
        relay_close(r)
        return False
    ts_reset(r.ts)
    return True


cdef void relay_close(Relay* r) noexcept nogil:
    free(r.ready)
    free(r.slots)
    free(r.data)
    free(r.ts)
    fec_close(r)
    free(r.asks)
    align_close(r)
    r.asks = NULL
    r.ready = NULL
    r.slots = NULL
    r.data = NULL
    r.ts = NULL


cdef bint source_allowed(Leg* leg, const uint8_t* address) noexcept nogil:
    cdef uint32_t i, whole, rest, b
    cdef bint same
    for i in range(leg.n_sources):
        whole = leg.sources[i].bits >> 3
        rest = leg.sources[i].bits & 7
        same = True
        for b in range(whole):
            if leg.sources[i].address[b] != address[b]:
                same = False
                break
        if same and (rest == 0 or (leg.sources[i].address[whole] ^ address[whole]) >> (8 - rest) == 0):
            return True
    return leg.n_sources == 0


# --- release ----------------------------------------------------------------------------------------------------------

cdef void release(Relay* r) noexcept nogil:
    """Makes ready what follows without a hole."""
    cdef Slot* slot = &r.slots[r.next & r.mask]
    cdef const uint8_t* data
    cdef uint64_t n = 0, size = 0
    cdef Stream* stream = <Stream*>load_ptr(<void**>&r.stream)
    while r.next <= r.newest and slot.sequence == r.next:
        if slot.payload_bytes:
            data = slot_data(r, r.next) + slot.header_bytes
            if data[0] == 0x47 and slot.payload_bytes % TS_BYTES == 0:
                if ts_measure(r.ts, data, slot.payload_bytes):
                    slot.flags |= SLOT_RANDOM_ACCESS
                if stream != NULL:
                    stream_take(stream, r.ts, data, slot.payload_bytes, slot.arrival_ns)
            elif stream != NULL:
                count(&stream.n_refused, 1)
            r.ready[r.n_ready & r.mask] = r.next
            r.n_ready += 1
            n += 1
            size += slot.payload_bytes
        elif not slot.flags & SLOT_NONE:
            count(&r.counters[R_EMPTY], 1)
        r.next += 1
        slot = &r.slots[r.next & r.mask]
    if n:
        count(&r.counters[R_PACKETS], n)
        count(&r.counters[R_PACKET_BYTES], size)


cdef void look_for_hole(Relay* r) noexcept nogil:
    """The hole's time runs from the first packet behind it."""
    cdef uint64_t at = r.next
    r.hole_ns = INT64_MAX
    while at <= r.newest:
        if r.slots[at & r.mask].sequence == at:
            r.hole_ns = r.slots[at & r.mask].arrival_ns
            return
        at += 1


cdef void give_up(Relay* r) noexcept nogil:
    """Counts the hole as lost and releases what stands behind it."""
    cdef uint64_t lost = 0
    while r.next <= r.newest and r.slots[r.next & r.mask].sequence != r.next:
        r.next += 1
        lost += 1
    count(&r.counters[R_LOST], lost)
    release(r)
    look_for_hole(r)


cdef void relay_expire(Relay* r, int64_t now) noexcept nogil:
    while r.hole_ns != INT64_MAX and now - r.hole_ns >= r.wait_ns:
        give_up(r)


cdef void drop_backlog(Relay* r, uint64_t sequence) noexcept nogil:
    """Before a slot is taken again: outputs that still have its packet to send lose it, and it is counted."""
    cdef uint64_t least = sequence - r.mask
    cdef uint64_t oldest = r.next
    cdef Output* o
    cdef uint32_t i
    if r.seen != NULL:
        for i in range(r.seen.n_rows):
            o = &r.outputs[r.seen.rows[i].output]
            while o.cursor < r.n_ready and r.ready[o.cursor & r.mask] < least:
                if o.begun_packets:             # those who have it keep it, whole packets all
                    count(&o.counters[O_DROP_BACKLOG], <uint64_t>o.begun_packets * r.seen.rows[i].n - o.begun_at)
                    o.cursor += o.begun_packets
                    o.begun_packets = o.begun_at = 0
                    r.n_begun -= 1
                    continue
                o.cursor += 1
                count(&o.counters[O_DROP_BACKLOG], r.seen.rows[i].n)
            if o.cursor < r.n_ready and r.ready[o.cursor & r.mask] < oldest:
                oldest = r.ready[o.cursor & r.mask]
    r.oldest_unsent = oldest


cdef void relay_repaired(Relay* r, uint64_t sequence) noexcept nogil:
    count(&r.counters[R_REPAIRED], 1)
    if sequence == r.next:
        release(r)
        look_for_hole(r)


# --- a stream begins --------------------------------------------------------------------------------------------------

cdef void restart(Relay* r, uint16_t sequence, uint32_t ssrc) noexcept nogil:
    """The next packet is `sequence` of `ssrc`, whatever came before: what is in the window leaves first."""
    while r.next <= r.newest:
        give_up(r)
    r.hole_ns = INT64_MAX
    if r.is_started:
        count(&r.counters[R_RESTARTS], 1)
    r.is_started = 1
    r.ssrc = ssrc
    r.late_run = 0
    r.newest = r.next - 1
    r.newest_rtp = <uint16_t>(sequence - 1)
    fec_forget(r)


cdef void leg_restart(Leg* leg, uint16_t sequence, uint32_t ssrc) noexcept nogil:
    cdef uint64_t expected = leg.cycles + leg.newest - leg.base + 1
    if leg.is_started and expected > leg.n_received:
        leg.n_lost_before += expected - leg.n_received
    leg.is_started = 1
    leg.has_bad = 0
    leg.ssrc = ssrc
    leg.base = sequence
    leg.newest = sequence
    leg.cycles = 0
    leg.n_received = 0
    leg.transit = 0
    leg.jitter_16 = 0


cdef void time_by_type(Relay* r, uint8_t kind) noexcept nogil:
    """RFC 3551 section 6: the clocks of the static types. Of dynamic ones nothing here says which it is: the clock stays."""
    cdef uint32_t hz = 90000
    if kind == 10 or kind == 11:
        hz = 44100
    elif kind == 6:
        hz = 16000
    elif kind == 16:
        hz = 11025
    elif kind == 17:
        hz = 22050
    elif kind < 19 and kind != 14:
        hz = 8000
    if kind < 35:
        r.clock_hz = hz


cdef void leg_measure(Relay* r, Leg* leg, Rtp* rtp, int64_t now) noexcept nogil:
    """RFC 3550 A.1 (extended sequence), A.3 (loss) and A.8 (jitter)."""
    cdef uint32_t step = (rtp.sequence - leg.newest) & 0xFFFF
    cdef int64_t transit, change
    cdef uint64_t expected
    leg.n_received += 1
    # It is in line with the relay: what isn't a little behind is ahead, however long this leg was away.
    if 0 < step < 0x10000 - r.mask // 2:
        if rtp.sequence < leg.newest:
            leg.cycles += 65536
        leg.newest = rtp.sequence
    expected = leg.cycles + leg.newest - leg.base + 1
    store_u64_relaxed(&leg.counters[L_LOST],
                      leg.n_lost_before + (expected - leg.n_received if expected > leg.n_received else 0))
    transit = <int64_t>(ticks_at(r, now) - rtp.timestamp)
    if leg.n_received > 1:
        change = <int64_t><int32_t>(<uint32_t>transit - <uint32_t>leg.transit)
        if change < 0:
            change = -change
        if change < <int64_t>r.clock_hz * 10:
            leg.jitter_16 += <uint32_t>change - ((leg.jitter_16 + 8) >> 4)
    leg.transit = transit


# --- a datagram -------------------------------------------------------------------------------------------------------

cdef void accept(Relay* r, uint32_t leg, uint64_t sequence, const uint8_t* data, uint32_t length, Rtp* rtp, uint64_t content,
                 int64_t now) noexcept nogil:
    """Puts a packet into its slot, `sequence` being within the window, and releases what can go."""
    cdef Slot* slot = &r.slots[sequence & r.mask]
    if sequence > r.oldest_unsent and sequence - r.oldest_unsent > r.mask:
        drop_backlog(r, sequence)
    slot.sequence = sequence
    slot.arrival_ns = now
    slot.content = content
    slot.timestamp = rtp.timestamp
    slot.length = <uint16_t>length
    slot.header_bytes = <uint16_t>rtp.header_bytes
    slot.payload_bytes = <uint16_t>rtp.payload_bytes
    slot.flags = 0
    slot.leg = <uint8_t>leg
    memcpy(slot_data(r, sequence), data, length)
    count(&r.legs[leg].counters[L_FIRST], 1)
    r.good_ns = now
    r.late_run = 0
    if sequence > r.newest:
        if r.asks != NULL:
            ask_missed(r, r.newest + 1, sequence - 1, now)
        r.newest = sequence
        r.newest_rtp = rtp.sequence
        r.newest_leg = <uint8_t>leg
    elif leg != r.newest_leg:
        count(&r.counters[R_MERGED], 1)
    else:
        count(&r.counters[R_REORDERED], 1)
    if sequence == r.next:
        release(r)
        if r.hole_ns != INT64_MAX:
            look_for_hole(r)
    if r.fec != NULL:
        fec_came(r, sequence, now)
    if r.next <= r.newest:
        if r.hole_ns == INT64_MAX:
            look_for_hole(r)
        relay_expire(r, now)


cdef bint is_others(Relay* r, Leg* leg, int64_t now) noexcept nogil:
    """Whether another sender than the leg's sent this, which still sends (RFC 3550 section 8.2). What comes back to us by
    another box is not known by our own addresses, and without numbers not known at all: it would go round for ever."""
    cdef int64_t gone_ns = r.failover_ns if r.failover_ns < SILENCE_NS else SILENCE_NS
    if leg.sender_ns == 0 or now - leg.sender_ns >= gone_ns or memcmp(leg.sender, r.came_from, sizeof(leg.sender)) == 0:
        memcpy(leg.sender, r.came_from, sizeof(leg.sender))
        leg.sender_ns = now
        return False
    return True


cdef bint is_restart(Relay* r, Leg* leg, Rtp* rtp, int64_t now) noexcept nogil:
    """Whether a packet out of line is the second of a new line. While another leg goes on in line, never."""
    cdef bint second = leg.has_bad and leg.bad_sequence == rtp.sequence and leg.bad_ssrc == rtp.ssrc
    leg.has_bad = 1
    leg.bad_sequence = <uint16_t>(rtp.sequence + 1)
    leg.bad_ssrc = rtp.ssrc
    return second and (r.n_media == 1 or r.mode == MODE_BACKUP or now - r.good_ns > r.wait_ns)


cdef bint unwrap(Relay* r, uint32_t index, const uint8_t* data, uint32_t length, Rtp* rtp, uint64_t* content, int64_t now) noexcept nogil:
    """What SRT or RIST brought, without our header. Transport packets in RTP of the sender's own have numbers that hold
    for all legs; others have those of their connection. False: it belongs nowhere."""
    cdef Rtp inner
    if read_rtp(data, length, &inner) == WIRE_OK and is_ts(data + inner.header_bytes, inner.payload_bytes):
        rtp[0] = inner
        r.inner_format = FORMAT_RTP
        return True
    rtp.header_bytes = 0
    rtp.payload_bytes = length
    r.inner_format = FORMAT_TS if is_ts(data, length) else FORMAT_OPAQUE
    if r.inner_format == FORMAT_OPAQUE:
        rtp.payload_type = 96           # RFC 3551 section 3: dynamic
    if r.aligns == NULL:
        return True
    content[0] = content_of(data, length)
    return align_take(r, index, content[0], rtp, now)


cdef void take_rtp(Relay* r, uint32_t index, const uint8_t* data, uint32_t length, int64_t now) noexcept nogil:
    cdef Leg* leg = &r.legs[index]
    cdef Rtp rtp
    cdef uint64_t content = 0
    cdef int said = read_rtp(data, length, &rtp)
    if said != WIRE_OK:
        count(&r.counters[R_DROP_RTCP if said == WIRE_RTCP else R_DROP_MALFORMED], 1)
        return
    if r.is_wrapped:
        data += rtp.header_bytes
        length = rtp.payload_bytes
        if not unwrap(r, index, data, length, &rtp, &content, now):
            count(&r.counters[R_DROP_APART], 1)
            return
    if r.asks != NULL and (rtp.payload_type == r.rtx_type or leg.kind == LEG_RTX):
        if rtp.payload_type == r.rtx_type:
            ask_take(r, data, length, &rtp, now)
        else:
            count(&r.counters[R_DROP_TYPE], 1)
        return
    if r.payload_type != 255 and rtp.payload_type != r.payload_type:
        count(&r.counters[R_DROP_TYPE], 1)
        return
    # Two senders of one stream are welcome; a stream of another one waits until this one's has ended.
    if is_others(r, leg, now) and rtp.ssrc != leg.ssrc and leg.is_started:
        count(&r.counters[R_DROP_SENDER], 1)
        return
    take_numbered(r, index, data, length, &rtp, content, now)


cdef void take_bare(Relay* r, uint32_t index, const uint8_t* data, uint32_t length, int64_t now) noexcept nogil:
    """Transport packets of several legs, without a number."""
    cdef Rtp rtp
    cdef uint64_t content = content_of(data, length)
    memset(&rtp, 0, sizeof(Rtp))
    rtp.payload_type = 33                       # RFC 3551: MP2T
    rtp.payload_bytes = length
    rtp.timestamp = ticks_at(r, now)
    if not align_number(r, index, data, length, content, &rtp, now):
        count(&r.counters[R_DUPLICATE], 1)
    elif not align_take(r, index, content, &rtp, now):
        count(&r.counters[R_DROP_APART], 1)
    else:
        take_numbered(r, index, data, length, &rtp, content, now)


cdef void take_numbered(Relay* r, uint32_t index, const uint8_t* data, uint32_t length, Rtp* rtp, uint64_t content,
                        int64_t now) noexcept nogil:
    cdef Leg* leg = &r.legs[index]
    cdef Slot* slot
    cdef int32_t step
    cdef int slip
    cdef uint64_t sequence
    if not r.is_started:
        restart(r, rtp.sequence, rtp.ssrc)
        leg_restart(leg, rtp.sequence, rtp.ssrc)
    elif not leg.is_started:
        leg_restart(leg, rtp.sequence, rtp.ssrc)
    elif rtp.ssrc != leg.ssrc and rtp.ssrc == r.ssrc:       # another leg brought the new stream first
        leg_restart(leg, rtp.sequence, rtp.ssrc)
    elif rtp.ssrc != leg.ssrc:
        if not is_restart(r, leg, rtp, now):
            count(&r.counters[R_DROP_SSRC], 1)
            return
        leg_restart(leg, rtp.sequence, rtp.ssrc)
        restart(r, rtp.sequence, rtp.ssrc)
    step = (rtp.sequence - r.newest_rtp) & 0xFFFF
    if step >= 0x8000:
        step -= 0x10000
    if step >= DROPOUT_MAX or step < -<int64_t>(r.mask // 2):
        if not is_restart(r, leg, rtp, now):
            count(&r.counters[R_DROP_JUMP], 1)
            return
        leg_restart(leg, rtp.sequence, rtp.ssrc)
        restart(r, rtp.sequence, rtp.ssrc)
        step = 1
    if rtp.payload_type != r.seen_type:
        time_by_type(r, rtp.payload_type)
    leg_measure(r, leg, rtp, now)
    sequence = r.newest + step
    if sequence < r.next or r.slots[sequence & r.mask].sequence == sequence:
        # A slot keeps its number until it is taken again. The other leg may bring any number of true copies at once,
        # after the source has paused: they say nothing of a new stream.
        slot = &r.slots[sequence & r.mask]
        if slot.sequence == sequence and (slot.timestamp == rtp.timestamp or content or r.format == FORMAT_TS):
            slip = 0
            if slot.content != content:
                slip = align_slip(r, index, sequence, data, length, content) if r.format == FORMAT_TS else -1
            if slip < 0:
                if r.format != FORMAT_TS:
                    align_lost(r, index)
                count(&r.counters[R_DROP_APART], 1)
            elif slip == 0:
                count(&r.counters[R_DUPLICATE], 1)
            else:
                rtp.sequence += <uint16_t>slip
                accept(r, index, sequence + <uint64_t>slip, data, length, rtp, content, now)
            return
        r.late_run += 1
        if r.late_run < LATE_RUN or now - r.good_ns <= r.wait_ns:
            count(&r.counters[R_LATE], 1)
            return
        leg_restart(leg, rtp.sequence, rtp.ssrc)
        restart(r, rtp.sequence, rtp.ssrc)
        sequence = r.next
    leg.has_bad = 0
    r.seen_type = rtp.payload_type
    # Room for it: holes that would leave the window are given up now.
    while r.next <= r.newest and sequence - r.next > r.mask // 2:
        give_up(r)
    if sequence - r.next > r.mask // 2:
        # A gap larger than the window takes no numbers in it, so that what was just released keeps its slots. The other
        # leg's packets of the gap meet numbers that are gone: late.
        count(&r.counters[R_LOST], sequence - r.next)
        r.newest = r.next - 1
        r.newest_rtp = <uint16_t>(rtp.sequence - 1)
        sequence = r.next
        fec_forget(r)
    if r.format == FORMAT_TS and sequence < r.newest and align_passed(r, index, sequence, content):
        count(&r.counters[R_DUPLICATE], 1)
        if sequence == r.next:
            release(r)
            look_for_hole(r)
        return
    accept(r, index, sequence, data, length, rtp, content, now)


cdef bint is_over_cap(Relay* r, Leg* leg, uint32_t length, int64_t now) noexcept nogil:
    """Virtual scheduling (ITU-T I.371): what is dropped costs nothing, so that a cap is a rate and not an end."""
    if r.cap_bytes_s == 0:
        return False
    if leg.paid_until_ns < now:
        leg.paid_until_ns = now
    if leg.paid_until_ns - now > CAP_BURST_NS:
        return True
    leg.paid_until_ns += <int64_t>(length * <uint64_t>1000000000 // r.cap_bytes_s)
    return False


cdef bint takes_over(Relay* r, uint32_t index, int64_t now) noexcept nogil:
    """MODE_BACKUP: a leg takes over when nothing good comes from the active one; one before it comes back once it lives
    steadily."""
    cdef bint is_silent = now - r.good_ns >= r.failover_ns
    if not is_silent and not (index < r.active and now - r.legs[index].alive_since_ns >= 4 * r.failover_ns):
        return False
    if r.good_ns:                               # the first packet of all is no switch
        count(&r.counters[R_SWITCHES], 1)
    r.active = <uint8_t>index
    r.is_started = 0
    r.format = r.wanted_format
    return True


cdef bint could_be_media(Relay* r, const uint8_t* data, uint32_t length) noexcept nogil:
    """MODE_BACKUP: what else comes keeps no input alive, and brings none up: a dead encoder's RTCP, a stranger's noise."""
    cdef Rtp rtp
    if r.wanted_format == FORMAT_DETECT and is_ts(data, length):
        return True
    if read_rtp(data, length, &rtp) == WIRE_OK:
        return r.payload_type == 255 or r.is_wrapped or rtp.payload_type == r.payload_type
    return r.wanted_format == FORMAT_DETECT and (r.format == FORMAT_OPAQUE or r.format == FORMAT_DETECT)


cdef void look_again(Relay* r, const uint8_t* data, uint32_t length) noexcept nogil:
    """What carries neither RTP nor TS is sent on as it comes; but one stray datagram, or RTCP, may have come first."""
    cdef Rtp rtp
    cdef uint8_t found = <uint8_t>detect(data, length)
    rtp.ssrc = 0
    if found == FORMAT_RTP:
        read_rtp(data, length, &rtp)
    if found == FORMAT_OPAQUE or found != r.other_format or rtp.ssrc != r.other_ssrc:
        r.n_other = 0
    r.other_format = found
    r.other_ssrc = rtp.ssrc
    r.n_other += 1
    if found != FORMAT_OPAQUE and r.n_other >= OTHER_RUN:
        count(&r.counters[R_RESTARTS], 1)
        r.is_started = 0
        r.format = found
        r.n_other = 0


cdef void relay_take(Relay* r, uint32_t index, const uint8_t* data, uint32_t length, int64_t now) noexcept nogil:
    cdef Leg* leg = &r.legs[index]
    cdef bint is_alive
    cdef Rtp rtp
    count(&r.counters[R_DATAGRAMS], 1)
    count(&r.counters[R_BYTES], length)
    count(&leg.counters[L_DATAGRAMS], 1)
    count(&leg.counters[L_BYTES], length)
    if length > r.slot_bytes or length == 0:
        count(&r.counters[R_DROP_OVERSIZE if length else R_DROP_MALFORMED], 1)
        return
    if is_over_cap(r, leg, length, now):
        count(&r.counters[R_DROP_RATE], 1)
        return
    if leg.kind != LEG_MEDIA:
        leg.last_ns = now
        if leg.kind == LEG_FEC:
            fec_take(r, data, length, now)
        else:
            take_rtp(r, index, data, length, now)
        return
    is_alive = r.mode != MODE_BACKUP or could_be_media(r, data, length)
    if is_alive:
        if leg.last_ns == 0 or now - leg.last_ns >= r.failover_ns:
            leg.alive_since_ns = now
        leg.last_ns = now
    if r.mode == MODE_BACKUP and index != r.active and not (is_alive and takes_over(r, index, now)):
        count(&r.counters[R_DROP_STANDBY], 1)
        return
    if now - r.good_ns > SILENCE_NS and r.is_started:
        count(&r.counters[R_RESTARTS], 1)
        r.is_started = 0
        r.format = r.wanted_format
    if r.format == FORMAT_DETECT:
        r.format = <uint8_t>detect(data, length)
    elif r.format == FORMAT_OPAQUE:
        look_again(r, data, length)
    if r.format == FORMAT_RTP:
        take_rtp(r, index, data, length, now)
        return
    # Without numbers, or what gives them some, legs can't be merged.
    if (r.format == FORMAT_TS and not is_ts(data, length)) or (r.mode == MODE_MERGE and index != 0 and (
            r.format != FORMAT_TS or r.aligns == NULL)):
        count(&r.counters[R_DROP_FORMAT], 1)
        return
    if is_others(r, leg, now):
        count(&r.counters[R_DROP_SENDER], 1)
        return
    if r.aligns != NULL and r.format == FORMAT_TS:
        take_bare(r, index, data, length, now)
        return
    r.is_started = 1
    memset(&rtp, 0, sizeof(Rtp))
    rtp.payload_bytes = length
    rtp.timestamp = ticks_at(r, now)
    accept(r, index, r.newest + 1, data, length, &rtp, 0, now)


cdef void relay_gauges(Relay* r) noexcept nogil:
    cdef uint64_t* row = r.counters
    cdef Leg* leg
    cdef uint32_t i
    store_u64_relaxed(&row[R_TS_PACKETS], r.ts.n_packets)
    store_u64_relaxed(&row[R_TS_DAMAGED], r.ts.n_damaged)
    store_u64_relaxed(&row[R_TS_CONTINUITY], r.ts.n_continuity)
    store_u64_relaxed(&row[R_TS_PCR_JUMPS], r.ts.n_pcr_jumps)
    store_u64_relaxed(&row[R_TS_RANDOM_ACCESS], r.ts.n_random_access)
    store_u64_relaxed(&row[R_TS_RATE_BPS], r.ts.rate_bps)
    store_u64_relaxed(&row[R_FORMAT], r.inner_format if r.is_wrapped else r.format)
    store_u64_relaxed(&row[R_ACTIVE_LEG], r.active)
    store_u64_relaxed(&row[R_PAYLOAD_TYPE], r.seen_type)
    store_u64_relaxed(&row[R_LAST_NS], <uint64_t>r.good_ns)
    for i in range(r.n_legs):
        leg = &r.legs[i]
        store_u64_relaxed(&leg.counters[L_LAST_NS], <uint64_t>leg.last_ns)
        store_u64_relaxed(&leg.counters[L_APART], is_apart(r, i))
        store_u64_relaxed(&leg.counters[L_JITTER_NS], <uint64_t>(leg.jitter_16 >> 4) * 1000000000 // r.clock_hz)
    store_u64_relaxed(&row[R_JITTER_NS], r.legs[r.active].counters[L_JITTER_NS])
