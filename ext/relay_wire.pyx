# The readers behind relay_wire.pxd, and their wrappers for tests and fuzzing. No socket and no clock may live here.
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

REASONS = {
    WIRE_SHORT: "short", WIRE_VERSION: "version", WIRE_RTCP: "rtcp", WIRE_HEADER: "header", WIRE_PADDING: "padding",
    WIRE_SYNC: "sync", WIRE_ADAPTATION: "adaptation", WIRE_FEC_SHAPE: "fec shape",
}
FORMATS = {FORMAT_RTP: "rtp", FORMAT_TS: "ts", FORMAT_OPAQUE: "opaque"}

cdef enum:
    RTP_FIXED = 12
    FEC_HEADER = 16
    FEC_COUNT_MAX = 40          # SMPTE 2022-1 allows 20 columns and rows; senders with twice that were met
    PCR_JUMP = 27000000         # 1 s; at most 100 ms may lie between two (ISO/IEC 13818-1 2.7.2)
    TABLE_PAT = 0
    TABLE_PMT = 2


cdef int64_t PCR_WRAP = (<int64_t>1 << 33) * 300


cdef inline uint16_t u16(const uint8_t* p) noexcept nogil:
    return <uint16_t>((p[0] << 8) | p[1])


cdef inline uint32_t u32(const uint8_t* p) noexcept nogil:
    return (<uint32_t>p[0] << 24) | (<uint32_t>p[1] << 16) | (<uint32_t>p[2] << 8) | p[3]


cdef int read_rtp(const uint8_t* data, uint32_t length, Rtp* rtp) noexcept nogil:
    """RFC 3550 section 5.1. RTCP on the same port is told by its type (RFC 5761 section 4)."""
    cdef uint32_t header, padding = 0
    if length < RTP_FIXED:
        return WIRE_SHORT
    if data[0] >> 6 != 2:
        return WIRE_VERSION
    if 192 <= data[1] <= 223:
        return WIRE_RTCP
    header = RTP_FIXED + 4 * (data[0] & 15)
    if data[0] & 0x10:
        if length < header + 4:
            return WIRE_HEADER
        header += 4 + 4 * <uint32_t>u16(data + header + 2)
    if header > length:
        return WIRE_HEADER
    if data[0] & 0x20:
        padding = data[length - 1]
        if padding == 0 or padding > length - header:
            return WIRE_PADDING
    rtp.marker = data[1] >> 7
    rtp.payload_type = data[1] & 0x7F
    rtp.sequence = u16(data + 2)
    rtp.timestamp = u32(data + 4)
    rtp.ssrc = u32(data + 8)
    rtp.header_bytes = header
    rtp.payload_bytes = length - header - padding
    return WIRE_OK


cdef int read_ts(const uint8_t* packet, Ts* ts) noexcept nogil:
    """ISO/IEC 13818-1 2.4.3.2 and 2.4.3.4."""
    cdef uint32_t control, length
    cdef const uint8_t* field
    memset(ts, 0, sizeof(Ts))
    if packet[0] != 0x47:
        return WIRE_SYNC
    ts.is_damaged = packet[1] >> 7
    ts.is_unit_start = packet[1] >> 6 & 1
    ts.pid = u16(packet + 1) & 0x1FFF
    ts.is_scrambled = packet[3] >> 7
    control = packet[3] >> 4 & 3
    ts.continuity = packet[3] & 15
    ts.has_payload = control & 1
    ts.payload = 4 if ts.has_payload else TS_BYTES
    if control & 2:
        length = packet[4]
        if length > (182 if ts.has_payload else 183):
            return WIRE_ADAPTATION
        if ts.has_payload:
            ts.payload = 5 + length
        if length:
            field = packet + 5
            ts.is_discontinuous = field[0] >> 7
            ts.is_random_access = field[0] >> 6 & 1
            if field[0] & 0x10:
                if length < 7:
                    return WIRE_ADAPTATION
                ts.has_pcr = 1
                ts.pcr = ((<int64_t>u32(field + 1) << 1) | (field[5] >> 7)) * 300 + (u16(field + 5) & 0x1FF)
    return WIRE_OK


cdef int read_fec(const uint8_t* data, uint32_t length, Fec* fec) noexcept nogil:
    """SMPTE 2022-1: an RTP packet whose payload is the FEC header of 16 bytes and the XOR of the media payloads."""
    cdef Rtp rtp
    cdef const uint8_t* p
    cdef int said = read_rtp(data, length, &rtp)
    if said != WIRE_OK:
        return said
    if rtp.payload_bytes < FEC_HEADER:
        return WIRE_SHORT
    p = data + rtp.header_bytes
    fec.base = u16(p)
    fec.length_xor = u16(p + 2)
    fec.type_xor = p[4] & 0x7F
    fec.timestamp_xor = u32(p + 8)
    fec.is_row = p[12] >> 6 & 1
    fec.offset = p[13]
    fec.count = p[14]
    fec.payload = rtp.header_bytes + FEC_HEADER
    fec.payload_bytes = rtp.payload_bytes - FEC_HEADER
    # Only XOR (type 0) is defined; a row's packets follow each other.
    if (p[12] >> 3 & 7) or not 0 < fec.count <= FEC_COUNT_MAX or not 0 < fec.offset <= FEC_COUNT_MAX:
        return WIRE_FEC_SHAPE
    if fec.is_row and fec.offset != 1:
        return WIRE_FEC_SHAPE
    return WIRE_OK


