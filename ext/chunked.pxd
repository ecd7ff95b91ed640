# The chunked transfer coding of requests, decoding (RFC 9112 section 7.1). The same grammar and limits as
# accelerator/protocols/chunked.py, which reads responses: a fuzz target holds them equal. No allocation, no socket.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef enum:                      # what chunked_read returns
    CHUNKED_MORE = 0            # all bytes are used
    CHUNKED_DATA = 1            # `data`, `n` are body bytes
    CHUNKED_END = 2             # the body is whole; the bytes that follow are not its own
    CHUNKED_BAD = 3             # not of the grammar, or beyond a limit: nothing may be read on

cdef struct Chunked:            # zeroed to begin with
    uint8_t state
    uint8_t n_digits
    uint64_t left               # of the chunk
    uint32_t line_bytes
    uint32_t trailer_bytes
    int64_t excess_bytes        # framing beyond what the data is worth

cdef int chunked_read(Chunked* d, const uint8_t** at, const uint8_t* end, const uint8_t** data, uint64_t* n) noexcept nogil
