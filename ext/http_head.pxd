# The head parser's contract (RFC 9112): bytes in, offsets out. No allocation, no Python object, no copy.
# Everything that two parsers could read differently is refused. Offsets count from the start of `data`.
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t

cdef enum:
    MAX_FIELDS = 100            # Varnish takes 64, nginx has no count; players send below 30
    MAX_HEAD_BYTES = 32768      # Varnish's http_req_size
    MAX_TARGET_BYTES = 8192     # RFC 9112 section 3 recommends at least 8000
    MAX_FIELD_BYTES = 16384

cdef enum:                      # what parse_* return besides a length > 0
    HEAD_INCOMPLETE = 0         # more bytes are needed; below 0: minus the status of the refusal

cdef enum:                      # Method
    METHOD_OTHER = 0
    METHOD_GET = 1
    METHOD_HEAD = 2
    METHOD_OPTIONS = 3
    METHOD_POST = 4
    METHOD_PUT = 5
    METHOD_DELETE = 6
    METHOD_PATCH = 7
    METHOD_CONNECT = 8
    METHOD_TRACE = 9

cdef enum:                      # TargetForm (RFC 9112 section 3.2)
    FORM_ORIGIN = 0
    FORM_ABSOLUTE = 1
    FORM_AUTHORITY = 2
    FORM_ASTERISK = 3

cdef enum:                      # FieldId: the fields that the data plane or the framing rules look at; a name is compared once
    FIELD_OTHER = 0
    FIELD_HOST = 1
    FIELD_CONTENT_LENGTH = 2
    FIELD_TRANSFER_ENCODING = 3
    FIELD_CONNECTION = 4
    FIELD_RANGE = 5
    FIELD_IF_RANGE = 6
    FIELD_IF_NONE_MATCH = 7
    FIELD_IF_MODIFIED_SINCE = 8
    FIELD_IF_MATCH = 9
    FIELD_IF_UNMODIFIED_SINCE = 10
    FIELD_ORIGIN = 11
    FIELD_ACCESS_CONTROL_REQUEST_METHOD = 12
    FIELD_ACCESS_CONTROL_REQUEST_HEADERS = 13
    FIELD_EXPECT = 14
    FIELD_UPGRADE = 15
    FIELD_CACHE_CONTROL = 16
    FIELD_AUTHORIZATION = 17
    FIELD_COOKIE = 18
    FIELD_ACCEPT_ENCODING = 19
    N_FIELD_IDS = 20

cdef struct Field:
    uint32_t name               # offset
    uint32_t value              # offset, leading and trailing OWS left out
    uint16_t name_length
    uint16_t value_length
    uint16_t id                 # FieldId

cdef struct RequestHead:
    uint32_t length             # bytes of the head with its empty line
    uint32_t method_length      # the method starts at 0 (leading empty lines are skipped before, see `start`)
    uint32_t start              # offset of the method: up to one leading CRLF is skipped (RFC 9112 section 2.2)
    uint32_t target             # offset and length of the whole target as received
    uint32_t target_length
    uint32_t path               # offset and length of path and query within it; for absolute-form without path: length 0
    uint32_t path_length
    uint32_t host               # offset and length of the host *without port*, from Host (equal to absolute-form's, else refused)
    uint32_t host_length
    uint32_t authority_length   # length of Host's whole value (host:port), which starts at `host`; IPv6 literals keep their brackets
    int64_t content_length      # -1: none
    uint16_t n_fields
    uint8_t method
    uint8_t form
    uint8_t minor               # HTTP/1.minor
    uint8_t keep_alive          # after Connection and version (RFC 9112 section 9.3)
    uint8_t chunked             # Transfer-Encoding is exactly `chunked`
    uint8_t expects_continue
    uint8_t known[20]           # index + 1 of the first field with this FieldId; 0: absent
    uint8_t count[20]           # how many there are (saturates at 255)
    Field fields[100]

cdef struct ResponseHead:
    uint32_t length
    uint32_t reason
    uint32_t reason_length
    int64_t content_length      # -1: none
    uint16_t status
    uint16_t n_fields
    uint8_t minor
    uint8_t keep_alive
    uint8_t chunked
    uint8_t known[20]
    uint8_t count[20]
    Field fields[100]

# > 0: the head's length, `head` filled. 0: incomplete. < 0: minus the status to answer (400 414 417 431 501 505); for a response -502.
cdef int parse_request(const uint8_t* data, size_t n, RequestHead* head) noexcept nogil
# A CONNECT (RFC 9110 section 9.3.6), which parse_request answers by -501: for listeners whose policy lets some through.
# Its authority is head.target; like parse_request otherwise.
cdef int parse_connect(const uint8_t* data, size_t n, RequestHead* head) noexcept nogil
cdef int parse_response(const uint8_t* data, size_t n, ResponseHead* head) noexcept nogil
