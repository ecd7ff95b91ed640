# What a listener's handshakes go by: parameters and certificates, as OpenSSL holds them. See tls_settings.pyx.
from ext.tls_types cimport SSL_CTX, TlsSettings

cdef void tls_settings_release(TlsSettings* settings) noexcept nogil
cdef int tls_prepare(SSL_CTX* context, TlsSettings* settings, bint is_legacy) noexcept nogil
