# Uploads behind upload.pxd: one producer, one consumer. `is_full` and the two ends are sequentially consistent, so that
# either the worker sees the room or the control plane sees that the worker waits for it.
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

from ext.atomics cimport *

cdef extern from "<stdlib.h>" nogil:
    int posix_memalign(void**, size_t, size_t)

cdef enum:
    LEAST_BYTES = 512


cdef uint64_t ring_bytes(int64_t content_length) noexcept nogil:
    cdef uint64_t n = LEAST_BYTES
    while n < UPLOAD_BYTES and (content_length < 0 or n < <uint64_t>content_length):
        n *= 2
    return n


cdef uint64_t upload_size(int64_t content_length) noexcept nogil:
    """Bytes that a body of this length takes, at most: what the caller counts before upload_new."""
    return sizeof(Upload) + ring_bytes(content_length)


cdef Upload* upload_new(uint64_t* outside, uint32_t worker, int64_t content_length, uint64_t limit) noexcept nogil:
    """With one reference; its memory is counted in `outside` already. NULL: no memory."""
    cdef Upload* u
    cdef uint64_t size = upload_size(content_length)
    if posix_memalign(<void**>&u, 64, size) != 0:
        return NULL
    memset(u, 0, sizeof(Upload))
    u.refs = 1
    u.outside = outside
    u.size = size
    u.mask = ring_bytes(content_length) - 1
    u.bytes = <uint8_t*>u + sizeof(Upload)
    u.content_length = content_length
    u.worker = worker
    u.left = content_length
    u.limit = limit
    return u


cdef void upload_release(Upload* u) noexcept nogil:
    if add_u64(&u.refs, <uint64_t>-1) == 1:
        add_u64_relaxed(u.outside, -u.size)
        free(u)


cdef uint64_t upload_room(Upload* u) noexcept nogil:
    return u.mask + 1 - (load_u64_relaxed(&u.head) - load_u64_seq(&u.tail))


cdef uint8_t* upload_end(Upload* u, uint64_t* n) noexcept nogil:
    """Where the next bytes go, and how many in a row; the worker's."""
    cdef uint64_t at = load_u64_relaxed(&u.head) & u.mask
    n[0] = upload_room(u)
    if n[0] > u.mask + 1 - at:
        n[0] = u.mask + 1 - at
    return u.bytes + at


cdef void upload_filled(Upload* u, uint64_t n) noexcept nogil:
    store_u64(&u.head, load_u64_relaxed(&u.head) + n)


cdef void upload_put(Upload* u, const uint8_t* data, uint64_t n) noexcept nogil:
    """Copies bytes for which there is room."""
    cdef uint64_t most
    cdef uint8_t* out
    while n:
        out = upload_end(u, &most)
        if most > n:
            most = n
        if most == 0:
            return
        memcpy(out, data, most)
        upload_filled(u, most)
        data += most
        n -= most


cdef bint upload_waits(Upload* u) noexcept nogil:
    """The worker says that it waits for room. False: there is enough already."""
    store_u32_seq(&u.is_full, 1)
    perturb()
    if upload_room(u) * 2 <= u.mask and not load_u32_seq(&u.is_dropped):
        return True
    store_u32_seq(&u.is_full, 0)
    return False


cdef uint64_t upload_there(Upload* u) noexcept nogil:
    """Bytes to take; the control plane's."""
    return load_u64(&u.head) - load_u64_relaxed(&u.tail)


cdef bint upload_take(Upload* u, uint8_t* out, uint64_t n) noexcept nogil:
    """Takes `n` bytes, which are there. True: the worker waits for the room that this makes."""
    cdef uint64_t tail = load_u64_relaxed(&u.tail)
    cdef uint64_t at = tail & u.mask
    cdef uint64_t first = n if n < u.mask + 1 - at else u.mask + 1 - at
    memcpy(out, u.bytes + at, first)
    memcpy(out + first, u.bytes, n - first)
    store_i64_seq(<int64_t*>&u.tail, <int64_t>(tail + n))
    perturb()
    return (load_u32_seq(&u.is_full) and (u.mask + 1 - (load_u64(&u.head) - tail - n)) * 2 > u.mask
            and exchange_u32(&u.is_full, 0))
