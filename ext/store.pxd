# The structs of the object store (docs/architecture.md, "Objects"), and the life of an object. By noun: table.pxd (keys),
# body.pxd (slices), reclaim.pxd (epochs, memory). Writers hold Store.lock; readers are workers, inside a pass.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from ext.arena cimport Arena
from ext.layout cimport MAX_WORKERS

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t*, void*)
    int pthread_mutex_lock(pthread_mutex_t*)
    int pthread_mutex_unlock(pthread_mutex_t*)
    int pthread_mutex_destroy(pthread_mutex_t*)

cdef enum:
    MAX_SLICES = 1048576        # 1 TiB in slices of 1 MiB: a longer body isn't stored
    FIRST_ROOM_BYTES = 16384    # first room of a body of unknown length; doubled up to a slice
    STREAM_ROOM_BYTES = 1024    # what a silent stream takes when it says something
    MAX_VARIANTS = 32           # per key: an unbounded Vary: User-Agent is a cache-busting attack
    MAX_MARKS = 65536           # keys remembered as not shareable: viewers choose keys, so their number is theirs to choose

cdef enum:                      # Slice.reading
    SLICE_UNREAD = 0
    SLICE_PASSED = 1            # a reader has been through it: it may go before one that nobody has read yet
    SLICE_WATCHED = 2           # unread, and a fill rests until a reader has been through it

cdef enum:                      # Head.flags
    HEAD_MUST_VALIDATE = 1      # no-cache: usable only for requests that arrived before the validation began
    HEAD_NO_BODY = 2            # 204, 304: never a body
    HEAD_HAS_AGE = 4            # Age came from upstream
    HEAD_MAY_BE_STALE = 8       # no directive forbids it (RFC 9111 section 4.2.4): a viewer's max-stale is heard
    HEAD_DATE_IS_STRONG = 16    # Last-Modified is older than Date: If-Range may go by it (RFC 9110 section 8.8.2.2)

cdef enum:                      # Object.flags
    OBJECT_COMPLETE = 1         # every slice is filled (it may have been evicted since)
    OBJECT_FAILED = 2           # the source broke off: readers break their transfer
    OBJECT_PRIVATE = 4          # for one viewer: not in the table, no range or condition is applied to it
    OBJECT_FILLING = 8          # a fill is under way
    OBJECT_DETACHED = 16        # out of the table
    OBJECT_STRONG = 32          # strong validator: an evicted slice can be fetched again
    OBJECT_STREAM = 64          # an endless private body: what its one reader has read is not kept
    OBJECT_BY_SLICES = 256      # its origin knows one range a request: several are fetched slice by slice
    OBJECT_ON_DISK = 128        # every slice is on the disk: what is absent here costs the origin nothing

cdef struct Head:               # immutable once published; a 304 swaps it
    int64_t fresh_until_ns      # all times: CLOCK_MONOTONIC
    int64_t stale_until_ns      # may be served while it is refreshed in the background
    int64_t validated_ns        # when the upstream request that this head rests on was sent
    int64_t born_ns             # now - born = Age (RFC 9111 section 4.2.3)
    int64_t last_modified_s     # -1: none
    uint32_t status
    uint32_t flags
    uint32_t status_line_length # bytes: status line, field lines, then those for a 304
    uint32_t lines_length       # without the status line and without the last empty line
    uint32_t short_length       # the field lines of a 304 (RFC 9110 section 15.4.5)
    uint32_t etag               # offset in bytes; 0: none
    uint32_t etag_length
    uint32_t size               # of this allocation

cdef struct Slice:
    uint8_t* data               # NULL: absent
    uint32_t filled             # bytes that readers may use, from the slice's start
    uint32_t capacity
    uint32_t wanted             # a reader has asked for it
    uint32_t first              # where `data` begins, in the slice: 0 but for a stream
    uint32_t reading            # SLICE_UNREAD and so on

cdef struct Tagged:             # one tag of one object (ext/tags.pxd)
    Tagged* next                # in its bucket
    Tagged* previous
    uint64_t tag
    Object* object              # NULL once it has left the table

cdef struct Directory:
    uint64_t n
    Slice slices[1]

cdef struct VaryNames:          # followed by n bytes: lower-case names, each with a trailing newline
    uint32_t id                 # unique: a variant is only compared under the names that its values belong to
    uint32_t n

