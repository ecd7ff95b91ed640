# The ring behind stream.pxd. No allocation, no system call but a mailbox's wake-up.
from libc.stdint cimport INT64_MAX
from libc.string cimport memcpy, memset

from ext.atomics cimport *
from ext.exchange cimport mailbox_ring
from ext.relay_wire cimport PID_UNKNOWN, WIRE_OK, WIRE_SYNC, Ts, read_ts

cdef const char* NULL_PACKET = b"\x47\x1f\xff\x10"      # ISO/IEC 13818-1 2.4.3.3: PID 0x1FFF means nothing

cdef enum:
    # A sender that marks no random access point: readers begin at a PAT then.
    WEAK_AFTER_NS = 2000000000
    GAP_NS = 2000000000


# --- where a reader may begin -----------------------------------------------------------------------------------------

cdef bint begins_key_frame(const uint8_t* data, uint32_t n, uint8_t stream_type) noexcept nogil:
    """Whether the beginning of a PES packet shows a key frame or its parameter sets. Encoders that don't set
    random_access_indicator put those in front of each."""
    cdef uint32_t i
    cdef uint8_t kind
    for i in range(n - 3 if n > 3 else 0):
        if data[i] != 0 or data[i + 1] != 0 or data[i + 2] != 1:
            continue
        kind = data[i + 3]
        if stream_type == 0x1B and (kind & 31 == 5 or kind & 31 == 7):                  # H.264: IDR, SPS
            return True
        if stream_type == 0x24 and (16 <= kind >> 1 & 63 <= 21 or 32 <= kind >> 1 & 63 <= 33):   # H.265: IRAP, VPS, SPS
            return True
        if (stream_type == 0x01 or stream_type == 0x02) and kind == 0xB3:               # MPEG-2: sequence header
            return True
    return False


cdef bint stream_is_entry(const TsState* ts, const uint8_t* packet) noexcept nogil:
    cdef Ts t
    if read_ts(packet, &t) != WIRE_OK or t.is_damaged:
        return False
    return is_entry(ts, packet, &t)


cdef bint is_entry(const TsState* ts, const uint8_t* packet, const Ts* t) noexcept nogil:
    if t.is_random_access:
        return t.pid == ts.video_pid or ts.video_pid == PID_UNKNOWN
    return (t.pid == ts.video_pid and t.is_unit_start and t.has_payload and not t.is_scrambled
            and begins_key_frame(packet + t.payload, TS_BYTES - t.payload, ts.video_type))


cdef void copy_table(TableCopy* table, const uint8_t* packet, const Ts* t) noexcept nogil:
    """Keeps the packets of a section until it is whole; then they replace those of the one before."""
    cdef uint32_t length = TS_BYTES - t.payload
    cdef uint32_t pointer
    cdef const uint8_t* payload = packet + t.payload
    if t.is_unit_start:
        table.n_building = 0
        if length == 0:
            return
        pointer = payload[0]
        if pointer + 4 > length:
            return
        table.needed = 1 + pointer + 3 + ((<uint32_t>payload[pointer + 2] << 8 | payload[pointer + 3]) & 0x0FFF)
        table.gathered = 0
    elif table.n_building == 0:
        return
    if table.n_building + TS_BYTES > TABLE_BYTES:
        table.n_building = 0
        return
    memcpy(table.building + table.n_building, packet, TS_BYTES)
    table.n_building += TS_BYTES
    table.gathered += length
    if table.gathered >= table.needed:
        memcpy(table.whole, table.building, table.n_building)
        table.n_whole = table.n_building
        table.n_building = 0


# --- writing ----------------------------------------------------------------------------------------------------------

cdef bint begin_chunk(Stream* s) noexcept nogil:
    """Makes room for the next chunk; False: a worker may still read what stands there."""
    cdef int64_t number = s.written // CHUNK_BYTES
    cdef int64_t kept = number + 1 + s.n_spare - s.n_chunks
    cdef Chunk* chunk = &s.chunks[number % s.n_chunks]
    cdef uint64_t epoch, needed
    cdef uint32_t i
    if number >= s.n_chunks:
        needed = s.chunks[(number - s.n_spare) % s.n_chunks].epoch
        for i in range(s.n_workers):
            # Read-modify-write, as ext/reclaim.pyx says.
            epoch = add_u64(&s.store.workers[i].epoch, 0)
            if epoch != 0 and epoch < needed:
                return False
    chunk.entry = -1
    chunk.n_tables = 0
    if kept > 0:
        exchange_u64(<uint64_t*>&s.oldest, <uint64_t>(kept * CHUNK_BYTES))
    perturb()
    chunk.epoch = add_u64(&s.store.epoch, 1) + 1
    return True


cdef void mark_entry(Stream* s, bint with_tables) noexcept nogil:
    cdef int64_t number = s.written // CHUNK_BYTES
    cdef Chunk* chunk = &s.chunks[number % s.n_chunks]
    if chunk.entry >= 0:
        return
    if with_tables:
        memcpy(chunk.tables, s.pat.whole, s.pat.n_whole)
        memcpy(chunk.tables + s.pat.n_whole, s.pmt.whole, s.pmt.n_whole)
        chunk.n_tables = s.pat.n_whole + s.pmt.n_whole
    chunk.entry = s.written
    s.entry_chunk = number


