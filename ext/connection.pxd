# One viewer's connection and the worker that owns it: states, lists, timers, buffers, writing. No HTTP decisions here.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from ext.access_ring cimport AccessRing
from ext.addresses cimport Addresses
from ext.atomics cimport load_u32_relaxed
from ext.exchange cimport Bell, Exchange, List, Mailbox, Ring
from ext.http_head cimport RequestHead
from ext.layout cimport MAX_ORIGINS, ORIGIN_COLUMNS, OriginRow, Tables
from ext.multipart cimport Parts
from ext.precedence cimport Patience, Precedence
from ext.store cimport Object, Store
from ext.stream cimport Stream
from ext.tunnel cimport Tunnel
from ext.tls_types cimport TicketKeys, Tls
from ext.upload cimport Upload

cdef enum:
    READ_BYTES = 65536
    WHEEL_SLOTS = 1024
    WHEEL_TICK_NS = 250000000
    WAIT_BUCKETS = 1024
    EXCHANGE_SLOTS = 8192       # per worker; a slot is one key that is being asked for, not one viewer
    EXCHANGE_BUCKETS = 8192
    MAX_LISTENERS = 64
    PUMP_BYTES = 4194304        # one connection's share of a pass
    PASS_BYTES = 16777216       # of all connections, before the pass is long enough for the others to notice
    PASS_SHARE_BYTES = 65536    # from then on
    CROWD = 32                  # from so many ready readers on, a body's beginning goes to all before more goes to one
    FIRST_SHARE_BYTES = 16384   # that beginning (docs/decisions/0050-measuring.md)

cdef enum:                      # what an epoll event points at: the first field of each
    IS_CONNECTION = 0
    IS_LISTENER = 1
    IS_MAILBOX = 2
    IS_TUNNEL = 3

cdef enum:                      # Connection.state
    STATE_READ = 0              # between requests, or in a head
    STATE_WAIT = 1              # its exchange isn't answered
    STATE_ANSWERED = 2          # answered; in the ready list
    STATE_SEND = 3              # a response is under way
    STATE_CLOSED = 4
    STATE_LINGER = 5            # answered and shut down; input is thrown away until the viewer closes
    STATE_TUNNEL = 6            # another protocol's bytes go both ways
    STATE_STREAMS = 7           # HTTP/2: its streams are connections of their own

cdef enum:                      # Worker.is_draining
    DRAIN_ENDING = 1
    DRAIN_HANDED_OVER = 2       # another process serves at our addresses

cdef enum:                      # what a step did
    DONE = 0                    # the response is written
    PENDING = 1
    CLOSED = 2

cdef enum:                      # why it went forward (RFC 9211 section 2.2)
    FWD_NONE = 0
    FWD_URI_MISS = 1
    FWD_VARY_MISS = 2
    FWD_STALE = 3
    FWD_PARTIAL = 4
    FWD_BYPASS = 5
    FWD_REQUEST = 6             # fresh, but the viewer asked for more
    FWD_METHOD = 7

