# A keyed hash: nobody without the secret can aim at a bucket.
from libc.stdint cimport uint8_t, uint64_t

cdef uint64_t hash_bytes(const uint64_t* secret, const uint8_t* data, uint64_t n) noexcept nogil
