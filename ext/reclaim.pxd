# When memory may be freed (QSBR), and how much may be taken. Readers are workers between epoch_enter and epoch_leave; a
# pointer read from shared memory is good until the reader's next epoch_enter. All but enter and leave: Store.lock held.
from libc.stdint cimport uint32_t, uint64_t

from ext.store cimport Object, Retired, Store

cdef void epoch_enter(Store* store, uint32_t worker) noexcept nogil
cdef void epoch_leave(Store* store, uint32_t worker) noexcept nogil
cdef void* store_allocate(Store* store, uint64_t size) noexcept nogil
cdef void* store_allocate_sendable(Store* store, uint64_t size) noexcept nogil
cdef void retire(Store* store, void* piece, uint64_t size) noexcept nogil
cdef void reclaim(Store* store) noexcept nogil
