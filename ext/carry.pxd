# What moves a tunnel on: its beginning, an event of one of its sockets, its turn in the ready list, its closing.
from libc.stdint cimport int64_t, uint32_t

from ext.connection cimport Connection, Worker

cdef void tunnel_begin(Worker* w, Connection* c) noexcept nogil
cdef void on_tunnel_event(Worker* w, Connection* c, bint is_origin, uint32_t events) noexcept nogil
cdef void on_tunnel_deadline(Worker* w, Connection* c) noexcept nogil
cdef void carry(Worker* w, Connection* c) noexcept nogil
cdef void spread_closing(Worker* w, int64_t period_ns) noexcept nogil
