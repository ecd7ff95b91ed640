# A relay worker: one thread that receives for its relays and sends their trains. What it shares with the control plane is
# `list`, `epoch`, `closing` and the fan-outs of its relays; all else is its own while it runs.
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from ext.precedence cimport Claim
from ext.relay cimport Relay, RelayList
from ext.relay_send cimport Sender, iovec, mmsghdr
from ext.relay_turns cimport Turns

cdef enum:
    RECEIVE_BATCH = 64
    RECEIVE_BYTES = 65536       # a datagram, or what GRO joined of one source
    CONTROL_BYTES = 96

cdef struct OwnSockets:         # where our own outputs send from: immutable once published
    uint64_t ports[1024]        # bit set of source ports
    uint32_t n
    uint16_t* port              # by row: port, and address (16 bytes; all zero: any of ours)
    uint8_t* address

cdef struct RelayWorker:
    RelayList* list             # read by acquire at the beginning of a pass
    OwnSockets* own
    uint64_t* global_epoch
    uint64_t epoch              # 0: asleep, and reads nothing
    uint32_t closing
    int64_t entered_ns          # when the list and the fan-outs that are in use were seen
    uint32_t is_gro_off         # for tests: datagrams one by one
    Claim* claim                # on the core, beside the edge workers; NULL: nobody is beside us
    int poll
    int wake
    uint64_t* passes            # a counter column
    Turns turns
    Sender sender
    mmsghdr messages[RECEIVE_BATCH]
    iovec vectors[RECEIVE_BATCH]
    uint8_t names[RECEIVE_BATCH][28]
    uint8_t controls[RECEIVE_BATCH][CONTROL_BYTES]
    uint8_t* buffers

cdef bint worker_open(RelayWorker* worker, uint64_t* global_epoch, uint64_t* row) noexcept nogil
cdef void worker_close(RelayWorker* worker) noexcept nogil
cdef void worker_run(RelayWorker* worker) noexcept nogil
cdef void worker_wake(RelayWorker* worker) noexcept nogil
cdef bint worker_watch(RelayWorker* worker, int fd, Relay* relay, uint32_t leg) noexcept nogil
cdef void worker_unwatch(RelayWorker* worker, int fd) noexcept nogil
