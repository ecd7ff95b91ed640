# SipHash-1-3 behind siphash.pxd: the keyed hash of table keys and viewer addresses. Nothing else may live here.
from libc.string cimport memcpy


cdef inline uint64_t rotl(uint64_t x, int b) noexcept nogil:
    return (x << b) | (x >> (64 - b))


cdef uint64_t hash_bytes(const uint64_t* secret, const uint8_t* data, uint64_t n) noexcept nogil:
    """SipHash-1-3 (Aumasson and Bernstein 2012; the variant that CPython and Rust hash strings with)."""
    cdef uint64_t v0 = secret[0] ^ 0x736f6d6570736575ULL
    cdef uint64_t v1 = secret[1] ^ 0x646f72616e646f6dULL
    cdef uint64_t v2 = secret[0] ^ 0x6c7967656e657261ULL
    cdef uint64_t v3 = secret[1] ^ 0x7465646279746573ULL
    cdef uint64_t word, last = n << 56
    cdef uint64_t i = 0
    cdef int round
    while True:
        if i + 8 <= n:
            memcpy(&word, data + i, 8)
        else:
            word = last
            if n > i:
                memcpy(&word, data + i, n - i)
                word = (word & ((<uint64_t>1 << (8 * (n - i))) - 1)) | last
        v3 ^= word
        v0 += v1; v1 = rotl(v1, 13); v1 ^= v0; v0 = rotl(v0, 32)
        v2 += v3; v3 = rotl(v3, 16); v3 ^= v2
        v0 += v3; v3 = rotl(v3, 21); v3 ^= v0
        v2 += v1; v1 = rotl(v1, 17); v1 ^= v2; v2 = rotl(v2, 32)
        v0 ^= word
        if i + 8 > n:
            break
        i += 8
    v2 ^= 0xff
    for round in range(3):
        v0 += v1; v1 = rotl(v1, 13); v1 ^= v0; v0 = rotl(v0, 32)
        v2 += v3; v3 = rotl(v3, 16); v3 ^= v2
        v0 += v3; v3 = rotl(v3, 21); v3 ^= v0
        v2 += v1; v1 = rotl(v1, 17); v1 ^= v2; v2 = rotl(v2, 32)
    return v0 ^ v1 ^ v2 ^ v3
