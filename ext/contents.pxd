# The store's part of Plane.
from ext.workers cimport Workers

cdef class Contents(Workers):
    pass
