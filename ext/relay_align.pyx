# The places of legs behind relay_align.pxd. A leg that stands in line with none is left out, never guessed.
from libc.stdint cimport uint16_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from ext.atomics cimport count
from ext.relay cimport *
from ext.relay_wire cimport TS_BYTES, TS_NULL_PID, Rtp

cdef enum:
    # Packets that must agree before a leg is believed: a number off by one would put a wrong packet into a hole.
    VOTES = 4


cdef bint align_open(Relay* r) noexcept nogil:
    r.aligns = <Align*>calloc(MAX_LEGS, sizeof(Align))
    return r.aligns != NULL


cdef void align_close(Relay* r) noexcept nogil:
    free(r.aligns)
    r.aligns = NULL


cdef uint64_t content_of(const uint8_t* data, uint32_t length) noexcept nogil:
    """64 bits of multiply and shift: senders are admitted ones, so that chance alone is to be met."""
    cdef uint64_t found = <uint64_t>0x9E3779B97F4A7C15 ^ length, word
    cdef uint32_t at = 0
    cdef bint is_stuffing = length % TS_BYTES == 0
    while is_stuffing and at < length:
        is_stuffing = data[at] == 0x47 and ((<uint32_t>data[at + 1] & 0x1F) << 8 | data[at + 2]) == TS_NULL_PID
        at += TS_BYTES
    if is_stuffing:
        return 0
    at = 0
    while at < length:
        word = 0
        memcpy(&word, data + at, 8 if length - at >= 8 else length - at)
        found = (found ^ word) * <uint64_t>0xD6E8FEB86659FD93
        found ^= found >> 32
        at += 8
    return found if found else 1


cdef Kept* find(Align* a, uint64_t content) noexcept nogil:
    """The one packet of this content; NULL: none, or several."""
    cdef Kept* found = NULL
    cdef uint32_t i
    for i in range(<uint32_t>ALIGN_KEPT):
        if a.kept[i].content == content:
            if found != NULL:
                return NULL
            found = &a.kept[i]
    return found


cdef void vote(Relay* r, uint32_t leg, uint16_t shift, uint32_t time_shift) noexcept nogil:
    cdef Align* a = &r.aligns[leg]
    if a.n_votes and a.shift == shift:
        a.n_votes += 1
    else:
        a.shift = shift
        a.n_votes = 1
    a.time_shift = time_shift
    if a.n_votes >= VOTES:
        a.is_placed = 1
        r.legs[leg].is_started = 0


cdef void begin(Relay* r, uint32_t leg, uint32_t ssrc) noexcept nogil:
    """Nobody else is there: the stream begins anew in this leg's numbers, and others will be put beside it."""
    cdef Align* a
    cdef uint32_t i
    for i in range(r.n_media):
        r.aligns[i].is_placed = r.aligns[i].n_votes = 0
    a = &r.aligns[leg]
    a.is_placed = 1
    a.shift = 0
    a.time_shift = 0
    r.line_ssrc = ssrc
    if r.is_started:
        count(&r.counters[R_RESTARTS], 1)
    r.is_started = 0


cdef bint align_take(Relay* r, uint32_t leg, uint64_t content, Rtp* rtp, int64_t now) noexcept nogil:
    cdef Align* a = &r.aligns[leg]
    cdef Align* other
    cdef Kept* same
    cdef uint32_t i
    if not a.is_known or a.ssrc != rtp.ssrc:                # another connection counts from another number
        memset(a, 0, sizeof(Align))
        a.is_known = 1
        a.ssrc = rtp.ssrc
    a.kept[a.at].content = content
    a.kept[a.at].timestamp = rtp.timestamp
    a.kept[a.at].sequence = rtp.sequence
    a.at = (a.at + 1) % ALIGN_KEPT
    for i in range(r.n_media):
        other = &r.aligns[i]
        if i == leg or not other.is_known or a.is_placed == other.is_placed or content == 0:
            continue
        if find(a, content) == NULL:                        # twice in its own leg
            break
        same = find(other, content)
        if same != NULL and other.is_placed:
            vote(r, leg, same.sequence + other.shift - rtp.sequence, same.timestamp + other.time_shift - rtp.timestamp)
        elif same != NULL:
            vote(r, i, rtp.sequence + a.shift - same.sequence, rtp.timestamp + a.time_shift - same.timestamp)
    if not a.is_placed:
        if r.line_ssrc and now - r.good_ns <= (r.wait_ns if r.wait_ns > r.failover_ns else r.failover_ns):
            return False
        begin(r, leg, rtp.ssrc)
    rtp.sequence += a.shift
    rtp.timestamp += a.time_shift
    rtp.ssrc = r.line_ssrc
    return True


cdef void align_lost(Relay* r, uint32_t leg) noexcept nogil:
    r.aligns[leg].is_placed = r.aligns[leg].n_votes = 0


cdef bint is_apart(Relay* r, uint32_t leg) noexcept nogil:
    return r.aligns != NULL and leg < r.n_media and r.aligns[leg].is_known and not r.aligns[leg].is_placed
