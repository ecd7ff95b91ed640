# Responses behind respond.pxd. Decides nothing about freshness; evaluates the viewer's conditions and range
# (RFC 9110 sections 13.2.2 and 14.2) on an object that the edge has found usable.
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport INT64_MAX, int64_t, uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memcmp, memcpy, memset, strlen

from ext.access cimport access_begin, access_refused
from ext.access_ring cimport HOW_REFUSED
from ext.atomics cimport *
from ext.connection cimport *
from ext.h2_answers cimport stream_answer, stream_short
from ext.http_head cimport *
from ext.layout cimport *
from ext.multipart cimport MAX_TYPE_BYTES, Parts, draw_boundary, find_type, parts_length
from ext.request cimport (
    RANGE_NONE,
    RANGE_OK,
    RANGE_SEVERAL,
    RANGE_UNSATISFIABLE,
    ByteRange,
    etag_matches,
    first_field,
    parse_date,
    select_ranges,
)
from ext.body cimport body_at, body_passed
from ext.send cimport pump
from ext.store cimport *
from ext.sockets cimport iovec, msghdr
from ext.transport cimport transport_lost, transport_writev

cdef extern from "<time.h>" nogil:
    ctypedef long time_t
    cdef struct tm:
        int tm_sec
        int tm_min
        int tm_hour
        int tm_mday
        int tm_mon
        int tm_year
        int tm_wday
    cdef struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int, timespec*)
    tm* gmtime_r(const time_t*, tm*)


cdef const char* LINE_206 = b"HTTP/1.1 206 Partial Content\r\n"
cdef const char* LINE_304 = b"HTTP/1.1 304 Not Modified\r\n"


cdef void refresh_date(Worker* w) noexcept nogil:
    """The Date of our own answers, made anew once a second."""
    cdef timespec now
    cdef tm t
    clock_gettime(0, &now)
    if now.tv_sec == w.date_s:
        return
    w.date_s = now.tv_sec
    gmtime_r(<time_t*>&now.tv_sec, &t)
    cdef const char* days = b"Sun\0Mon\0Tue\0Wed\0Thu\0Fri\0Sat"
    cdef const char* months = b"Jan\0Feb\0Mar\0Apr\0May\0Jun\0Jul\0Aug\0Sep\0Oct\0Nov\0Dec"
    snprintf(w.date, sizeof(w.date), "%s, %02d %s %04d %02d:%02d:%02d GMT", days + 4 * t.tm_wday, t.tm_mday,
             months + 4 * t.tm_mon, t.tm_year + 1900, t.tm_hour, t.tm_min, t.tm_sec)


cdef inline uint32_t put(uint8_t* out, uint32_t used, const char* text, uint32_t n) noexcept nogil:
    memcpy(out + used, text, n)
    return used + n


cdef uint32_t put_number(uint8_t* out, uint32_t used, int64_t value) noexcept nogil:
    cdef uint8_t digits[24]
    cdef int n = 0
    cdef uint64_t rest
    if value < 0:
        out[used] = 45
        used += 1
        rest = <uint64_t>-value
    else:
        rest = <uint64_t>value
    while True:
        digits[n] = <uint8_t>(48 + rest % 10)
        n += 1
        rest //= 10
        if rest == 0:
            break
    while n:
        n -= 1
        out[used] = digits[n]
        used += 1
    return used


cdef uint32_t put_site(Worker* w, uint8_t* out, uint32_t used) noexcept nogil:
    used = put(out, used, b"Cache-Status: ", 14)
    return put(out, used, <char*>w.tables.strings + w.tables.site, w.tables.site_length)


