# What a listener's handshakes go by, behind tls_settings.pxd: parameters, and what OpenSSL asks in a handshake: which
# certificate, what to staple, which protocol, which key for a ticket. No socket here.
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcmp, memcpy, strlen

from ext.atomics cimport *
from ext.connection cimport Connection, Worker
from ext.layout cimport HTTP2_OFF, Tables
from ext.tls_types cimport *

cdef extern from "<time.h>" nogil:
    long time(void*)

cdef extern from "<openssl/rand.h>" nogil:
    int RAND_bytes(unsigned char*, int)

cdef extern from "<openssl/params.h>" nogil:
    ctypedef struct OSSL_PARAM:
        pass
    OSSL_PARAM OSSL_PARAM_construct_octet_string(const char*, void*, size_t)
    OSSL_PARAM OSSL_PARAM_construct_utf8_string(const char*, char*, size_t)
    OSSL_PARAM OSSL_PARAM_construct_end()

cdef extern from "<openssl/evp.h>" nogil:
    ctypedef struct EVP_CIPHER:
        pass
    ctypedef struct EVP_CIPHER_CTX:
        pass
    ctypedef struct EVP_MAC_CTX:
        pass
    ctypedef struct ENGINE:
        pass
    const EVP_CIPHER* EVP_aes_256_cbc()
    int EVP_EncryptInit_ex(EVP_CIPHER_CTX*, const EVP_CIPHER*, ENGINE*, const unsigned char*, const unsigned char*)
    int EVP_DecryptInit_ex(EVP_CIPHER_CTX*, const EVP_CIPHER*, ENGINE*, const unsigned char*, const unsigned char*)
    int EVP_MAC_CTX_set_params(EVP_MAC_CTX*, const OSSL_PARAM*)

cdef extern from "<openssl/crypto.h>" nogil:
    void* OPENSSL_memdup(const void*, size_t)

cdef extern from "<openssl/ssl.h>" nogil:
    enum: SSL_TLSEXT_ERR_OK
    enum: SSL_TLSEXT_ERR_NOACK
    enum: SSL_TLSEXT_ERR_ALERT_FATAL
    enum: TLSEXT_NAMETYPE_host_name
    enum: SSL_MODE_RELEASE_BUFFERS
    enum: SSL_SESS_CACHE_OFF
    enum: TLS1_VERSION
    enum: TLS1_2_VERSION
    enum: TLS1_3_VERSION
    uint64_t SSL_OP_NO_RENEGOTIATION
    uint64_t SSL_OP_NO_COMPRESSION
    uint64_t SSL_OP_CIPHER_SERVER_PREFERENCE
    uint64_t SSL_OP_PRIORITIZE_CHACHA
    uint64_t SSL_OP_IGNORE_UNEXPECTED_EOF
    ctypedef int (*servername_callback)(SSL*, int*, void*) noexcept nogil
    ctypedef int (*status_callback)(SSL*, void*) noexcept nogil
    ctypedef int (*alpn_callback)(SSL*, const unsigned char**, unsigned char*, const unsigned char*, unsigned int, void*) noexcept nogil
    ctypedef int (*ticket_callback)(SSL*, unsigned char*, unsigned char*, EVP_CIPHER_CTX*, EVP_MAC_CTX*, int) noexcept nogil
    void* SSL_get_app_data(SSL*)
    int SSL_select_next_proto(unsigned char**, unsigned char*, const unsigned char*, unsigned int, const unsigned char*, unsigned int)
    const char* SSL_get_servername(const SSL*, int)
    SSL_CTX* SSL_set_SSL_CTX(SSL*, SSL_CTX*)
    SSL_CTX* SSL_get_SSL_CTX(const SSL*)
    int SSL_version(const SSL*)
    long SSL_set_tlsext_status_ocsp_resp(SSL*, unsigned char*, long)
    uint64_t SSL_CTX_set_options(SSL_CTX*, uint64_t)
    long SSL_CTX_set_mode(SSL_CTX*, long)
    long SSL_CTX_set_session_cache_mode(SSL_CTX*, long)
    long SSL_CTX_set_timeout(SSL_CTX*, long)
    int SSL_CTX_set_num_tickets(SSL_CTX*, size_t)
    int SSL_CTX_set_min_proto_version(SSL_CTX*, int)
    int SSL_CTX_set_cipher_list(SSL_CTX*, const char*)
    int SSL_CTX_set_ciphersuites(SSL_CTX*, const char*)
    int SSL_CTX_set1_groups_list(SSL_CTX*, const char*)
    int SSL_CTX_set1_sigalgs_list(SSL_CTX*, const char*)
    void SSL_CTX_set_security_level(SSL_CTX*, int)
    void SSL_CTX_set_read_ahead(SSL_CTX*, int)
    int SSL_CTX_set_max_early_data(SSL_CTX*, uint32_t)
    int SSL_CTX_set_tlsext_servername_callback(SSL_CTX*, servername_callback)
    int SSL_CTX_set_tlsext_servername_arg(SSL_CTX*, void*)
    long SSL_CTX_set_tlsext_status_cb(SSL_CTX*, status_callback)
    long SSL_CTX_set_tlsext_status_arg(SSL_CTX*, void*)
    void SSL_CTX_set_alpn_select_cb(SSL_CTX*, alpn_callback, void*)
    int SSL_CTX_set_tlsext_ticket_key_evp_cb(SSL_CTX*, ticket_callback)


