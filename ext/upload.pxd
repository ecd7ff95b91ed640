# A request's body on its way up: a ring of bytes that the worker fills and the control plane empties. Referenced by the
# connection, the exchange and the control plane's RequestBody; freed by whoever lets go last. No HTTP, no socket.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from ext.chunked cimport Chunked

cdef enum:
    UPLOAD_BYTES = 131072       # at most; holds what can follow a head in one read (session.pyx)

cdef enum:                      # Upload.flags, set by the worker
    UPLOAD_WHOLE = 1            # every byte of the body is in the ring, or was
    UPLOAD_ABORTED = 2          # the rest will never come

cdef struct Upload:
    uint64_t head               # bytes put in, ever
    uint64_t padding_head[7]
    uint64_t tail               # bytes taken out, ever
    uint64_t padding_tail[7]
    uint64_t refs
    uint32_t flags
    uint32_t is_told            # a RING_BODY is under way
    uint32_t is_full            # the worker waits for MESSAGE_ROOM
    uint32_t is_dropped         # nobody wants the rest: the worker throws it away
    uint64_t* outside           # where its memory is counted
    uint64_t size               # of this allocation with its ring
    uint64_t mask
    uint8_t* bytes
    int64_t content_length      # -1: chunked
    uint32_t worker
    # The worker's own from here on.
    void* connection            # NULL once it has let go
    int64_t left                # of Content-Length
    uint64_t limit              # body bytes allowed
    uint64_t n_received         # body bytes read
    uint32_t turns
    Chunked decoder

cdef Upload* upload_new(uint64_t* outside, uint32_t worker, int64_t content_length, uint64_t limit) noexcept nogil
cdef uint64_t upload_size(int64_t content_length) noexcept nogil
cdef void upload_release(Upload* u) noexcept nogil
cdef uint64_t upload_room(Upload* u) noexcept nogil
cdef uint8_t* upload_end(Upload* u, uint64_t* n) noexcept nogil
cdef void upload_filled(Upload* u, uint64_t n) noexcept nogil
cdef void upload_put(Upload* u, const uint8_t* data, uint64_t n) noexcept nogil
cdef bint upload_waits(Upload* u) noexcept nogil
cdef uint64_t upload_there(Upload* u) noexcept nogil
cdef bint upload_take(Upload* u, uint8_t* out, uint64_t n) noexcept nogil
