# The places of legs behind relay_align.pxd. A leg that stands in line with none is left out, never guessed.
from libc.stdint cimport int64_t, uint16_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from ext.atomics cimport count
from ext.relay cimport *
from ext.relay_wire cimport TS_BYTES, TS_NULL_PID, WIRE_OK, Rtp, Ts, read_ts

cdef enum:
    # Packets that must agree before a leg is believed: a number off by one would put a wrong packet into a hole.
    VOTES = 4
    LONGEST_FALLS = 256         # the longest pause that is usual is forgotten by this part of it a packet
    # How far a packet is looked for whose leg's loss was taken for a larger or a smaller one, and how many in a row may be
    # nowhere before the leg's place is learned anew.
    NEAR = 64
    STRANGE_MAX = 4


cdef bint align_open(Relay* r) noexcept nogil:
    r.aligns = <Align*>calloc(MAX_LEGS, sizeof(Align))
    return r.aligns != NULL


cdef void align_close(Relay* r) noexcept nogil:
    free(r.aligns)
    r.aligns = NULL


cdef inline uint32_t pid_of(const uint8_t* packet) noexcept nogil:
    return (<uint32_t>packet[1] & 0x1F) << 8 | packet[2]


cdef uint64_t content_of(const uint8_t* data, uint32_t length) noexcept nogil:
    """64 bits of multiply and shift: senders are admitted ones, so that chance alone is to be met."""
    cdef uint64_t found = <uint64_t>0x9E3779B97F4A7C15 ^ length, word
    cdef uint32_t at = 0
    cdef bint is_stuffing = length % TS_BYTES == 0
    while is_stuffing and at < length:
        is_stuffing = data[at] == 0x47 and pid_of(data + at) == TS_NULL_PID
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
        forget(a, rtp.ssrc)
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
    r.aligns[leg].is_placed = r.aligns[leg].n_votes = r.aligns[leg].n_strange = 0


cdef bint is_apart(Relay* r, uint32_t leg) noexcept nogil:
    return r.aligns != NULL and leg < r.n_media and r.aligns[leg].is_known and not r.aligns[leg].is_placed


# --- numbers for what has none ----------------------------------------------------------------------------------------

cdef uint32_t missing_in(Align* a, const uint8_t* data, uint32_t length) noexcept nogil:
    """How many transport packets with payload the counters miss before and in it (ISO 13818-1 2.4.3.3), 16 of one PID being
    none. Counters that are announced to jump say nothing; a packet may come twice."""
    cdef uint32_t at = 0, step, n = 0
    cdef Ts ts
    while at < length:
        if read_ts(data + at, &ts) == WIRE_OK and ts.pid != TS_NULL_PID and not ts.is_damaged:
            if ts.has_payload:
                step = (ts.continuity - a.continuity[ts.pid]) & 15      # the last one and 1 is what is expected
                if a.continuity[ts.pid] and not ts.is_discontinuous and step != 15:
                    n += step
                a.continuity[ts.pid] = ts.continuity + 1
            elif ts.is_discontinuous:
                a.continuity[ts.pid] = ts.continuity + 1
        at += TS_BYTES
    return n


cdef bint is_another_placed(Relay* r, uint32_t leg, int64_t now) noexcept nogil:
    cdef uint32_t i
    for i in range(r.n_media):
        if i != leg and r.aligns[i].is_placed and now - r.legs[i].last_ns <= r.wait_ns:
            return True
    return False


cdef void forget(Align* a, uint32_t ssrc) noexcept nogil:
    memset(a, 0, sizeof(Align))
    a.is_known = 1
    a.ssrc = ssrc


