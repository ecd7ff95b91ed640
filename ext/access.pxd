# What a worker's steps call so that an answer gets into the access log, and a refusal into the security log. Whoever
# answers calls access_begin(); its end is noted by settle() and connection_close(). A tunnel or a stream that counts its
# own bytes calls access_write() at its end instead, if access_is_on().
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from ext.access_ring cimport HOW_REFUSED
from ext.connection cimport Connection, Worker

cdef inline bint access_is_on(Worker* w) noexcept nogil:
    return w.tables.limits.access_log != 0

cdef inline void access_begin(Worker* w, Connection* c, uint32_t status, uint32_t how, int64_t first) noexcept nogil:
    """An answer starts; its body at `first`. When the log is off this is one branch."""
    if access_is_on(w):
        c.log_status = <uint16_t>status
        c.log_how = <uint8_t>how
        c.log_first = first
        c.offset = first

cdef inline void access_end(Worker* w, Connection* c, bint is_cut) noexcept nogil:
    """The answer is out, or breaks off."""
    if c.log_status:
        access_write(w, c, c.log_status, c.log_how, c.log_origin, <uint64_t>(c.offset - c.log_first), is_cut)
        c.log_status = 0

cdef inline void access_serving(Worker* w, Connection* c, const uint8_t* data) noexcept nogil:
    """While one step answers it at once, `data` holds the request that is parsed into w.head."""
    w.serving = c
    w.serving_data = data

cdef void access_write(Worker* w, Connection* c, uint32_t status, uint32_t how, uint32_t origin, uint64_t bytes, bint is_cut) noexcept nogil
cdef void access_refused(Worker* w, Connection* c, uint32_t status) noexcept nogil
cdef bint is_framing_fault(const uint8_t* data, uint32_t n) noexcept nogil
