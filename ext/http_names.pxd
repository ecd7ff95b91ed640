# Names of fields and methods as the small numbers of http_head.pxd. No syntax: names that come here are tokens already.
from libc.stdint cimport uint8_t, uint16_t
from libc.string cimport memcmp

from ext.http_grammar cimport same
from ext.http_head cimport (
    FIELD_ACCEPT_ENCODING, FIELD_ACCESS_CONTROL_REQUEST_HEADERS, FIELD_ACCESS_CONTROL_REQUEST_METHOD,
    FIELD_AUTHORIZATION, FIELD_CACHE_CONTROL, FIELD_CONNECTION, FIELD_CONTENT_LENGTH, FIELD_COOKIE, FIELD_EXPECT,
    FIELD_HOST, FIELD_IF_MATCH, FIELD_IF_MODIFIED_SINCE, FIELD_IF_NONE_MATCH, FIELD_IF_RANGE, FIELD_IF_UNMODIFIED_SINCE,
    FIELD_ORIGIN, FIELD_OTHER, FIELD_RANGE, FIELD_TRANSFER_ENCODING, FIELD_UPGRADE, METHOD_CONNECT, METHOD_DELETE,
    METHOD_GET, METHOD_HEAD, METHOD_OPTIONS, METHOD_OTHER, METHOD_PATCH, METHOD_POST, METHOD_PUT, METHOD_TRACE,
)


cdef inline uint16_t field_id(const uint8_t* name, size_t n) noexcept nogil:
    """FieldId of a name made of token characters: the length picks at most three candidates, one compare decides."""
    cdef uint8_t first = name[0] | 0x20
    if n == 4:
        return FIELD_HOST if same(name, b"host", 4) else FIELD_OTHER
    elif n == 5:
        return FIELD_RANGE if same(name, b"range", 5) else FIELD_OTHER
    elif n == 6:
        if first == c"c":
            return FIELD_COOKIE if same(name, b"cookie", 6) else FIELD_OTHER
        if first == c"o":
            return FIELD_ORIGIN if same(name, b"origin", 6) else FIELD_OTHER
        return FIELD_EXPECT if same(name, b"expect", 6) else FIELD_OTHER
    elif n == 7:
        return FIELD_UPGRADE if same(name, b"upgrade", 7) else FIELD_OTHER
    elif n == 8:
        if same(name, b"if-range", 8):
            return FIELD_IF_RANGE
        return FIELD_IF_MATCH if same(name, b"if-match", 8) else FIELD_OTHER
    elif n == 10:
        return FIELD_CONNECTION if same(name, b"connection", 10) else FIELD_OTHER
    elif n == 13:
        if first == c"i":
            return FIELD_IF_NONE_MATCH if same(name, b"if-none-match", 13) else FIELD_OTHER
        if first == c"c":
            return FIELD_CACHE_CONTROL if same(name, b"cache-control", 13) else FIELD_OTHER
        return FIELD_AUTHORIZATION if same(name, b"authorization", 13) else FIELD_OTHER
    elif n == 14:
        return FIELD_CONTENT_LENGTH if same(name, b"content-length", 14) else FIELD_OTHER
    elif n == 15:
        return FIELD_ACCEPT_ENCODING if same(name, b"accept-encoding", 15) else FIELD_OTHER
    elif n == 17:
        if first == c"t":
            return FIELD_TRANSFER_ENCODING if same(name, b"transfer-encoding", 17) else FIELD_OTHER
        return FIELD_IF_MODIFIED_SINCE if same(name, b"if-modified-since", 17) else FIELD_OTHER
    elif n == 19:
        return FIELD_IF_UNMODIFIED_SINCE if same(name, b"if-unmodified-since", 19) else FIELD_OTHER
    elif n == 29:
        return FIELD_ACCESS_CONTROL_REQUEST_METHOD if same(name, b"access-control-request-method", 29) else FIELD_OTHER
    elif n == 30:
        return FIELD_ACCESS_CONTROL_REQUEST_HEADERS if same(name, b"access-control-request-headers", 30) else FIELD_OTHER
    return FIELD_OTHER


cdef inline uint8_t method_id(const uint8_t* method, size_t n) noexcept nogil:
    """Method names are case-sensitive (RFC 9110 section 9.1)."""
    if n == 3:
        if memcmp(method, b"GET", 3) == 0:
            return METHOD_GET
        return METHOD_PUT if memcmp(method, b"PUT", 3) == 0 else METHOD_OTHER
    elif n == 4:
        if memcmp(method, b"HEAD", 4) == 0:
            return METHOD_HEAD
        return METHOD_POST if memcmp(method, b"POST", 4) == 0 else METHOD_OTHER
    elif n == 5:
        if memcmp(method, b"PATCH", 5) == 0:
            return METHOD_PATCH
        return METHOD_TRACE if memcmp(method, b"TRACE", 5) == 0 else METHOD_OTHER
    elif n == 6:
        return METHOD_DELETE if memcmp(method, b"DELETE", 6) == 0 else METHOD_OTHER
    elif n == 7:
        if memcmp(method, b"OPTIONS", 7) == 0:
            return METHOD_OPTIONS
        return METHOD_CONNECT if memcmp(method, b"CONNECT", 7) == 0 else METHOD_OTHER
    return METHOD_OTHER