cdef struct Entry:              # one key
    Object* variants            # newest first
    VaryNames* vary             # NULL: the responses don't vary
    int64_t unshareable_until_ns
    Entry* older_mark           # list of the marked entries (writers only)
    Entry* newer_mark
    uint64_t hash
    uint32_t n_variants
    uint32_t origin
    uint32_t key_length
    uint32_t size

cdef struct Object:
    Head* head
    Directory* directory
    Object* next_variant
    Entry* entry                # NULL once detached (writers only)
    uint8_t* vary_key
    int64_t total_length        # -1: not known yet
    int64_t want                # furthest byte that a reader is at
    int64_t resume_at           # the fill pauses until a reader gets here; INT64_MAX: not paused
    uint64_t refs
    uint32_t readers
    uint32_t flags
    uint32_t waiting            # bit w: worker w has readers who wait
    uint32_t nudged
    uint32_t refreshing         # a background refresh is under way
    uint32_t vary_key_length
    uint32_t vary_id            # VaryNames.id; 0: no Vary
    uint8_t visited
    uint8_t class_index
    uint8_t kind
    uint8_t is_queued           # in the eviction queue
    uint32_t fills              # fills that write into it (writers only)
    uint32_t handles            # how many StoredObjects name it (writers only)
    uint32_t origin
    uint64_t n_filled_bytes     # body bytes in memory (writers only)
    uint64_t generation         # its name on the disk; 0: it isn't kept there (writers only)
    Tagged* tags                # writers only, as all of ext/tags.pxd
    uint32_t n_tags
    Object* newer               # eviction queue (SIEVE)
    Object* older

cdef struct Table:
    uint64_t mask
    uint64_t n_taken            # with tombstones
    uint64_t n_live
    uint64_t size
    Entry* buckets[1]

cdef struct Retired:
    void* piece
    uint64_t size               # 0: `piece` is an Object
    uint64_t weight             # bytes that come free with it
    uint64_t epoch

cdef struct WorkerEpoch:        # a cache line each
    uint64_t epoch              # 0: offline
    uint64_t padding[7]

cdef struct Store:              # allocated on a cache line; what workers write stands apart from what they read
    WorkerEpoch workers[32]
    uint64_t epoch
    uint64_t padding_epoch[7]
    uint64_t outside            # bytes of connections, their buffers and exchanges, which count against the limit
    uint64_t padding_outside[7]
    Table* table
    uint64_t secret[2]
    uint64_t reserve            # bytes that objects leave free for `outside` to grow into before anything is evicted
    uint64_t given_up           # and those that they leave the machine, which is short of memory (writers only)
    uint32_t n_workers
    uint32_t slice_bytes
    pthread_mutex_t lock
    Arena arena
    Retired* retired            # ring, oldest first
    uint64_t retired_first
    uint64_t retired_n
    uint64_t retired_capacity
    uint64_t retired_bytes
    Object* newest
    Object* oldest
    Object* hand
    uint64_t n_queued
    uint64_t class_bytes[256]   # body bytes of the queue's objects, by Object.class_index
    uint64_t class_quota[256]   # the most of them that plane.reclaim() leaves; 0: no bound of the class's own
    uint64_t n_objects          # complete variants in the table
    uint64_t n_evictions
    uint64_t n_refused
    Entry* oldest_mark
    Entry* newest_mark
    uint64_t n_marks
    Tagged** tag_buckets        # NULL until an object has a tag
    uint32_t last_vary_id
    void (*destroy)(Store*, Object*) noexcept nogil
    bint (*make_room)(Store*, uint64_t) noexcept nogil

cdef inline uint8_t* head_bytes(Head* head) noexcept nogil:
    return <uint8_t*>head + sizeof(Head)

cdef inline void count_filled(Store* store, Object* object, int64_t n) noexcept nogil:
    """Body bytes came into memory, or left it."""
    object.n_filled_bytes += <uint64_t>n
    if object.is_queued:
        store.class_bytes[object.class_index] += <uint64_t>n

# --- writers (Store.lock held) ----------------------------------------------------------------------------------------
cdef bint store_open(Store* store, uint64_t limit, uint32_t slice_bytes, uint32_t n_workers, const uint8_t* secret) noexcept nogil
cdef void store_close(Store* store) noexcept nogil
cdef Object* object_new(Store* store, Head* head, int64_t total_length, uint32_t origin, uint32_t flags) noexcept nogil
cdef uint32_t object_fail(Store* store, Object* object) noexcept nogil
cdef uint64_t evict(Store* store, uint64_t bytes) noexcept nogil
cdef void hold_quotas(Store* store) noexcept nogil
cdef uint64_t over_budget(Store* store) noexcept nogil
