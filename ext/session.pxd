# What moves a connection on: an edge of its socket, or its turn in the ready list.
from ext.connection cimport Connection, Worker

cdef void on_readable(Worker* w, Connection* c) noexcept nogil
cdef void resume(Worker* w, Connection* c) noexcept nogil
cdef void settle(Worker* w, Connection* c, int result) noexcept nogil
cdef void linger(Worker* w, Connection* c) noexcept nogil
cdef void close_gently(Worker* w, Connection* c) noexcept nogil
