# How the planes talk: exchange slots, a ring from each worker to the control plane, a mailbox to each worker.
# A slot is freed only by the control plane's answer, so that a late answer never meets a slot's next tenant.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from ext.store cimport Object
from ext.tunnel cimport Tunnel
from ext.upload cimport Upload

cdef enum:                      # Exchange.kind
    EXCHANGE_MISS = 0           # nothing stored that this request may get
    EXCHANGE_STALE = 1          # stored, to be validated
    EXCHANGE_REFRESH = 2        # stale-while-revalidate: nobody waits
    EXCHANGE_WANT = 3           # a reader is at an absent slice
    EXCHANGE_ALONE = 4          # the key isn't shareable: nobody may join
    EXCHANGE_PASS = 5           # a method that isn't cached, or a body: for the asker alone, never stored
    EXCHANGE_TUNNEL = 6         # asks for another protocol; nobody may join
    EXCHANGE_AUTHORISE = 7      # may this viewer have it? answered by MATCH (look again) or an error
    EXCHANGE_STREAM = 8         # a relay over HTTP; answered by STREAM or an error, nobody may join

cdef enum:                      # RingItem.what
    RING_REQUEST = 0
    RING_CANCEL = 1             # nobody waits for the exchange any more
    RING_NUDGE = 2              # a paused fill may go on, or a filling object lost its last reader; carries a reference
    RING_BODY = 3               # an upload has more, or its end; carries a reference

cdef enum:                      # Message.kind
    MESSAGE_WAKE = 0            # an object has more; carries a reference
    MESSAGE_ANSWER = 1
    MESSAGE_LISTEN = 2
    MESSAGE_UNLISTEN = 3
    MESSAGE_DRAIN = 4
    MESSAGE_ROOM = 6            # a full upload has room again; carries a reference
    MESSAGE_SPLIT = 8           # those who have joined an exchange ask for themselves
    MESSAGE_INTERIM = 7         # a 1xx head for the leader; carries `bytes`
    MESSAGE_CLOSE = 5           # drop connections and listeners, end the loop

cdef enum:                      # Message.disposition of an answer
    ANSWER_MATCH = 0            # look again: it is in the table
    ANSWER_LEADER = 1           # `object` is for the leader alone, the others ask for themselves
    ANSWER_ALL = 2              # `object` is for everybody who waits (shared errors)
    ANSWER_STALE = 3            # the stored `object` may be served stale to everybody who waits
    ANSWER_ERROR = 4            # our own `status` to everybody who waits
    ANSWER_DONE = 5             # only frees the slot (refreshes, wants)
    ANSWER_REFUSE = 6           # our own `status` to the leader alone: his request, not the resource, is at fault
    ANSWER_TUNNEL = 7           # `tunnel` is the leader's, and the worker's to free
    ANSWER_STREAM = 8           # `stream` is the asker's, with one reference; NULL: its head alone

cdef enum:                      # Message.value of an answer: what those who don't get it do; from 400 on, a status for them
    OTHERS_ALONE = 0            # requests of their own at once, not one after the other
    OTHERS_AGAIN = 1            # look again, and collapse again
    MATCH_JOINED = 2            # of ANSWER_MATCH: another worker's exchange led, so the leader has joined too
    MATCH_RESTORED = 3          # of ANSWER_MATCH: it came from the disk, so it is a hit

cdef struct List:               # of connections; each is in one list at most
    void* first
    void* last
    uint32_t n

cdef struct Exchange:
    uint32_t index
    uint32_t generation
    uint32_t worker
    uint32_t origin
    uint32_t listener
    int32_t zone
    uint64_t hash
    uint64_t tables_generation
    int64_t arrival_ns
    int64_t offset              # WANT: where the reader is
    int64_t range_first         # of a single Range; both -1: none; first -1: suffix of `last` bytes
    int64_t range_last
    Object* object              # STALE, REFRESH, WANT: referenced
    Upload* upload              # PASS: the request's body, referenced; NULL: none
    uint8_t* bytes              # the request head, then the key
    uint32_t head_length
    uint32_t key_length
    uint32_t bytes_size
    uint32_t kind
    List waiters                # the worker's own from here on
    Exchange* next_in_bucket
    uint32_t is_free
    uint8_t is_joinable
    uint8_t fwd_reason

cdef struct RingItem:
    uint32_t what
    uint32_t index
    uint32_t generation
    Object* object
    Upload* upload

cdef struct Ring:               # one producer, one consumer
    uint64_t head
    uint64_t padding_head[7]
    uint64_t tail
    uint64_t padding_tail[7]
    uint64_t mask
    RingItem* items

cdef struct Bell:               # wakes the control plane, once for any number of items
    uint32_t is_rung
    int fd

cdef struct Message:
    Message* next
    Object* object
    uint32_t kind
    uint32_t index
    uint32_t generation
    uint32_t disposition
    uint32_t status
    uint32_t detail             # fwd-status for Cache-Status, or a file descriptor
    uint32_t is_stored
    int64_t value               # of an answer: see above; of a drain: milliseconds that it may take
    Tunnel* tunnel              # of ANSWER_TUNNEL only
    void* stream                # of ANSWER_STREAM only: a Stream, whose declaration needs Mailbox
    Upload* upload
    uint8_t* bytes              # freed by who reads the message
    uint32_t n_bytes

cdef struct Mailbox:            # many producers (Treiber stack), one consumer that takes all
    Message* newest
    uint64_t bell               # streams that have more, by bit; rung without a message, so without memory
    uint32_t is_sleeping
    int fd
    uint64_t wakeups

cdef bint ring_open(Ring* ring, uint64_t capacity) noexcept nogil
cdef void ring_close(Ring* ring) noexcept nogil
cdef bint ring_push(Ring* ring, uint32_t what, uint32_t index, uint32_t generation, Object* object) noexcept nogil
cdef bint ring_push_body(Ring* ring, Upload* upload) noexcept nogil
cdef bint ring_is_half_full(Ring* ring) noexcept nogil
cdef bint ring_pop(Ring* ring, RingItem* item) noexcept nogil
cdef void bell_ring(Bell* bell) noexcept nogil
cdef void bell_hear(Bell* bell) noexcept nogil
cdef bint mailbox_post(Mailbox* mailbox, const Message* message) noexcept nogil
cdef void mailbox_ring(Mailbox* mailbox, uint64_t bits) noexcept nogil
cdef uint64_t mailbox_hear(Mailbox* mailbox) noexcept nogil
cdef Message* mailbox_take(Mailbox* mailbox) noexcept nogil
cdef bint mailbox_may_sleep(Mailbox* mailbox) noexcept nogil
cdef void mailbox_awake(Mailbox* mailbox) noexcept nogil
