# The decoder behind chunked.pxd: a byte at a time through framing, at once through data.
from ext.http_grammar cimport CLASS, CR, LF, TOKEN, VALUE

cdef enum:                      # the limits of accelerator/protocols/chunked.py
    DIGITS_MAX = 15
    LINE_MAX = 1024
    TRAILERS_MAX = 8192
    EXCESS_MAX = 16384

cdef enum:                      # Chunked.state: what the next byte is
    AT_SIZE = 0                 # a digit, or the end of the size
    AT_SPACE = 1                # blank before an extension
    AT_EXTENSION = 2
    AT_SIZE_LF = 3
    AT_DATA = 4
    AT_DATA_CR = 5
    AT_DATA_LF = 6
    AT_TRAILER = 7              # the first byte of a trailer line, or the last CR
    AT_NAME = 8
    AT_VALUE = 9
    AT_TRAILER_LF = 10
    AT_LAST_LF = 11
    AT_END = 12


cdef inline int digit_of(uint8_t c) noexcept nogil:
    if 48 <= c <= 57:
        return c - 48
    c |= 32
    return c - 87 if 97 <= c <= 102 else -1


cdef int chunked_read(Chunked* d, const uint8_t** at, const uint8_t* end, const uint8_t** data, uint64_t* n) noexcept nogil:
    """Reads on from `at[0]`, which it moves. Called again and again until it gives something else than data."""
    cdef const uint8_t* p = at[0]
    cdef uint8_t c
    cdef int digit
    while p < end:
        if d.state == AT_END:
            at[0] = p
            return CHUNKED_END
        if d.state == AT_DATA:
            data[0] = p
            n[0] = <uint64_t>(end - p)
            if n[0] > d.left:
                n[0] = d.left
            d.left -= n[0]
            if d.left == 0:
                d.state = AT_DATA_CR
            at[0] = p + n[0]
            return CHUNKED_DATA
        c = p[0]
        p += 1
        if d.state <= AT_SIZE_LF:
            d.line_bytes += 1
            if d.line_bytes > LINE_MAX:
                return CHUNKED_BAD
        elif d.state >= AT_TRAILER:
            d.trailer_bytes += 1
            if d.trailer_bytes > TRAILERS_MAX:
                return CHUNKED_BAD
        if d.state == AT_SIZE:
            digit = digit_of(c)
            if digit >= 0:
                d.n_digits += 1
                if d.n_digits > DIGITS_MAX:
                    return CHUNKED_BAD
                d.left = d.left * 16 + <uint64_t>digit
            elif d.n_digits == 0:
                return CHUNKED_BAD
            elif c == CR:
                d.state = AT_SIZE_LF
            elif c == 59:
                d.state = AT_EXTENSION
            elif c == 32 or c == 9:
                d.state = AT_SPACE
            else:
                return CHUNKED_BAD
        elif d.state == AT_SPACE:
            if c == 59:
                d.state = AT_EXTENSION
            elif c != 32 and c != 9:
                return CHUNKED_BAD
        elif d.state == AT_EXTENSION:
            if c == CR:
                d.state = AT_SIZE_LF
            elif not CLASS[c] & VALUE:
                return CHUNKED_BAD
        elif d.state == AT_SIZE_LF:
            if c != LF:
                return CHUNKED_BAD
            d.excess_bytes += <int64_t>d.line_bytes + 2 - 16 - 2 * <int64_t>d.left
            if d.excess_bytes < 0:
                d.excess_bytes = 0
            if d.excess_bytes > EXCESS_MAX:
                return CHUNKED_BAD
            d.line_bytes = 0
            d.n_digits = 0
            d.state = AT_DATA if d.left else AT_TRAILER
        elif d.state == AT_DATA_CR:
            if c != CR:
                return CHUNKED_BAD
            d.state = AT_DATA_LF
        elif d.state == AT_DATA_LF:
            if c != LF:
                return CHUNKED_BAD
            d.state = AT_SIZE
        elif d.state == AT_TRAILER:
            if c == CR:
                d.state = AT_LAST_LF
            elif CLASS[c] & TOKEN:
                d.state = AT_NAME
            else:
                return CHUNKED_BAD
        elif d.state == AT_NAME:
            if c == 58:
                d.state = AT_VALUE
            elif not CLASS[c] & TOKEN:
                return CHUNKED_BAD
        elif d.state == AT_VALUE:
            if c == CR:
                d.state = AT_TRAILER_LF
            elif not CLASS[c] & VALUE:
                return CHUNKED_BAD
        elif d.state == AT_TRAILER_LF:
            if c != LF:
                return CHUNKED_BAD
            d.state = AT_TRAILER
        else:                   # AT_LAST_LF
            if c != LF:
                return CHUNKED_BAD
            d.state = AT_END
    at[0] = p
    return CHUNKED_END if d.state == AT_END else CHUNKED_MORE


def decode(bytes coded, list cuts) -> tuple:
    """(body, bytes used, "whole" | "open" | "bad") of a coded body that comes in pieces: for the fuzz target."""
    cdef Chunked d
    cdef const uint8_t* start
    cdef const uint8_t* at
    cdef const uint8_t* data = NULL
    cdef uint64_t n = 0
    cdef int what
    cdef Py_ssize_t used = 0
    for i in range(<Py_ssize_t>sizeof(Chunked)):
        (<uint8_t*>&d)[i] = 0
    body = []
    for first, last in zip([0, *cuts], [*cuts, len(coded)]):
        piece = coded[first:last]       # of its own, so that a sanitizer sees a read beyond it
        start = at = <const uint8_t*><const char*>piece
        while True:
            what = chunked_read(&d, &at, start + len(piece), &data, &n)
            if what != CHUNKED_DATA:
                break
            body.append((<const char*>data)[:n])
        if what == CHUNKED_BAD:
            return b"".join(body), used, "bad"
        used += at - start
        if what == CHUNKED_END:
            return b"".join(body), used, "whole"
    return b"".join(body), used, "open"
