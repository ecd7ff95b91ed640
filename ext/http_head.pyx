"""The strict HTTP/1.1 head parser (RFC 9110, 9112) of viewers' requests and origins' responses: bytes in, offsets out.

Only the head's syntax and framing live here: no socket, no body, no routing, no caching, no allocation. Errors are
found in byte order and depend only on the bytes up to them: a prefix is incomplete or gets the whole head's status.

Choices where the RFCs leave one, all towards refusing:
- HTTP/1.x with x > 1 is read as 1.1 (RFC 9110 section 2.5) in a request, refused in a response; other majors are 505.
- Host takes letters, digits, `-._~`, or an IPv6 address in brackets, and a port of 1 to 65535 without leading zero.
  RFC 3986 also has percent-encoding, sub-delims, empty hosts and ports: parsers differ there, and no player sends them.
- Absolute-form must have the authority of Host (the scheme's default port may be left out on one side), so it needs a
  Host in HTTP/1.0 too; a query without path (`http://a?x`) is refused. Without both `path_length` is 0: callers take "/".
- Expect: other than `100-continue` is 417, twice is 400; in HTTP/1.0 `100-continue` means nothing
  (RFC 9110 section 10.1.1).
- A Content-Length or Transfer-Encoding with HTAB around its value is refused: llhttp takes `chunked<HTAB>` in a response
  for another coding and reads until the connection closes (found by tests/dataplane/test_http_head_differential.py).
- `length` counts a skipped leading CRLF. MAX_HEAD_BYTES without an end are refused: a buffer of that size never sticks.
- Responses with status 1xx or 204 and Transfer-Encoding or a Content-Length above 0 are refused (RFC 9112 section 6.1,
  RFC 9110 section 8.6): some readers take a body there and some don't.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memcmp, memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from ext.http_grammar cimport (
    CLASS, COLON, CR, DIGIT, HTAB, LF, SP, TARGET, TOKEN, VALUE,
    Authority, read_authority, read_length, same, skip_target_blocks, skip_value_blocks,
)
from ext.http_names cimport field_id, method_id

cdef enum:
    MAX_METHOD_BYTES = 32       # the longest registered method (UPDATEREDIRECTREF) has 17


cdef struct Lines:              # what the field lines say together
    uint32_t length
    int64_t content_length
    uint16_t n_fields
    bint is_chunked
    bint says_close
    bint says_keep_alive
    bint expects_continue


cdef inline void read_connection(const uint8_t* p, const uint8_t* end, Lines* lines) noexcept nogil:
    """`close` and `keep-alive` in a Connection value (RFC 9110 section 7.6.1); other members don't matter to framing."""
    cdef const uint8_t* member
    cdef const uint8_t* last
    while p < end:
        while p < end and (p[0] == c"," or p[0] == SP or p[0] == HTAB):
            p += 1
        member = p
        while p < end and p[0] != c",":
            p += 1
        last = p
        while last > member and ((last - 1)[0] == SP or (last - 1)[0] == HTAB):
            last -= 1
        if last - member == 5 and same(member, b"close", 5):
            lines.says_close = True
        elif last - member == 10 and same(member, b"keep-alive", 10):
            lines.says_keep_alive = True


cdef inline bint has_tab(const uint8_t* p, const uint8_t* end) noexcept nogil:
    while p < end:
        if p[0] == HTAB:
            return True
        p += 1
    return False


cdef inline int read_known(
    uint16_t kind, const uint8_t* value, size_t n, bint is_request, uint8_t minor, int times, Lines* lines
) noexcept nogil:
    """Checks one field that decides framing. 0, or minus a status. `times` counts this line."""
    if kind == FIELD_CONNECTION:
        read_connection(value, value + n, lines)
    elif kind == FIELD_HOST:
        if is_request and times > 1:
            return -400
    elif kind == FIELD_CONTENT_LENGTH:
        if times > 1 or lines.is_chunked:
            return -400
        lines.content_length = read_length(value, n)
        if lines.content_length < 0:
            return -400
    elif kind == FIELD_TRANSFER_ENCODING:
        if minor == 0 or lines.content_length >= 0:
            return -400
        if times > 1 or n != 7 or not same(value, b"chunked", 7):
            return -501
        lines.is_chunked = True
    elif kind == FIELD_EXPECT:
        if is_request:
            if times > 1:
                return -400
            if n != 12 or not same(value, b"100-continue", 12):
                return -417
            lines.expects_continue = minor > 0
    return 0