cdef struct Connection:
    uint32_t is_what
    int fd
    uint8_t state
    uint8_t close_after         # the response
    uint8_t is_head
    uint8_t is_chunked
    uint8_t chunk_phase         # 0 nothing is owed, 1 the chunk before needs its CRLF, 2 the last one is written
    uint8_t is_leader
    uint8_t is_joined
    uint8_t is_restored         # what it waited for came from the disk: a hit
    uint8_t is_readable         # an edge came while a response was under way
    uint8_t is_blocked          # the socket is full
    uint8_t has_ended           # the viewer's FIN came: a short read doesn't mean that there is nothing more
    uint8_t must_linger         # closing could overtake the answer: see close_gently
    uint8_t protocol            # transport.pxd; of TLS known when c.tls.is_ready
    uint8_t dscp                # the mark that the socket has; of a stream: its carrier's
    uint8_t is_misplaced        # speaks plain HTTP where TLS is spoken
    uint8_t is_surplus          # above a cap, and kept over TLS only to be told so (accept.pyx)
    uint8_t minor               # HTTP/1.minor of the request under way
    uint8_t fwd_reason
    uint8_t n_tries
    uint8_t n_asked             # how often it was asked for this request whether the viewer may have it
    uint8_t is_authorising
    uint8_t answer              # disposition, in STATE_ANSWERED
    uint8_t is_stored
    uint8_t log_how             # of the answer under way, for the access log
    uint8_t has_head_begun
    uint16_t answer_status
    uint16_t fwd_status
    uint16_t log_status         # 0: nothing to note
    uint32_t listener
    int32_t zone
    uint64_t zone_generation
    uint8_t address[16]
    Connection* next            # in `list`
    Connection* previous
    List* list
    Connection* next_all
    Connection* previous_all
    Connection* next_timer
    Connection* previous_timer
    int32_t timer_slot          # -1: none
    int64_t deadline_ns
    uint32_t log_origin
    int64_t log_first           # where in the object its body begins
    int64_t arrival_ns
    uint64_t window_bytes       # sent since the window began
    Exchange* exchange
    Tunnel* tunnel              # freed with the connection
    Object* object              # referenced, counted as a reader
    int64_t offset
    int64_t end                 # INT64_MAX: to the body's end, wherever that will be
    uint64_t chunk_left
    uint8_t* buffer             # the request under way, then what came after it
    uint32_t buffer_length
    uint32_t buffer_capacity
    uint32_t head_length        # of the request under way
    uint32_t out_offset
    uint32_t out_length
    uint32_t out_capacity
    Tls* tls                    # NULL: plain
    Upload* upload              # of the request under way, while its body is not read whole
    Parts* parts                # of an answer with several ranges
    uint8_t* out                # head bytes that the socket didn't take
    void* session               # h2.Session, in STATE_STREAMS
    Connection* carrier         # of an HTTP/2 stream: whose socket it shares; it has none itself
    Connection* next_stream
    Connection* previous_stream
    int32_t stream_id
    uint8_t has_whole_request   # of a stream: its END_STREAM came
    uint8_t is_answered         # of a stream: our END_STREAM is out
    uint32_t cut_at             # of the request: so many bytes of its head before `cut` bytes of URL prefix, which
    uint32_t cut                #   the control plane doesn't get; 0: none
    uint8_t is_extended         # of a stream: a CONNECT with :protocol, which only a tunnel answers by 2xx (RFC 8441)
    uint8_t is_shut             # of a stream's tunnel: nothing more comes for the viewer
    uint32_t window_capacity    # of a carrier: bytes that one write gathers
    int64_t window_ns           # of a carrier: when the window began in which it is judged
    Stream* stream              # a relay's that it reads; referenced
    uint8_t reading             # of a stream: stream_reader.pxd
    int64_t credited            # body bytes that the viewer's window was opened again for

cdef struct Listener:
    uint32_t is_what
    int fd
    uint32_t index

cdef struct Grant:              # see authorise.pxd
    uint64_t tag_a
    uint64_t tag_b
    uint64_t until              # CLOCK_MONOTONIC, ns; the lowest bit: a no; 0: free

cdef struct Shared:             # what all workers and the control plane have in common
    Store store
    Tables* tables
    Bell bell
    Addresses addresses
    uint64_t n_connections
    uint32_t overload           # the rung of protocols/overload.py: what is given up while memory is short
    Grant* grants
    TicketKeys* tickets         # of session tickets; replaced whole
    Precedence precedence       # of relay workers

