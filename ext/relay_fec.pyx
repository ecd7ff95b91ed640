# The repair behind relay_fec.pxd. XOR in words. Of each repair packet is known how many of its media are missing, and of each place in
# the window which row and which column cover it: a media packet costs two look-ups, however many holes are open.
from libc.stdint cimport UINT64_MAX
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from ext.atomics cimport count
from ext.relay cimport *
from ext.relay_input cimport relay_repaired
from ext.relay_wire cimport *

cdef enum:
    RTP_FIXED = 12
    TODO_MAX = 4 * FEC_KEPT     # each is there at most once for each of its last two that came, and once by its age
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


cdef uint64_t attempt(Relay* r, uint32_t index, int64_t now) noexcept nogil:
    """The number of the media packet that this repair packet gave back; 0: none. Counts anew what is missing."""
    cdef FecSlot* f = &r.fec[index]
    cdef Slot* slot
    cdef uint64_t sequence, missing = 0
    cdef uint32_t i, n_missing = 0, length, part, timestamp
    cdef uint8_t kind
    cdef uint8_t* out
    if f.base == 0:
        return 0
    for i in range(f.count):
        sequence = f.base + i * <uint64_t>f.offset
        if r.slots[sequence & r.mask].sequence != sequence:
            n_missing += 1
            missing = sequence
    if n_missing == 0 or (n_missing == 1 and missing < r.next):
        f.base = 0
        return 0
    f.n_missing = <uint8_t>n_missing
    f.early = 0
    if n_missing != 1:
        return 0
    if missing > r.newest:                      # newer than all that came: not lost yet
        f.early = missing
        r.fec_early = min(r.fec_early, missing)
        return 0
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
            return 0
        xor_into(out + RTP_FIXED, slot_data(r, sequence) + RTP_FIXED, part)
    f.base = 0
    if length > f.payload_bytes or kind != r.seen_type or (
            r.ts.n_packets and r.seen_type == 33 and not is_ts(out + RTP_FIXED, length)):
        count(&r.counters[R_REPAIR_REFUSED], 1)
        return 0
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
    return missing


cdef int32_t covering(Relay* r, const uint8_t* index, uint64_t sequence) noexcept nogil:
    """Which of the repair packets that `index` names covers it; -1: none."""
    cdef int32_t found = <int32_t>index[sequence & r.mask] - 1
    cdef FecSlot* f
    if found < 0:
        return -1
    f = &r.fec[found]
    if f.base == 0 or sequence < f.base or (sequence - f.base) % f.offset or (sequence - f.base) // f.offset >= f.count:
        return -1
    return found


cdef uint32_t note_came(Relay* r, uint64_t sequence, uint8_t* todo, uint32_t n) noexcept nogil:
    """Adds to `todo` those that may give something back, now that this one is there."""
    cdef int32_t found
    cdef uint32_t k
    for k in range(2):
        found = covering(r, r.fec_columns if k else r.fec_rows, sequence)
        if found < 0:
            continue
        if r.fec[found].n_missing:
            r.fec[found].n_missing -= 1
        if r.fec[found].n_missing <= 1 and n < TODO_MAX:
            todo[n] = <uint8_t>found
            n += 1
    return n


cdef void work_off(Relay* r, uint8_t* todo, uint32_t n, int64_t now) noexcept nogil:
    """A row that was mended may make a column whole, and the other way round: until nothing moves. Each mends once."""
    cdef uint64_t mended
    while n:
        n -= 1
        mended = attempt(r, todo[n], now)
        if mended:
            n = note_came(r, mended, todo, n)


cdef void fec_came(Relay* r, uint64_t sequence, int64_t now) noexcept nogil:
    cdef uint8_t todo[TODO_MAX]
    cdef uint32_t i, n = 0
    if r.fec_early <= r.newest:
        r.fec_early = UINT64_MAX
        for i in range(<uint32_t>FEC_KEPT):
            if r.fec[i].base == 0 or r.fec[i].early == 0:
                continue
            if r.fec[i].early <= r.newest:
                todo[n] = <uint8_t>i
                n += 1
            else:
                r.fec_early = min(r.fec_early, r.fec[i].early)
    n = note_came(r, sequence, todo, n)
    work_off(r, todo, n, now)


cdef bint fec_open(Relay* r, uint64_t window_packets) noexcept nogil:
    r.fec = <FecSlot*>calloc(FEC_KEPT, sizeof(FecSlot))
    r.fec_data = <uint8_t*>malloc(<uint64_t>FEC_KEPT * r.slot_bytes)
    r.fec_rows = <uint8_t*>calloc(window_packets, 1)
    r.fec_columns = <uint8_t*>calloc(window_packets, 1)
    r.fec_early = UINT64_MAX
    return r.fec != NULL and r.fec_data != NULL and r.fec_rows != NULL and r.fec_columns != NULL


cdef void fec_close(Relay* r) noexcept nogil:
    free(r.fec)
    free(r.fec_data)
    free(r.fec_rows)
    free(r.fec_columns)
    r.fec = NULL
    r.fec_data = r.fec_rows = r.fec_columns = NULL


cdef void fec_forget(Relay* r) noexcept nogil:
    if r.fec != NULL:
        memset(r.fec, 0, FEC_KEPT * sizeof(FecSlot))
        r.fec_early = UINT64_MAX


cdef void fec_take(Relay* r, const uint8_t* data, uint32_t length, int64_t now) noexcept nogil:
    cdef Fec fec
    cdef FecSlot* f
    cdef int32_t delta
    cdef uint32_t i
    cdef uint8_t* index
    cdef uint8_t todo[TODO_MAX]
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
    index = r.fec_rows if fec.offset == 1 else r.fec_columns
    for i in range(fec.count):
        index[(f.base + i * <uint64_t>f.offset) & r.mask] = <uint8_t>(r.fec_next + 1)
    todo[0] = <uint8_t>r.fec_next
    r.fec_next = (r.fec_next + 1) % FEC_KEPT
    work_off(r, todo, 1, now)
