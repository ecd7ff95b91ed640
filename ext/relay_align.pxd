# Legs whose packets have no numbers in common (SRT, RIST: each connection counts for itself), or none at all (MPEG-TS by UDP:
# given here, by its continuity counters): by how much one leg's numbers differ from another's is learned from packets
# whose bytes are the same. docs/decisions/0250, 0245. No socket and no clock.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from ext.relay cimport Relay
from ext.relay_wire cimport Rtp

cdef bint align_open(Relay* relay) noexcept nogil           # False: no memory
cdef void align_close(Relay* relay) noexcept nogil
# What tells a payload from others; 0: nothing does (transport packets that are all stuffing).
cdef uint64_t content_of(const uint8_t* data, uint32_t length) noexcept nogil
# Gives a datagram of MPEG-TS, which has none, a number of its leg, behind a gap where the continuity counters say that some
# are missing. False: it came twice.
cdef bint align_number(Relay* relay, uint32_t leg, const uint8_t* data, uint32_t length, uint64_t content, Rtp* rtp, int64_t now) noexcept nogil
# Whether a packet that would fill a hole is there already. Is it the one behind the hole, then nothing was missing any more, and
# the hole is closed.
cdef bint align_passed(Relay* relay, uint32_t leg, uint64_t sequence, uint64_t content) noexcept nogil
# Other bytes than another leg's under the same number, of legs that are numbered here: was only stuffing lost, which no counter
# tells? Was a loss taken for another one? The leg's place is mended then. 0: what it brought is known; above: it fills a hole, so
# much further; -1: otherwise, and some of these in a row lose the leg its place.
cdef int align_slip(Relay* relay, uint32_t leg, uint64_t sequence, const uint8_t* data, uint32_t length, uint64_t content) noexcept nogil
# Puts `rtp` of a leg's packet into the numbers, times and source of the relay. False: where it belongs isn't known.
cdef bint align_take(Relay* relay, uint32_t leg, uint64_t content, Rtp* rtp, int64_t now) noexcept nogil
# The leg brought other bytes than another one under the same number: its place is to be learned anew.
cdef void align_lost(Relay* relay, uint32_t leg) noexcept nogil
cdef bint is_apart(Relay* relay, uint32_t leg) noexcept nogil
