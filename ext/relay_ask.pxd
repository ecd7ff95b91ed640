# Missing packets that are asked for again: which ones, when, and what comes back (RFC 4585 generic NACK, RFC 4588). No socket
# and no clock: the worker sends what ask_write makes.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from ext.relay cimport Relay
from ext.relay_wire cimport Rtp

cdef enum:
    ASK_AGAIN_NS = 40000000     # until a round trip has been measured
    ASK_BYTES = 192             # of one RTCP packet: an empty report, the canonical name, 32 entries of the NACK

# Packets `first` to `last` were passed over by a newer one.
cdef void ask_missed(Relay* relay, uint64_t first, uint64_t last, int64_t now) noexcept nogil
# The RTCP packet that is due, in `out` (ASK_BYTES); its length, 0: none. Sets relay.ask_ns to when to come again.
cdef uint32_t ask_write(Relay* relay, int64_t now, uint8_t* out) noexcept nogil
# A packet of the retransmission's payload type, read as RTP.
cdef void ask_take(Relay* relay, const uint8_t* data, uint32_t length, Rtp* rtp, int64_t now) noexcept nogil
