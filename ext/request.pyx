# Routing, keys, conditions and ranges behind request.pxd. Reads the compiled tables; never the store, never a socket.
from libc.stdint cimport INT64_MAX
from libc.string cimport memcmp, memcpy

from ext.layout cimport HostRow, NetRow, OriginRow, PathRow, StringRow


cdef inline uint8_t lower(uint8_t c) noexcept nogil:
    return c + 32 if 65 <= c <= 90 else c


cdef bint same_host(const uint8_t* pattern, const uint8_t* host, uint32_t n) noexcept nogil:
    """`pattern` is lower case already."""
    cdef uint32_t i
    for i in range(n):
        if pattern[i] != lower(host[i]):
            return False
    return True


cdef int route(const Tables* tables, const uint8_t* host, uint32_t host_length, const uint8_t* path, uint32_t path_length, uint32_t* strip) noexcept nogil:
    """The origin of the most specific host, then the longest path. Rows stand in that order. `strip`: so many bytes of
    the path are the URL prefix, and what follows begins with a slash."""
    cdef uint32_t i, j, n, end
    cdef const HostRow* row
    cdef const PathRow* p
    cdef const uint8_t* prefix
    cdef bint is_known = False
    strip[0] = 0
    if host_length and host[host_length - 1] == 46:     # a name may be written with its root dot
        host_length -= 1
    end = 0
    while end < path_length and path[end] != 63:
        end += 1
    for i in range(tables.n_hosts):
        row = &tables.hosts[i]
        if row.kind == 0:
            if row.pattern_length != host_length or not same_host(tables.strings + row.pattern, host, host_length):
                continue
        elif row.kind == 1:
            if (host_length <= row.pattern_length or
                    not same_host(tables.strings + row.pattern, host + host_length - row.pattern_length, row.pattern_length)):
                continue
        is_known = is_known or row.kind != 3      # 3: any host, but only for paths that it has
        for j in range(row.n_paths):
            p = &tables.paths[row.path + j]
            prefix = tables.strings + p.prefix
            n = p.prefix_length
            if n and prefix[n - 1] == 47:
                n -= 1          # "/a/" and "/a" are the same prefix at a segment boundary
            if n > end or memcmp(prefix, path, n) != 0:
                continue
            if p.strip == n and n == end:       # the prefix alone is no path of the origin's
                continue
            if n == end or path[n] == 47:
                strip[0] = p.strip
                return <int>p.origin
    return ROUTE_NO_PATH if is_known else ROUTE_UNKNOWN_HOST


cdef bint is_left_out(const Tables* tables, const OriginRow* origin, const uint8_t* name, uint32_t n) noexcept nogil:
    cdef uint32_t i
    cdef const StringRow* parameter
    if origin.profile == 0 and n == 4 and memcmp(name, b"CMCD", 4) == 0:
        return True
    for i in range(origin.n_credentials):
        parameter = &tables.parameters[origin.credential + i]
        if parameter.length == n and memcmp(tables.strings + parameter.start, name, n) == 0:
            return True
    return False


cdef uint32_t build_key(const Tables* tables, uint32_t origin, const uint8_t* path, uint32_t n, uint8_t* out) noexcept nogil:
    """Path and query as they go upstream, less the parameters that stay out of the key (DESIGN.md section 6).

    `out` holds at least n bytes. Nothing is decoded or reordered: two spellings are two keys."""
    cdef const OriginRow* row = &tables.origins[origin]
    cdef uint32_t i = 0, used, start, name_end
    cdef bint has_parameter = False
    while i < n and path[i] != 63:
        i += 1
    memcpy(out, path, i)
    used = i
    if i == n:
        return used
    i += 1
    while i <= n:
        start = i
        while i < n and path[i] != 38:
            i += 1
        name_end = start
        while name_end < i and path[name_end] != 61:
            name_end += 1
        if not is_left_out(tables, row, path + start, name_end - start):
            out[used] = 38 if has_parameter else 63
            used += 1
            has_parameter = True
            memcpy(out + used, path + start, i - start)
            used += i - start
        i += 1
    return used


cdef int zone_of(const Tables* tables, const uint8_t* address) noexcept nogil:
    """The most specific zone of an address (16 bytes), -1: none."""
    cdef uint32_t i, whole, bits
    cdef const NetRow* net
    cdef uint8_t mask
    for i in range(tables.n_nets):
        net = &tables.nets[i]
        whole = net.prefix_bits // 8
        bits = net.prefix_bits % 8
        if memcmp(net.network, address, whole) != 0:
            continue
        if bits:
            mask = <uint8_t>(0xff << (8 - bits))
            if (net.network[whole] & mask) != (address[whole] & mask):
                continue
        return <int>net.zone
    return -1


# --- conditions (RFC 9110 section 13) ---------------------------------------------------------------------------------

