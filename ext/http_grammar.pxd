# What bytes and small values of HTTP are (RFC 9110, RFC 3986): character classes, scans, hosts, numbers. Inline pieces
# for parsers of ext/ to cimport; nothing here knows lines, fields or framing, or reads at or after the end it is given.
from libc.stdint cimport int64_t, uint8_t, uint32_t

# 16 bytes a step bring a browser's 400-byte head from 152 to 95 ns, one with cookies from 453 to 191
# (benchmarks/bench_http_head.py). SSE2 is part of x86-64; elsewhere the table alone does the work. Both stop short of
# `end`: no byte at or after it is loaded.
cdef extern from *:
    """
    #include <stdint.h>
    /* bits: 1 TOKEN, 2 TARGET, 4 VALUE, 8 HOST, 16 DIGIT, 32 HEX */
    static const uint8_t CLASS[256] = {
        [0x09] = 4, [' '] = 4, ['!'] = 7, ['"'] = 6, ['#'] = 5, [0x24 ... 0x27] = 7, ['(' ... ')'] = 6,
        ['*' ... '+'] = 7, [','] = 6, ['-' ... '.'] = 15, ['/'] = 6, ['0' ... '9'] = 63, [':' ... '@'] = 6,
        ['A' ... 'F'] = 47, ['G' ... 'Z'] = 15, ['[' ... ']'] = 6, ['^'] = 7, ['_'] = 15, ['`'] = 7,
        ['a' ... 'f'] = 47, ['g' ... 'z'] = 15, ['{'] = 6, ['|'] = 7, ['}'] = 6, ['~'] = 15, [0x80 ... 0xff] = 4,
    };
    #if defined(__SSE2__)
    #include <emmintrin.h>
    static inline const uint8_t *skip_value_blocks(const uint8_t *p, const uint8_t *end) {
        const __m128i last_control = _mm_set1_epi8(0x1f), tab = _mm_set1_epi8(0x09), del = _mm_set1_epi8(0x7f);
        while (end - p >= 16) {
            __m128i block = _mm_loadu_si128((const __m128i *)p);
            __m128i control = _mm_cmpeq_epi8(_mm_min_epu8(block, last_control), block);
            __m128i untabbed = _mm_andnot_si128(_mm_cmpeq_epi8(block, tab), control);
            int mask = _mm_movemask_epi8(_mm_or_si128(untabbed, _mm_cmpeq_epi8(block, del)));
            if (mask) return p + __builtin_ctz((unsigned)mask);
            p += 16;
        }
        return p;
    }
    static inline const uint8_t *skip_target_blocks(const uint8_t *p, const uint8_t *end) {
        const __m128i space = _mm_set1_epi8(0x20), del = _mm_set1_epi8(0x7f), hash = _mm_set1_epi8('#');
        while (end - p >= 16) {
            __m128i block = _mm_loadu_si128((const __m128i *)p);  /* compared as signed: 0x80 to 0xff are below space */
            __m128i visible = _mm_and_si128(_mm_cmpgt_epi8(block, space), _mm_cmplt_epi8(block, del));
            int mask = _mm_movemask_epi8(_mm_andnot_si128(_mm_cmpeq_epi8(block, hash), visible)) ^ 0xffff;
            if (mask) return p + __builtin_ctz((unsigned)mask);
            p += 16;
        }
        return p;
    }
    #else
    static inline const uint8_t *skip_value_blocks(const uint8_t *p, const uint8_t *end) { (void)end; return p; }
    static inline const uint8_t *skip_target_blocks(const uint8_t *p, const uint8_t *end) { (void)end; return p; }
    #endif
    """
    const uint8_t CLASS[256]
    const uint8_t* skip_value_blocks(const uint8_t* p, const uint8_t* end) noexcept nogil
    const uint8_t* skip_target_blocks(const uint8_t* p, const uint8_t* end) noexcept nogil

