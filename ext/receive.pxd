# A request's body off the viewer's socket into its upload: framing and limits, no more than there is room for.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from ext.connection cimport Connection, Worker
from ext.http_head cimport RequestHead
from ext.upload cimport Upload

cdef enum:                      # what receive_body returns; below 0: minus the status of the refusal
    RECEIVE_MORE = 0            # the socket is empty, or the upload full
    RECEIVE_WHOLE = 1           # the connection has let go of the upload; what follows is in its buffer or its socket
    RECEIVE_ENDED = 2           # the viewer's side has ended: the caller closes

cdef Upload* begin_body(Worker* w, Connection* c, uint8_t* data, uint32_t* n, const RequestHead* head, uint64_t limit, int* refused) noexcept nogil
cdef void upload_tell(Worker* w, Upload* u) noexcept nogil
cdef void upload_leave(Worker* w, Connection* c) noexcept nogil
cdef int take_data(Worker* w, Connection* c, const uint8_t* data, uint64_t n) noexcept nogil
cdef int receive_body(Worker* w, Connection* c) noexcept nogil
cdef void end_body(Worker* w, Connection* c) noexcept nogil
cdef bint stays_behind(Worker* w, Connection* c) noexcept nogil
