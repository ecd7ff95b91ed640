# Several ranges of one body in one answer (multipart/byteranges, RFC 9110 section 14.6): their texts and lengths. Writes
# into memory that it is given; no socket, no store.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from ext.request cimport ByteRange, MAX_PARTS

cdef enum:
    BOUNDARY_BYTES = 32
    MAX_TYPE_BYTES = 256        # a longer Content-Type isn't said again in each part
    MAX_PART_TEXT = 512         # what goes before a part

cdef struct Parts:              # an answer's parts, followed by the Content-Type of each
    ByteRange ranges[8]         # MAX_PARTS
    int64_t total
    uint32_t n
    uint32_t begun              # how many texts are on their way; n + 1: the last one too
    uint32_t size
    uint32_t type_length
    uint8_t boundary[32]        # BOUNDARY_BYTES

cdef uint32_t part_text(const Parts* parts, uint32_t index, uint8_t* out) noexcept nogil
cdef int64_t parts_length(const Parts* parts) noexcept nogil
cdef void draw_boundary(Parts* parts, const uint64_t* secret, uint64_t a, uint64_t b) noexcept nogil
cdef bint find_type(const uint8_t* lines, uint32_t n, uint32_t* start, uint32_t* value, uint32_t* end) noexcept nogil
