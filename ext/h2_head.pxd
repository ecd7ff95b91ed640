# Heads between HTTP/2 and HTTP/1.1 (RFC 9113 section 8): a request's fields become the text that every other part of the
# data plane reads, and a response's text becomes fields. No session, no stream, no socket, no policy.
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t

from ext.nghttp2 cimport nghttp2_nv

cdef enum:
    TEXT_BYTES = 131072         # pseudo-header fields twice (as they come, and as a line), then the rest
    COOKIE_BYTES = 32768
    NAME_BYTES = 49152
    MAX_RESPONSE_FIELDS = 160   # what an origin may send (http_head.MAX_FIELDS), and ours
    BLOCK_LIMIT_BYTES = 131072  # of one request's fields, unpacked: beyond that it is no mistake any more

cdef struct Piece:              # of Block.text
    uint32_t start
    uint32_t length

cdef struct Block:              # one request's fields, as they come
    int32_t stream_id           # 0: none is under way
    uint16_t status             # what it will be refused with; 0: nothing is wrong yet
    uint8_t has_line            # request line and Host are written
    uint8_t has_host
    uint8_t has_length
    uint8_t has_priority
    uint8_t is_websocket        # RFC 8441: extended CONNECT
    uint32_t n_fields
    uint32_t total              # bytes of fields, as RFC 9113 section 6.5.2 counts them
    uint32_t start              # of the request line in `text`
    uint32_t length             # of `text`
    uint32_t cookie_length
    Piece method
    Piece path
    Piece authority
    Piece scheme
    Piece protocol
    uint8_t* text               # TEXT_BYTES
    uint8_t* cookies            # COOKIE_BYTES

cdef void block_begin(Block* b, int32_t stream_id) noexcept nogil
cdef bint block_add(Block* b, const uint8_t* name, size_t n, const uint8_t* value, size_t value_length) noexcept nogil
cdef int block_end(Block* b, bint has_body, const char* key) noexcept nogil
cdef uint32_t response_fields(const uint8_t* text, size_t n, bint is_first, nghttp2_nv* fields, uint32_t n_fields,
                              uint8_t* names, uint32_t* names_length) noexcept nogil
