# Tunnels behind tunnel.pxd: made, shut, freed. Memory is counted by who calls; nothing here moves bytes.
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from ext.frames cimport follow_frame

cdef extern from "<sys/socket.h>" nogil:
    enum: SOL_SOCKET
    enum: SO_LINGER
    cdef struct linger:
        int l_onoff
        int l_linger
    int setsockopt(int, int, int, const void*, unsigned int)

cdef extern from "<sys/epoll.h>" nogil:
    enum: EPOLL_CTL_DEL
    cdef struct epoll_event:
        uint32_t events
    int epoll_ctl(int, int, int, epoll_event*)

cdef extern from "<unistd.h>" nogil:
    int close(int)


cdef Tunnel* tunnel_new(int fd, uint32_t origin, bint is_websocket, int64_t idle_ns, const uint8_t* first,
                        uint32_t first_length, uint32_t head_length) noexcept nogil:
    """Takes `fd` over; `first` (copied) goes to the viewer before what is read from it: a response head of
    `head_length`, then the protocol's first bytes. NULL: no memory, and `fd` stays the caller's."""
    cdef Tunnel* tunnel = <Tunnel*>malloc(sizeof(Tunnel))
    if tunnel == NULL:
        return NULL
    memset(tunnel, 0, sizeof(Tunnel))
    tunnel.fd = fd
    tunnel.origin = origin
    tunnel.is_websocket = is_websocket
    tunnel.idle_ns = idle_ns
    tunnel.to_viewer.pending = <uint8_t*>malloc(first_length)
    if tunnel.to_viewer.pending == NULL:
        free(tunnel)
        return NULL
    memcpy(tunnel.to_viewer.pending, first, first_length)
    tunnel.to_viewer.length = first_length
    tunnel.to_viewer.capacity = first_length
    while is_websocket and head_length < first_length:
        head_length += <uint32_t>follow_frame(&tunnel.to_viewer.frames, first + head_length, first_length - head_length)
    return tunnel


cdef void way_release(Way* way) noexcept nogil:
    free(way.pending)
    way.pending = NULL
    way.offset = 0
    way.length = 0
    way.capacity = 0


cdef void tunnel_shut(Tunnel* tunnel, int epoll, bint abruptly) noexcept nogil:
    """Closes its socket and drops what waits. The struct stays: events of this pass may name it."""
    cdef linger option
    cdef epoll_event event
    if tunnel.fd < 0:
        return
    if abruptly:
        option.l_onoff = 1
        option.l_linger = 0
        setsockopt(tunnel.fd, SOL_SOCKET, SO_LINGER, &option, sizeof(option))
    if tunnel.is_watched:
        epoll_ctl(epoll, EPOLL_CTL_DEL, tunnel.fd, &event)
    close(tunnel.fd)
    tunnel.fd = -1
    way_release(&tunnel.to_viewer)
    way_release(&tunnel.to_origin)


cdef void tunnel_free(Tunnel* tunnel) noexcept nogil:
    tunnel_shut(tunnel, -1, True)
    free(tunnel)
