# Sending a response that didn't leave in one write: the only place, but for its beginning in respond.pyx, that writes bodies
# over HTTP/1.1; h2_answers.pyx does for HTTP/2, and waits for them in the same way.
from libc.stdint cimport uint64_t

from ext.connection cimport Connection, Worker

cdef int pump(Worker* w, Connection* c) noexcept nogil
cdef int wait_for_body(Worker* w, Connection* c) noexcept nogil
cdef int next_part(Worker* w, Connection* c) noexcept nogil
cdef void note_sent(Worker* w, Connection* c, uint64_t n) noexcept nogil