cdef enum:                      # bits of CLASS
    TOKEN = 1                   # RFC 9110 section 5.6.2
    TARGET = 2                  # visible ASCII but '#'
    VALUE = 4                   # RFC 9110 section 5.5: HTAB, SP, VCHAR, obs-text
    HOST = 8                    # RFC 3986 unreserved
    DIGIT = 16
    HEX = 32

cdef enum:
    MAX_LENGTH_DIGITS = 18      # always fits int64
    HTAB = 9
    LF = 10
    CR = 13
    SP = 32
    COLON = 58


cdef struct Authority:
    uint32_t host_length
    uint32_t port               # 0: none


cdef inline bint same(const uint8_t* p, const char* lower, size_t n) noexcept nogil:
    """Whether n bytes are `lower` in any case. Exact when `p` has no control character: then only letters fold."""
    cdef size_t i
    for i in range(n):
        if (p[i] | 0x20) != <uint8_t>lower[i]:
            return False
    return True


cdef inline bint is_ipv4(const uint8_t* p, const uint8_t* end) noexcept nogil:
    """RFC 3986 section 3.2.2 IPv4address: four decimal octets without leading zeros."""
    cdef int octets = 0, digits, value
    while True:
        digits = value = 0
        while p < end and CLASS[p[0]] & DIGIT:
            value = value * 10 + (p[0] - 0x30)
            digits += 1
            if digits > 3 or value > 255 or (digits == 2 and value < 10) or (digits == 3 and value < 100):
                return False
            p += 1
        octets += 1
        if digits == 0 or octets > 4:
            return False
        if p == end:
            return octets == 4
        if p[0] != c".":
            return False
        p += 1


cdef inline bint is_ipv6(const uint8_t* p, const uint8_t* end) noexcept nogil:
    """RFC 3986 section 3.2.2 IPv6address: eight groups of up to four hex digits, one `::`, the last two maybe as IPv4."""
    cdef const uint8_t* group
    cdef int groups = 0
    cdef bint is_compressed = False
    if end - p >= 2 and p[0] == COLON and p[1] == COLON:
        is_compressed = True
        p += 2
    while p < end:
        group = p
        while p < end and p - group < 4 and CLASS[p[0]] & HEX:
            p += 1
        if p < end and p[0] == c".":
            if not is_ipv4(group, end):
                return False
            groups += 2
            break
        groups += 1
        if p == group or groups > 8:
            return False
        if p == end:
            break
        if p[0] != COLON:
            return False
        p += 1
        if p == end:
            return False
        if p[0] == COLON:
            if is_compressed:
                return False
            is_compressed = True
            p += 1
    return groups <= 7 if is_compressed else groups == 8


cdef inline bint read_authority(const uint8_t* p, const uint8_t* end, Authority* authority) noexcept nogil:
    """host [":" port], without userinfo (RFC 9110 sections 4.2.4 and 7.2)."""
    cdef const uint8_t* start = p
    cdef uint32_t port = 0
    if p < end and p[0] == c"[":
        while p < end and p[0] != c"]":
            p += 1
        if p == end or not is_ipv6(start + 1, p):
            return False
        p += 1
    else:
        while p < end and CLASS[p[0]] & HOST:
            p += 1
    if p == start:
        return False
    authority.host_length = <uint32_t>(p - start)
    if p < end:
        if p[0] != COLON or end - p < 2 or end - p > 6 or p[1] == c"0":
            return False
        p += 1
        while p < end:
            if not CLASS[p[0]] & DIGIT:
                return False
            port = port * 10 + (p[0] - 0x30)
            p += 1
        if port > 65535:
            return False
    authority.port = port
    return True


cdef inline int64_t read_length(const uint8_t* p, size_t n) noexcept nogil:
    """Content-Length: digits only (RFC 9110 section 8.6). -1 for anything else, a list of equal lengths too."""
    cdef int64_t length = 0
    cdef size_t i
    if n == 0 or n > MAX_LENGTH_DIGITS:
        return -1
    for i in range(n):
        if not CLASS[p[i]] & DIGIT:
            return -1
        length = length * 10 + (p[i] - 0x30)
    return length
