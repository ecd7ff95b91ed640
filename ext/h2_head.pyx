# Heads behind h2_head.pxd. nghttp2 has checked what RFC 9113 sections 8.2 and 8.3 demand (lower case, no connection's
# fields, each pseudo-header once and before the others, characters, Content-Length against DATA). What it lets through is
# written as HTTP/1.1 and read by the parser of all requests, so that one set of limits and refusals holds for both.
from libc.string cimport memchr, memcmp, memcpy, memset

from ext.http_grammar cimport same
from ext.http_head cimport MAX_FIELDS, MAX_FIELD_BYTES, MAX_HEAD_BYTES, MAX_TARGET_BYTES
from ext.nghttp2 cimport NGHTTP2_NV_FLAG_NONE, NGHTTP2_NV_FLAG_NO_INDEX

cdef enum:
    MAX_METHOD_BYTES = 32       # as http_head.pyx
    MAX_AUTHORITY_BYTES = 512
    MAX_SMALL_BYTES = 64        # of a scheme or protocol


cdef void block_begin(Block* b, int32_t stream_id) noexcept nogil:
    cdef uint8_t* text = b.text
    cdef uint8_t* cookies = b.cookies
    memset(b, 0, sizeof(Block))
    b.text = text
    b.cookies = cookies
    b.stream_id = stream_id


cdef inline void refuse(Block* b, uint16_t status) noexcept nogil:
    if b.status == 0:           # the first fault is told, as in HTTP/1.1
        b.status = status


cdef inline bint put(Block* b, const void* data, size_t n) noexcept nogil:
    if n > TEXT_BYTES - b.length:
        refuse(b, 431)
        return False
    memcpy(b.text + b.length, data, n)
    b.length += <uint32_t>n
    return True


cdef bint is_plain(const uint8_t* p, size_t n) noexcept nogil:
    """Nothing that could end an item of a request line."""
    cdef size_t i
    for i in range(n):
        if p[i] <= 32 or p[i] == 127:
            return False
    return True


cdef void take(Block* b, Piece* piece, const uint8_t* value, size_t n, size_t most, uint16_t too_long) noexcept nogil:
    if n > most:
        refuse(b, too_long)
    elif n == 0 or not is_plain(value, n):
        refuse(b, 400)
    else:
        piece.start = b.length
        piece.length = <uint32_t>n
        put(b, value, n)


cdef inline void put_piece(Block* b, const Piece* piece) noexcept nogil:
    put(b, b.text + piece.start, piece.length)


cdef inline bint is_text(Block* b, const Piece* piece, const char* text, uint32_t n) noexcept nogil:
    return piece.length == n and memcmp(b.text + piece.start, text, n) == 0


cdef void write_line(Block* b) noexcept nogil:
    """The request line, and Host where :authority says it: both go before the fields."""
    b.has_line = True
    if b.status:
        return
    if b.method.length == 0 or (b.scheme.length and not is_text(b, &b.scheme, b"http", 4) and not is_text(b, &b.scheme, b"https", 5)):
        refuse(b, 400)
        return
    b.start = b.length
    if is_text(b, &b.method, b"CONNECT", 7) and b.protocol.length:
        # RFC 8441 section 5: what is an Upgrade in HTTP/1.1. Other protocols than WebSocket don't travel.
        if not is_text(b, &b.protocol, b"websocket", 9):
            refuse(b, 501)
            return
        b.is_websocket = True
        put(b, b"GET", 3)
    elif b.protocol.length:
        refuse(b, 400)
        return
    else:
        put_piece(b, &b.method)
    put(b, b" ", 1)
    if b.path.length:
        if b.text[b.path.start] != c"/" and not is_text(b, &b.path, b"*", 1):
            refuse(b, 400)      # RFC 9113 section 8.3.1: no absolute-form here
            return
        put_piece(b, &b.path)
    else:
        put_piece(b, &b.authority)      # a CONNECT, which the parser answers
    put(b, b" HTTP/1.1\r\n", 11)
    if b.authority.length:
        put(b, b"Host: ", 6)
        put_piece(b, &b.authority)
        put(b, b"\r\n", 2)
        b.has_host = True


