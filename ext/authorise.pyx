# Grants behind authorise.pxd, and the class Grants that the control plane writes them with. No verification here.
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy

from ext.atomics cimport *
from ext.connection cimport Shared
from ext.http_head cimport FIELD_COOKIE, MAX_HEAD_BYTES, METHOD_GET, METHOD_HEAD, Field, parse_request
from ext.layout cimport OriginRow, StringRow, Tables
from ext.request cimport build_key
from ext.siphash cimport hash_bytes
from ext.store cimport pthread_mutex_lock, pthread_mutex_unlock
from ext.workers cimport Workers

cdef enum:
    PREFIX_BYTES = 12           # origin and rule, before the pieces
    IS_NO = 1                   # lowest bit of Grant.until


cdef inline uint8_t lower(uint8_t c) noexcept nogil:
    return c + 32 if 65 <= c <= 90 else c


# --- what a request presents ------------------------------------------------------------------------------------------

cdef bint is_named(const Tables* tables, uint32_t first, uint32_t n, const uint8_t* name, uint32_t length, bint folded, uint32_t* index) noexcept nogil:
    cdef uint32_t i, j
    cdef const StringRow* row
    cdef const uint8_t* text
    for i in range(n):
        row = &tables.parameters[first + i]
        if row.length != length:
            continue
        text = tables.strings + row.start
        j = 0
        while j < length and text[j] == (lower(name[j]) if folded else name[j]):
            j += 1
        if j == length:
            index[0] = i
            return True
    return False


cdef bint put_piece(uint8_t* out, uint32_t* used, uint8_t place, uint8_t index, const uint8_t* text, uint32_t n) noexcept nogil:
    """Each piece says where it stood and how long it is, so that no two credentials are the same bytes."""
    if n > CREDENTIAL_BYTES or used[0] + 6 + n > CREDENTIAL_BYTES:
        return False
    out[used[0]] = place
    out[used[0] + 1] = index
    memcpy(out + used[0] + 2, &n, 4)
    memcpy(out + used[0] + 6, text, n)
    used[0] += 6 + n
    return True


cdef bint put_cookies(const Tables* tables, const OriginRow* row, const uint8_t* text, uint32_t n, uint8_t* out, uint32_t* used) noexcept nogil:
    """As protocols/tokens/presented.py reads them: pairs between semicolons, white space around them, the name up to `=`."""
    cdef uint32_t i = 0, start, end, name, index = 0
    while i <= n:
        start = i
        while i < n and text[i] != 59:
            i += 1
        end = i
        i += 1
        while start < end and (text[start] == 32 or text[start] == 9):
            start += 1
        while end > start and (text[end - 1] == 32 or text[end - 1] == 9):
            end -= 1
        name = start
        while name < end and text[name] != 61:
            name += 1
        if name < end and is_named(tables, row.cookie, row.n_cookies, text + start, name - start, False, &index):
            if not put_piece(out, used, 99, <uint8_t>index, text + start, end - start):
                return False
    return True


cdef int credential_of(const Tables* tables, uint32_t origin, const uint8_t* data, const RequestHead* head, uint8_t* out) noexcept nogil:
    """The pieces of the viewer's credential, at most CREDENTIAL_BYTES in `out`; -1: more. The control plane judges what
    stands here and nothing else, so that what was judged is what is remembered."""
    cdef const OriginRow* row = &tables.origins[origin]
    cdef const uint8_t* path = data + head.path
    cdef uint32_t n = head.path_length, i = 0, start, name, used = 0, index = 0
    cdef const Field* field
    while i < n and path[i] != 63:
        i += 1
    i += 1
    while i <= n:
        start = i
        while i < n and path[i] != 38:
            i += 1
        name = start
        while name < i and path[name] != 61:
            name += 1
        if is_named(tables, row.credential, row.n_credentials, path + start, name - start, False, &index):
            if not put_piece(out, &used, 112, <uint8_t>index, path + start, i - start):
                return -1
        i += 1
    for i in range(head.n_fields):
        field = &head.fields[i]
        if row.n_headers and is_named(tables, row.header, row.n_headers, data + field.name, field.name_length, True, &index):
            if not put_piece(out, &used, 104, <uint8_t>index, data + field.value, field.value_length):
                return -1
        if row.n_cookies and field.id == FIELD_COOKIE:
            if not put_cookies(tables, row, data + field.value, field.value_length, out, &used):
                return -1
    return <int>used