cdef bint align_number(Relay* r, uint32_t leg, const uint8_t* data, uint32_t length, uint64_t content, Rtp* rtp, int64_t now) noexcept nogil:
    cdef Align* a = &r.aligns[leg]
    cdef uint32_t n, gap
    cdef int64_t pause = now - a.last_ns
    if not a.is_known:
        forget(a, leg + 1)
        pause = 0
    if content and content == a.last_content:
        return False
    n = missing_in(a, data, length)
    a.per = max(a.per, <uint16_t>(length // TS_BYTES))      # senders close some datagrams before they are full
    gap = (n + a.per - 1) // a.per
    # Counters have four bits. After a longer pause than so few missing packets make, nobody can say how many are: where
    # another leg goes on, this one's place is learned anew, and the stream's next packet is the other one's.
    if gap:
        # What is rare in the stream shows the same loss again, later.
        memset(a.continuity, 0, sizeof(a.continuity))
        missing_in(a, data, length)
    if gap and a.period_ns and pause > a.longest_ns + (2 * <int64_t>gap + 3) * a.period_ns // 2 and is_another_placed(r, leg, now):
        forget(a, a.ssrc + MAX_LEGS)
        a.per = <uint16_t>(length // TS_BYTES)
        missing_in(a, data, length)
        gap = 0
    elif gap == 0 and pause > 0:
        a.period_ns += (pause - a.period_ns) // 16 if a.period_ns else pause
        a.longest_ns = max(pause, a.longest_ns - a.longest_ns // LONGEST_FALLS)
    a.last_ns = now
    a.last_content = content
    a.own_number += <uint16_t>(1 + gap)
    rtp.sequence = a.own_number
    rtp.ssrc = a.ssrc
    return True


cdef bint has_come(Relay* r, uint32_t leg, uint64_t content) noexcept nogil:
    cdef uint32_t i, k
    for i in range(r.n_media):
        for k in range(<uint32_t>ALIGN_KEPT):
            if i != leg and r.aligns[i].kept[k].content == content:
                return True
    return False


cdef bint find_near(Relay* r, Align* a, uint64_t sequence, uint64_t content) noexcept nogil:
    """The leg's loss was taken for a larger or a smaller one than it was."""
    cdef uint64_t at = sequence - NEAR, end = min(r.newest, sequence + NEAR), found = 0
    while at <= end:
        if r.slots[at & r.mask].sequence == at and r.slots[at & r.mask].content == content:
            if found:
                return False
            found = at
        at += 1
    if found:
        a.shift += <uint16_t>(found - sequence)
    return found != 0


cdef bint align_passed(Relay* r, uint32_t leg, uint64_t sequence, uint64_t content) noexcept nogil:
    cdef uint64_t at = sequence + 1, end = min(r.newest, sequence + NEAR)
    cdef Slot* slot
    if content == 0:
        return False
    while at <= end and r.slots[at & r.mask].sequence != at:
        at += 1
    if at > end or r.slots[at & r.mask].content != content:
        return find_near(r, &r.aligns[leg], sequence, content)
    r.aligns[leg].shift += <uint16_t>(at - sequence)
    while sequence < at:
        slot = &r.slots[sequence & r.mask]
        slot.arrival_ns = r.slots[at & r.mask].arrival_ns
        slot.sequence = sequence
        slot.content = 0
        slot.length = slot.header_bytes = slot.payload_bytes = 0
        slot.flags = SLOT_NONE
        sequence += 1
    return True


cdef int align_slip(Relay* r, uint32_t leg, uint64_t sequence, const uint8_t* data, uint32_t length, uint64_t content) noexcept nogil:
    cdef int found
    cdef Align* a = &r.aligns[leg]
    if content and find_near(r, a, sequence, content):
        a.n_strange = 0
        return 0
    found = slip(r, leg, sequence, data, length, content)
    a.n_strange = a.n_strange + 1 if found < 0 else 0
    if a.n_strange >= STRANGE_MAX:
        align_lost(r, leg)
    return found


cdef bint has_common_pid(const uint8_t* one, uint32_t n_one, const uint8_t* other, uint32_t n_other) noexcept nogil:
    cdef uint32_t i, k, pid
    for i in range(n_one // TS_BYTES):
        pid = pid_of(one + i * TS_BYTES)
        for k in range(n_other // TS_BYTES):
            if pid != TS_NULL_PID and pid == pid_of(other + k * TS_BYTES):
                return True
    return False


cdef int slip(Relay* r, uint32_t leg, uint64_t sequence, const uint8_t* data, uint32_t length, uint64_t content) noexcept nogil:
    cdef Align* a = &r.aligns[leg]
    cdef Slot* slot
    cdef uint64_t at = sequence
    if content == 0:                            # whoever has the line has lost this one
        a.shift -= 1
        return 0
    # A loss before stuffing, or before a datagram of other PIDs only, shows later, or not yet: it is made good behind these,
    # where each PID's packets still are in their order.
    while at <= r.newest and at < sequence + NEAR and r.slots[at & r.mask].sequence == at:
        slot = &r.slots[at & r.mask]
        if has_common_pid(slot_data(r, at), slot.payload_bytes, data, length):
            return -1
        at += 1
    if at == sequence + NEAR or at < r.next or at > r.next + r.mask // 2 or has_come(r, leg, content):
        return -1
    a.shift += <uint16_t>(at - sequence)
    return <int>(at - sequence)
