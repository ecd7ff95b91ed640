# The stored objects as operators see them: filtered, sorted and paged without the GIL, so that a million of them hold
# nobody up. The store's lock is given back every few thousand buckets. Changes nothing.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcmp, memcpy, memset

from ext.atomics cimport *
from ext.layout cimport Tables
from ext.request cimport route
from ext.store cimport *
from ext.workers cimport Workers

cdef extern from * nogil:
    """
    #define _GNU_SOURCE 1
    #include <stdint.h>
    #include <stdlib.h>
    #include <string.h>
    void qsort_r(void *, size_t, size_t, int (*)(const void *, const void *, void *), void *);
    void *memmem(const void *, size_t, const void *, size_t);
    """
    void qsort_r(void*, size_t, size_t, int (*)(const void*, const void*, void*) noexcept nogil, void*)
    void* memmem(const void*, size_t, const void*, size_t)

cdef enum:
    BUCKETS_PER_TURN = 4096
    BLOCK_BYTES = 1048576
    HOST_BYTES_MAX = 255
    SEARCHED_BYTES = 66000      # a host and the longest target
    ATTEMPTS = 4                # the table has grown meanwhile: begin again; the last time under the lock throughout

cdef enum:                      # SORTS
    BY_URL = 0
    BY_SIZE = 1
    BY_AGE = 2
    BY_TTL = 3

SORTS = ("url", "size", "age", "ttl")
COMPLETE = OBJECT_COMPLETE
FILLING = OBJECT_FILLING

cdef struct Row:
    int64_t size_bytes
    int64_t born_ns
    int64_t fresh_until_ns
    const uint8_t* key
    uint32_t key_length
    uint32_t origin
    uint32_t status
    uint32_t flags
    uint8_t kind

cdef struct Block:
    Block* older
    uint64_t used
    uint64_t room

cdef struct Prefix:
    uint32_t origin
    uint32_t length
    const uint8_t* key

cdef struct Listing:
    Row* rows
    uint64_t n
    uint64_t room
    Block* newest
    const uint8_t* wanted       # by origin
    const uint8_t** hosts       # by origin, lower case
    const uint32_t* host_lengths
    const uint8_t* contains     # in host and path, not in the query: nobody may try queries
    uint64_t contains_length
    uint8_t* searched           # room for a host and a path, in lower case
    const uint8_t* host         # with prefixes: what a viewer's request for the key would be routed by
    uint32_t host_length
    Prefix* prefixes
    uint32_t n_prefixes
    bint has_prefix
    uint32_t n_origins
    uint32_t sort


cdef uint8_t* keep(Listing* to, const uint8_t* key, uint32_t n) noexcept nogil:
    cdef Block* block = to.newest
    cdef uint64_t room
    cdef uint8_t* place
    if block == NULL or block.room - block.used < n:
        room = BLOCK_BYTES if n < BLOCK_BYTES else n
        block = <Block*>malloc(sizeof(Block) + room)
        if block == NULL:
            return NULL
        block.older = to.newest
        block.used = 0
        block.room = room
        to.newest = block
    place = <uint8_t*>block + sizeof(Block) + block.used
    memcpy(place, key, n)
    block.used += n
    return place


cdef void forget(Listing* to) noexcept nogil:
    cdef Block* block
    while to.newest != NULL:
        block = to.newest
        to.newest = block.older
        free(block)
    to.n = 0