cdef bint is_plain_name(const uint8_t* key, uint32_t first, uint32_t n) noexcept nogil:
    """Whether what follows the last slash can only be a name in that directory. An origin may decode `..%2fpaid%2fa` or
    take a backslash for a slash: such a path is judged for itself (protocols/tokens/scope.py), whatever its directory."""
    cdef uint32_t i
    if first < n and key[first] == 46:
        return False
    for i in range(first, n):
        if key[i] == 63:
            break
        if key[i] == 37 or key[i] == 92 or key[i] <= 32 or key[i] == 127 or key[i] == 35:
            return False
    return True


cdef int tags_of(Shared* shared, const Tables* tables, uint32_t origin, const uint8_t* data, const RequestHead* head,
                 uint8_t* scratch, uint8_t* key, uint64_t* tags) noexcept nogil:
    """Tags of the request's directory (0, 1) and object (2, 3), 128 bits each by two secrets; -1: too long. `scratch` and
    `key` hold MAX_HEAD_BYTES. The object is the key: path and query without the credential. Methods other than GET and
    HEAD are part of both: a token may be for reading only."""
    cdef uint8_t text[PREFIX_BYTES + CREDENTIAL_BYTES]
    cdef const uint8_t* path = data + head.path
    cdef uint32_t n = head.path_length, directory = 0, i = 0, start = 17
    cdef uint64_t rule = tables.origins[origin].rule
    cdef uint64_t digest[2]
    cdef int used = credential_of(tables, origin, data, head, text + PREFIX_BYTES)
    if used < 0 or n + head.method_length + 32 > MAX_HEAD_BYTES:
        return -1
    memcpy(text, &origin, 4)
    memcpy(text + 4, &rule, 8)
    digest[0] = hash_bytes(shared.store.secret, text, PREFIX_BYTES + <uint64_t>used)
    digest[1] = hash_bytes(shared.addresses.secret, text, PREFIX_BYTES + <uint64_t>used)
    if n == 0 or path[0] != 47:
        scratch[0] = 47
        memcpy(scratch + 1, path, n)
        path = scratch
        n += 1
    n = build_key(tables, origin, path, n, key)
    while i < n and key[i] != 63:
        if key[i] == 47:
            directory = i + 1
        i += 1
    memcpy(scratch, digest, 16)
    if head.method != METHOD_GET and head.method != METHOD_HEAD:    # no path begins with a letter
        memcpy(scratch + 17, data + head.start, head.method_length)
        start += head.method_length
    memcpy(scratch + start, key, n)
    scratch[16] = 68
    tags[0] = hash_bytes(shared.store.secret, scratch, start + directory)
    tags[1] = hash_bytes(shared.addresses.secret, scratch, start + directory)
    scratch[16] = 79
    tags[2] = hash_bytes(shared.store.secret, scratch, start + n)
    tags[3] = hash_bytes(shared.addresses.secret, scratch, start + n)
    if not is_plain_name(key, directory, n):
        tags[0] = tags[2]
        tags[1] = tags[3]
    return 0


# --- the table --------------------------------------------------------------------------------------------------------

cdef inline Grant* window_of(Shared* shared, uint64_t tag) noexcept nogil:
    return &shared.grants[(tag & (GRANT_SLOTS - 1)) & ~<uint64_t>(GRANT_WINDOW - 1)]


cdef uint32_t find(Shared* shared, uint64_t a, uint64_t b, int64_t now_ns) noexcept nogil:
    """A writer ends a grant, changes its tag, then begins the new one. Who sees the same tag before and after its end
    saw that tag's own end."""
    cdef Grant* grant = window_of(shared, a)
    cdef uint64_t until
    cdef uint32_t i
    for i in range(GRANT_WINDOW):
        if load_u64(&grant.tag_a) == a and load_u64(&grant.tag_b) == b:
            until = load_u64(&grant.until)
            if load_u64(&grant.tag_a) == a and load_u64(&grant.tag_b) == b and until > <uint64_t>now_ns:
                return JUDGED_NO if until & IS_NO else JUDGED_YES
        grant += 1
    return JUDGED_UNKNOWN


cdef uint32_t judge(Worker* w, const uint8_t* data, const RequestHead* head, uint32_t origin, uint8_t* tag) noexcept nogil:
    """Whether this request may have what it asks for. Where that isn't known, `tag` (TAG_BYTES) is what to ask by."""
    cdef uint64_t tags[4]
    cdef uint32_t judged
    if tags_of(w.shared, w.tables, origin, data, head, w.scratch, w.key, tags) < 0:
        return JUDGED_NO
    judged = find(w.shared, tags[0], tags[1], w.now_ns)
    if judged != JUDGED_YES:
        # A no is for one object: another one in the directory may be covered.
        judged = find(w.shared, tags[2], tags[3], w.now_ns)
    if judged == JUDGED_UNKNOWN:
        tag[0] = 0xff
        memcpy(tag + 1, &tags[2], 16)
    return judged


