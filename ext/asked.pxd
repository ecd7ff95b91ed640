# Exchange, as the control plane sees a worker's question.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from ext.exchange cimport Exchange as Slot
from ext.stored cimport StoredObject
from ext.upload cimport Upload
from ext.workers cimport Workers

cdef class RequestBody:
    cdef Workers plane
    cdef Upload* upload

    cdef void tell_room(self)

cdef class Exchange:
    cdef readonly Workers plane
    cdef readonly uint32_t worker, index, generation, origin, listener
    cdef readonly int zone
    cdef readonly str kind
    cdef readonly int64_t arrival_ns, offset, range_first, range_last
    cdef readonly uint64_t tables_generation
    cdef readonly bytes head, key
    cdef readonly StoredObject stored
    cdef readonly RequestBody body
    cdef readonly bint is_answered

cdef Exchange take_exchange(Workers plane, Slot* e)
