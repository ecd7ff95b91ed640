# One request, whose head is parsed into Worker.head: answered from the table, or an exchange asked.
from libc.stdint cimport int64_t, uint8_t, uint32_t

from ext.connection cimport Connection, Worker
from ext.exchange cimport Exchange

cdef enum:
    MAX_TRIES = 4               # looks per request before it asks for itself alone

cdef extern from "<time.h>" nogil:
    cdef struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int, timespec*)

cdef inline int64_t now_ns() noexcept nogil:
    cdef timespec t
    clock_gettime(1, &t)
    return <int64_t>t.tv_sec * 1000000000 + t.tv_nsec

cdef int ask_connect(Worker* w, Connection* c, const uint8_t* data, uint32_t n) noexcept nogil
cdef int handle(Worker* w, Connection* c, const uint8_t* data, uint32_t n) noexcept nogil
cdef void leave_bucket(Worker* w, Exchange* e) noexcept nogil
