# Trains: what a relay has ready, sent to an output's receivers. Calls of the kernel that send are here and nowhere else.
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from ext.relay cimport TRAIN_PACKETS, Fanout, Relay

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
    SEND_BATCH = 1024           # messages of a sendmmsg: the kernel's UIO_MAXIOV
    SEGMENT_CONTROL = 24        # a cmsghdr and a uint16_t

cdef struct Sender:             # a worker's, made once
    mmsghdr messages[SEND_BATCH]
    iovec vectors[2 * TRAIN_PACKETS]
    uint8_t headers[TRAIN_PACKETS][12]
    uint8_t control[SEGMENT_CONTROL]

# Loads the fan-out for this pass; an output that is new in it begins with the next packet.
cdef void relay_see(Relay* relay) noexcept nogil
# Sends what is full or due of every output; sets relay.due_ns. `now` is when the pass began.
cdef void relay_pump(Sender* sender, Relay* relay, int64_t now) noexcept nogil
# Measures what is released, for outputs that are paced by it.
cdef void relay_rate(Relay* relay, int64_t now) noexcept nogil