cdef uint32_t put_cache_status(Worker* w, Connection* c, const Head* head, uint32_t how, uint8_t* out, uint32_t used) noexcept nogil:
    """RFC 9211: one member, ours, after those that came from upstream."""
    cdef int64_t ttl_s
    used = put_site(w, out, used)
    if how == AS_HIT:
        used = put(out, used, b"; hit; ttl=", 11)
        ttl_s = (head.fresh_until_ns - w.now_ns) // 1000000000
        if ttl_s > 2147483647:      # the largest delta-seconds that all understand (RFC 9111 section 1.2.2)
            ttl_s = 2147483647
        used = put_number(out, used, ttl_s)
        return put(out, used, b"\r\n", 2)
    if c.fwd_reason == FWD_STALE:
        used = put(out, used, b"; fwd=stale", 11)
    elif c.fwd_reason == FWD_VARY_MISS:
        used = put(out, used, b"; fwd=vary-miss", 15)
    elif c.fwd_reason == FWD_PARTIAL:
        used = put(out, used, b"; fwd=partial", 13)
    elif c.fwd_reason == FWD_REQUEST:
        used = put(out, used, b"; fwd=request", 13)
    elif c.fwd_reason == FWD_BYPASS:
        used = put(out, used, b"; fwd=bypass", 12)
    elif c.fwd_reason == FWD_METHOD:
        used = put(out, used, b"; fwd=method", 12)
    else:
        used = put(out, used, b"; fwd=uri-miss", 14)
    if c.fwd_status:
        used = put(out, used, b"; fwd-status=", 13)
        used = put_number(out, used, c.fwd_status)
    if c.is_stored and how != AS_PASSED:
        used = put(out, used, b"; stored", 8)
    if how == AS_COLLAPSED:
        used = put(out, used, b"; collapsed", 11)
    return put(out, used, b"\r\n", 2)


cdef inline uint32_t put_connection(Connection* c, uint8_t* out, uint32_t used) noexcept nogil:
    if c.carrier != NULL:
        return used
    if c.close_after:
        return put(out, used, b"Connection: close\r\n", 19)
    if c.minor == 0:
        return put(out, used, b"Connection: keep-alive\r\n", 24)
    return used


cdef int send_short(Worker* w, Connection* c, const uint8_t* text, uint32_t n) noexcept nogil:
    """A whole short answer; what the socket doesn't take waits in the connection's own buffer."""
    if c.carrier != NULL:
        return stream_short(w, c, text, n)
    if not keep_output(w, c, text, n):
        count(&w.counters[C_CLOSED_MEMORY], 1)
        connection_close(w, c, True)
        return CLOSED
    c.object = NULL
    c.offset = 0
    c.end = 0
    c.is_chunked = 0
    return pump(w, c)


cdef inline void count_status(Worker* w, uint32_t status) noexcept nogil:
    cdef uint32_t column
    if status == 400: column = C_STATUS_400
    elif status == 404: column = C_STATUS_404
    elif status == 405: column = C_STATUS_405
    elif status == 408: column = C_STATUS_408
    elif status == 411: column = C_STATUS_411
    elif status == 413: column = C_STATUS_413
    elif status == 414: column = C_STATUS_414
    elif status == 416: column = C_STATUS_416
    elif status == 417: column = C_STATUS_417
    elif status == 421: column = C_STATUS_421
    elif status == 431: column = C_STATUS_431
    elif status == 501: column = C_STATUS_501
    elif status == 502: column = C_STATUS_502
    elif status == 503: column = C_STATUS_503
    elif status == 504: column = C_STATUS_504
    elif status == 505: column = C_STATUS_505
    else: return
    count(&w.counters[column], 1)


cdef const char* reason_of(uint32_t status) noexcept nogil:
    if status == 400: return b"Bad Request"
    if status == 401: return b"Unauthorized"
    if status == 403: return b"Forbidden"
    if status == 404: return b"Not Found"
    if status == 405: return b"Method Not Allowed"
    if status == 408: return b"Request Timeout"
    if status == 411: return b"Length Required"
    if status == 413: return b"Content Too Large"
    if status == 414: return b"URI Too Long"
    if status == 416: return b"Range Not Satisfiable"
    if status == 417: return b"Expectation Failed"
    if status == 426: return b"Upgrade Required"
    if status == 421: return b"Misdirected Request"
    if status == 431: return b"Request Header Fields Too Large"
    if status == 501: return b"Not Implemented"
    if status == 502: return b"Bad Gateway"
    if status == 503: return b"Service Unavailable"
    if status == 504: return b"Gateway Timeout"
    if status == 505: return b"HTTP Version Not Supported"
    return b"Error"


