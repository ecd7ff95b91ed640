# The store behind store.pxd: opening and closing, the life of an object, and the order in which they are evicted.
from libc.stdint cimport INT64_MAX
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from ext.arena cimport arena_close, arena_free, arena_init
from ext.atomics cimport *
from ext.body cimport directory_bytes, empty_slice, take_waiting
from ext.reclaim cimport reclaim, retire, store_allocate
from ext.table cimport drop_marks, entry_prune, table_detach, table_new, unmark
from ext.tags cimport TAG_BUCKETS, tags_free, tags_unlink

cdef enum:
    MIN_RESERVE = 1048576
    MAX_RESERVE = 67108864


cdef bint store_open(Store* store, uint64_t limit, uint32_t slice_bytes, uint32_t n_workers, const uint8_t* secret) noexcept nogil:
    cdef uint64_t n = 1024
    memset(store, 0, sizeof(Store))
    store.epoch = 1
    store.destroy = object_destroy
    store.make_room = make_room
    store.n_workers = n_workers
    store.slice_bytes = slice_bytes
    memcpy(store.secret, secret, 16)
    pthread_mutex_init(&store.lock, NULL)
    arena_init(&store.arena, limit)
    # Small pieces come free a slab at a time, so the reserve is worth several slabs even where memory is short.
    store.reserve = limit // 32
    if store.reserve < MIN_RESERVE:
        store.reserve = limit // 8 if limit // 8 < MIN_RESERVE else MIN_RESERVE
    if store.reserve > MAX_RESERVE:
        store.reserve = MAX_RESERVE
    store.retired_capacity = 1024
    store.retired = <Retired*>malloc(store.retired_capacity * sizeof(Retired))
    store.table = table_new(store, n)
    return store.retired != NULL and store.table != NULL


cdef void store_close(Store* store) noexcept nogil:
    """Frees everything that nobody references. No worker may run any more."""
    cdef uint64_t i
    cdef Entry* entry
    cdef Table* table = store.table
    cdef Object* object
    if table == NULL:
        return
    for i in range(table.mask + 1):
        entry = table.buckets[i]
        if <uint64_t>entry > 1:
            while entry.variants != NULL:
                object = entry.variants
                table_detach(store, object)
                entry = table.buckets[i]
                if <uint64_t>entry <= 1:
                    break
            if <uint64_t>entry > 1:
                unmark(store, entry)
                entry_prune(store, entry)
    reclaim(store)
    arena_free(&store.arena, table, table.size)
    store.table = NULL
    if store.tag_buckets != NULL:
        arena_free(&store.arena, store.tag_buckets, TAG_BUCKETS * sizeof(Tagged*))
        store.tag_buckets = NULL
    arena_close(&store.arena)
    free(store.retired)
    store.retired = NULL
    pthread_mutex_destroy(&store.lock)


cdef Object* object_new(Store* store, Head* head, int64_t total_length, uint32_t origin, uint32_t flags) noexcept nogil:
    """An object with one reference, the caller's. `head` becomes its property. NULL: no memory, or too long."""
    cdef uint64_t n = 1
    cdef Object* object
    if total_length > <int64_t>store.slice_bytes * MAX_SLICES:
        return NULL
    if total_length > store.slice_bytes:
        n = <uint64_t>(total_length + store.slice_bytes - 1) // store.slice_bytes
    object = <Object*>store_allocate(store, sizeof(Object))
    if object == NULL:
        return NULL
    memset(object, 0, sizeof(Object))
    object.directory = <Directory*>store_allocate(store, directory_bytes(n))
    if object.directory == NULL:
        arena_free(&store.arena, object, sizeof(Object))
        return NULL
    memset(object.directory, 0, directory_bytes(n))
    object.directory.n = n
    object.head = head
    object.total_length = total_length
    object.resume_at = INT64_MAX
    object.refs = 1
    object.origin = origin
    object.flags = flags
    if not flags & OBJECT_PRIVATE:
        enqueue(store, object)
    return object


cdef uint32_t object_fail(Store* store, Object* object) noexcept nogil:
    """The source broke off: out of the table, and every reader breaks its transfer."""
    table_detach(store, object)
    or_u32(&object.flags, OBJECT_FAILED)
    return take_waiting(object)


cdef void object_destroy(Store* store, Object* object) noexcept nogil:
    cdef uint64_t i
    unqueue(store, object)
    tags_unlink(store, object)
    tags_free(store, object)
    for i in range(object.directory.n):
        if object.directory.slices[i].data != NULL:
            arena_free(&store.arena, object.directory.slices[i].data, object.directory.slices[i].capacity)
    arena_free(&store.arena, object.directory, directory_bytes(object.directory.n))
    if object.head != NULL:
        arena_free(&store.arena, object.head, object.head.size)
    if object.vary_key != NULL:
        arena_free(&store.arena, object.vary_key, object.vary_key_length)
    arena_free(&store.arena, object, sizeof(Object))


