# The repair behind relay_fec.pxd. XOR in words; at most FEC_KEPT repair packets are looked at, and only while a packet is missing.
from libc.string cimport memcpy, memset

from ext.atomics cimport count
from ext.relay cimport *
from ext.relay_input cimport relay_repaired
from ext.relay_wire cimport *

cdef enum:
    RTP_FIXED = 12
    OFF_LINE = 1024             # a base this far from the newest packet belongs to another stream, or lies


cdef inline void xor_into(uint8_t* out, const uint8_t* data, uint32_t length) noexcept nogil:
    cdef uint32_t at = 0
    cdef uint64_t a, b
    while at + 8 <= length:
        memcpy(&a, out + at, 8)
        memcpy(&b, data + at, 8)
        a ^= b
        memcpy(out + at, &a, 8)
        at += 8
    while at < length:
        out[at] ^= data[at]
        at += 1


cdef bint attempt(Relay* r, uint32_t index, int64_t now) noexcept nogil:
    """True if this repair packet gave a media packet back."""
    cdef FecSlot* f = &r.fec[index]
    cdef Slot* slot
    cdef uint64_t sequence, missing = 0
    cdef uint32_t i, n_missing = 0, length, part, timestamp
    cdef uint8_t kind
    cdef uint8_t* out
    if f.base == 0:
        return False
    for i in range(f.count):
        sequence = f.base + i * <uint64_t>f.offset
        if r.slots[sequence & r.mask].sequence != sequence:
            n_missing += 1
            missing = sequence
    if n_missing == 0 or (n_missing == 1 and missing < r.next):
        f.base = 0
        return False
    # One newer than all that came is not lost yet.
    if n_missing != 1 or missing > r.newest:
        return False
    length = f.length_xor
    kind = f.type_xor
    timestamp = f.timestamp_xor
    slot = &r.slots[missing & r.mask]
    slot.sequence = 0
    out = slot_data(r, missing)
    memcpy(out + RTP_FIXED, r.fec_data + <uint64_t>index * r.slot_bytes, f.payload_bytes)
    for i in range(f.count):
        sequence = f.base + i * <uint64_t>f.offset
        if sequence == missing:
            continue
        slot = &r.slots[sequence & r.mask]
        part = slot.length - RTP_FIXED
        length ^= part
        kind ^= slot_data(r, sequence)[1] & 0x7F
        timestamp ^= slot.timestamp
        if part > f.payload_bytes:              # SMPTE 2022-1: as long as the longest it covers
            f.base = 0
            count(&r.counters[R_REPAIR_REFUSED], 1)
            return False
        xor_into(out + RTP_FIXED, slot_data(r, sequence) + RTP_FIXED, part)
    f.base = 0
    if length > f.payload_bytes or kind != r.seen_type or (
            r.ts.n_packets and r.seen_type == 33 and not is_ts(out + RTP_FIXED, length)):
        count(&r.counters[R_REPAIR_REFUSED], 1)
        return False
    out[0] = 0x80
    out[1] = kind
    sequence = missing - r.newest + r.newest_rtp
    out[2] = <uint8_t>(sequence >> 8)
    out[3] = <uint8_t>sequence
    out[4] = <uint8_t>(timestamp >> 24)
    out[5] = <uint8_t>(timestamp >> 16)
    out[6] = <uint8_t>(timestamp >> 8)
    out[7] = <uint8_t>timestamp
    for i in range(4):
        out[8 + i] = <uint8_t>(r.ssrc >> (24 - 8 * i))
    slot = &r.slots[missing & r.mask]
    slot.sequence = missing
    slot.arrival_ns = now
    slot.timestamp = timestamp
    slot.length = <uint16_t>(length + RTP_FIXED)
    slot.header_bytes = RTP_FIXED
    slot.payload_bytes = <uint16_t>length
    slot.flags = SLOT_REPAIRED
    slot.leg = 0
    relay_repaired(r, missing)
    return True


cdef void fec_try(Relay* r, int64_t now) noexcept nogil:
    """A row that was mended may make a column whole, and the other way round: until nothing moves."""
    cdef uint32_t i
    cdef bint moved = True
    while moved and r.next <= r.newest:
        moved = False
        for i in range(<uint32_t>FEC_KEPT):
            if attempt(r, i, now):
                moved = True


cdef void fec_forget(Relay* r) noexcept nogil:
    if r.fec != NULL:
        memset(r.fec, 0, FEC_KEPT * sizeof(FecSlot))


cdef void fec_take(Relay* r, const uint8_t* data, uint32_t length, int64_t now) noexcept nogil:
    cdef Fec fec
    cdef FecSlot* f
    cdef int32_t delta
    if r.fec == NULL or read_fec(data, length, &fec) != WIRE_OK or RTP_FIXED + fec.payload_bytes > r.slot_bytes:
        count(&r.counters[R_DROP_FEC_MALFORMED], 1)
        return
    if not r.is_started or r.format != FORMAT_RTP:
        count(&r.counters[R_DROP_FEC_REFUSED], 1)
        return
    delta = <int32_t>(<int64_t>((fec.base - r.newest_rtp) & 0xFFFF))
    if delta >= 0x8000:
        delta -= 0x10000
    # All it covers must have places of their own in the window.
    if delta > OFF_LINE or delta < -<int32_t>OFF_LINE or <uint64_t>(-delta if delta < 0 else 0) > r.mask // 2 or (
            (<uint64_t>fec.count - 1) * fec.offset > r.mask // 2):
        count(&r.counters[R_DROP_FEC_REFUSED], 1)
        return
    count(&r.counters[R_FEC_PACKETS], 1)
    f = &r.fec[r.fec_next]
    f.base = r.newest + delta
    f.timestamp_xor = fec.timestamp_xor
    f.length_xor = fec.length_xor
    f.payload_bytes = <uint16_t>fec.payload_bytes
    f.type_xor = fec.type_xor
    f.offset = fec.offset
    f.count = fec.count
    memcpy(r.fec_data + <uint64_t>r.fec_next * r.slot_bytes, data + fec.payload, fec.payload_bytes)
    r.fec_next = (r.fec_next + 1) % FEC_KEPT
    if r.next <= r.newest:
        fec_try(r, now)
