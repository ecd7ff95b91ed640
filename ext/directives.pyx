# Request directives behind directives.pxd, read as protocols/cache_control.py reads them: the first of a name counts,
# invalid seconds are 0, Pragma counts only without Cache-Control.
from libc.stdint cimport uint32_t

from ext.http_head cimport FIELD_CACHE_CONTROL, Field, parse_request

cdef enum:
    SECONDS_MAX = 2147483647

cdef struct Asked:
    bint no_cache
    int64_t max_age_s           # -1: not said
    int64_t min_fresh_s
    int64_t max_stale_s


cdef inline uint8_t lower(uint8_t c) noexcept nogil:
    return c + 32 if 65 <= c <= 90 else c


cdef bint is_name(const uint8_t* text, uint32_t n, const char* name, uint32_t length) noexcept nogil:
    cdef uint32_t i
    if n != length:
        return False
    for i in range(n):
        if lower(text[i]) != <uint8_t>name[i]:
            return False
    return True


cdef int64_t seconds_of(const uint8_t* text, uint32_t n) noexcept nogil:
    cdef int64_t value = 0
    cdef uint32_t i
    cdef bint is_quoted = n >= 2 and text[0] == 34 and text[n - 1] == 34
    if is_quoted:
        text += 1
        n -= 2
    for i in range(n):
        if is_quoted and text[i] == 92 and i + 1 < n:
            continue
        if not 48 <= text[i] <= 57:
            return 0
        value = value * 10 + (text[i] - 48)
        if value > SECONDS_MAX:
            value = SECONDS_MAX
    return value


cdef void member(const uint8_t* text, uint32_t n, Asked* asked) noexcept nogil:
    cdef uint32_t name = 0, value
    while n and (text[0] == 32 or text[0] == 9):
        text += 1
        n -= 1
    while n and (text[n - 1] == 32 or text[n - 1] == 9):
        n -= 1
    while name < n and text[name] != 61:
        name += 1
    value = name + 1
    while name and (text[name - 1] == 32 or text[name - 1] == 9):
        name -= 1
        value = n               # a slip: the directive is heard, its argument is not
    if is_name(text, name, b"no-cache", 8):
        asked.no_cache = True
    elif is_name(text, name, b"max-age", 7) and asked.max_age_s < 0:
        asked.max_age_s = seconds_of(text + value, n - value) if value < n else 0
    elif is_name(text, name, b"min-fresh", 9) and asked.min_fresh_s < 0:
        asked.min_fresh_s = seconds_of(text + value, n - value) if value < n else 0
    elif is_name(text, name, b"max-stale", 9) and asked.max_stale_s < 0:
        # RFC 9111 section 5.2.1.2: without an argument of any age. What permits is heard only where it is well formed.
        asked.max_stale_s = SECONDS_MAX if n == 9 else (seconds_of(text + value, n - value) if value < n else 0)


cdef void read_list(const uint8_t* text, uint32_t n, Asked* asked) noexcept nogil:
    """Members between commas outside quoted strings; after a quote that never closes every comma separates."""
    cdef uint32_t i = 0, start = 0, end
    cdef bint has_quotes = True
    while i < n:
        if text[i] == 34 and has_quotes:
            end = i + 1
            while end < n and text[end] != 34:
                end += 2 if text[end] == 92 else 1
            if end < n:
                i = end
            else:
                has_quotes = False
                i = start       # this member's commas all count then
                continue
        elif text[i] == 44:
            member(text + start, i - start, asked)
            start = i + 1
        i += 1
    member(text + start, n - start, asked)


cdef void read_request(const uint8_t* data, const RequestHead* head, Asked* asked, Asked* pragma) noexcept nogil:
    cdef const Field* field
    cdef uint32_t i
    asked.no_cache = pragma.no_cache = False
    asked.max_age_s = pragma.max_age_s = -1
    asked.min_fresh_s = pragma.min_fresh_s = -1
    asked.max_stale_s = pragma.max_stale_s = -1
    for i in range(head.n_fields):
        field = &head.fields[i]
        if field.id == FIELD_CACHE_CONTROL:
            read_list(data + field.value, field.value_length, asked)
        elif is_name(data + field.name, field.name_length, b"pragma", 6):
            read_list(data + field.value, field.value_length, pragma)


cdef bint accepts_stale(const uint8_t* data, const RequestHead* head, int64_t stale_ns) noexcept nogil:
    """Whether the viewer takes what has been stale for so long: max-stale (RFC 9111 section 5.2.1.2)."""
    cdef Asked asked
    cdef Asked pragma
    if not head.known[FIELD_CACHE_CONTROL]:
        return False
    read_request(data, head, &asked, &pragma)
    return asked.max_stale_s >= 0 and stale_ns <= asked.max_stale_s * 1000000000


cdef bint refuses_stored(const uint8_t* data, const RequestHead* head, int64_t age_ns, int64_t left_ns) noexcept nogil:
    """Whether the viewer doesn't want a stored response of this age, fresh for `left_ns` more, without validation."""
    cdef Asked asked
    cdef Asked pragma
    read_request(data, head, &asked, &pragma)
    if not head.known[FIELD_CACHE_CONTROL]:
        return pragma.no_cache
    if asked.no_cache or asked.max_age_s == 0:
        return True
    if asked.max_age_s > 0 and age_ns > asked.max_age_s * 1000000000:
        return True
    return asked.min_fresh_s > 0 and left_ns < asked.min_fresh_s * 1000000000


def refuses(bytes request_head, int64_t age_ns, int64_t left_ns) -> bool:
    """refuses_stored on a whole request head, for tests; False for one that doesn't parse."""
    cdef RequestHead head
    if parse_request(request_head, len(request_head), &head) <= 0:
        return False
    return refuses_stored(request_head, &head, age_ns, left_ns)


def takes_stale(bytes request_head, int64_t stale_ns) -> bool:
    """accepts_stale on a whole request head, for tests; False for one that doesn't parse."""
    cdef RequestHead head
    if parse_request(request_head, len(request_head), &head) <= 0:
        return False
    return accepts_stale(request_head, &head, stale_ns)
