# Vary: which of a request's values tell variants apart, in one normal form.
from libc.stdint cimport uint8_t, uint32_t

from ext.http_head cimport RequestHead

cdef enum:
    MAX_VARY_BYTES = 1024

cdef bint has_gzip(const uint8_t* value, uint32_t n) noexcept nogil
cdef int vary_key_of(const uint8_t* vary, uint32_t n, const uint8_t* data, const RequestHead* head, uint8_t* out) noexcept nogil
