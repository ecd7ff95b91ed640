# What moves a connection on: an edge of its socket, or its turn in the ready list.
from libc.stdint cimport uint32_t

from ext.connection cimport Connection, Worker
from ext.exchange cimport Message

cdef void on_readable(Worker* w, Connection* c) noexcept nogil
cdef void on_deadline(Worker* w, Connection* c) noexcept nogil
cdef void resume(Worker* w, Connection* c) noexcept nogil
cdef void settle(Worker* w, Connection* c, int result) noexcept nogil
cdef void on_body(Worker* w, Connection* c) noexcept nogil
cdef void on_interim(Worker* w, Message* m) noexcept nogil
cdef void on_split(Worker* w, Message* m) noexcept nogil
cdef void flush_interim(Worker* w, Connection* c) noexcept nogil
cdef void give_up_waiting(Worker* w, Connection* c, uint32_t status) noexcept nogil
cdef void linger(Worker* w, Connection* c) noexcept nogil
cdef void close_gently(Worker* w, Connection* c) noexcept nogil