cdef inline int read_lines(
    const uint8_t* data, const uint8_t* p, const uint8_t* end, bint is_request, uint8_t minor,
    Field* fields, uint8_t* known, uint8_t* count, Lines* lines,
) noexcept nogil:
    """The field lines and the empty line. 1: all read, `lines` filled; 0: incomplete; below 0: minus a status."""
    cdef const uint8_t* line
    cdef const uint8_t* stop
    cdef const uint8_t* value
    cdef const uint8_t* last
    cdef Field* field
    cdef uint16_t kind
    cdef int status
    cdef uint16_t n = 0
    lines.content_length = -1
    lines.is_chunked = lines.says_close = lines.says_keep_alive = lines.expects_continue = False
    while True:
        if p == end:
            return HEAD_INCOMPLETE
        if p[0] == CR:
            if end - p < 2:
                return HEAD_INCOMPLETE
            if p[1] != LF:
                return -400
            lines.length = <uint32_t>(p + 2 - data)
            lines.n_fields = n
            return 1
        if n == MAX_FIELDS:
            return -431
        line = p
        # One byte more than a field may have, so that the CR after the longest one is seen.
        stop = line + MAX_FIELD_BYTES + 1 if end - line > MAX_FIELD_BYTES + 1 else end
        while p < stop and CLASS[p[0]] & TOKEN:
            p += 1
        if p == stop:
            return HEAD_INCOMPLETE if end - line <= MAX_FIELD_BYTES else -431
        if p[0] != COLON or p == line:
            return -400         # whitespace before the colon, obs-fold, bare LF and empty names all end here
        field = &fields[n]
        field.name = <uint32_t>(line - data)
        field.name_length = <uint16_t>(p - line)
        kind = field_id(line, p - line)
        field.id = kind
        p += 1
        while p < stop and (p[0] == SP or p[0] == HTAB):
            p += 1
        value = p
        p = skip_value_blocks(p, stop)
        while p < stop and CLASS[p[0]] & VALUE:
            p += 1
        if p == stop:
            return HEAD_INCOMPLETE if end - line <= MAX_FIELD_BYTES else -431
        if p[0] != CR:
            return -400
        if end - p < 2:
            return HEAD_INCOMPLETE
        if p[1] != LF:
            return -400
        last = p
        while last > value and ((last - 1)[0] == SP or (last - 1)[0] == HTAB):
            last -= 1
        p += 2
        field.value = <uint32_t>(value - data)
        field.value_length = <uint16_t>(last - value)
        n += 1
        if kind != FIELD_OTHER:
            if kind == FIELD_CONTENT_LENGTH or kind == FIELD_TRANSFER_ENCODING:
                # Around the value is what counts; in it HTAB is refused anyway.
                if has_tab(line + field.name_length, p - 2):
                    return -400
            if count[kind] == 0:
                known[kind] = <uint8_t>n
            count[kind] += 1    # MAX_FIELDS is below 255
            status = read_known(kind, value, last - value, is_request, minor, count[kind], lines)
            if status < 0:
                return status


cdef inline bint same_text(const uint8_t* a, const uint8_t* b, uint32_t n) noexcept nogil:
    """Of hosts: in class HOST nothing but the two cases of a letter folds together."""
    cdef uint32_t i
    for i in range(n):
        if (a[i] | 0x20) != (b[i] | 0x20):
            return False
    return True


