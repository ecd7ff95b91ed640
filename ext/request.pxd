# What a parsed request means: origin, key, zone, conditions, range. Pure functions over bytes and rows.
from libc.stdint cimport int64_t, uint8_t, uint32_t

from ext.http_head cimport Field, RequestHead
from ext.layout cimport Tables

cdef enum:
    ROUTE_UNKNOWN_HOST = -1
    ROUTE_NO_PATH = -2

cdef enum:                      # Range, after RFC 9110 section 14.2
    RANGE_NONE = 0              # absent, malformed, too many: answered whole
    RANGE_OK = 1
    RANGE_UNSATISFIABLE = 2
    RANGE_SEVERAL = 3

cdef enum:
    MAX_PARTS = 8               # after coalescing (RFC 9110 section 17.15): more, and the field is ignored
    MAX_SPECIFIERS = 128        # before it

cdef struct ByteRange:          # inclusive
    int64_t first
    int64_t last

cdef int route(const Tables* tables, const uint8_t* host, uint32_t host_length, const uint8_t* path, uint32_t path_length, uint32_t* strip) noexcept nogil
cdef uint32_t build_key(const Tables* tables, uint32_t origin, const uint8_t* path, uint32_t n, uint8_t* out) noexcept nogil
cdef int zone_of(const Tables* tables, const uint8_t* address) noexcept nogil
cdef bint etag_matches(const uint8_t* data, const RequestHead* head, const uint8_t* etag, uint32_t n) noexcept nogil
cdef int64_t parse_date(const uint8_t* text, uint32_t n) noexcept nogil
cdef int select_ranges(const uint8_t* text, uint32_t n, int64_t total, ByteRange* parts, uint32_t* n_parts) noexcept nogil
cdef int range_bounds(const uint8_t* text, uint32_t n, int64_t* first, int64_t* last) noexcept nogil
cdef inline const Field* first_field(const RequestHead* head, uint32_t id) noexcept nogil:
    return NULL if head.known[id] == 0 else &head.fields[head.known[id] - 1]
