# What a listener's handshakes go by, as Python holds it.
from libc.stdint cimport uint32_t

from ext.connection cimport Shared
from ext.tls_types cimport TicketKeys, TlsSettings

cdef class TlsServer:
    cdef TlsSettings* settings
    cdef _add(self, bytes chain, bytes key, bint is_legacy)
    cdef _staple(self, bytes response, long until_s)
    cdef _name(self, list names)

cdef void free_tickets(TicketKeys* tickets) noexcept
cdef publish_tickets(Shared* shared, list keys, uint32_t sealing, list retired)
