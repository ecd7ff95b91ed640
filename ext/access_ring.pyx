# The ring behind access_ring.pxd, and the digest that stands for a query. Decides nothing.
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from ext.atomics cimport *
from ext.siphash cimport hash_bytes

import os

# Drawn at each start, never written: who has the logs only can't try queries, here or at another site.
cdef uint64_t query_secret[2]
cdef bytes _drawn = os.urandom(16)
memcpy(query_secret, <const char*>_drawn, 16)
_drawn = b""


cdef AccessRing* access_ring_new(uint64_t capacity) noexcept nogil:
    """`capacity`: a power of two. NULL: no memory."""
    cdef AccessRing* ring = <AccessRing*>calloc(1, sizeof(AccessRing))
    if ring == NULL:
        return NULL
    ring.mask = capacity - 1
    ring.records = <AccessRecord*>calloc(capacity, sizeof(AccessRecord))
    if ring.records == NULL:
        free(ring)
        return NULL
    return ring


cdef void access_ring_free(AccessRing* ring) noexcept nogil:
    if ring != NULL:
        free(ring.records)
        free(ring)


cdef AccessRecord* access_ring_reserve(AccessRing* ring) noexcept nogil:
    """Where the producer writes the next record, or NULL: the ring is full."""
    cdef uint64_t head = load_u64_relaxed(&ring.head)
    if head - load_u64(&ring.tail) > ring.mask:
        return NULL
    return &ring.records[head & ring.mask]


cdef void access_ring_commit(AccessRing* ring) noexcept nogil:
    store_u64(&ring.head, load_u64_relaxed(&ring.head) + 1)


cdef AccessRecord* access_ring_first(AccessRing* ring) noexcept nogil:
    """The oldest record, the consumer's until it releases it, or NULL."""
    cdef uint64_t tail = load_u64_relaxed(&ring.tail)
    return NULL if tail == load_u64(&ring.head) else &ring.records[tail & ring.mask]


cdef void access_ring_release(AccessRing* ring) noexcept nogil:
    store_u64(&ring.tail, load_u64_relaxed(&ring.tail) + 1)


cdef uint64_t query_digest(const uint8_t* query, uint32_t n) noexcept nogil:
    """48 bits; never 0. Of the bytes after the question mark, as received."""
    cdef uint64_t digest = hash_bytes(query_secret, query, n) >> 16
    return digest if digest else 1


def digest_of_query(bytes query) -> str:
    """12 hexadecimal digits, the same that the access log has for this query until this process ends."""
    return f"{query_digest(query, <uint32_t>len(query)):012x}"
