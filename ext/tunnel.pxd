# A tunnel: what joins a viewer's connection and the upstream socket that the control plane has connected. The struct and
# its life; bytes are moved by carry.pyx. Made by the control plane, a worker's from ANSWER_TUNNEL on.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from ext.frames cimport Frames

cdef enum:                      # Way.closing
    CLOSE_NOT = 0
    CLOSE_WANTED = 1            # at the next frame boundary
    CLOSE_DUE = 2               # after what is pending, which ends at one
    CLOSE_SENT = 3              # what comes now is thrown away

cdef struct Way:                # one direction
    uint8_t* pending            # what a full socket didn't take; while there is any, nothing is read
    uint32_t offset
    uint32_t length
    uint32_t capacity
    uint8_t is_readable         # its source may have bytes
    uint8_t may_end             # an end or an error was announced: a short read isn't the last one
    uint8_t has_ended           # its source's end was read
    uint8_t is_shut             # and told to the other side
    uint8_t is_dead             # the other side takes nothing any more: what comes is thrown away
    uint8_t closing
    Frames frames

cdef struct Tunnel:
    uint32_t is_what            # IS_TUNNEL: epoll events of `fd` point here
    int fd                      # towards the origin: TCP, or one of a pair of local sockets where TLS lies between
    void* connection            # NULL until it is begun
    uint32_t origin
    uint8_t is_websocket
    uint8_t is_closing          # told both sides to go
    uint8_t is_watched          # in the worker's epoll set
    int64_t idle_ns             # closed after so long without a byte; 0: never
    uint64_t charged            # bytes counted against the memory limit
    Way to_viewer
    Way to_origin

cdef Tunnel* tunnel_new(int fd, uint32_t origin, bint is_websocket, int64_t idle_ns, const uint8_t* first,
                        uint32_t first_length, uint32_t head_length) noexcept nogil
cdef void way_release(Way* way) noexcept nogil
cdef void tunnel_shut(Tunnel* tunnel, int epoll, bint abruptly) noexcept nogil
cdef void tunnel_free(Tunnel* tunnel) noexcept nogil