cdef int check_target(const uint8_t* data, RequestHead* head) noexcept nogil:
    """The target's form and Host, once all fields are there (RFC 9112 sections 3.2 and 3.3). 0, or minus a status."""
    cdef const uint8_t* target = data + head.target
    cdef const uint8_t* end = target + head.target_length
    cdef const uint8_t* p
    cdef const uint8_t* host
    cdef Authority named, asked
    cdef Field* field
    cdef uint32_t default_port
    if head.known[FIELD_HOST]:
        field = &head.fields[head.known[FIELD_HOST] - 1]
        host = data + field.value
        if not read_authority(host, host + field.value_length, &named):
            return -400
        head.host = field.value
        head.host_length = named.host_length
        head.authority_length = field.value_length
    elif head.minor > 0 or head.form == FORM_ABSOLUTE:
        return -400
    if head.form != FORM_ABSOLUTE:
        return 0
    default_port = 80
    p = target + 7
    if target[4] != COLON:
        default_port = 443
        p += 1
    target = p
    while p < end and p[0] != c"/":
        p += 1
    if not read_authority(target, p, &asked) or asked.host_length != named.host_length:
        return -400
    if not same_text(target, host, asked.host_length):
        return -400
    if (asked.port or default_port) != (named.port or default_port):
        return -400
    head.path = <uint32_t>(p - data)
    head.path_length = <uint32_t>(end - p)
    return 0


cdef inline int read_request_line(const uint8_t* data, const uint8_t* end, RequestHead* head) noexcept nogil:
    """Length of the request line with all before it; 0: incomplete; below 0: minus a status."""
    cdef const uint8_t* p = data
    cdef const uint8_t* start
    cdef const uint8_t* stop
    cdef const char* version = b"HTTP/"
    cdef uint8_t major
    cdef int i
    if p < end and p[0] == CR:
        if end - p < 2:
            return HEAD_INCOMPLETE
        if p[1] != LF:
            return -400
        p += 2
    head.start = <uint32_t>(p - data)

    start = p
    stop = p + MAX_METHOD_BYTES + 1 if end - p > MAX_METHOD_BYTES + 1 else end
    while p < stop and CLASS[p[0]] & TOKEN:
        p += 1
    if p - start > MAX_METHOD_BYTES:
        return -501
    if p == end:
        return HEAD_INCOMPLETE
    if p[0] != SP or p == start:
        return -400
    head.method_length = <uint32_t>(p - start)
    head.method = method_id(start, p - start)
    if head.method == METHOD_CONNECT:
        return -501
    p += 1

    start = p
    stop = p + MAX_TARGET_BYTES + 1 if end - p > MAX_TARGET_BYTES + 1 else end
    p = skip_target_blocks(p, stop)
    while p < stop and CLASS[p[0]] & TARGET:
        p += 1
    if p > start:
        if start[0] == c"/":
            head.form = FORM_ORIGIN
        elif start[0] == c"*":
            head.form = FORM_ASTERISK
            if p - start > 1:
                return -400
        elif (start[0] | 0x20) == c"h":
            head.form = FORM_ABSOLUTE
        else:
            return -400
    if p - start > MAX_TARGET_BYTES:
        return -414
    if p == end:
        return HEAD_INCOMPLETE
    if p[0] != SP or p == start:
        return -400
    if head.form == FORM_ABSOLUTE:
        if not (p - start >= 7 and same(start, b"http://", 7)) and not (p - start >= 8 and same(start, b"https://", 8)):
            return -400
    head.target = head.path = <uint32_t>(start - data)
    head.target_length = head.path_length = <uint32_t>(p - start)
    p += 1

    for i in range(5):
        if p == end:
            return HEAD_INCOMPLETE
        if p[0] != <uint8_t>version[i]:
            return -400
        p += 1
    start = p
    while p < end and p - start < 3:
        if p - start == 1:
            if p[0] != c".":
                return -400
        elif not CLASS[p[0]] & DIGIT:
            return -400
        p += 1
    if p == end:
        return HEAD_INCOMPLETE
    if p[0] != CR:
        return -400
    major = start[0] - 0x30
    head.minor = 1 if start[2] > 0x30 else 0
    if major != 1:
        return -505
    if head.form == FORM_ASTERISK and head.method != METHOD_OPTIONS:
        return -400
    if end - p < 2:
        return HEAD_INCOMPLETE
    if p[1] != LF:
        return -400
    return <int>(p + 2 - data)