cdef bint is_wanted(Workers plane, Listing* to, const Entry* entry, const uint8_t* key) noexcept nogil:
    cdef uint32_t i, n, strip
    if entry.origin >= to.n_origins or not to.wanted[entry.origin]:
        return False
    if to.contains_length:
        n = to.host_lengths[entry.origin]
        memcpy(to.searched, to.hosts[entry.origin], n)
        for i in range(entry.key_length):
            if key[i] == 63 or n == SEARCHED_BYTES:
                break
            to.searched[n] = key[i] | 32 if 65 <= key[i] <= 90 else key[i]
            n += 1
        if memmem(to.searched, n, to.contains, to.contains_length) == NULL:
            return False
    if not to.has_prefix:
        return True
    for i in range(to.n_prefixes):
        if (to.prefixes[i].origin == entry.origin and entry.key_length >= to.prefixes[i].length
                and memcmp(key, to.prefixes[i].key, to.prefixes[i].length) == 0):
            # Several origins may share a host, each with paths of its own below the prefix.
            return route(<Tables*>load_ptr(<void**>&plane.shared.tables), to.host, to.host_length, key, entry.key_length, &strip) == <int>entry.origin
    return False


cdef bint add(Listing* to, const Entry* entry, Object* object, const uint8_t* key) noexcept nogil:
    cdef Row* row
    cdef Row* rows
    cdef Head* head = <Head*>load_ptr(<void**>&object.head)
    if to.n == to.room:
        to.room = to.room * 2 if to.room else 4096
        rows = <Row*>realloc(to.rows, to.room * sizeof(Row))
        if rows == NULL:
            return False
        to.rows = rows
    row = &to.rows[to.n]
    row.size_bytes = <int64_t>object.n_filled_bytes
    row.born_ns = head.born_ns
    row.fresh_until_ns = head.fresh_until_ns
    row.key = key
    row.key_length = entry.key_length
    row.origin = entry.origin
    row.status = head.status
    row.flags = load_u32(&object.flags)
    row.kind = object.kind
    to.n += 1
    return True


cdef int gather(Workers plane, Listing* to, bint at_once) noexcept nogil:
    """1: done; 0: the table is another one by now; -1: no memory."""
    cdef Store* store = &plane.shared.store
    cdef Table* table = NULL
    cdef uint64_t i = 0, turn = 0, mask = 0
    cdef Entry* entry
    cdef Object* object
    cdef const uint8_t* key
    cdef int result = 1
    pthread_mutex_lock(&store.lock)
    table = store.table
    mask = table.mask
    while i <= mask:
        entry = table.buckets[i]
        i += 1
        turn += 1
        if <size_t>entry > 1:
            object = entry.variants
            key = NULL
            while object != NULL:
                if key == NULL:
                    if not is_wanted(plane, to, entry, <const uint8_t*>entry + sizeof(Entry)):
                        break
                    key = keep(to, <const uint8_t*>entry + sizeof(Entry), entry.key_length)
                if key == NULL or not add(to, entry, object, key):
                    result = -1
                    break
                object = object.next_variant
            if result < 0:
                break
        if turn == BUCKETS_PER_TURN and not at_once:
            turn = 0
            pthread_mutex_unlock(&store.lock)
            pthread_mutex_lock(&store.lock)
            if store.table != table or store.table.mask != mask:
                result = 0
                break
    pthread_mutex_unlock(&store.lock)
    return result


cdef inline int order(int64_t a, int64_t b) noexcept nogil:
    return -1 if a < b else (1 if a > b else 0)


cdef int compare_bytes(const uint8_t* a, uint32_t n_a, const uint8_t* b, uint32_t n_b) noexcept nogil:
    cdef int result = memcmp(a, b, n_a if n_a < n_b else n_b)
    return result if result else order(n_a, n_b)


cdef int compare(const void* left, const void* right, void* context) noexcept nogil:
    cdef const Row* a = <const Row*>left
    cdef const Row* b = <const Row*>right
    cdef const Listing* to = <const Listing*>context
    cdef int result = 0
    if to.sort == BY_SIZE:
        result = order(b.size_bytes, a.size_bytes)
    elif to.sort == BY_AGE:
        result = order(a.born_ns, b.born_ns)
    elif to.sort == BY_TTL:
        result = order(b.fresh_until_ns, a.fresh_until_ns)
    if result:
        return result
    if a.origin != b.origin:
        result = compare_bytes(to.hosts[a.origin], to.host_lengths[a.origin], to.hosts[b.origin], to.host_lengths[b.origin])
    return result if result else compare_bytes(a.key, a.key_length, b.key, b.key_length)


