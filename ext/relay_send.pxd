# Trains: what a relay has ready, sent to an output's receivers, a part at a time. Calls of the kernel that send are here and
# nowhere else; whose turn it is, relay_turns says.
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from ext.relay cimport TRAIN_PACKETS, Fanout, FanoutRow, Output, Relay

cdef extern from * nogil:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE 1
    #endif
    #include <sys/types.h>
    #include <sys/socket.h>
    #include <sys/uio.h>
    #include <netinet/in.h>
    #include <time.h>
    """
    cdef struct iovec:
        void* iov_base
        size_t iov_len
    cdef struct msghdr:
        void* msg_name
        uint32_t msg_namelen
        iovec* msg_iov
        size_t msg_iovlen
        void* msg_control
        size_t msg_controllen
        int msg_flags
    cdef struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len

cdef enum:
    # Messages of a sendmmsg, after which the others may have their turn: 0.3 ms or so, and the descriptions (8 KiB) stay in
    # the core's first cache. A call costs a hundredth of that.
    SEND_BATCH = 128
    # A rest so small isn't worth a turn of its own, and whoever is last in the list would wait for one: all at once.
    SEND_MOST = 192
    SEGMENT_CONTROL = 24        # a cmsghdr and a uint16_t

cdef struct Sender:             # a worker's, made once
    mmsghdr messages[SEND_MOST]
    iovec vectors[2 * TRAIN_PACKETS]
    uint8_t headers[TRAIN_PACKETS][12]
    uint8_t control[SEGMENT_CONTROL]
    bint is_full                # the last part met a full socket

# Loads the fan-out for this pass; an output that is new in it begins with the next packet.
cdef void relay_see(Relay* relay) noexcept nogil
# Whether an output has something that may leave at `now`; `due`: since when, or when it will (INT64_MAX: not by time).
# `is_pressed`: the worker is short of time, so that what leaves alone may wait a little for company.
cdef bint output_due(Relay* relay, Output* output, bint is_pressed, int64_t now, int64_t* due) noexcept nogil
# Sends SEND_BATCH messages, or a rest up to SEND_MOST, of the train that is begun, or of the next: output_due() said that it may.
cdef void send_part(Sender* sender, Relay* relay, FanoutRow* row, int64_t now) noexcept nogil
# While much is received at once: sends something of outputs whose backlog fills a quarter of the window.
cdef void relay_relieve(Sender* sender, Relay* relay, int64_t now) noexcept nogil
# Measures what is released, for outputs that are paced by it.
cdef void relay_rate(Relay* relay, int64_t now) noexcept nogil
