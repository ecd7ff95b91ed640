# What a viewer's Cache-Control asks of a stored response (RFC 9111 section 5.2.1). Compares; knows no profile, no object.
from libc.stdint cimport int64_t, uint8_t

from ext.http_head cimport RequestHead

cdef bint accepts_stale(const uint8_t* data, const RequestHead* head, int64_t stale_ns) noexcept nogil
cdef bint refuses_stored(const uint8_t* data, const RequestHead* head, int64_t age_ns, int64_t left_ns) noexcept nogil