cdef void add_cookie(Block* b, const uint8_t* value, size_t n) noexcept nogil:
    """RFC 9113 section 8.2.3: the crumbs become one field."""
    if n + 2 > COOKIE_BYTES - b.cookie_length:
        refuse(b, 431)
        return
    if b.cookie_length:
        memcpy(b.cookies + b.cookie_length, b"; ", 2)
        b.cookie_length += 2
    memcpy(b.cookies + b.cookie_length, value, n)
    b.cookie_length += <uint32_t>n


cdef bint is_same_text(const uint8_t* a, const uint8_t* b, size_t n) noexcept nogil:
    cdef size_t i
    for i in range(n):
        if a[i] != b[i] and not ((a[i] | 32) == (b[i] | 32) and 97 <= (a[i] | 32) <= 122):
            return False
    return True


cdef bint block_add(Block* b, const uint8_t* name, size_t n, const uint8_t* value, size_t value_length) noexcept nogil:
    """One field. False: the block is a bomb, and its stream not worth an answer."""
    cdef size_t size = n + value_length + 32
    if size > BLOCK_LIMIT_BYTES - b.total:
        b.total = BLOCK_LIMIT_BYTES
        return False
    b.total += <uint32_t>size
    if b.status:
        return True
    if n and name[0] == c":":
        if n == 7 and memcmp(name, b":method", 7) == 0:
            take(b, &b.method, value, value_length, MAX_METHOD_BYTES, 501)
        elif n == 7 and memcmp(name, b":scheme", 7) == 0:
            take(b, &b.scheme, value, value_length, MAX_SMALL_BYTES, 400)
        elif n == 5 and memcmp(name, b":path", 5) == 0:
            take(b, &b.path, value, value_length, MAX_TARGET_BYTES, 414)
        elif n == 10 and memcmp(name, b":authority", 10) == 0:
            take(b, &b.authority, value, value_length, MAX_AUTHORITY_BYTES, 400)
        elif n == 9 and memcmp(name, b":protocol", 9) == 0:
            take(b, &b.protocol, value, value_length, MAX_SMALL_BYTES, 400)
        else:
            refuse(b, 400)
        return True
    if not b.has_line:
        write_line(b)
    b.n_fields += 1
    if b.n_fields > MAX_FIELDS or n + value_length + 1 > MAX_FIELD_BYTES:
        refuse(b, 431)
        return True
    # nghttp2 lets neither through; here they would become lines of their own.
    if n == 0 or memchr(name, c":", n) != NULL or memchr(name, 13, n) != NULL or memchr(name, 10, n) != NULL or (
            memchr(value, 13, value_length) != NULL or memchr(value, 10, value_length) != NULL):
        refuse(b, 400)
        return True
    if n == 6 and memcmp(name, b"cookie", 6) == 0:
        add_cookie(b, value, value_length)
        return True
    if n == 4 and memcmp(name, b"host", 4) == 0:
        if b.has_host:          # RFC 9113 section 8.3.1: it may not differ from :authority
            if b.authority.length != value_length or not is_same_text(b.text + b.authority.start, value, value_length):
                refuse(b, 400)
            return True
        b.has_host = True
    elif n == 2 and memcmp(name, b"te", 2) == 0:
        return True             # the connection's own (RFC 9110 section 10.1.4), and trailers are dropped
    elif n == 14 and memcmp(name, b"content-length", 14) == 0:
        b.has_length = True
    elif n == 8 and memcmp(name, b"priority", 8) == 0:
        b.has_priority = True
    elif n == 17 and (memcmp(name, b"transfer-encoding", 17) == 0 or memcmp(name, b"sec-websocket-key", 17) == 0 and b.is_websocket):
        return True
    put(b, name, n)
    put(b, b": ", 2)
    put(b, value, value_length)
    put(b, b"\r\n", 2)
    return True