cdef bint is_ts(const uint8_t* data, uint32_t length) noexcept nogil:
    cdef uint32_t at = 0
    if length == 0 or length % TS_BYTES:
        return False
    while at < length:
        if data[at] != 0x47:
            return False
        at += TS_BYTES
    return True


cdef int detect(const uint8_t* data, uint32_t length) noexcept nogil:
    """RTP and TS can't be taken for each other: version 2 makes the first byte 0x80 to 0xbf, a sync byte is 0x47."""
    cdef Rtp rtp
    if is_ts(data, length):
        return FORMAT_TS
    if read_rtp(data, length, &rtp) == WIRE_OK:
        return FORMAT_RTP
    return FORMAT_OPAQUE


# --- transport stream -------------------------------------------------------------------------------------------------

cdef void ts_reset(TsState* state) noexcept nogil:
    memset(state, 0, sizeof(TsState) - TS_PIDS)
    memset(state.continuity, 0xFF, TS_PIDS)
    state.pcr = -1
    state.pcr_pid = state.pmt_pid = state.video_pid = PID_UNKNOWN


cdef uint32_t crc32_mpeg(const uint8_t* data, uint32_t length) noexcept nogil:
    """ISO/IEC 13818-1 annex A; bit by bit, as tables come a few times a second."""
    cdef uint32_t crc = 0xFFFFFFFF
    cdef uint32_t i
    cdef int bit
    for i in range(length):
        crc ^= <uint32_t>data[i] << 24
        for bit in range(8):
            crc = (crc << 1) ^ (<uint32_t>0x04C11DB7 & (0 - (crc >> 31)))
    return crc


cdef bint section_add(Section* s, const uint8_t* data, uint32_t length) noexcept nogil:
    """True when the section is whole. Its length stands in its first three bytes (2.4.4.11)."""
    cdef uint32_t room = SECTION_MAX - s.filled
    if length > room:
        length = room
    memcpy(s.data + s.filled, data, length)
    s.filled += length
    if s.length == 0 and s.filled >= 3:
        s.length = 3 + (u16(s.data + 1) & 0x0FFF)
        if s.length > SECTION_MAX or s.length < 12:
            s.filled = s.length = 0
            return False
    return s.length != 0 and s.filled >= s.length


cdef bint section_take(Section* s, const uint8_t* packet, Ts* ts) noexcept nogil:
    """Adds one packet's payload; true when a whole section with a good checksum is in `s.data`."""
    cdef const uint8_t* data = packet + ts.payload
    cdef uint32_t length = TS_BYTES - ts.payload
    cdef uint32_t pointer
    cdef bint whole = False
    if ts.is_unit_start:
        if length == 0:
            return False
        pointer = data[0]
        if pointer >= length:
            s.filled = s.length = 0
            return False
        if s.filled and pointer:
            whole = section_add(s, data + 1, pointer)
        if not whole:
            s.filled = s.length = 0
            whole = section_add(s, data + 1 + pointer, length - 1 - pointer)
    elif s.filled:
        whole = section_add(s, data, length)
    if whole and crc32_mpeg(s.data, s.length) != 0:
        s.filled = s.length = 0
        return False
    return whole


cdef inline bint is_video(uint8_t stream_type) noexcept nogil:
    # MPEG-1, MPEG-2, MPEG-4 part 2, H.264, H.265, AVS2, H.266
    return stream_type in (0x01, 0x02, 0x10, 0x1B, 0x24, 0xD2, 0x33)


cdef void read_pat(TsState* state) noexcept nogil:
    cdef Section* s = &state.pat
    cdef uint32_t at = 8
    if s.data[0] == TABLE_PAT:
        while at + 4 <= s.length - 4:
            if u16(s.data + at) != 0:           # program 0 is the network's
                state.pmt_pid = u16(s.data + at + 2) & 0x1FFF
                break
            at += 4
    s.filled = s.length = 0


cdef void read_pmt(TsState* state) noexcept nogil:
    cdef Section* s = &state.pmt
    cdef uint32_t at, end
    if s.data[0] == TABLE_PMT and s.length >= 16:
        end = s.length - 4
        state.pcr_pid = u16(s.data + 8) & 0x1FFF
        at = 12 + (u16(s.data + 10) & 0x0FFF)
        while at + 5 <= end:
            if is_video(s.data[at]):
                state.video_type = s.data[at]
                state.video_pid = u16(s.data + at + 1) & 0x1FFF
                break
            at += 5 + (u16(s.data + at + 3) & 0x0FFF)
    s.filled = s.length = 0


