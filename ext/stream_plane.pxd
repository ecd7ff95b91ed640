# Ring: a stream as Python holds it.
from ext.stream cimport Stream
from ext.workers cimport Workers

cdef class Ring:
    cdef Stream* stream
    cdef readonly Workers plane
