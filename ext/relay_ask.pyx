# The asking behind relay_ask.pxd. A retransmission fills a slot that was asked for, and no other: whoever sends one unasked has no
# way into the stream.
from libc.stdint cimport INT64_MAX, int32_t, uint16_t
from libc.string cimport memcpy

from ext.atomics cimport count
from ext.relay cimport *
from ext.relay_input cimport relay_repaired
from ext.relay_wire cimport *

cdef enum:
    # Reordering within a branch's networks is over by then, mostly; each request for what was on its way comes back twice.
    ASK_AFTER_NS = 5000000
    ASK_AGAIN_MIN_NS = 10000000
    ASK_EVERY_NS = 5000000      # where one packet does not hold all
    ASK_TRIES = 4
    ASK_ENTRIES = 32
    RTCP_RR = 201
    RTCP_SDES = 202
    RTCP_RTPFB = 205
    RTPFB_NACK = 1
    OSN_BYTES = 2


cdef inline void put16(uint8_t* at, uint32_t value) noexcept nogil:
    at[0] = <uint8_t>(value >> 8)
    at[1] = <uint8_t>value


cdef inline void put32(uint8_t* at, uint32_t value) noexcept nogil:
    put16(at, value >> 16)
    put16(at + 2, value & 0xFFFF)


cdef void ask_missed(Relay* r, uint64_t first, uint64_t last, int64_t now) noexcept nogil:
    cdef uint64_t at = first
    cdef Ask* a
    while at <= last:
        a = &r.asks[at & r.mask]
        a.sequence = at
        a.asked_ns = 0
        a.next_ns = now + ASK_AFTER_NS
        a.n = 0
        at += 1
    if first <= last and now + ASK_AFTER_NS < r.ask_ns:
        r.ask_ns = now + ASK_AFTER_NS


cdef uint32_t ask_head(Relay* r, uint8_t* out) noexcept nogil:
    """What a NACK stands behind (RFC 4585 section 3.1): an empty report and the canonical name (RFC 3550 6.4.2, 6.5)."""
    out[0] = 0x80
    out[1] = RTCP_RR
    put16(out + 2, 1)
    put32(out + 4, r.ask_ssrc)
    out[8] = 0x81
    out[9] = RTCP_SDES
    put16(out + 10, 6)
    put32(out + 12, r.ask_ssrc)
    out[16] = 1                                 # CNAME
    out[17] = sizeof(r.ask_name)
    memcpy(out + 18, r.ask_name, sizeof(r.ask_name))
    put16(out + 34, 0)                          # its end, and up to a whole word
    out[36] = 0x80 | RTPFB_NACK
    out[37] = RTCP_RTPFB
    put32(out + 40, r.ask_ssrc)
    put32(out + 44, r.ssrc)
    return 48


cdef uint32_t ask_write(Relay* r, int64_t now, uint8_t* out) noexcept nogil:
    cdef uint64_t at = r.next, base = 0
    cdef uint32_t size = 0, n = 0
    cdef uint16_t bits = 0
    cdef int64_t due = INT64_MAX
    cdef Ask* a
    while at < r.newest:
        a = &r.asks[at & r.mask]
        if r.slots[at & r.mask].sequence == at or a.sequence != at or a.n >= ASK_TRIES:
            at += 1
            continue
        if a.next_ns > now:
            due = a.next_ns if a.next_ns < due else due
            at += 1
            continue
        if n and at - base <= 16:               # RFC 4585 6.2.1: a packet's number, and which of the next 16
            bits |= <uint16_t>(1 << (at - base - 1))
            put16(out + size - 2, bits)
        elif n == ASK_ENTRIES:
            due = now + ASK_EVERY_NS
            break
        else:
            if n == 0:
                size = ask_head(r, out)
            base, bits = at, 0
            put16(out + size, <uint32_t>((at - r.newest + r.newest_rtp) & 0xFFFF))
            put16(out + size + 2, 0)
            size += 4
            n += 1
        a.n += 1
        a.asked_ns = now
        a.next_ns = now + r.ask_again_ns
        if a.n < ASK_TRIES and a.next_ns < due:
            due = a.next_ns
        count(&r.counters[R_ASKED], 1)
        at += 1
    if n:
        put16(out + 38, 2 + n)
    r.ask_ns = due
    return size


cdef void ask_measure(Relay* r, int64_t round_trip) noexcept nogil:
    """Asked again after one and a half round trips, of which a sliding average is kept (RFC 6298 section 2's weights)."""
    r.ask_trip_ns = round_trip if r.ask_trip_ns == 0 else r.ask_trip_ns + (round_trip - r.ask_trip_ns) // 8
    r.ask_again_ns = r.ask_trip_ns + r.ask_trip_ns // 2
    if r.ask_again_ns < ASK_AGAIN_MIN_NS:
        r.ask_again_ns = ASK_AGAIN_MIN_NS


cdef void ask_take(Relay* r, const uint8_t* data, uint32_t length, Rtp* rtp, int64_t now) noexcept nogil:
    """RFC 4588 section 4: the packet as it was, but for payload type, SSRC, number, and the old number before its payload."""
    cdef const uint8_t* payload = data + rtp.header_bytes
    cdef uint8_t* out
    cdef int32_t step
    cdef uint32_t size
    cdef uint64_t sequence
    cdef Slot* slot
    cdef Ask* a
    count(&r.counters[R_RETRANSMITTED], 1)
    if not r.is_started or rtp.payload_bytes <= OSN_BYTES:      # nothing but padding probes a path's rate
        count(&r.counters[R_DROP_RETRANSMITTED], 1)
        return
    step = (((payload[0] << 8) | payload[1]) - r.newest_rtp) & 0xFFFF
    if step >= 0x8000:
        step -= 0x10000
    sequence = r.newest + step
    slot = &r.slots[sequence & r.mask]
    a = &r.asks[sequence & r.mask]
    if step >= 0 or sequence < r.next or slot.sequence == sequence or a.sequence != sequence or a.n == 0:
        count(&r.counters[R_DROP_RETRANSMITTED], 1)
        return
    size = rtp.payload_bytes - OSN_BYTES
    if r.ts.n_packets and r.seen_type == 33 and not is_ts(payload + OSN_BYTES, size):
        count(&r.counters[R_REPAIR_REFUSED], 1)
        return
    if a.n == 1:                                # which of several requests it answers can't be told
        ask_measure(r, now - a.asked_ns)
    a.sequence = 0
    out = slot_data(r, sequence)
    memcpy(out, data, rtp.header_bytes)
    out[0] &= 0xDF                              # its padding stays behind
    out[1] = (data[1] & 0x80) | r.seen_type
    out[2] = payload[0]
    out[3] = payload[1]
    put32(out + 8, r.ssrc)
    memcpy(out + rtp.header_bytes, payload + OSN_BYTES, size)
    slot.sequence = sequence
    slot.arrival_ns = now
    slot.timestamp = rtp.timestamp
    slot.length = <uint16_t>(rtp.header_bytes + size)
    slot.header_bytes = <uint16_t>rtp.header_bytes
    slot.payload_bytes = <uint16_t>size
    slot.flags = SLOT_REPAIRED
    slot.leg = 0
    relay_repaired(r, sequence)
