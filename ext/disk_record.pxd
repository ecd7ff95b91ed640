# One record of the disk tier's log: a header of 128 bytes and its payload, checksummed and, with a key, sealed
# (docs/decisions/0100). No file and no thread: memory in, memory out. Little-endian, as every machine we run on.
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    RECORD_MAGIC = 0x31524341   # "ACR1"
    RECORD_VERSION = 1
    RECORD_HEADER = 128
    RECORD_ALIGN = 64           # records begin at multiples of it
    RECORD_MOST = 8388608       # a payload is never larger: what a length may make us read
    RECORD_SEALED = 1           # Record.flags: the payload is encrypted
    SEGMENT_START = 64          # the segment's own header; records follow

cdef enum:                      # Record.kind
    RECORD_ERASED = 0           # a class's, which was erased: nothing but its place is left of it
    RECORD_HEAD = 1             # payload: store.head
    RECORD_SLICE = 2            # payload: body bytes
    RECORD_GONE = 3             # the key's objects written before are purged; no payload
    RECORD_ORIGIN_GONE = 4      # the same for all of an origin
    RECORD_CLASS_GONE = 5       # and of a class

cdef enum:                      # what is wrong with a record
    RECORD_GOOD = 0
    RECORD_BAD = -1             # torn or flipped: no record of ours
    RECORD_OTHER = -2           # a good one, but not the one that was asked for
    RECORD_LOCKED = -3          # sealed, and its key is gone
    RECORD_NEWER = -4           # of a version that we don't know

cdef packed struct Record:
    uint32_t magic
    uint16_t version
    uint8_t kind
    uint8_t flags
    uint32_t header_crc         # CRC32C of the header with this field zero
    uint32_t payload_crc        # CRC32C of the payload; 0 when sealed, where the tag holds it
    uint64_t segment
    uint64_t sequence           # of all records, in the order written
    uint8_t key[16]             # keyed digest of origin and key
    uint64_t variant            # digest of the Vary names and values
    uint64_t generation         # of one stored representation: random
    uint32_t slice_index        # of a head: how many tags it has
    uint32_t length             # of the payload
    uint64_t total_length
    int64_t wall_ns             # when it was written
    uint32_t class_id
    uint32_t origin_id
    uint8_t salt[16]            # of the segment: its key is derived by it
    uint8_t tag[16]

cdef packed struct SegmentHead:
    uint32_t magic
    uint32_t version
    uint64_t segment
    uint8_t salt[16]
    uint8_t spare[28]
    uint32_t crc

cdef uint32_t crc32c(uint32_t crc, const uint8_t* data, uint64_t n) noexcept nogil
cdef inline uint64_t record_bytes(uint64_t length) noexcept nogil:
    return (RECORD_HEADER + length + RECORD_ALIGN - 1) & ~<uint64_t>(RECORD_ALIGN - 1)
cdef void segment_compose(SegmentHead* head, uint64_t segment, const uint8_t* salt) noexcept nogil
cdef bint segment_check(const SegmentHead* head, uint64_t segment) noexcept nogil
cdef bint record_finish(Record* record, uint8_t* payload, uint64_t offset, const uint8_t* key) noexcept nogil
cdef void record_erase(Record* record) noexcept nogil
cdef int record_check(const Record* record, uint64_t segment) noexcept nogil
cdef int record_open(Record* record, uint8_t* payload, uint64_t offset, const uint8_t* key) noexcept nogil
cdef bint seal(const uint8_t* key, const uint8_t* nonce, const uint8_t* bound, uint64_t n_bound, uint8_t* data, uint64_t n, uint8_t* tag) noexcept nogil
cdef bint unseal(const uint8_t* key, const uint8_t* nonce, const uint8_t* bound, uint64_t n_bound, uint8_t* data, uint64_t n, const uint8_t* tag) noexcept nogil