def list_objects(Workers plane, list hosts, list wanted, str sort="url", bytes contains=b"", prefix=None, uint64_t offset=0,
                 uint64_t limit=100) -> tuple:
    """(how many match, [(origin, key, status, filled bytes, born_ns, fresh_until_ns, flags, kind)]): the page from `offset`.
    May run in any thread; what comes and goes meanwhile may be there or not.

    `hosts`, `wanted`: by origin. `contains`: lower-case text in host and path. `prefix`: (host, [(origin, key's
    beginning)]). Raises MemoryError."""
    cdef Listing to
    cdef bytes beginning, text
    cdef bytes flags = bytes(wanted)
    cdef uint32_t i
    cdef uint64_t row, end
    cdef int result = 0
    cdef int attempt
    memset(&to, 0, sizeof(to))
    to.sort = SORTS.index(sort)
    if len(hosts) != len(flags) or any(len(text) > HOST_BYTES_MAX for text in hosts):
        raise ValueError("each origin has a host of at most 255 bytes, and is wanted or not")
    to.n_origins = <uint32_t>len(flags)
    to.wanted = <const uint8_t*><const char*>flags
    to.contains = <const uint8_t*><const char*>contains
    to.contains_length = len(contains)
    host, beginnings = prefix if prefix is not None else (b"", [])
    text = host
    to.has_prefix = prefix is not None
    to.host = <const uint8_t*><const char*>text
    to.host_length = <uint32_t>len(text)
    to.prefixes = <Prefix*>malloc((len(beginnings) + 1) * sizeof(Prefix))
    to.hosts = <const uint8_t**>malloc((to.n_origins + 1) * sizeof(uint8_t*))
    to.host_lengths = <uint32_t*>malloc((to.n_origins + 1) * sizeof(uint32_t))
    to.searched = <uint8_t*>malloc(SEARCHED_BYTES)
    plane.n_pins += 1           # the tables that are published now stay until this is over
    try:
        if to.prefixes == NULL or to.hosts == NULL or to.host_lengths == NULL or to.searched == NULL:
            raise MemoryError
        for i in range(to.n_origins):
            beginning = hosts[i]
            to.hosts[i] = <const uint8_t*><const char*>beginning
            (<uint32_t*>to.host_lengths)[i] = <uint32_t>len(beginning)
        for i in range(<uint32_t>len(beginnings)):
            beginning = beginnings[i][1]
            to.prefixes[i].origin = beginnings[i][0]
            to.prefixes[i].key = <const uint8_t*><const char*>beginning
            to.prefixes[i].length = <uint32_t>len(beginning)
        to.n_prefixes = <uint32_t>len(beginnings)
        with nogil:
            for attempt in range(ATTEMPTS):
                forget(&to)
                result = gather(plane, &to, attempt == ATTEMPTS - 1)
                if result:
                    break
            if result > 0 and to.n:
                qsort_r(to.rows, to.n, sizeof(Row), compare, &to)
        if result < 0:
            raise MemoryError
        end = offset + limit if offset + limit < to.n else to.n
        page = []
        for row in range(offset, end):
            page.append((
                to.rows[row].origin, (<const char*>to.rows[row].key)[:to.rows[row].key_length], to.rows[row].status,
                to.rows[row].size_bytes, to.rows[row].born_ns, to.rows[row].fresh_until_ns, to.rows[row].flags,
                to.rows[row].kind,
            ))
        return to.n, page
    finally:
        plane.n_pins -= 1
        free(to.prefixes)
        free(to.hosts)
        free(<void*>to.host_lengths)
        free(to.searched)
        forget(&to)
        free(to.rows)