cdef int parse_request(const uint8_t* data, size_t n, RequestHead* head) noexcept nogil:
    cdef const uint8_t* end = data + (n if n < MAX_HEAD_BYTES else MAX_HEAD_BYTES)
    cdef Lines lines
    cdef int result
    result = read_request_line(data, end, head)
    if result > 0:
        memset(head.known, 0, sizeof(head.known))
        memset(head.count, 0, sizeof(head.count))
        result = read_lines(data, data + result, end, True, head.minor, head.fields, head.known, head.count, &lines)
    if result == HEAD_INCOMPLETE:
        return HEAD_INCOMPLETE if n < MAX_HEAD_BYTES else -431
    if result < 0:
        return result
    head.length = lines.length
    head.n_fields = lines.n_fields
    head.content_length = lines.content_length
    head.chunked = lines.is_chunked
    head.expects_continue = lines.expects_continue
    head.keep_alive = not lines.says_close and (head.minor > 0 or lines.says_keep_alive)
    head.host = head.host_length = head.authority_length = 0
    result = check_target(data, head)
    return result if result < 0 else <int>head.length


cdef int parse_connect(const uint8_t* data, size_t n, RequestHead* head) noexcept nogil:
    cdef const uint8_t* end = data + (n if n < MAX_HEAD_BYTES else MAX_HEAD_BYTES)
    cdef const uint8_t* p = data + 8
    cdef Authority asked
    cdef Lines lines
    cdef int result
    if n < 8 or memcmp(data, b"CONNECT ", 8) != 0:
        return -501
    while p < end and CLASS[p[0]] & TARGET:
        p += 1
    if end - p < 11:
        return HEAD_INCOMPLETE if n < MAX_HEAD_BYTES else -431
    # RFC 9112 section 3.2.3: the port may not be left out
    if not read_authority(data + 8, p, &asked) or asked.port == 0 or memcmp(p, b" HTTP/1.", 8) != 0 or not CLASS[p[8]] & DIGIT or p[9] != CR or p[10] != LF:
        return -400
    head.minor = 1 if p[8] > 0x30 else 0
    memset(head.known, 0, sizeof(head.known))
    memset(head.count, 0, sizeof(head.count))
    result = read_lines(data, p + 11, end, True, head.minor, head.fields, head.known, head.count, &lines)
    if result <= 0:
        return result if result or n < MAX_HEAD_BYTES else -431
    head.start = head.path_length = head.chunked = head.expects_continue = head.keep_alive = 0
    head.host = head.form = FORM_ORIGIN     # for check_target, which reads Host
    if check_target(data, head) < 0 or lines.content_length > 0 or lines.is_chunked:
        return -400             # what follows the head is the tunnel's: no second reading of it may be possible
    if head.host and (head.host_length != asked.host_length or not same_text(data + 8, data + head.host, asked.host_length)):
        return -400
    head.method, head.form, head.method_length = METHOD_CONNECT, FORM_AUTHORITY, 7
    head.target = head.path = head.host = 8
    head.target_length = head.authority_length = <uint32_t>(p - data) - 8
    head.host_length, head.content_length, head.length, head.n_fields = asked.host_length, -1, lines.length, lines.n_fields
    return <int>lines.length