cdef uint32_t put_methods(Worker* w, uint8_t* out, uint32_t used) noexcept nogil:
    """What the request's origin allows, as a line's value (RFC 9110 section 10.2.1)."""
    if w.origin == NULL or w.origin.allow_length == 0:
        used = put(out, used, b"GET, HEAD, OPTIONS", 18)
    else:
        used = put(out, used, <char*>w.tables.strings + w.origin.allow, w.origin.allow_length)
    return put(out, used, b"\r\n", 2)


cdef int respond_error(Worker* w, Connection* c, uint32_t status, bint must_close) noexcept nogil:
    """Our own error: never stored anywhere, readable by players' scripts, counted as refused."""
    cdef uint8_t text[2048]
    cdef uint32_t used
    cdef int body
    cdef char line[64]
    cdef const char* reason = reason_of(status)
    count(&w.counters[C_REQUESTS], 1)
    count(&w.counters[C_REFUSED], 1)
    count_status(w, status)
    access_begin(w, c, status, HOW_REFUSED, 0)
    if status < 500 and status != 404 or status == 501 or status == 505:
        access_refused(w, c, status)
    if must_close:
        c.must_linger = 1       # there may be input that nobody reads: see close_gently
    if must_close or w.is_draining:
        c.close_after = 1
    if c.is_misplaced:
        body = snprintf(line, sizeof(line), "%u %s: this port speaks HTTPS only\n", status, reason)
    else:
        body = snprintf(line, sizeof(line), "%u %s\n", status, reason)
    refresh_date(w)
    used = <uint32_t>snprintf(
        <char*>text, sizeof(text),
        "HTTP/1.1 %u %s\r\nDate: %s\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\n"
        "Cache-Control: no-store\r\nAccess-Control-Allow-Origin: *\r\n", status, reason, w.date, body)
    if status == 405 or status == 501:
        used = put(text, used, b"Allow: ", 7)
        used = put_methods(w, text, used)
    if status == 401:           # RFC 9110 section 15.5.2
        used = put(text, used, b"WWW-Authenticate: Bearer\r\n", 26)
    if status == 503:
        used = put(text, used, b"Retry-After: 2\r\n", 16)
    used = put_site(w, text, used)
    used = put(text, used, b"\r\n", 2)
    if status == 426:               # RFC 6455 section 4.4, RFC 9110 section 15.5.22; frames may follow the request
        c.must_linger = 1
        c.close_after = 1
        used = put(text, used, b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nConnection: close, Upgrade\r\n", 75)
    else:
        used = put_connection(c, text, used)
    used = put(text, used, b"\r\n", 2)
    if not c.is_head:
        used = put(text, used, line, <uint32_t>body)
    return send_short(w, c, text, used)


cdef int respond_unsatisfiable(Worker* w, Connection* c, int64_t total) noexcept nogil:
    cdef uint8_t text[1024]
    cdef uint32_t used
    count(&w.counters[C_REQUESTS], 1)
    count(&w.counters[C_REFUSED], 1)
    count_status(w, 416)
    access_begin(w, c, 416, HOW_REFUSED, 0)
    refresh_date(w)
    used = <uint32_t>snprintf(
        <char*>text, sizeof(text),
        "HTTP/1.1 416 Range Not Satisfiable\r\nDate: %s\r\nContent-Range: bytes */%lld\r\nContent-Length: 0\r\n"
        "Cache-Control: no-store\r\nAccess-Control-Allow-Origin: *\r\n", w.date, <long long>total)
    used = put_site(w, text, used)
    used = put(text, used, b"; hit\r\n", 7)
    used = put_connection(c, text, used)
    used = put(text, used, b"\r\n", 2)
    return send_short(w, c, text, used)


cdef int respond_preflight(Worker* w, Connection* c, const uint8_t* data, const RequestHead* head) noexcept nogil:
    """A CORS preflight (Fetch standard, 3.2.2): it only permits asking; the origin's own fields decide on reading."""
    cdef uint8_t text[4096]
    cdef uint32_t used
    cdef const Field* asked = first_field(head, FIELD_ACCESS_CONTROL_REQUEST_HEADERS)
    cdef const Field* origin = first_field(head, FIELD_ORIGIN)
    count(&w.counters[C_REQUESTS], 1)
    count(&w.counters[C_HITS], 1)
    count(&w.counters[C_PREFLIGHTS], 1)
    access_begin(w, c, 204, AS_HIT, 0)
    refresh_date(w)
    used = <uint32_t>snprintf(<char*>text, sizeof(text), "HTTP/1.1 204 No Content\r\nDate: %s\r\n", w.date)
    used = put(text, used, b"Allow: ", 7)
    used = put_methods(w, text, used)
    if origin != NULL and first_field(head, FIELD_ACCESS_CONTROL_REQUEST_METHOD) != NULL and origin.value_length <= 512:
        used = put(text, used, b"Access-Control-Allow-Origin: ", 29)
        used = put(text, used, <char*>data + origin.value, origin.value_length)
        used = put(text, used, b"\r\nVary: Origin, Access-Control-Request-Headers\r\nAccess-Control-Allow-Methods: ", 78)
        used = put_methods(w, text, used)
        used = put(text, used, b"Access-Control-Allow-Credentials: true\r\nAccess-Control-Max-Age: 600\r\n", 69)
        if asked != NULL and asked.value_length <= 1024:
            used = put(text, used, b"Access-Control-Allow-Headers: ", 30)
            used = put(text, used, <char*>data + asked.value, asked.value_length)
            used = put(text, used, b"\r\n", 2)
    used = put_site(w, text, used)
    used = put(text, used, b"; hit\r\n", 7)
    used = put_connection(c, text, used)
    used = put(text, used, b"\r\n", 2)
    return send_short(w, c, text, used)


cdef bint is_not_modified(const uint8_t* data, const RequestHead* request, const Head* head) noexcept nogil:
    """If-None-Match first, If-Modified-Since only without it (RFC 9110 sections 13.1.3 and 13.2.2)."""
    cdef const Field* field
    cdef int64_t since
    if request.known[FIELD_IF_NONE_MATCH]:
        return etag_matches(data, request, head_bytes(<Head*>head) + head.etag, head.etag_length)
    field = first_field(request, FIELD_IF_MODIFIED_SINCE)
    if field == NULL or head.last_modified_s < 0 or request.count[FIELD_IF_MODIFIED_SINCE] != 1:
        return False
    since = parse_date(data + field.value, field.value_length)
    return since >= 0 and head.last_modified_s <= since


cdef bint may_range(const uint8_t* data, const RequestHead* request, const Head* head) noexcept nogil:
    """If-Range by strong comparison (RFC 9110 section 13.1.5): an exact date counts only as exact."""
    cdef const Field* field = first_field(request, FIELD_IF_RANGE)
    cdef const uint8_t* etag = head_bytes(<Head*>head) + head.etag
    if field == NULL:
        return True
    if request.count[FIELD_IF_RANGE] != 1 or field.value_length == 0:
        return False
    if data[field.value] == 34:
        return (head.etag != 0 and etag[0] == 34 and head.etag_length == field.value_length
                and memcmp(etag, data + field.value, field.value_length) == 0)
    if not head.flags & HEAD_DATE_IS_STRONG:    # two versions may share that second
        return False
    return head.last_modified_s >= 0 and parse_date(data + field.value, field.value_length) == head.last_modified_s


cdef bint are_present(Worker* w, Object* object, int64_t first, int64_t last, const ByteRange* ranges, uint32_t n) noexcept nogil:
    cdef uint32_t i
    for i in range(1, n):
        if not is_present(w, object, ranges[i].first, ranges[i].last):
            return False
    return is_present(w, object, first, last)


cdef bint is_present(Worker* w, Object* object, int64_t first, int64_t last) noexcept nogil:
    """Whether the bytes are in memory already, as far as a look at the ends tells: decides only how it counts."""
    cdef uint64_t n
    if first > last:
        return True
    return body_at(w.store, object, first, &n) != NULL and body_at(w.store, object, last, &n) != NULL


cdef bint begin_parts(Worker* w, Connection* c, const ByteRange* ranges, uint32_t n, int64_t total, const uint8_t* content_type, uint32_t type_length) noexcept nogil:
    """An answer of several parts. False: no memory."""
    cdef Parts* parts = keep_parts(w, c, type_length if type_length <= MAX_TYPE_BYTES else 0)
    if parts == NULL:
        return False
    memcpy(<uint8_t*>parts + sizeof(Parts), content_type, parts.type_length)
    memcpy(parts.ranges, ranges, n * sizeof(ByteRange))
    parts.n = n
    parts.total = total
    draw_boundary(parts, w.store.secret, w.counters[C_REQUESTS] << 8 | w.index, <uint64_t>w.now_ns)
    return True


cdef int respond_object(Worker* w, Connection* c, const uint8_t* data, uint32_t n, const RequestHead* request, Object* object, uint32_t how) noexcept nogil:
    """Begins the answer from `object`. `data` holds the request's head and `n - head.length` bytes after it."""
    cdef Head* head = <Head*>load_ptr(<void**>&object.head)
    cdef uint32_t flags = load_u32(&object.flags)
    cdef int64_t total = load_i64_seq(&object.total_length)
    cdef int64_t first = 0, last, age, size
    cdef const Field* field
    cdef uint8_t* stored = head_bytes(head)
    cdef uint8_t* lines = w.scratch
    cdef uint32_t used = 0
    cdef iovec parts[12]
    cdef msghdr message
    cdef int n_parts = 0, n_head_parts, i, outcome = RANGE_NONE
    cdef uint64_t head_size, body_size = 0, piece
    cdef int64_t offset
    cdef uint8_t* body
    cdef ssize_t written
    cdef uint64_t sent
    cdef bint has_body, needs_age
    cdef ByteRange ranges[8]    # MAX_PARTS
    cdef uint32_t n_ranges = 0, type_start, type_value, type_end
    cdef bint is_crowd = w.ready.n >= CROWD and flags & OBJECT_FILLING
    cdef uint64_t share = FIRST_SHARE_BYTES if is_crowd else share_of_pass(w)
    if c.is_extended and head.status < 300:
        return respond_error(w, c, 502, False)  # the origin didn't change the protocol, and a 2xx here would say that it did
    if head.status == 200 and not flags & OBJECT_PRIVATE:
        if is_not_modified(data, request, head):
            outcome = -1
        elif request.known[FIELD_RANGE] and request.method == METHOD_GET and total >= 0 and may_range(data, request, head):
            field = first_field(request, FIELD_RANGE)
            if request.count[FIELD_RANGE] == 1:
                outcome = select_ranges(data + field.value, field.value_length, total, ranges, &n_ranges)
            if outcome == RANGE_UNSATISFIABLE:
                return respond_unsatisfiable(w, c, total)
    first = 0
    last = total - 1 if total >= 0 else INT64_MAX - 1
    if n_ranges:
        first = ranges[0].first
        last = ranges[0].last
    size = last - first + 1
    # --- head: stored lines, then what depends on the moment
    if outcome == -1:
        parts[0].iov_base = <void*>LINE_304
        parts[0].iov_len = strlen(LINE_304)
        parts[1].iov_base = stored + head.status_line_length + head.lines_length
        parts[1].iov_len = head.short_length
        n_parts = 2
        count(&w.counters[C_NOT_MODIFIED], 1)
    elif outcome == RANGE_OK:
        parts[0].iov_base = <void*>LINE_206
        parts[0].iov_len = strlen(LINE_206)
        parts[1].iov_base = stored + head.status_line_length
        parts[1].iov_len = head.lines_length
        n_parts = 2
        used = put(lines, used, b"Content-Range: bytes ", 21)
        used = put_number(lines, used, first)
        lines[used] = 45
        used = put_number(lines, used + 1, last)
        lines[used] = 47
        used = put_number(lines, used + 1, total)
        used = put(lines, used, b"\r\n", 2)
        count(&w.counters[C_PARTIAL_RESPONSES], 1)
    elif outcome == RANGE_SEVERAL:
        # The parts' own type stands in each of them (RFC 9110 section 15.3.7.2).
        find_type(stored + head.status_line_length, head.lines_length, &type_start, &type_value, &type_end)
        if not begin_parts(w, c, ranges, n_ranges, total, stored + head.status_line_length + type_value,
                           type_end - type_value - 2 if type_end > type_value else 0):
            count(&w.counters[C_CLOSED_MEMORY], 1)
            connection_close(w, c, True)
            return CLOSED
        size = parts_length(c.parts)
        parts[0].iov_base = <void*>LINE_206
        parts[0].iov_len = strlen(LINE_206)
        parts[1].iov_base = stored + head.status_line_length
        parts[1].iov_len = type_start
        parts[2].iov_base = stored + head.status_line_length + type_end
        parts[2].iov_len = head.lines_length - type_end
        n_parts = 3
        used = put(lines, used, b"Content-Type: multipart/byteranges; boundary=", 45)
        used = put(lines, used, <const char*>c.parts.boundary, 32)
        used = put(lines, used, b"\r\n", 2)
        count(&w.counters[C_PARTIAL_RESPONSES], 1)
    else:
        parts[0].iov_base = stored
        parts[0].iov_len = head.status_line_length + head.lines_length
        n_parts = 1
    has_body = outcome != -1 and not c.is_head and not head.flags & HEAD_NO_BODY
    c.is_chunked = 0
    if outcome != -1 and not head.flags & HEAD_NO_BODY:
        if total >= 0:
            used = put(lines, used, b"Content-Length: ", 16)
            used = put_number(lines, used, size)
            used = put(lines, used, b"\r\n", 2)
        elif has_body:
            if request.minor:
                used = put(lines, used, b"Transfer-Encoding: chunked\r\n", 28)
                c.is_chunked = 1
                c.chunk_phase = 0
                c.chunk_left = 0
            else:
                c.close_after = 1
    needs_age = how == AS_HIT or how == AS_COLLAPSED or head.flags & HEAD_HAS_AGE
    if how == AS_HIT and has_body:
        if not flags & OBJECT_ON_DISK and not are_present(w, object, first, last if total >= 0 else first, ranges, n_ranges):
            how = AS_COLLAPSED if flags & OBJECT_FILLING else AS_MISS
            c.fwd_reason = FWD_PARTIAL
        elif total < 0:
            how = AS_COLLAPSED
    if needs_age:
        age = (w.now_ns - head.born_ns) // 1000000000
        used = put(lines, used, b"Age: ", 5)
        used = put_number(lines, used, age if age > 0 else 0)
        used = put(lines, used, b"\r\n", 2)
    used = put_cache_status(w, c, head, how, lines, used)
    used = put_connection(c, lines, used)
    used = put(lines, used, b"\r\n", 2)
    parts[n_parts].iov_base = lines
    parts[n_parts].iov_len = used
    n_parts += 1
    head_size = 0
    for i in range(n_parts):
        head_size += parts[i].iov_len
    n_head_parts = n_parts
    # --- counted when the answer starts
    count(&w.counters[C_REQUESTS], 1)
    count(&origin_row(w, object.origin)[0], 1)
    if how == AS_HIT:
        count(&w.counters[C_HITS], 1)
        count(&origin_row(w, object.origin)[1], 1)
        if not load_u8_relaxed(&object.visited):
            store_u8_relaxed(&object.visited, 1)
    elif how == AS_MISS:
        count(&w.counters[C_MISSES], 1)
    elif how == AS_COLLAPSED:
        count(&w.counters[C_COLLAPSED], 1)
    else:
        count(&w.counters[C_PASSED], 1)
    c.log_origin = object.origin
    access_begin(w, c, 304 if outcome == -1 else (206 if n_ranges else head.status), how, first if has_body else 0)
    if c.carrier != NULL:
        c.is_chunked = 0
        if not has_body or size == 0:
            return stream_answer(w, c, data, n, request.length, NULL, parts, n_parts, first, first)
        if c.parts != NULL:
            last = first - 1        # the part's text comes first
        return stream_answer(w, c, data, n, request.length, object, parts, n_parts, first, last + 1 if total >= 0 else INT64_MAX)
    # --- the body that is here, in the same write
    offset = first
    if has_body and not c.is_chunked and c.parts == NULL:
        while n_parts < 12 and offset <= last:
            body = body_at(w.store, object, offset, &piece)
            if body == NULL:
                break
            if <int64_t>piece > last - offset + 1:
                piece = <uint64_t>(last - offset + 1)
            if piece > share - body_size:
                piece = share - body_size
            parts[n_parts].iov_base = body
            parts[n_parts].iov_len = piece
            n_parts += 1
            offset += <int64_t>piece
            body_size += piece
            if body_size == share:
                break
    memset(&message, 0, sizeof(message))
    message.msg_iov = parts
    message.msg_iovlen = n_parts
    written = 0
    while c.out_length == c.out_offset:     # else an interim response comes first, which the socket didn't take whole
        written = transport_writev(w, c, &message)
        if written >= 0 or errno != EINTR:
            break
    if written < 0:
        if errno != EAGAIN:
            transport_lost(w, c)
            return CLOSED
        written = 0
    sent = <uint64_t>written
    c.window_bytes += sent
    if sent < head_size:
        piece = sent
        for i in range(n_head_parts):
            if piece >= parts[i].iov_len:
                piece -= parts[i].iov_len
                continue
            if not keep_output(w, c, <uint8_t*>parts[i].iov_base + piece, <uint32_t>(parts[i].iov_len - piece)):
                count(&w.counters[C_CLOSED_MEMORY], 1)
                connection_close(w, c, True)
                return CLOSED
            piece = 0
        sent = 0
    else:
        sent -= head_size
        if has_body:
            w.pass_bytes += sent
            count(&w.counters[C_BYTES_TO_VIEWERS], sent)
            count(&origin_row(w, object.origin)[2], sent)
    if not has_body:
        c.object = NULL
        c.offset = 0
        c.end = 0
        if c.out_length == c.out_offset:
            return DONE
        return after_start(w, c, data, n, request, False)
    if sent and body_passed(w.store, object, first, first + <int64_t>sent):
        nudge(w, object)
    c.offset = first + <int64_t>sent
    c.end = last + 1 if total >= 0 else INT64_MAX
    if c.parts != NULL:
        c.end = first           # the part's text comes first: pump goes from one to the next
    elif total >= 0 and c.offset > last and c.out_length == c.out_offset:
        return DONE
    attach(c, object)
    return after_start(w, c, data, n, request, share < PUMP_BYTES)


cdef int after_start(Worker* w, Connection* c, const uint8_t* data, uint32_t n, const RequestHead* request, bint others_first) noexcept nogil:
    """The response isn't out in one write: keeps the request (a want may need it) and goes on, where others wait after
    their beginnings."""
    c.head_length = request.length
    if not keep_input(w, c, data, n):
        count(&w.counters[C_CLOSED_MEMORY], 1)
        connection_close(w, c, True)
        return CLOSED
    if others_first:
        list_append(&w.ready, c)
        return PENDING
    return pump(w, c)
