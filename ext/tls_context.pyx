# What a listener's handshakes go by, made by the control plane from texts that it has read: TlsServer. No file is opened
# here, and nothing here runs per connection. And the keys of session tickets, on their way to the workers.
from libc.stdint cimport uint8_t, uint32_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from ext.atomics cimport add_u64, exchange_ptr
from ext.connection cimport Shared
from ext.tls_settings cimport tls_prepare, tls_settings_release
from ext.tls_types cimport SSL_CTX, TICKET_KEYS, TLS_CERTIFICATES, TicketKey, TicketKeys, TlsName, TlsSettings

cdef extern from "<openssl/bio.h>" nogil:
    ctypedef struct BIO:
        pass
    BIO* BIO_new_mem_buf(const void*, int)
    int BIO_free(BIO*)

cdef extern from "<openssl/pem.h>" nogil:
    ctypedef struct X509:
        pass
    ctypedef struct EVP_PKEY:
        pass
    X509* PEM_read_bio_X509(BIO*, X509**, void*, void*)
    EVP_PKEY* PEM_read_bio_PrivateKey(BIO*, EVP_PKEY**, int (*)(char*, int, int, void*) noexcept nogil, void*)
    void X509_free(X509*)
    void EVP_PKEY_free(EVP_PKEY*)

cdef extern from "<openssl/crypto.h>" nogil:
    void OPENSSL_cleanse(void*, size_t)

cdef extern from "<openssl/err.h>" nogil:
    void ERR_clear_error()
    unsigned long ERR_peek_error()
    const char* ERR_reason_error_string(unsigned long)

cdef extern from "<openssl/ssl.h>" nogil:
    ctypedef struct SSL_METHOD:
        pass
    const SSL_METHOD* TLS_server_method()
    SSL_CTX* SSL_CTX_new(const SSL_METHOD*)
    int SSL_CTX_use_certificate(SSL_CTX*, X509*)
    int SSL_CTX_add0_chain_cert(SSL_CTX*, X509*)
    int SSL_CTX_use_PrivateKey(SSL_CTX*, EVP_PKEY*)
    int SSL_CTX_check_private_key(const SSL_CTX*)


cdef int no_passphrase(char* into, int most, int is_writing, void* argument) noexcept nogil:
    return 0                    # without a callback OpenSSL asks a terminal


cdef str reason():
    cdef unsigned long error = ERR_peek_error()
    cdef const char* text = ERR_reason_error_string(error) if error else NULL
    ERR_clear_error()
    return text.decode() if text != NULL else "OpenSSL gives no reason"


