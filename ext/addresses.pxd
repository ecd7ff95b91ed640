# How many connections each viewer address has; only keyed hashes of addresses are kept.
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from ext.store cimport pthread_mutex_t

cdef enum:
    ADDRESS_BUCKETS = 131072

cdef struct AddressCount:
    uint64_t hash
    uint64_t n

cdef struct Addresses:          # shared by the workers; locked at open and close only
    pthread_mutex_t lock
    AddressCount* buckets
    uint64_t n_used
    uint64_t secret[2]

cdef bint address_enter(Addresses* addresses, const uint8_t* address, uint32_t most) noexcept nogil
cdef void address_leave(Addresses* addresses, const uint8_t* address) noexcept nogil
