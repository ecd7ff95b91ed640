# SMPTE 2022-1 repair over a relay's window: keeps repair packets and gives back what exactly one of them misses. What
# doesn't fit the stream is refused, since repair packets come over the network like everything else.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from ext.relay cimport Relay

cdef void fec_take(Relay* relay, const uint8_t* data, uint32_t length, int64_t now) noexcept nogil
# A media packet came into the window: tries only those repair packets that cover it, or waited for the newest to pass them.
cdef void fec_came(Relay* relay, uint64_t sequence, int64_t now) noexcept nogil
cdef void fec_forget(Relay* relay) noexcept nogil
cdef bint fec_open(Relay* relay, uint64_t window_packets) noexcept nogil       # False: no memory
cdef void fec_close(Relay* relay) noexcept nogil
