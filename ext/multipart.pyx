# Parts behind multipart.pxd.
from libc.string cimport memcpy

from ext.siphash cimport hash_bytes


cdef inline uint32_t put(uint8_t* out, uint32_t used, const char* text, uint32_t n) noexcept nogil:
    memcpy(out + used, text, n)
    return used + n


cdef uint32_t put_decimal(uint8_t* out, uint32_t used, int64_t value) noexcept nogil:
    cdef uint8_t digits[20]
    cdef int n = 0
    while True:
        digits[n] = <uint8_t>(48 + value % 10)
        n += 1
        value //= 10
        if value == 0:
            break
    while n:
        n -= 1
        out[used] = digits[n]
        used += 1
    return used


cdef uint32_t part_text(const Parts* parts, uint32_t index, uint8_t* out) noexcept nogil:
    """What goes before part `index`, or after the last one (index = n): at most MAX_PART_TEXT bytes into `out`."""
    cdef uint32_t used = 0
    used = put(out, used, b"\r\n--", 4) if index else put(out, used, b"--", 2)
    used = put(out, used, <const char*>parts.boundary, BOUNDARY_BYTES)
    if index == parts.n:
        return put(out, used, b"--\r\n", 4)
    if parts.type_length:
        used = put(out, used, b"\r\nContent-Type: ", 16)
        used = put(out, used, <const char*>parts + sizeof(Parts), parts.type_length)
    used = put(out, used, b"\r\nContent-Range: bytes ", 23)
    used = put_decimal(out, used, parts.ranges[index].first)
    used = put(out, used, b"-", 1)
    used = put_decimal(out, used, parts.ranges[index].last)
    used = put(out, used, b"/", 1)
    used = put_decimal(out, used, parts.total)
    return put(out, used, b"\r\n\r\n", 4)


cdef int64_t parts_length(const Parts* parts) noexcept nogil:
    """The answer's Content-Length. Parts don't overlap, so it is below total + MAX_PARTS + 1 texts."""
    cdef uint8_t text[512]      # MAX_PART_TEXT
    cdef int64_t length = 0
    cdef uint32_t i
    for i in range(parts.n + 1):
        length += part_text(parts, i, text)
        if i < parts.n:
            length += parts.ranges[i].last - parts.ranges[i].first + 1
    return length


cdef void draw_boundary(Parts* parts, const uint64_t* secret, uint64_t a, uint64_t b) noexcept nogil:
    """A boundary that nobody can put into a body beforehand: a keyed hash of (a, b), which name this answer."""
    cdef const char* digits = b"0123456789abcdef"
    cdef uint64_t words[3]
    cdef uint64_t value
    cdef uint32_t half, i
    words[0] = a
    words[1] = b
    for half in range(2):
        words[2] = half
        value = hash_bytes(secret, <const uint8_t*>words, sizeof(words))
        for i in range(16):
            parts.boundary[half * 16 + i] = <uint8_t>digits[value & 15]
            value >>= 4


cdef bint find_type(const uint8_t* lines, uint32_t n, uint32_t* start, uint32_t* value, uint32_t* end) noexcept nogil:
    """Where the Content-Type line stands among stored field lines. False: nowhere; then all are `n`."""
    cdef const char* name = b"content-type: "
    cdef uint32_t i = 0, j
    while i < n:
        j = 0
        while j < 14 and i + j < n and (lines[i + j] | 32 if 65 <= lines[i + j] <= 90 else lines[i + j]) == <uint8_t>name[j]:
            j += 1
        start[0] = i
        value[0] = i + j
        while i < n and lines[i] != 10:
            i += 1
        i += 1
        end[0] = i
        if j == 14:
            return True
    start[0] = value[0] = end[0] = n
    return False
