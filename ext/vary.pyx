# The values that select a variant (RFC 9111 section 4.1) behind vary.pxd. Bytes of a parsed head in, bytes out.
from libc.string cimport memcmp, memcpy

from ext.http_head cimport Field, parse_request


cdef inline uint8_t lower(uint8_t c) noexcept nogil:
    return c + 32 if 65 <= c <= 90 else c


cdef bint has_gzip(const uint8_t* value, uint32_t n) noexcept nogil:
    """Whether Accept-Encoding names gzip without q=0: what goes upstream is reduced to this."""
    cdef uint32_t i = 0
    cdef uint32_t start, j
    while i < n:
        start = i
        while i < n and value[i] != 44:
            i += 1
        while start < i and (value[start] == 32 or value[start] == 9):
            start += 1
        if (i - start >= 4 and lower(value[start]) == 103 and lower(value[start + 1]) == 122
                and lower(value[start + 2]) == 105 and lower(value[start + 3]) == 112
                and (i - start == 4 or value[start + 4] == 59 or value[start + 4] == 32 or value[start + 4] == 9)):
            j = start + 4
            while j < i and (value[j] == 32 or value[j] == 9 or value[j] == 59):
                j += 1
            if not (i - j >= 3 and lower(value[j]) == 113 and value[j + 1] == 61 and value[j + 2] == 48
                    and only_zeros(value + j + 3, i - j - 3)):
                return True
        i += 1
    return False


cdef bint only_zeros(const uint8_t* value, uint32_t n) noexcept nogil:
    cdef uint32_t i
    for i in range(n):
        if value[i] != 46 and value[i] != 48 and value[i] != 32 and value[i] != 9:
            return False
    return True


cdef int vary_key_of(const uint8_t* vary, uint32_t n, const uint8_t* data, const RequestHead* head, uint8_t* out) noexcept nogil:
    """The request's values for the fields that `vary` names (lower case, each ended by a newline), normalised as
    RFC 9111 section 4.1 allows; at most MAX_VARY_BYTES in `out`. -1: longer, which matches nothing."""
    cdef uint32_t start = 0, end, i, j
    cdef uint32_t used = 0
    cdef const Field* field
    cdef const uint8_t* value
    cdef bint is_present, is_same, is_encoding, accepts
    while start < n:
        end = start
        while end < n and vary[end] != 10:
            end += 1
        is_present = False
        accepts = False
        is_encoding = end - start == 15 and memcmp(vary + start, b"accept-encoding", 15) == 0
        for i in range(head.n_fields):
            field = &head.fields[i]
            if field.name_length != end - start:
                continue
            is_same = True
            for j in range(field.name_length):
                if lower(data[field.name + j]) != vary[start + j]:
                    is_same = False
                    break
            if not is_same:
                continue
            value = data + field.value
            if is_encoding:
                accepts = accepts or has_gzip(value, field.value_length)
                continue
            if used + field.value_length + 4 > MAX_VARY_BYTES:
                return -1
            if is_present:
                out[used] = 44
                used += 1
            else:
                out[used] = 1       # present, even when empty: an absent field matches only an absent one
                used += 1
            is_present = True
            for j in range(field.value_length):
                if value[j] != 32 and value[j] != 9:
                    out[used] = value[j]
                elif j and (value[j - 1] == 32 or value[j - 1] == 9):
                    continue
                else:
                    out[used] = 32
                used += 1
        if used + 4 > MAX_VARY_BYTES:
            return -1
        if accepts:
            memcpy(out + used, b"gz", 2)
            used += 2
        out[used] = 10
        used += 1
        start = end + 1
    return <int>used


def values(bytes names, bytes request_head):
    """vary_key_of of a whole request head, for tests; None: it doesn't parse, or is too long."""
    cdef RequestHead head
    cdef uint8_t out[MAX_VARY_BYTES]
    cdef int n
    if parse_request(request_head, len(request_head), &head) <= 0:
        return None
    n = vary_key_of(names, <uint32_t>len(names), request_head, &head, out)
    return None if n < 0 else (<char*>out)[:n]
