# The edge worker: one thread, one epoll, no GIL. `edge_run` returns when a MESSAGE_CLOSE came.
from ext.connection cimport Connection, Shared, Worker
from libc.stdint cimport uint32_t, uint64_t

cdef bint edge_open(Worker* w, Shared* shared, uint32_t index, uint64_t* counters, uint32_t n_slots) noexcept nogil
cdef void edge_run(Worker* w) noexcept nogil
cdef void edge_close(Worker* w) noexcept nogil
