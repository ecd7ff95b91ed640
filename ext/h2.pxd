# HTTP/2 on a viewer's connection: the glue between a worker and nghttp2. A *carrier* is the Connection with the socket; each
# of its streams is a Connection without one (`carrier` names it), which goes the way of every request: the same table,
# exchanges, uploads, log. docs/decisions/0165-http2-streams.md.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from ext.connection cimport Connection, Worker
from ext.h2_head cimport Block
from ext.nghttp2 cimport nghttp2_option, nghttp2_session, nghttp2_session_callbacks
from ext.sockets cimport iovec
from ext.store cimport Object

cdef enum:
    MAX_STREAMS = 100           # at once, of one connection (RFC 9113 section 6.5.2 recommends no fewer)
    STREAM_WINDOW = 131072      # of a request's body: what an upload's ring holds (upload.UPLOAD_BYTES)
    MAX_IOVECS = 160            # of one write
    SMALL_BYTES = 65536         # heads and frames that are not DATA, of one write
    EARLY_PRIORITIES = 16       # PRIORITY_UPDATE frames that are remembered before their request comes

cdef enum:                      # Session.leaving
    LEAVING_NOT = 0
    LEAVING_SOON = 1            # the first GOAWAY is out: requests that are on their way are still answered
    LEAVING_NOW = 2             # the second too: closed when the last stream has ended

cdef enum:                      # what h2_find_preface finds
    PREFACE_NOT = 0
    PREFACE_BEGINS = 1          # more bytes are needed
    PREFACE_IS = 2

cdef struct Session:
    nghttp2_session* engine
    Worker* worker
    Connection* carrier
    Connection* streams
    uint32_t n_streams
    uint8_t is_feeding          # nghttp2 is reading: it may not be told to write
    uint8_t is_gone             # the carrier is closed: nghttp2 isn't asked any more
    uint8_t is_cut              # we ended it, and have counted why
    uint8_t is_told             # its fault is counted
    uint8_t leaving
    int32_t fault               # the counter of the flood that ends it; -1: none
    uint32_t frames_left        # of frames that ask for nothing: see `spend`
    uint32_t resets_left        # of streams that end before their answer
    int64_t unknown             # bytes of frames that nghttp2 passes over
    int64_t refilled_ns
    int64_t leave_ns            # when LEAVING_SOON ends
    int64_t busy_ns             # when a stream was last open
    int64_t block_ns            # when an unfinished field block began; 0: none
    int32_t early[16]           # streams whose priority came before their request
    uint32_t n_early
    Block kept                  # an unfinished field block between two reads; `text` and `cookies` are one allocation
    uint64_t kept_bytes

cdef struct Engine:             # what a worker's sessions share while one of them is at work
    nghttp2_session_callbacks* callbacks
    nghttp2_option* option
    Block block                 # the field block that is being read
    uint8_t* names
    uint8_t* small
    uint32_t n_small
    int n_parts
    uint64_t n_bytes
    const uint8_t* data         # what read_body has found for send_data
    iovec parts[160]            # MAX_IOVECS
    Object* held[160]           # whose bodies `parts` point into: referenced until the write is over
    int n_held

cdef inline Session* session_of(Connection* c) noexcept nogil:
    return <Session*>c.session

cdef inline Engine* engine_of(Worker* w) noexcept nogil:
    return <Engine*>w.h2

cdef int h2_find_preface(const uint8_t* data, uint32_t n) noexcept nogil
cdef void h2_begin(Worker* w, Connection* c, const uint8_t* data, uint32_t n) noexcept nogil
cdef void h2_on_event(Worker* w, Connection* c, uint32_t events) noexcept nogil
cdef void h2_resume(Worker* w, Connection* c) noexcept nogil
cdef void h2_on_deadline(Worker* w, Connection* c) noexcept nogil
cdef void h2_drain(Worker* w, Connection* c, uint32_t idle_ms) noexcept nogil
cdef void h2_close(Worker* w, Connection* c) noexcept nogil
cdef void h2_free(Worker* w, Connection* c) noexcept nogil
cdef void h2_engine_free(Worker* w) noexcept nogil
cdef bint h2_is_idle(Connection* c) noexcept nogil
cdef void schedule(Worker* w, Connection* carrier) noexcept nogil
