# WebSocket frame headers followed through a stream (RFC 6455 section 5.2), to know where a frame ends. Payload is never
# looked at, and nothing is refused: a stream that isn't WebSocket has boundaries somewhere else, and nobody is hurt.
from libc.stdint cimport uint8_t, uint64_t

cdef enum:
    OPCODE_CLOSE = 8

cdef struct Frames:
    uint64_t left               # payload bytes of the frame under way that are still to come
    uint64_t length             # of the payload, while the header is read
    uint8_t n_seen              # bytes of the header; 0 and nothing left: at a boundary
    uint8_t n_head              # bytes of the whole header, once its second byte is known
    uint8_t n_length            # of them, of the extended length
    uint8_t opcode              # of the frame under way or the last one
    uint8_t has_closed          # a Close frame's header went by

cdef inline bint is_at_boundary(const Frames* frames) noexcept nogil:
    return frames.n_seen == 0 and frames.left == 0

cdef uint64_t follow_frame(Frames* frames, const uint8_t* data, uint64_t n) noexcept nogil
