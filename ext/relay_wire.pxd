# Readers of what relays receive: RTP (RFC 3550), MPEG-TS (ISO/IEC 13818-1), SMPTE 2022-1 FEC. Bytes in, fields out: no
# socket, no state but TsState, nothing is changed. Each reader looks at no byte beyond the length it is given.
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    TS_BYTES = 188
    TS_PIDS = 8192
    TS_NULL_PID = 8191
    PID_UNKNOWN = 0xFFFF
    SECTION_MAX = 1024          # ISO/IEC 13818-1 2.4.4: PAT and PMT sections are no longer

cdef enum:                      # what a reader says; the table in relay_wire.pyx names them
    WIRE_OK = 0
    WIRE_SHORT
    WIRE_VERSION
    WIRE_RTCP
    WIRE_HEADER
    WIRE_PADDING
    WIRE_SYNC
    WIRE_ADAPTATION
    WIRE_FEC_SHAPE

cdef enum:                      # what a datagram carries
    FORMAT_DETECT = 0
    FORMAT_RTP
    FORMAT_TS                   # a whole number of transport packets, nothing around them
    FORMAT_OPAQUE               # neither: sent on as it came

cdef struct Rtp:
    uint32_t timestamp
    uint32_t ssrc
    uint16_t sequence
    uint8_t payload_type
    uint8_t marker
    uint32_t header_bytes       # fixed part, CSRC list and extension
    uint32_t payload_bytes      # without padding

cdef struct Ts:
    uint16_t pid
    uint8_t continuity
    uint8_t is_damaged          # transport_error_indicator
    uint8_t is_unit_start
    uint8_t is_scrambled
    uint8_t has_payload
    uint8_t is_discontinuous    # discontinuity_indicator
    uint8_t is_random_access
    uint8_t has_pcr
    uint32_t payload            # offset of the payload; 188 if there is none
    int64_t pcr                 # 27 MHz

cdef struct Section:            # one table being put together
    uint32_t filled
    uint32_t length             # 0: none begun
    uint8_t data[SECTION_MAX]

cdef struct TsState:
    uint64_t n_packets
    uint64_t n_damaged
    uint64_t n_continuity       # packets whose counter is not the one expected
    uint64_t n_pcr_jumps
    uint64_t n_random_access
    uint64_t pcr_packets        # n_packets at the last PCR
    uint64_t rate_bps           # between the last two PCRs
    int64_t pcr
    uint16_t pcr_pid
    uint16_t pmt_pid
    uint16_t video_pid
    uint8_t video_type          # stream_type of the PMT
    Section pat
    Section pmt
    uint8_t continuity[TS_PIDS] # 0xff: not seen; bit 4: the last one came twice

cdef struct Fec:                # SMPTE 2022-1 section 8 (FEC header behind the RTP header)
    uint16_t base               # first media sequence number it covers
    uint16_t length_xor
    uint32_t timestamp_xor
    uint8_t type_xor
    uint8_t is_row
    uint8_t offset
    uint8_t count
    uint32_t payload            # offset of the XORed payload in the datagram
    uint32_t payload_bytes

cdef int read_rtp(const uint8_t* data, uint32_t length, Rtp* rtp) noexcept nogil
cdef int read_ts(const uint8_t* packet, Ts* ts) noexcept nogil      # reads 188 bytes
cdef int read_fec(const uint8_t* data, uint32_t length, Fec* fec) noexcept nogil
cdef int detect(const uint8_t* data, uint32_t length) noexcept nogil
cdef bint is_ts(const uint8_t* data, uint32_t length) noexcept nogil
cdef void ts_reset(TsState* state) noexcept nogil
# Counts what `data` (whole transport packets) shows; true if a random access point of the video is in it.
cdef bint ts_measure(TsState* state, const uint8_t* data, uint32_t length) noexcept nogil