cdef struct Worker:
    uint32_t index
    int epoll
    Shared* shared
    Store* store
    Tables* tables
    uint64_t* counters
    uint64_t* by_origin         # MAX_ORIGINS x ORIGIN_COLUMNS
    int64_t now_ns
    Mailbox mailbox
    Ring ring
    uint32_t is_mailbox
    uint32_t must_ring
    uint32_t is_draining
    uint32_t is_closing
    OriginRow* origin           # of the request that is handled; NULL: none was found
    Object* permitted           # while one request is handled: what it may get although it is stale
    uint64_t pass_bytes         # body bytes that this pass has sent
    uint64_t progress           # passes, for the watchdog
    Patience patience
    uint64_t n_connections
    List ready
    Connection* all
    Connection* graveyard
    int64_t accept_again_ns     # not even the spare descriptor helped: listeners rest until then; 0: they don't
    uint32_t n_surplus          # see accept.pyx
    uint32_t surplus_begun
    int64_t surplus_since_ns
    int spare_fd                # given up for a moment to turn a connection away when descriptors run out
    int64_t wheel_tick
    Connection* wheel[1024]
    List waiting[1024]          # readers of filling objects, by object
    List stream_waiting[64]     # of streams, by the bit of its bell
    Exchange* exchanges
    uint32_t* free_exchanges
    uint32_t n_free_exchanges
    Exchange* exchange_buckets[8192]
    Listener listeners[64]
    uint32_t n_listeners
    uint8_t* input              # READ_BYTES + a head
    uint8_t* scratch
    uint8_t* key
    uint8_t* tls_out            # records on their way to one connection's socket; empty between calls
    uint8_t* tls_record         # plaintext of one record, from several places
    uint32_t tls_out_length
    char date[40]
    int64_t date_s
    RequestHead head
    AccessRing* access          # answers, for the access log; NULL until it is switched on
    AccessRing* refusals        # for the security log
    RequestHead log_head
    void* h2                    # h2.pyx: what all its sessions share; NULL until the first one
    Connection* serving         # whose request is in `head` and at `serving_data`, while a step answers it
    const uint8_t* serving_data
    uint32_t is_framing_fault   # of the head that is being refused

cdef enum:                      # Shared.overload
    OVERLOAD_NO_KEEP_ALIVE = 2
    OVERLOAD_REFUSE = 3

cdef enum:
    SURPLUS_NS = 3000000000     # what one above a cap has for his handshake and his request

cdef inline bint is_last_answer(Worker* w) noexcept nogil:
    """Whether connections are closed after their answer, whatever the viewer says."""
    return w.is_draining != 0 or load_u32_relaxed(&w.shared.overload) >= OVERLOAD_NO_KEEP_ALIVE

cdef inline uint64_t share_of_pass(Worker* w) noexcept nogil:
    """How much one connection may send before the others have their turn."""
    return PUMP_BYTES if w.pass_bytes < PASS_BYTES else PASS_SHARE_BYTES

cdef inline uint64_t* origin_row(Worker* w, uint32_t origin) noexcept nogil:
    return w.by_origin + (origin if origin < MAX_ORIGINS else 0) * ORIGIN_COLUMNS

cdef bint charge(Worker* w, uint64_t bytes) noexcept nogil
cdef void discharge(Worker* w, uint64_t bytes) noexcept nogil
cdef void list_append(List* list, Connection* c) noexcept nogil
cdef void list_remove(Connection* c) noexcept nogil
cdef void set_deadline(Worker* w, Connection* c, int64_t deadline_ns) noexcept nogil
cdef void clear_deadline(Worker* w, Connection* c) noexcept nogil
cdef Connection* connection_new(Worker* w, Connection* carrier) noexcept nogil
cdef void connection_close(Worker* w, Connection* c, bint abruptly) noexcept nogil
cdef void bury(Worker* w) noexcept nogil
cdef bint keep_input(Worker* w, Connection* c, const uint8_t* data, uint32_t n) noexcept nogil
cdef bint keep_output(Worker* w, Connection* c, const uint8_t* data, uint32_t n) noexcept nogil
cdef void release_input(Worker* w, Connection* c) noexcept nogil
cdef void release_output(Worker* w, Connection* c) noexcept nogil
cdef Parts* keep_parts(Worker* w, Connection* c, uint32_t type_length) noexcept nogil
cdef void attach(Connection* c, Object* object) noexcept nogil
cdef void detach(Worker* w, Connection* c) noexcept nogil
cdef void let_go(Worker* w, Object* object) noexcept nogil
cdef void nudge(Worker* w, Object* object) noexcept nogil
cdef List* waiting_list(Worker* w, Object* object) noexcept nogil
cdef bint charge(Worker* w, uint64_t bytes) noexcept nogil
cdef uint32_t put_head(Connection* c, uint8_t* out, const uint8_t* data, uint32_t n) noexcept nogil
cdef bint ask_slice(Worker* w, Connection* c) noexcept nogil
cdef Exchange* exchange_take(Worker* w, uint32_t bytes) noexcept nogil
cdef void exchange_give(Worker* w, Exchange* e) noexcept nogil