cdef inline int read_status_line(const uint8_t* data, const uint8_t* end, ResponseHead* head) noexcept nogil:
    """RFC 9112 section 4; the space before no reason may be missing. Its length; 0: incomplete; below 0: refused."""
    cdef const uint8_t* p = data
    cdef const char* version = b"HTTP/1."
    cdef int i
    for i in range(7):
        if p == end:
            return HEAD_INCOMPLETE
        if p[0] != <uint8_t>version[i]:
            return -502
        p += 1
    if p == end:
        return HEAD_INCOMPLETE
    if p[0] != c"0" and p[0] != c"1":
        return -502
    head.minor = p[0] - 0x30
    p += 1
    if p == end:
        return HEAD_INCOMPLETE
    if p[0] != SP:
        return -502
    p += 1
    head.status = 0
    for i in range(3):
        if p == end:
            return HEAD_INCOMPLETE
        if not CLASS[p[0]] & DIGIT or (i == 0 and p[0] == c"0"):
            return -502
        head.status = head.status * 10 + (p[0] - 0x30)
        p += 1
    if p == end:
        return HEAD_INCOMPLETE
    head.reason = <uint32_t>(p - data)
    head.reason_length = 0
    if p[0] == SP:
        p += 1
        head.reason += 1
        p = skip_value_blocks(p, end)
        while p < end and CLASS[p[0]] & VALUE:
            p += 1
        head.reason_length = <uint32_t>(p - data) - head.reason
        if p == end:
            return HEAD_INCOMPLETE
    if p[0] != CR:
        return -502
    if end - p < 2:
        return HEAD_INCOMPLETE
    if p[1] != LF:
        return -502
    return <int>(p + 2 - data)


cdef int parse_response(const uint8_t* data, size_t n, ResponseHead* head) noexcept nogil:
    cdef const uint8_t* end = data + (n if n < MAX_HEAD_BYTES else MAX_HEAD_BYTES)
    cdef Lines lines
    cdef int result
    result = read_status_line(data, end, head)
    if result > 0:
        memset(head.known, 0, sizeof(head.known))
        memset(head.count, 0, sizeof(head.count))
        result = read_lines(data, data + result, end, False, head.minor, head.fields, head.known, head.count, &lines)
    if result == HEAD_INCOMPLETE:
        return HEAD_INCOMPLETE if n < MAX_HEAD_BYTES else -502
    if result < 0:
        return -502
    if (head.status < 200 or head.status == 204) and (lines.is_chunked or lines.content_length > 0):
        return -502
    head.length = lines.length
    head.n_fields = lines.n_fields
    head.content_length = lines.content_length
    head.chunked = lines.is_chunked
    head.keep_alive = not lines.says_close and (head.minor > 0 or lines.says_keep_alive)
    return <int>head.length


class HeadError(Exception):
    """A refused head: `status` (400, 414, 417, 431, 501, 505; 502 for a response) and the status' name as `reason`."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"{status} {reason}")
        self.status = status
        self.reason = reason


REASONS = {
    400: "Bad Request", 414: "URI Too Long", 417: "Expectation Failed", 431: "Request Header Fields Too Large",
    501: "Not Implemented", 502: "Bad Gateway", 505: "HTTP Version Not Supported",
}


cdef class Request:
    """One request's head. `length` bytes belong to it; `content_length` is -1 when there is none.

    `path` has the query, is "/" for an absolute-form without path and "*" for asterisk-form; `host` is without port,
    `authority` with.
    """

    cdef readonly bytes method, target, path, host, authority
    cdef readonly int minor
    cdef readonly bint keep_alive, chunked, expects_continue
    cdef readonly object content_length
    cdef readonly list fields
    cdef readonly int length

    def __repr__(self) -> str:
        return f"<Request {self.method!r} {self.target!r} {self.fields!r}>"


cdef class Response:
    """One response's head. `length` bytes belong to it; `content_length` is -1 when there is none."""

    cdef readonly int status
    cdef readonly bytes reason
    cdef readonly int minor
    cdef readonly bint keep_alive, chunked
    cdef readonly object content_length
    cdef readonly list fields
    cdef readonly int length

    def __repr__(self) -> str:
        return f"<Response {self.status} {self.fields!r}>"


cdef bytes piece(const uint8_t* data, uint32_t offset, uint32_t length):
    return PyBytes_FromStringAndSize(<const char*>(data + offset), length)


cdef list field_list(const uint8_t* data, const Field* fields, int n):
    cdef int i
    return [(piece(data, fields[i].name, fields[i].name_length), piece(data, fields[i].value, fields[i].value_length))
            for i in range(n)]