cdef class TlsServer:
    """One listener's certificates. `certificates`: (chain in PEM, key in PEM, names in lower case as bytes, OCSP response
    or b"", the time that it is good until) of each, the first one for whom no name fits. Raises ValueError."""

    def __cinit__(self, certificates, bint is_legacy=False):
        if not 0 < len(certificates) <= TLS_CERTIFICATES:
            raise ValueError(f"a listener has 1 to {TLS_CERTIFICATES} certificates")
        self.settings = <TlsSettings*>calloc(1, sizeof(TlsSettings))
        if self.settings == NULL:
            raise MemoryError
        self.settings.refs = 1
        ERR_clear_error()
        for chain, key, _, ocsp, until_s in certificates:
            self._add(chain, key, is_legacy)
            if ocsp:
                self._staple(ocsp, until_s)
        self._name([(index, name) for index, each in enumerate(certificates) for name in each[2]])

    def __dealloc__(self):
        if self.settings != NULL:
            tls_settings_release(self.settings)

    cdef _add(self, bytes chain, bytes key, bint is_legacy):
        cdef TlsSettings* settings = self.settings
        cdef SSL_CTX* context = SSL_CTX_new(TLS_server_method())
        cdef X509* certificate
        cdef EVP_PKEY* private
        cdef BIO* bio
        cdef int is_good, n = 0
        if context == NULL:
            raise MemoryError
        settings.certificates[settings.n_certificates] = context    # released with the settings from here on
        settings.n_certificates += 1
        if not tls_prepare(context, settings, is_legacy):
            raise ValueError(f"OpenSSL: {reason()}")
        bio = BIO_new_mem_buf(<const char*>chain, <int>len(chain))
        if bio == NULL:
            raise MemoryError
        is_good = 1
        while is_good:
            certificate = PEM_read_bio_X509(bio, NULL, NULL, NULL)
            if certificate == NULL:
                break
            if n == 0:
                is_good = SSL_CTX_use_certificate(context, certificate)
                X509_free(certificate)
            else:
                is_good = SSL_CTX_add0_chain_cert(context, certificate)
                if not is_good:
                    X509_free(certificate)
            n += 1
        BIO_free(bio)
        if not is_good:
            raise ValueError(f"the certificate is refused: {reason()}")
        if n == 0:
            ERR_clear_error()
            raise ValueError("there is no certificate in it")
        ERR_clear_error()
        bio = BIO_new_mem_buf(<const char*>key, <int>len(key))
        if bio == NULL:
            raise MemoryError
        private = PEM_read_bio_PrivateKey(bio, NULL, no_passphrase, NULL)
        BIO_free(bio)
        if private == NULL:
            ERR_clear_error()
            raise ValueError("the key can't be read: it must be PEM, without a passphrase")
        is_good = SSL_CTX_use_PrivateKey(context, private) == 1 and SSL_CTX_check_private_key(context) == 1
        EVP_PKEY_free(private)
        if not is_good:
            raise ValueError(f"the key is not the certificate's: {reason()}")

    cdef _staple(self, bytes response, long until_s):
        cdef uint32_t index = self.settings.n_certificates - 1
        cdef uint8_t* copy = <uint8_t*>malloc(len(response))
        if copy == NULL:
            raise MemoryError
        memcpy(copy, <const char*>response, len(response))
        self.settings.ocsp[index] = copy
        self.settings.ocsp_length[index] = <uint32_t>len(response)
        self.settings.ocsp_until_s[index] = until_s

    cdef _name(self, list names):
        cdef TlsSettings* settings = self.settings
        cdef bytes text
        cdef uint32_t n
        if not names:
            return
        settings.names = <TlsName*>calloc(len(names), sizeof(TlsName))
        if settings.names == NULL:
            raise MemoryError
        for index, name in names:
            text = name[1:] if name.startswith(b"*.") else name
            n = settings.n_names
            settings.names[n].text = <uint8_t*>malloc(len(text) + 1)
            if settings.names[n].text == NULL:
                raise MemoryError
            settings.n_names += 1
            memcpy(settings.names[n].text, <const char*>text, len(text))
            settings.names[n].length = <uint32_t>len(text)
            settings.names[n].is_wildcard = name.startswith(b"*.")
            settings.names[n].certificate = index


cdef void free_tickets(TicketKeys* tickets) noexcept:
    if tickets != NULL:
        OPENSSL_cleanse(tickets, sizeof(TicketKeys))
        free(tickets)


cdef publish_tickets(Shared* shared, list keys, uint32_t sealing, list retired):
    """Replaces the keys of all workers; into `retired` go (epoch, address) of the old ones, which may still be read."""
    cdef TicketKeys* tickets
    cdef TicketKeys* old
    if not 0 < len(keys) <= TICKET_KEYS or sealing >= len(keys) or any(len(key) != sizeof(TicketKey) for key in keys):
        raise ValueError(f"1 to {TICKET_KEYS} keys of {sizeof(TicketKey)} bytes, one of which seals")
    tickets = <TicketKeys*>calloc(1, sizeof(TicketKeys))
    if tickets == NULL:
        raise MemoryError
    tickets.n = <uint32_t>len(keys)
    tickets.sealing = sealing
    for index, key in enumerate(keys):
        memcpy(&tickets.keys[<uint32_t>index], <const char*><bytes>key, sizeof(TicketKey))
    old = <TicketKeys*>exchange_ptr(<void**>&shared.tickets, tickets)
    if old != NULL:
        retired.append((add_u64(&shared.store.epoch, 1) + 1, <uintptr_t>old))