cdef void put(Shared* shared, uint64_t a, uint64_t b, int64_t now_ns, uint64_t until) noexcept nogil:
    """Into the slot of the same tag, else into one that has ended, else a yes in the place of a no, or of what ends
    first. A no never displaces a yes that holds: strangers' tokens don't throw viewers out."""
    cdef Grant* grant = window_of(shared, a)
    cdef Grant* chosen = NULL
    cdef uint64_t value, least = ~<uint64_t>0
    cdef uint32_t i
    for i in range(GRANT_WINDOW):
        value = load_u64(&grant[i].until)
        if load_u64(&grant[i].tag_a) == a and load_u64(&grant[i].tag_b) == b:
            chosen = &grant[i]
            break
        if value <= <uint64_t>now_ns:
            value = 0
        elif until & IS_NO and not value & IS_NO:
            continue
        elif value & IS_NO:
            value >>= 8
        if value < least:
            least = value
            chosen = &grant[i]
    if chosen == NULL:
        return
    store_u64(&chosen.until, 0)
    if load_u64(&chosen.tag_a) != a or load_u64(&chosen.tag_b) != b:
        exchange_u64(&chosen.tag_a, a)
        exchange_u64(&chosen.tag_b, b)
    exchange_u64(&chosen.until, until)


cdef class Grants:
    """What is known of viewers' credentials, as the control plane writes it. One writer at a time."""

    cdef Workers plane
    cdef uint8_t* scratch
    cdef uint8_t* key

    def __cinit__(self, Workers plane):
        self.plane = plane
        self.scratch = <uint8_t*>malloc(MAX_HEAD_BYTES)
        self.key = <uint8_t*>malloc(MAX_HEAD_BYTES)
        if self.scratch == NULL or self.key == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.scratch)
        free(self.key)

    def credential(self, uint32_t origin, bytes request_head):
        """[(place b"p", b"h" or b"c", index of the name in policy, bytes)] that a request presents; None: more than a
        credential can be. A parameter's and a cookie's bytes have the name and `=` before the value."""
        cdef uint8_t text[CREDENTIAL_BYTES]
        cdef RequestHead head
        cdef const Tables* tables = self.plane.shared.tables
        cdef int used
        cdef uint32_t at = 0, n
        if origin >= tables.n_origins or parse_request(request_head, len(request_head), &head) <= 0:
            return None
        used = credential_of(tables, origin, request_head, &head, text)
        if used < 0:
            return None
        pieces = []
        while at < <uint32_t>used:
            memcpy(&n, text + at + 2, 4)
            pieces.append((bytes([text[at]]), text[at + 1], (<char*>text)[at + 6:at + 6 + n]))
            at += 6 + n
        return pieces

    def put(self, uint32_t origin, bytes request_head, bint is_directory, bint is_allowed, int64_t now_ns, int64_t until_ns) -> bool:
        """Remembers a yes for the request's object, or all of its directory, or a no for the object."""
        cdef RequestHead head
        cdef Shared* shared = self.plane.shared
        cdef const Tables* tables = shared.tables
        cdef uint64_t tags[4]
        cdef uint64_t until
        if until_ns <= now_ns or origin >= tables.n_origins or parse_request(request_head, len(request_head), &head) <= 0:
            return False
        if tags_of(shared, tables, origin, request_head, &head, self.scratch, self.key, tags) < 0:
            return False
        until = (<uint64_t>until_ns & ~<uint64_t>IS_NO) | (0 if is_allowed else IS_NO)
        pthread_mutex_lock(&shared.store.lock)
        if is_directory and is_allowed:
            put(shared, tags[0], tags[1], now_ns, until)
        else:
            put(shared, tags[2], tags[3], now_ns, until)
        pthread_mutex_unlock(&shared.store.lock)
        return True

    def forget(self) -> None:
        """Nothing is known of anybody any more: keys have changed."""
        cdef Shared* shared = self.plane.shared
        cdef uint32_t i
        pthread_mutex_lock(&shared.store.lock)
        for i in range(GRANT_SLOTS):
            if load_u64(&shared.grants[i].until):
                store_u64(&shared.grants[i].until, 0)
        pthread_mutex_unlock(&shared.store.lock)