cdef bint etag_in_list(const uint8_t* text, uint32_t n, const uint8_t* etag, uint32_t etag_length) noexcept nogil:
    """Weak comparison (RFC 9110 section 8.8.3.2) of one stored tag (n 0: none) with a list; `*` matches."""
    cdef uint32_t i = 0, start
    if etag_length > 2 and etag[0] == 87 and etag[1] == 47:
        etag += 2
        etag_length -= 2
    while i < n:
        if text[i] == 32 or text[i] == 9 or text[i] == 44:
            i += 1
            continue
        if text[i] == 42:
            return True
        if i + 2 < n and text[i] == 87 and text[i + 1] == 47:
            i += 2
        start = i
        if text[i] != 34:
            return False        # not a list of entity tags
        i += 1
        while i < n and text[i] != 34:
            i += 1
        if i == n:
            return False
        i += 1
        if i - start == etag_length and memcmp(text + start, etag, etag_length) == 0:
            return True
    return False


cdef bint etag_matches(const uint8_t* data, const RequestHead* head, const uint8_t* etag, uint32_t n) noexcept nogil:
    """Whether any If-None-Match line names the stored tag."""
    cdef uint32_t i
    for i in range(head.n_fields):
        if head.fields[i].id == 7 and etag_in_list(data + head.fields[i].value, head.fields[i].value_length, etag, n):
            return True
    return False


cdef inline int two(const uint8_t* text) noexcept nogil:
    if not (48 <= text[0] <= 57 and 48 <= text[1] <= 57):
        return -1
    return (text[0] - 48) * 10 + text[1] - 48


cdef int month_of(const uint8_t* text) noexcept nogil:
    cdef const char* names = b"JanFebMarAprMayJunJulAugSepOctNovDec"
    cdef int i
    for i in range(12):
        if memcmp(text, names + 3 * i, 3) == 0:
            return i + 1
    return -1


cdef int64_t days_from_civil(int64_t y, int m, int d) noexcept nogil:
    """Days since 1970-01-01 (H. Hinnant, chrono-compatible low-level date algorithms)."""
    cdef int64_t era
    cdef int64_t yoe, doy
    if m <= 2:
        y -= 1
    era = y // 400
    yoe = y - era * 400
    doy = (153 * (m + (-3 if m > 2 else 9)) + 2) // 5 + d - 1
    return era * 146097 + yoe * 365 + yoe // 4 - yoe // 100 + doy - 719468


cdef int64_t parse_date(const uint8_t* text, uint32_t n) noexcept nogil:
    """Seconds since the epoch of an HTTP-date (RFC 9110 section 5.6.7, all three forms), -1: not one."""
    cdef int day, month, hour, minute, second, century, year2
    cdef int64_t year
    cdef const uint8_t* clock
    cdef uint32_t comma = 0
    if n == 29 and text[3] == 44 and memcmp(text + 25, b" GMT", 4) == 0:
        day = two(text + 5)
        month = month_of(text + 8)
        century = two(text + 12)
        year2 = two(text + 14)
        clock = text + 17
    elif n == 24 and text[3] == 32 and text[19] == 32:      # asctime
        month = month_of(text + 4)
        day = two(text + 8) if text[8] != 32 else (text[9] - 48 if 48 <= text[9] <= 57 else -1)
        century = two(text + 20)
        year2 = two(text + 22)
        clock = text + 11
    else:                                                   # RFC 850: "Sunday, 06-Nov-94 08:49:37 GMT"
        while comma < n and text[comma] != 44:
            comma += 1
        if n < 24 or comma != n - 24 or memcmp(text + n - 4, b" GMT", 4) != 0:
            return -1
        day = two(text + comma + 2)
        month = month_of(text + comma + 5)
        year2 = two(text + comma + 9)
        century = 19 if year2 >= 70 else 20
        clock = text + comma + 12
    hour = two(clock)
    minute = two(clock + 3)
    second = two(clock + 6)
    if (day < 1 or day > 31 or month < 1 or century < 0 or year2 < 0 or hour < 0 or hour > 23 or minute < 0
            or minute > 59 or second < 0 or second > 60 or clock[2] != 58 or clock[5] != 58):
        return -1
    year = century * 100 + year2
    if year < 1970:
        return 0
    return days_from_civil(year, month, day) * 86400 + hour * 3600 + minute * 60 + second


cdef int number(const uint8_t* text, uint32_t n, uint32_t* i, int64_t* value) noexcept nogil:
    cdef uint32_t start = i[0]
    value[0] = 0
    while i[0] < n and 48 <= text[i[0]] <= 57:
        # Beyond the largest offset is beyond any body: RFC 9110 section 14.1.1 has no largest position.
        value[0] = value[0] * 10 + (text[i[0]] - 48) if value[0] < INT64_MAX // 10 else INT64_MAX
        i[0] += 1
    return <int>(i[0] - start)


cdef enum:
    SPECIFIER = 1
    NO_MORE = 2                 # else RANGE_NONE: malformed


cdef bint is_bytes_unit(const uint8_t* text, uint32_t n) noexcept nogil:
    return (n > 6 and lower(text[0]) == 98 and lower(text[1]) == 121 and lower(text[2]) == 116 and lower(text[3]) == 101
            and lower(text[4]) == 115 and text[5] == 61)