cdef int block_end(Block* b, bint has_body, const char* key) noexcept nogil:
    """Length of the request's text from `start` on, or minus the status to refuse it with. `key`: what stands for a
    WebSocket's handshake towards the origin, 24 characters (RFC 8441 section 5.1 has none towards us)."""
    if not b.has_line:
        write_line(b)
    if b.status:
        return -<int>b.status
    if b.is_websocket:
        put(b, b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: ", 60)
        put(b, key, 24)
        put(b, b"\r\n", 2)
    elif has_body and not b.has_length:
        put(b, b"transfer-encoding: chunked\r\n", 28)
    if b.cookie_length:
        put(b, b"cookie: ", 8)
        put(b, b.cookies, b.cookie_length)
        put(b, b"\r\n", 2)
    put(b, b"\r\n", 2)
    if b.status:
        return -<int>b.status
    return <int>(b.length - b.start)


cdef bint is_connections(const uint8_t* name, size_t n) noexcept nogil:
    """RFC 9113 section 8.2.2: what says something about an HTTP/1.1 connection; and a WebSocket handshake's proof."""
    if n == 10:
        return same(name, b"connection", 10) or same(name, b"keep-alive", 10)
    if n == 17:
        return same(name, b"transfer-encoding", 17)
    if n == 7:
        return same(name, b"upgrade", 7)
    if n == 16:
        return same(name, b"proxy-connection", 16)
    return n == 20 and same(name, b"sec-websocket-accept", 20)


cdef uint32_t response_fields(const uint8_t* text, size_t n, bint is_first, nghttp2_nv* fields, uint32_t n_fields,
                              uint8_t* names, uint32_t* names_length) noexcept nogil:
    """Adds the whole lines in `text` to `fields`, of which there are `n_fields`; where `is_first`, the first is a status
    line. Returns how many there are. Values stay where they are; names, in lower case, go into `names` (NAME_BYTES)."""
    cdef const uint8_t* p = text
    cdef const uint8_t* end = text + n
    cdef const uint8_t* stop
    cdef const uint8_t* colon
    cdef uint8_t* name
    cdef size_t length, i
    cdef nghttp2_nv* field
    while p < end:
        stop = <const uint8_t*>memchr(p, 13, end - p)
        if stop == NULL or stop == p:
            break
        if is_first:
            is_first = False
            field = &fields[n_fields]
            field.name = <uint8_t*>b":status"
            field.namelen = 7
            field.value = <uint8_t*>p + 9
            field.valuelen = 3
            field.flags = NGHTTP2_NV_FLAG_NONE
            n_fields += 1
            p = stop + 2
            continue
        colon = <const uint8_t*>memchr(p, c":", stop - p)
        if colon == NULL:
            break
        length = <size_t>(colon - p)
        if is_connections(p, length):
            p = stop + 2
            continue
        if n_fields == MAX_RESPONSE_FIELDS or length > NAME_BYTES - names_length[0]:
            break
        name = names + names_length[0]
        names_length[0] += <uint32_t>length
        for i in range(length):
            name[i] = p[i] + 32 if 65 <= p[i] <= 90 else p[i]
        field = &fields[n_fields]
        field.name = name
        field.namelen = length
        colon += 1
        while colon < stop and (colon[0] == 32 or colon[0] == 9):
            colon += 1
        field.value = <uint8_t*>colon
        field.valuelen = <size_t>(stop - colon)
        # Differs at each answer: indexed, it would push out what repeats.
        field.flags = NGHTTP2_NV_FLAG_NO_INDEX if length == 12 and memcmp(name, b"cache-status", 12) == 0 else NGHTTP2_NV_FLAG_NONE
        n_fields += 1
        p = stop + 2
    return n_fields
