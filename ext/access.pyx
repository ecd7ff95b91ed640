# Filling the records behind access.pxd. No text is made here, nothing is allocated, and of a viewer only what the policy
# says goes in.
from libc.stdint cimport uint16_t
from libc.string cimport memcpy, memset

from ext.access_ring cimport *
from ext.atomics cimport *
from ext.connection cimport *
from ext.http_head cimport RequestHead, parse_request
from ext.layout cimport *
from ext.request cimport zone_of

cdef extern from "<time.h>" nogil:
    cdef struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int, timespec*)

cdef enum:
    CLOCK_MONOTONIC = 1
    VIEWER_HASH = 1             # policy.compile.VIEWERS
    VIEWER_TRUNCATE = 2
    FRAMING_LOOK_BYTES = 16384


cdef int64_t clock_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <int64_t>now.tv_sec * 1000000000 + now.tv_nsec


cdef void put_viewer(Worker* w, Connection* c, AccessRecord* record) noexcept nogil:
    cdef uint32_t i
    record.generation = w.tables.generation
    record.zone = c.zone if c.zone_generation == w.tables.generation else zone_of(w.tables, c.address)
    memset(record.address, 0, 16)
    if w.tables.limits.viewer == VIEWER_HASH:
        memcpy(record.address, c.address, 16)
        record.flags |= RECORD_HAS_ADDRESS
    elif w.tables.limits.viewer == VIEWER_TRUNCATE:
        # ::ffff:a.b.c.d becomes a.b.c.0, everything else a /48.
        i = 15 if c.address[10] == 0xff and c.address[11] == 0xff and is_mapped(c.address) else 6
        memcpy(record.address, c.address, i)
        record.flags |= RECORD_HAS_NETWORK


cdef bint is_mapped(const uint8_t* address) noexcept nogil:
    cdef uint32_t i
    for i in range(10):
        if address[i]:
            return False
    return True


cdef uint8_t protocol_of(const Connection* c) noexcept nogil:
    """What the viewer speaks: a stream's TLS is its carrier's."""
    cdef const Connection* below = c if c.carrier == NULL else c.carrier
    cdef uint8_t spoken = SPOKE_H2 if c.carrier != NULL else SPOKE_HTTP10 if c.minor == 0 else 0
    if below.tls != NULL:
        spoken |= below.tls.generation << SPOKE_TLS_SHIFT
    return spoken


cdef void put_target(AccessRecord* record, const uint8_t* target, uint32_t n) noexcept nogil:
    cdef uint32_t i = 0
    while i < n and target[i] != 63:
        i += 1
    if i < n:
        record.query = query_digest(target + i + 1, n - i - 1)
    record.path_length = <uint16_t>(i if i < 65535 else 65535)
    memcpy(record.path, target, i if i < RECORD_PATH_BYTES else RECORD_PATH_BYTES)


cdef void access_write(Worker* w, Connection* c, uint32_t status, uint32_t how, uint32_t origin, uint64_t bytes, bint is_cut) noexcept nogil:
    """One record for the answer to the request that `c` has, or w.serving."""
    cdef AccessRing* ring = <AccessRing*>load_ptr(<void**>&w.access)
    cdef AccessRecord* record
    cdef RequestHead* head = NULL
    cdef const uint8_t* data = NULL
    if ring == NULL:
        return
    record = access_ring_reserve(ring)
    if record == NULL:
        count(&w.counters[C_ACCESS_LOG_DROPPED], 1)
        return
    if c.buffer != NULL and c.head_length:
        # Not into w.head: a step under way may need that.
        if parse_request(c.buffer, c.head_length, &w.log_head) > 0:
            head = &w.log_head
            data = c.buffer
    elif w.serving == c:
        head = &w.head
        data = w.serving_data
    record.ended_ns = clock_ns()
    record.duration_ns = record.ended_ns - c.arrival_ns
    record.bytes = bytes
    record.query = 0
    record.listener = c.listener
    record.origin = origin
    record.status = <uint16_t>status
    record.path_length = 0
    record.protocol = protocol_of(c)
    record.method = 0
    record.how = <uint8_t>how
    record.fwd_reason = c.fwd_reason
    record.flags = RECORD_IS_CUT if is_cut else 0
    if head != NULL:
        record.method = head.method
        put_target(record, data + head.path, head.path_length)
    put_viewer(w, c, record)
    access_ring_commit(ring)


cdef void access_refused(Worker* w, Connection* c, uint32_t status) noexcept nogil:
    """One record for the security log, whether the access log is on or not."""
    cdef AccessRecord* record = access_ring_reserve(w.refusals)
    if record == NULL:
        count(&w.counters[C_REFUSALS_UNLISTED], 1)
        return
    record.listener = c.listener
    record.status = <uint16_t>status
    record.flags = RECORD_IS_FRAMING if w.is_framing_fault else 0
    put_viewer(w, c, record)
    access_ring_commit(w.refusals)


cdef inline uint32_t lower_case(uint8_t byte) noexcept nogil:
    return byte | 32 if 65 <= byte <= 90 else byte


cdef bint begins_with(const uint8_t* data, uint32_t n, const char* name, uint32_t length) noexcept nogil:
    cdef uint32_t i
    if n < length:
        return False
    for i in range(length):
        if lower_case(data[i]) != <uint8_t>name[i]:
            return False
    return True


cdef bint is_framing_fault(const uint8_t* data, uint32_t n) noexcept nogil:
    """Whether a head that was refused names its body's framing twice, or at all in a spelling of its own: what request
    smuggling looks like (RFC 9112 section 11.2). Only to count; the parser has refused it already."""
    cdef uint32_t i, n_lengths = 0, n_codings = 0
    if n > FRAMING_LOOK_BYTES:
        n = FRAMING_LOOK_BYTES
    for i in range(1, n):
        if data[i - 1] != 10 and data[i - 1] != 13 and data[i - 1] != 9 and data[i - 1] != 32 and data[i - 1] != 0:
            continue
        if begins_with(data + i, n - i, b"content-length", 14):
            n_lengths += 1
        elif begins_with(data + i, n - i, b"transfer-encoding", 17):
            n_codings += 1
    return n_codings > 0 or n_lengths > 1