cdef object refused(int result):
    if result != HEAD_INCOMPLETE:
        raise HeadError(-result, REASONS[-result])


def read_request(const uint8_t[::1] data not None, bint may_connect=False) -> Request | None:
    """The request head at the start of `data`; None: incomplete. Raises HeadError. `may_connect`: as policy lets it."""
    cdef RequestHead head
    cdef const uint8_t* p = &data[0] if data.shape[0] else NULL
    cdef int result = parse_request(p, data.shape[0], &head)
    if result == -501 and may_connect:
        result = parse_connect(p, data.shape[0], &head)
    if result <= 0:
        return refused(result)
    request = <Request>Request.__new__(Request)
    request.method = piece(p, head.start, head.method_length)
    request.target = piece(p, head.target, head.target_length)
    request.path = piece(p, head.path, head.path_length) or b"/"
    request.host = piece(p, head.host, head.host_length)
    request.authority = piece(p, head.host, head.authority_length)
    request.minor = head.minor
    request.keep_alive = head.keep_alive
    request.chunked = head.chunked
    request.expects_continue = head.expects_continue
    request.content_length = head.content_length
    request.fields = field_list(p, head.fields, head.n_fields)
    request.length = head.length
    return request


def read_response(const uint8_t[::1] data not None) -> Response | None:
    """The response head at the start of `data` (any contiguous bytes); None: incomplete. Raises HeadError(502, ...)."""
    cdef ResponseHead head
    cdef const uint8_t* p = &data[0] if data.shape[0] else NULL
    cdef int result = parse_response(p, data.shape[0], &head)
    if result <= 0:
        return refused(result)
    response = <Response>Response.__new__(Response)
    response.status = head.status
    response.reason = piece(p, head.reason, head.reason_length)
    response.minor = head.minor
    response.keep_alive = head.keep_alive
    response.chunked = head.chunked
    response.content_length = head.content_length
    response.fields = field_list(p, head.fields, head.n_fields)
    response.length = head.length
    return response


def request_numbers(const uint8_t[::1] data not None) -> dict[str, object]:
    """For tests: `result` and, above 0, every scalar of the RequestHead, `known`, `count`, and `ids` of the fields."""
    cdef RequestHead head
    cdef int result = parse_request(&data[0] if data.shape[0] else NULL, data.shape[0], &head)
    if result <= 0:
        return {"result": result}
    return {
        "result": result, "length": head.length, "start": head.start, "method_length": head.method_length,
        "target": head.target, "target_length": head.target_length, "path": head.path, "path_length": head.path_length, "host": head.host,
        "host_length": head.host_length, "authority_length": head.authority_length,
        "content_length": head.content_length, "n_fields": head.n_fields, "method": head.method, "form": head.form,
        "minor": head.minor, "keep_alive": head.keep_alive, "chunked": head.chunked, "expects_continue": head.expects_continue,
        "known": [head.known[i] for i in range(N_FIELD_IDS)], "count": [head.count[i] for i in range(N_FIELD_IDS)],
        "ids": [head.fields[i].id for i in range(head.n_fields)],
    }


def bench_parse(const uint8_t[::1] data not None, int n) -> float:
    """Nanoseconds per parse_request of `data` as the data plane pays them: n times, no GIL, no Python object."""
    cdef RequestHead head
    cdef const uint8_t* p = &data[0]
    cdef size_t size = data.shape[0]
    cdef int64_t total = 0
    cdef timespec begin, end
    with nogil:
        clock_gettime(CLOCK_MONOTONIC, &begin)
        for _ in range(n):
            total += parse_request(p, size, &head)
        clock_gettime(CLOCK_MONOTONIC, &end)
    if total != <int64_t>size * n:
        raise ValueError("not one whole request head")
    return ((end.tv_sec - begin.tv_sec) * 1e9 + (end.tv_nsec - begin.tv_nsec)) / n


# In this file these two names are the C functions'; Python finds its wrappers under them.
globals().update(parse_request=read_request, parse_response=read_response)