cdef void count_continuity(TsState* state, Ts* ts) noexcept nogil:
    """2.4.3.3: the counter moves with payload only; one repetition is allowed; a discontinuity may be announced."""
    cdef uint8_t last = state.continuity[ts.pid]
    cdef uint8_t expected
    if ts.pid == TS_NULL_PID:
        return
    if last != 0xFF and not ts.is_discontinuous:
        if not ts.has_payload:
            if ts.continuity != (last & 15):
                state.n_continuity += 1
        elif ts.continuity == (last & 15) and not last & 16:
            state.continuity[ts.pid] = last | 16
            return
        else:
            expected = (last + 1) & 15
            if ts.continuity != expected:
                state.n_continuity += 1
    # A packet without payload leaves "came twice" alone: the next one with payload must still move.
    state.continuity[ts.pid] = ts.continuity if ts.has_payload or last == 0xFF else ts.continuity | (last & 16)


cdef void count_pcr(TsState* state, Ts* ts) noexcept nogil:
    cdef int64_t delta
    if state.pcr_pid != PID_UNKNOWN and ts.pid != state.pcr_pid:
        return
    if state.pcr_pid == PID_UNKNOWN:
        state.pcr_pid = ts.pid
    if state.pcr >= 0 and not ts.is_discontinuous:
        delta = ts.pcr - state.pcr
        if delta < 0:
            delta += PCR_WRAP
        if delta > PCR_JUMP:
            state.n_pcr_jumps += 1
        elif delta > 0:
            state.rate_bps = (state.n_packets - state.pcr_packets) * TS_BYTES * 8 * 27000000 // <uint64_t>delta
    state.pcr = ts.pcr
    state.pcr_packets = state.n_packets


cdef bint ts_measure(TsState* state, const uint8_t* data, uint32_t length) noexcept nogil:
    cdef Ts ts
    cdef uint32_t at = 0
    cdef bint found = False
    while at + TS_BYTES <= length:
        state.n_packets += 1
        if read_ts(data + at, &ts) != WIRE_OK or ts.is_damaged:
            state.n_damaged += 1                # 2.4.3.3: nothing in it can be relied on
            at += TS_BYTES
            continue
        count_continuity(state, &ts)
        if ts.has_pcr:
            count_pcr(state, &ts)
        if ts.has_payload and not ts.is_scrambled:
            if ts.pid == 0:
                if section_take(&state.pat, data + at, &ts):
                    read_pat(state)
            elif ts.pid == state.pmt_pid:
                if section_take(&state.pmt, data + at, &ts):
                    read_pmt(state)
        if ts.is_random_access and (ts.pid == state.video_pid or state.video_pid == PID_UNKNOWN):
            state.n_random_access += 1
            found = True
        at += TS_BYTES
    return found


# --- for tests --------------------------------------------------------------------------------------------------------

def rtp_of(bytes data):
    """Fields of an RTP packet as a dict; the reason why it is none as a string."""
    cdef Rtp rtp
    cdef int said = read_rtp(data, <uint32_t>len(data), &rtp)
    return REASONS[said] if said else dict(rtp)


def ts_of(bytes packet):
    """Fields of one transport packet; the reason why it is none as a string. Raises ValueError unless it is 188 bytes."""
    cdef Ts ts
    if len(packet) != TS_BYTES:
        raise ValueError("a transport packet has 188 bytes")
    cdef int said = read_ts(packet, &ts)
    return REASONS[said] if said else dict(ts)


def fec_of(bytes data):
    """Fields of an FEC packet; the reason why it is none as a string."""
    cdef Fec fec
    cdef int said = read_fec(data, <uint32_t>len(data), &fec)
    return REASONS[said] if said else dict(fec)


def format_of(bytes data) -> str:
    return FORMATS[detect(data, <uint32_t>len(data))]


cdef class TsMeter:
    """What is known of a transport stream after the packets given so far."""

    cdef TsState* state

    def __cinit__(self):
        self.state = <TsState*>calloc(1, sizeof(TsState))
        if self.state == NULL:
            raise MemoryError
        ts_reset(self.state)

    def __dealloc__(self):
        free(self.state)

    def add(self, bytes data) -> bool:
        """True if `data` has a random access point."""
        return ts_measure(self.state, data, <uint32_t>len(data))

    def known(self) -> dict:
        s = self.state
        return {
            "packets": s.n_packets, "damaged": s.n_damaged, "continuity_errors": s.n_continuity, "pcr_jumps": s.n_pcr_jumps,
            "random_access": s.n_random_access, "rate_bps": s.rate_bps, "pcr": s.pcr,
            "pcr_pid": _pid(s.pcr_pid), "pmt_pid": _pid(s.pmt_pid), "video_pid": _pid(s.video_pid), "video_type": s.video_type,
        }


def _pid(pid):
    return None if pid == PID_UNKNOWN else pid
