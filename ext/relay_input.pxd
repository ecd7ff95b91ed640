# What a relay does with a datagram that was received: sequence, legs, window, release in order. No socket and no clock:
# the same code runs in the worker and under property tests.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from ext.relay cimport Leg, Relay

cdef bint relay_open(Relay* relay, uint64_t window_packets, bint has_fec) noexcept nogil    # False: no memory
cdef void relay_close(Relay* relay) noexcept nogil
cdef void relay_take(Relay* relay, uint32_t leg, const uint8_t* data, uint32_t length, int64_t now) noexcept nogil
cdef void relay_expire(Relay* relay, int64_t now) noexcept nogil    # gives up holes whose time is over
cdef void relay_gauges(Relay* relay) noexcept nogil                 # copies what is measured to the counter row
cdef bint source_allowed(Leg* leg, const uint8_t* address) noexcept nogil
# For relay_fec: a packet that repair put into its slot.
cdef void relay_repaired(Relay* relay, uint64_t sequence) noexcept nogil