cdef int next_specifier(const uint8_t* text, uint32_t n, uint32_t* i, ByteRange* found) noexcept nogil:
    """The range at `i` as written: first -1 for a suffix (last = its length), last -1 for an open end. Empty members of
    the list are passed over (RFC 9110 section 5.6.1.2)."""
    cdef int digits, more
    while i[0] < n and (text[i[0]] == 32 or text[i[0]] == 9 or text[i[0]] == 44):
        i[0] += 1
    if i[0] == n:
        return NO_MORE
    digits = number(text, n, i, &found.first)
    if i[0] >= n or text[i[0]] != 45:
        return RANGE_NONE
    if digits == 0:
        found.first = -1
    i[0] += 1
    more = number(text, n, i, &found.last)
    if more == 0 and digits == 0:
        return RANGE_NONE
    if more == 0:
        found.last = -1
    while i[0] < n and (text[i[0]] == 32 or text[i[0]] == 9):
        i[0] += 1
    if (i[0] != n and text[i[0]] != 44) or (found.first >= 0 and found.last >= 0 and found.last < found.first):
        return RANGE_NONE
    return SPECIFIER


cdef int range_bounds(const uint8_t* text, uint32_t n, int64_t* first, int64_t* last) noexcept nogil:
    """The first of the `bytes` ranges as written (see next_specifier), if all of them are well-formed."""
    cdef ByteRange found
    cdef uint32_t i = 6, n_found = 0
    cdef int step
    if not is_bytes_unit(text, n):
        return RANGE_NONE
    while True:
        step = next_specifier(text, n, &i, &found)
        if step == NO_MORE and n_found:
            return RANGE_OK
        if step != SPECIFIER or n_found == MAX_SPECIFIERS:
            return RANGE_NONE
        if n_found == 0:
            first[0] = found.first
            last[0] = found.last
        n_found += 1


cdef bint resolve(ByteRange* r, int64_t total) noexcept nogil:
    """What a range as written selects of `total` bytes. False: nothing (RFC 9110 section 14.1.2)."""
    if r.first < 0:
        if r.last == 0 or total == 0:
            return False
        r.first = total - r.last if r.last < total else 0
        r.last = total - 1
        return True
    if r.first >= total:
        return False
    if r.last < 0 or r.last >= total:
        r.last = total - 1
    return True


cdef uint32_t add_range(ByteRange* parts, uint32_t n, ByteRange added) noexcept nogil:
    """Adds to `n` ranges of which none touch each other, in the place of the first that it touches, united with all that
    it does (RFC 9110 section 15.3.7.2: the order asked for, overlapping and adjacent ones coalesced)."""
    cdef uint32_t i = 0, place = n, kept
    while i < n:
        if added.first > parts[i].last + 1 or parts[i].first > added.last + 1:
            i += 1
            continue
        added.first = parts[i].first if parts[i].first < added.first else added.first
        added.last = parts[i].last if parts[i].last > added.last else added.last
        if i < place:
            place = i
        n -= 1
        for kept in range(i, n):
            parts[kept] = parts[kept + 1]
        i = 0                   # it is larger now: those before may touch it
    if place > n:
        place = n
    i = n
    while i > place:
        parts[i] = parts[i - 1]
        i -= 1
    parts[place] = added
    return n + 1


cdef int select_ranges(const uint8_t* text, uint32_t n, int64_t total, ByteRange* parts, uint32_t* n_parts) noexcept nogil:
    """What a Range selects of `total` bytes: at most MAX_PARTS ranges into `parts` (RFC 9110 section 14.2)."""
    cdef ByteRange found[128]   # MAX_SPECIFIERS
    cdef ByteRange one
    cdef uint32_t i = 6, n_found = 0, n_read = 0, k
    cdef int step
    if not is_bytes_unit(text, n):
        return RANGE_NONE
    while True:
        step = next_specifier(text, n, &i, &one)
        if step == NO_MORE:
            break
        if step != SPECIFIER or n_read == MAX_SPECIFIERS:
            return RANGE_NONE
        n_read += 1
        if resolve(&one, total):
            n_found = add_range(found, n_found, one)
    if n_read == 0 or n_found > MAX_PARTS:
        return RANGE_NONE
    if n_found == 0:
        return RANGE_UNSATISFIABLE
    for k in range(n_found):
        parts[k] = found[k]
    n_parts[0] = n_found
    return RANGE_OK if n_found == 1 else RANGE_SEVERAL


def ranges_of(bytes field, int64_t total):
    """select_ranges for tests: the ranges, [] where none is satisfiable, None where the field is ignored."""
    cdef ByteRange parts[8]     # MAX_PARTS
    cdef uint32_t n = 0
    cdef int outcome = select_ranges(field, <uint32_t>len(field), total, parts, &n)
    if outcome == RANGE_NONE:
        return None
    return [(parts[i].first, parts[i].last) for i in range(n)]
