# Connections per viewer address behind addresses.pxd: open addressing, no tombstones.
from ext.siphash cimport hash_bytes
from ext.store cimport pthread_mutex_lock, pthread_mutex_unlock


cdef AddressCount* address_find(Addresses* addresses, uint64_t hash) noexcept nogil:
    cdef uint64_t i = hash & (ADDRESS_BUCKETS - 1)
    while addresses.buckets[i].n != 0 and addresses.buckets[i].hash != hash:
        i = (i + 1) & (ADDRESS_BUCKETS - 1)
    return &addresses.buckets[i]


cdef bint address_enter(Addresses* addresses, const uint8_t* address, uint32_t most) noexcept nogil:
    """Counts a connection in; False: the address has `most` already. Only the keyed hash of an address is kept."""
    cdef uint64_t hash = hash_bytes(addresses.secret, address, 16)
    cdef AddressCount* found
    cdef bint is_allowed
    pthread_mutex_lock(&addresses.lock)
    found = address_find(addresses, hash)
    is_allowed = found.n < most
    if found.n == 0:            # a probe ends at an empty bucket: an eighth stays empty
        is_allowed = is_allowed and addresses.n_used < ADDRESS_BUCKETS - ADDRESS_BUCKETS // 8
        if is_allowed:
            addresses.n_used += 1
    if is_allowed:
        found.hash = hash
        found.n += 1
    pthread_mutex_unlock(&addresses.lock)
    return is_allowed


cdef void address_leave(Addresses* addresses, const uint8_t* address) noexcept nogil:
    cdef uint64_t hash = hash_bytes(addresses.secret, address, 16)
    cdef AddressCount* found
    cdef uint64_t i, j, home
    pthread_mutex_lock(&addresses.lock)
    found = address_find(addresses, hash)
    if found.n == 0:            # it never entered; an empty bucket that is counted down would never be empty again
        pthread_mutex_unlock(&addresses.lock)
        return
    found.n -= 1
    if found.n == 0:
        addresses.n_used -= 1
        # Linear probing without tombstones: whoever hashed before the hole moves into it (Knuth, 6.4 algorithm R).
        i = <uint64_t>(found - addresses.buckets)
        j = i
        while True:
            j = (j + 1) & (ADDRESS_BUCKETS - 1)
            if addresses.buckets[j].n == 0:
                break
            home = addresses.buckets[j].hash & (ADDRESS_BUCKETS - 1)
            if ((j - home) & (ADDRESS_BUCKETS - 1)) >= ((j - i) & (ADDRESS_BUCKETS - 1)):
                addresses.buckets[i] = addresses.buckets[j]
                addresses.buckets[j].n = 0
                i = j
    pthread_mutex_unlock(&addresses.lock)