cdef enum:
    TICKET_S = 14400            # how long a ticket is good for: services/listeners/certificates.py changes keys as often

# What is offered by ALPN, the preferred one first.
cdef const char* ALPN_H2 = b"\x02h2\x08http/1.1"
cdef const char* ALPN_HTTP1 = b"\x08http/1.1"

# The ANSSI's recommendations for TLS: ephemeral ECDH, authenticated encryption (docs/decisions/0161-tls-parameters.md).
cdef const char* SUITES_13 = b"TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"
cdef const char* SUITES_12 = (
    b"ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384:"
    b"ECDHE-RSA-AES256-GCM-SHA384:ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305")
cdef const char* SUITES_LEGACY = (
    b"ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384:"
    b"ECDHE-RSA-AES256-GCM-SHA384:ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305:"
    b"ECDHE-ECDSA-AES128-SHA:ECDHE-RSA-AES128-SHA:ECDHE-ECDSA-AES256-SHA:ECDHE-RSA-AES256-SHA:"
    b"AES128-GCM-SHA256:AES256-GCM-SHA384:AES128-SHA:AES256-SHA")
cdef const char* GROUPS = b"X25519:P-256:P-384:P-521:X448"
cdef const char* SIGNATURES = (
    b"ecdsa_secp256r1_sha256:ecdsa_secp384r1_sha384:ecdsa_secp521r1_sha512:ed25519:ed448:"
    b"rsa_pss_pss_sha256:rsa_pss_pss_sha384:rsa_pss_pss_sha512:rsa_pss_rsae_sha256:rsa_pss_rsae_sha384:"
    b"rsa_pss_rsae_sha512:rsa_pkcs1_sha256:rsa_pkcs1_sha384:rsa_pkcs1_sha512")


cdef void tls_settings_release(TlsSettings* settings) noexcept nogil:
    cdef uint32_t i
    if add_u64(&settings.refs, <uint64_t>-1) != 1:
        return
    for i in range(settings.n_certificates):
        SSL_CTX_free(settings.certificates[i])
        free(settings.ocsp[i])
    for i in range(settings.n_names):
        free(settings.names[i].text)
    free(settings.names)
    free(settings)


# --- what OpenSSL asks ------------------------------------------------------------------------------------------------

cdef inline uint8_t lower(uint8_t byte) noexcept nogil:
    return byte | 32 if 65 <= byte <= 90 else byte


cdef bint is_name(const TlsName* name, const uint8_t* host, uint32_t n) noexcept nogil:
    """RFC 9525 section 6.3: without regard to case; a wildcard is one whole label."""
    cdef uint32_t i, first = 0
    if name.is_wildcard:
        while first < n and host[first] != 46:
            first += 1
        if first == 0:
            return False
    if n - first != name.length:
        return False
    for i in range(name.length):
        if lower(host[first + i]) != name.text[i]:
            return False
    return True


cdef int on_servername(SSL* ssl, int* alert, void* argument) noexcept nogil:
    cdef TlsSettings* settings = <TlsSettings*>argument
    cdef const char* host = SSL_get_servername(ssl, TLSEXT_NAMETYPE_host_name)
    cdef uint32_t i, n
    cdef uint32_t wildcard
    if host == NULL:
        return SSL_TLSEXT_ERR_NOACK
    n = <uint32_t>strlen(host)
    if n and host[n - 1] == 46:
        n -= 1
    for wildcard in range(2):
        for i in range(settings.n_names):
            if settings.names[i].is_wildcard == wildcard and is_name(&settings.names[i], <const uint8_t*>host, n):
                SSL_set_SSL_CTX(ssl, settings.certificates[settings.names[i].certificate])
                return SSL_TLSEXT_ERR_OK
    return SSL_TLSEXT_ERR_NOACK


cdef int on_status(SSL* ssl, void* argument) noexcept nogil:
    """Staples the response of the chosen certificate while it holds: one that is over is worse than none."""
    cdef TlsSettings* settings = <TlsSettings*>argument
    cdef SSL_CTX* context = SSL_get_SSL_CTX(ssl)
    cdef uint32_t i
    cdef void* copy
    for i in range(settings.n_certificates):
        if settings.certificates[i] != context:
            continue
        if settings.ocsp[i] == NULL or time(NULL) >= settings.ocsp_until_s[i]:
            return SSL_TLSEXT_ERR_NOACK
        copy = OPENSSL_memdup(settings.ocsp[i], settings.ocsp_length[i])
        if copy == NULL:
            return SSL_TLSEXT_ERR_NOACK
        SSL_set_tlsext_status_ocsp_resp(ssl, <unsigned char*>copy, settings.ocsp_length[i])
        return SSL_TLSEXT_ERR_OK
    return SSL_TLSEXT_ERR_NOACK


