# What TLS is made of: a listener's settings, a connection's state, the keys of tickets. Structs only; see tls.pxd.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef extern from "<openssl/ssl.h>" nogil:
    ctypedef struct SSL:
        pass
    ctypedef struct SSL_CTX:
        pass
    void SSL_CTX_free(SSL_CTX*)

cdef enum:
    TLS_CERTIFICATES = 64       # of one listener
    TICKET_KEYS = 3             # the next one, so that workers and processes agree before it is used; current; previous
    TICKET_NAME_BYTES = 16

cdef struct TicketKey:          # RFC 5077 section 4: AES-256-CBC and HMAC-SHA-256
    uint8_t name[16]
    uint8_t cipher[32]
    uint8_t mac[32]

cdef struct TicketKeys:         # immutable once published; all of them open tickets, `sealing` makes them
    uint32_t n
    uint32_t sealing
    TicketKey keys[3]

cdef struct TlsName:            # a name that a certificate is for; lower case, "*.corp.example" begins with the dot
    uint8_t* text
    uint32_t length
    uint32_t is_wildcard
    uint32_t certificate

cdef struct TlsSettings:        # immutable; counted: the listener's tables have one reference, each connection another
    uint64_t refs
    uint32_t n_certificates
    uint32_t n_names
    SSL_CTX* certificates[64]   # the first one is for who names none, or an unknown one
    uint8_t* ocsp[64]           # a response to staple, or NULL
    uint32_t ocsp_length[64]
    int64_t ocsp_until_s[64]    # since the epoch
    TlsName* names

cdef struct Tls:                # of one connection
    SSL* ssl
    TlsSettings* settings
    void* worker                # a Worker and a Connection: connection.pxd needs this file
    void* connection
    uint8_t is_ready            # the handshake is over
    uint8_t generation          # of what was agreed on: 1 before TLS 1.2, 2 that, 3 TLS 1.3; 0: nothing yet
    uint8_t is_judged           # a counter has told how it ended
    uint8_t is_drained          # in this call, the socket was found empty
    uint8_t has_fin             # the socket has ended
    uint8_t has_left            # close_notify or the end was read
    uint8_t is_broken           # nothing can be read or written any more
    uint8_t is_alone            # in this call: what is written is one record and nothing else
    uint8_t is_tight            # the socket didn't take the last batch: the next one is small
    uint8_t lacks_memory        # that is why: there was none for `pending`
    uint8_t* pending            # ciphertext that the socket didn't take
    uint32_t pending_offset
    uint32_t pending_length
    uint32_t pending_capacity
    uint32_t owed               # plaintext that is in `pending`, and not yet said to be written
