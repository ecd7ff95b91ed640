# What a worker tells of one answer: records of fixed size in a ring with one producer, one consumer. No policy, no text.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    RECORD_PATH_BYTES = 296     # of the path; longer ones are cut, and their length is told
    NO_ORIGIN = 4294967295

cdef enum:                      # AccessRecord.how: the first four are respond.pxd's
    HOW_REFUSED = 4
    HOW_TUNNEL = 5

cdef enum:                      # AccessRecord.protocol: bits; HTTP/1.1 without TLS is 0
    SPOKE_HTTP10 = 1
    SPOKE_H2 = 2
    SPOKE_TLS_SHIFT = 2         # 0: plain; 1: before 1.2; 2: 1.2; 3: 1.3

cdef enum:                      # AccessRecord.flags
    RECORD_IS_CUT = 1           # the answer broke off
    RECORD_HAS_ADDRESS = 2      # whole: for the hash that the reader makes of it, and never for a disk
    RECORD_HAS_NETWORK = 4      # /24 or /48
    RECORD_IS_FRAMING = 8       # refused for two framings, or one twice: what request smuggling looks like

cdef struct AccessRecord:
    int64_t ended_ns            # CLOCK_MONOTONIC
    int64_t duration_ns
    uint64_t bytes              # of the body
    uint64_t query              # keyed digest; 0: there was none
    uint64_t generation         # of the tables that `zone` is a row of
    uint32_t listener
    uint32_t origin
    int32_t zone
    uint16_t status
    uint16_t path_length        # before it was cut
    uint8_t method
    uint8_t how
    uint8_t fwd_reason
    uint8_t flags
    uint8_t protocol
    uint8_t address[16]
    uint8_t path[296]

cdef struct AccessRing:
    uint64_t head
    uint64_t padding_head[7]
    uint64_t tail
    uint64_t padding_tail[7]
    uint64_t mask
    AccessRecord* records

cdef AccessRing* access_ring_new(uint64_t capacity) noexcept nogil
cdef void access_ring_free(AccessRing* ring) noexcept nogil
cdef AccessRecord* access_ring_reserve(AccessRing* ring) noexcept nogil
cdef void access_ring_commit(AccessRing* ring) noexcept nogil
cdef AccessRecord* access_ring_first(AccessRing* ring) noexcept nogil
cdef void access_ring_release(AccessRing* ring) noexcept nogil
cdef uint64_t query_digest(const uint8_t* query, uint32_t n) noexcept nogil