cdef int on_alpn(SSL* ssl, const unsigned char** chosen, unsigned char* n_chosen, const unsigned char* offered,
                 unsigned int n_offered, void* argument) noexcept nogil:
    cdef unsigned char* found
    cdef Tls* t = <Tls*>SSL_get_app_data(ssl)
    cdef Connection* c = <Connection*>t.connection
    cdef Tables* tables = (<Worker*>t.worker).tables
    cdef const char* ours = ALPN_HTTP1
    if c.listener < tables.n_listeners and tables.listeners[c.listener].http2 != HTTP2_OFF:
        ours = ALPN_H2
    # 1: OPENSSL_NPN_NEGOTIATED. Who offers only what we don't speak is told so (RFC 7301 section 3.2).
    if SSL_select_next_proto(&found, n_chosen, <const unsigned char*>ours, <unsigned int>strlen(ours),
                             offered, n_offered) != 1:
        return SSL_TLSEXT_ERR_ALERT_FATAL
    chosen[0] = found
    return SSL_TLSEXT_ERR_OK


cdef int on_ticket(SSL* ssl, unsigned char* name, unsigned char* iv, EVP_CIPHER_CTX* cipher, EVP_MAC_CTX* mac,
                   int is_sealing) noexcept nogil:
    """The keys of all workers. 0: unknown, which means a full handshake; 2: good, and a new one is due."""
    cdef Tls* t = <Tls*>SSL_get_app_data(ssl)
    cdef TicketKeys* keys = <TicketKeys*>load_ptr(<void**>&(<Worker*>t.worker).shared.tickets)
    cdef TicketKey* key
    cdef OSSL_PARAM parameters[3]
    cdef uint32_t i
    if keys == NULL:
        return 0
    if is_sealing:
        i = keys.sealing
        key = &keys.keys[i]
        memcpy(name, key.name, TICKET_NAME_BYTES)
        if RAND_bytes(iv, 16) != 1 or EVP_EncryptInit_ex(cipher, EVP_aes_256_cbc(), NULL, key.cipher, iv) != 1:
            return -1
    else:
        i = 0
        while i < keys.n and memcmp(name, keys.keys[i].name, TICKET_NAME_BYTES) != 0:
            i += 1
        if i == keys.n:
            return 0
        key = &keys.keys[i]
        if EVP_DecryptInit_ex(cipher, EVP_aes_256_cbc(), NULL, key.cipher, iv) != 1:
            return -1
    parameters[0] = OSSL_PARAM_construct_octet_string(b"key", key.mac, 32)
    parameters[1] = OSSL_PARAM_construct_utf8_string(b"digest", b"sha256", 0)
    parameters[2] = OSSL_PARAM_construct_end()
    if EVP_MAC_CTX_set_params(mac, parameters) != 1:
        return -1
    # A viewer uses a ticket once (RFC 8446 appendix C.4): who isn't given another one can resume every other time only.
    return 1 if i == keys.sealing and SSL_version(ssl) < TLS1_3_VERSION else 2


cdef int tls_prepare(SSL_CTX* context, TlsSettings* settings, bint is_legacy) noexcept nogil:
    """What each of a listener's contexts has in common. 0: OpenSSL refuses it."""
    SSL_CTX_set_options(context, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION | SSL_OP_CIPHER_SERVER_PREFERENCE
                        | SSL_OP_PRIORITIZE_CHACHA | SSL_OP_IGNORE_UNEXPECTED_EOF)
    SSL_CTX_set_mode(context, SSL_MODE_RELEASE_BUFFERS)
    SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF)
    SSL_CTX_set_timeout(context, TICKET_S)
    SSL_CTX_set_read_ahead(context, 1)
    SSL_CTX_set_security_level(context, 0 if is_legacy else 2)
    SSL_CTX_set_tlsext_servername_callback(context, on_servername)
    SSL_CTX_set_tlsext_servername_arg(context, settings)
    SSL_CTX_set_tlsext_status_cb(context, on_status)
    SSL_CTX_set_tlsext_status_arg(context, settings)
    SSL_CTX_set_alpn_select_cb(context, on_alpn, NULL)
    return (
        SSL_CTX_set_tlsext_ticket_key_evp_cb(context, on_ticket) == 1
        and SSL_CTX_set_num_tickets(context, 1) == 1
        and SSL_CTX_set_max_early_data(context, 0) == 1
        and SSL_CTX_set_min_proto_version(context, TLS1_VERSION if is_legacy else TLS1_2_VERSION) == 1
        and SSL_CTX_set_ciphersuites(context, SUITES_13) == 1
        and SSL_CTX_set_cipher_list(context, SUITES_LEGACY if is_legacy else SUITES_12) == 1
        and SSL_CTX_set1_groups_list(context, GROUPS) == 1
        and (is_legacy or SSL_CTX_set1_sigalgs_list(context, SIGNATURES) == 1)
    )
