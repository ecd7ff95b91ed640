# Composing responses: stored objects (whole, range, not modified, HEAD) and our own short answers.
from libc.stdint cimport uint8_t, uint32_t

from ext.connection cimport Connection, Worker
from ext.http_head cimport RequestHead
from ext.store cimport Head, Object

cdef enum:                      # how an answer counts, and what Cache-Status says
    AS_HIT = 0
    AS_MISS = 1
    AS_COLLAPSED = 2
    AS_PASSED = 3

cdef int respond_object(Worker* w, Connection* c, const uint8_t* data, uint32_t n, const RequestHead* head, Object* object, uint32_t how) noexcept nogil
cdef int respond_error(Worker* w, Connection* c, uint32_t status, bint must_close) noexcept nogil
cdef int respond_preflight(Worker* w, Connection* c, const uint8_t* data, const RequestHead* head) noexcept nogil
cdef bint is_not_modified(const uint8_t* data, const RequestHead* request, const Head* head) noexcept nogil
cdef bint may_range(const uint8_t* data, const RequestHead* request, const Head* head) noexcept nogil
cdef void refresh_date(Worker* w) noexcept nogil
cdef int send_short(Worker* w, Connection* c, const uint8_t* text, uint32_t n) noexcept nogil