# --- eviction: SIEVE (Zhang et al., NSDI 2024) -------------------------------------------------------------------------
# New objects enter at the newest end and get one chance: a scan of objects read once passes through without touching
# those that were read again, which the hand skips.

cdef void enqueue(Store* store, Object* object) noexcept nogil:
    object.older = store.newest
    object.newer = NULL
    if store.newest != NULL:
        store.newest.newer = object
    store.newest = object
    if store.oldest == NULL:
        store.oldest = object
    object.is_queued = 1
    store.n_queued += 1
    store.class_bytes[object.class_index] += object.n_filled_bytes


cdef void unqueue(Store* store, Object* object) noexcept nogil:
    if not object.is_queued:
        return
    if store.hand == object:
        store.hand = object.newer
    if object.newer != NULL:
        object.newer.older = object.older
    else:
        store.newest = object.older
    if object.older != NULL:
        object.older.newer = object.newer
    else:
        store.oldest = object.newer
    object.is_queued = 0
    store.n_queued -= 1
    store.class_bytes[object.class_index] -= object.n_filled_bytes


cdef uint64_t evict_object(Store* store, Object* object, uint64_t bytes, bint only_passed) noexcept nogil:
    """What one object can give: all of it, or about `bytes` in slices of one that is read and can be fetched again;
    `only_passed`: not those that nobody has read yet."""
    cdef uint64_t freed = 0
    cdef uint64_t i
    cdef Slice* slice
    cdef int turn
    if object.fills == 0 and load_u64(&object.refs) == 0:
        if object.entry == NULL:
            return 0            # retired already: its memory is on its way
        # The body goes with the object, once the workers have passed: a reader that took it in this pass keeps it.
        freed = sizeof(Object) + object.n_filled_bytes
        store.n_evictions += 1
        unqueue(store, object)
        table_detach(store, object)
        return freed
    if not object.flags & OBJECT_STRONG:
        return 0
    # What somebody has read goes first: what was just fetched for a reader must reach him.
    for turn in range(1 if only_passed else 2):
        for i in range(object.directory.n):
            # Only a full slice: a fill may write to any other, which would find its place gone and never get on. While
            # the length isn't known the first slice grows, so it is full only at its largest.
            slice = &object.directory.slices[i]
            if slice.data == NULL or slice.filled != slice.capacity or (turn == 0 and load_u32(&slice.reading) != SLICE_PASSED):
                continue
            if object.total_length >= 0 or slice.capacity == store.slice_bytes:
                freed += empty_slice(store, object, i)
                if freed >= bytes:
                    return freed
    return freed


cdef uint64_t evict(Store* store, uint64_t bytes) noexcept nogil:
    """Evicts until about `bytes` are on their way to be freed. Returns how many; 0: nothing can go."""
    cdef uint64_t freed = 0
    cdef uint64_t steps = 3 * store.n_queued + 3
    cdef uint64_t last_lap = store.n_queued + 1
    cdef Object* object = store.hand
    cdef Object* following
    while steps and freed < bytes:
        steps -= 1
        if object == NULL:
            object = store.oldest
            if object == NULL:
                break
        following = object.newer
        if load_u8_relaxed(&object.visited):
            store_u8_relaxed(&object.visited, 0)
        else:
            # Only once all that is visited has been spared, and what could go has gone: a body that is larger than what
            # the hand finds at its turn would else lose its own beginning while it comes (decisions/0140).
            freed += evict_object(store, object, bytes - freed, steps > last_lap)
        object = following
    store.hand = object
    return freed


cdef void hold_quotas(Store* store) noexcept nogil:
    """Each class that has more than its quota gives back a sixteenth more than that, by the same rule as all together."""
    cdef Object* object
    cdef Object* following
    cdef uint64_t steps, excess
    cdef uint32_t i
    for i in range(256):
        if store.class_quota[i] == 0 or store.class_bytes[i] <= store.class_quota[i]:
            continue
        excess = store.class_bytes[i] - store.class_quota[i] + store.class_quota[i] // 16
        steps = 2 * store.n_queued
        object = store.oldest
        while steps and excess:
            steps -= 1
            if object == NULL:
                object = store.oldest
                if object == NULL:
                    break
            following = object.newer
            if object.class_index == i:
                if load_u8_relaxed(&object.visited):
                    store_u8_relaxed(&object.visited, 0)
                else:
                    excess -= min(excess, evict_object(store, object, excess, True))
            object = following


cdef uint64_t over_budget(Store* store) noexcept nogil:
    """How many bytes objects must give back, so that connections have their reserve."""
    cdef uint64_t sum = store.arena.mapped + load_u64_relaxed(&store.outside) + store.reserve + store.given_up
    return sum - store.arena.limit if sum > store.arena.limit else 0


cdef bint make_room(Store* store, uint64_t size) noexcept nogil:
    """For an allocation of `size` bytes: objects go first, then what is remembered of keys. False: nothing can go."""
    if evict(store, size) != 0:
        return True
    if store.n_marks == 0:
        return False
    drop_marks(store, INT64_MAX, 1024)
    return True
