# Sending a response that didn't leave in one write: the only place, but for its beginning in respond.pyx, that writes bodies.
from ext.connection cimport Connection, Worker

cdef int pump(Worker* w, Connection* c) noexcept nogil