cdef void forget(Stream* s, int64_t now) noexcept nogil:
    """After a pause nobody may begin with what was before it, which would play as if it were now."""
    while s.written % CHUNK_BYTES:      # an entry stands once in a chunk: the next one needs another. Null packets.
        memset(s.data + <uint64_t>s.written % s.capacity, 0xFF, TS_BYTES)
        memcpy(s.data + <uint64_t>s.written % s.capacity, NULL_PACKET, 4)
        s.written += TS_BYTES
    s.entry_chunk = -1
    s.pat.n_whole = s.pat.n_building = s.pmt.n_whole = s.pmt.n_building = 0
    s.first_ns = s.told_ns = now


cdef bint needs_weak_entry(Stream* s, int64_t now) noexcept nogil:
    if s.entry_chunk < 0:
        return now - s.first_ns >= WEAK_AFTER_NS
    return s.written // CHUNK_BYTES - s.entry_chunk > (s.n_chunks - s.n_spare) // 2


cdef void stream_take(Stream* s, const TsState* ts, const uint8_t* data, uint32_t length, int64_t now) noexcept nogil:
    cdef Ts t
    cdef uint32_t at = 0
    cdef uint64_t n = 0, n_stalled = 0
    cdef int said
    if load_u32(&s.is_closed):
        return
    if now - s.told_ns > GAP_NS:
        forget(s, now)
    while at + TS_BYTES <= length:
        said = read_ts(data + at, &t)
        if said == WIRE_SYNC:
            count(&s.n_refused, 1)
            at += TS_BYTES
            continue
        # Once there is no room the rest of the datagram is stepped over too: it was sent as one.
        if n_stalled or (s.written % CHUNK_BYTES == 0 and not begin_chunk(s)):
            n_stalled += 1
            at += TS_BYTES
            continue
        if said == WIRE_OK and not t.is_damaged:
            if ts.pmt_pid != s.pmt_pid:
                s.pmt_pid = ts.pmt_pid
                s.pmt.n_whole = s.pmt.n_building = 0
            if t.pid == 0 and t.has_payload:
                copy_table(&s.pat, data + at, &t)
                if t.is_unit_start and s.pmt.n_whole and needs_weak_entry(s, now):
                    mark_entry(s, False)
            elif t.pid == s.pmt_pid and t.has_payload:
                copy_table(&s.pmt, data + at, &t)
            elif s.pat.n_whole and s.pmt.n_whole and is_entry(ts, data + at, &t):
                mark_entry(s, True)
        memcpy(s.data + <uint64_t>s.written % s.capacity, data + at, TS_BYTES)
        s.written += TS_BYTES
        at += TS_BYTES
        n += 1
    if n:
        count(&s.n_packets, n)
    if n_stalled:
        count(&s.n_stalled, n_stalled)


cdef void stream_ring(Stream* s, uint32_t mask) noexcept nogil:
    cdef uint32_t i
    for i in range(s.n_workers):
        if mask >> i & 1:
            mailbox_ring(s.mailboxes[i], <uint64_t>1 << (s.index % BELL_BITS))


cdef int64_t stream_publish(Stream* s, int64_t now) noexcept nogil:
    """Readers see only what was published: all of them the same steps, so that none is woken for a packet."""
    cdef int64_t published = load_i64_relaxed(&s.published)
    cdef uint32_t mask
    if s.written == published:
        return INT64_MAX
    if now - s.told_ns < s.hold_ns and s.written - published < PUBLISH_BYTES:
        return s.told_ns + s.hold_ns
    s.told_ns = now
    store_i64(&s.entry, s.entry_chunk)
    store_i64_relaxed(&s.published_ns, now)
    store_i64_seq(&s.published, s.written)
    perturb()
    mask = exchange_u32(&s.waiting, 0)
    if mask:
        stream_ring(s, mask)
    return INT64_MAX


# --- reading ----------------------------------------------------------------------------------------------------------

cdef bint stream_has_passed(Stream* s, int64_t position) noexcept nogil:
    """Whether the window has gone on beyond `position`."""
    return position < load_i64_seq(&s.oldest)


cdef const uint8_t* stream_at(Stream* s, int64_t position, uint64_t* n) noexcept nogil:
    """What may be read from `position` on, which the window has not passed in this pass; NULL: nothing yet."""
    cdef int64_t published = load_i64_seq(&s.published)
    cdef uint64_t at = <uint64_t>position % s.capacity
    n[0] = 0
    if position >= published:
        return NULL
    n[0] = <uint64_t>(published - position)
    if n[0] > s.capacity - at:
        n[0] = s.capacity - at
    return s.data + at


cdef bint stream_enter(Stream* s, int64_t* position, const uint8_t** tables, uint32_t* n_tables) noexcept nogil:
    """The newest place to begin at, and what is sent before it. False: there is none in the window."""
    cdef int64_t number = load_i64(&s.entry)
    cdef Chunk* chunk
    if number < 0 or stream_has_passed(s, number * CHUNK_BYTES):
        return False
    chunk = &s.chunks[number % s.n_chunks]
    position[0] = chunk.entry
    tables[0] = chunk.tables
    n_tables[0] = chunk.n_tables
    return True


cdef bint stream_wait(Stream* s, int64_t seen, uint32_t worker) noexcept nogil:
    """The worker will be woken; true: no need, more than `seen` is published already, or it has ended."""
    or_u32(&s.waiting, <uint32_t>1 << worker)
    perturb()
    return load_i64_seq(&s.published) != seen or load_u32_seq(&s.is_closed) != 0
