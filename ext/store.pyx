# The object store behind store.pxd: hashing, epochs, bodies, the table. Eviction order is SIEVE (at the end).
# Knows neither sockets nor HTTP rules: freshness is only compared elsewhere, matching by Vary is done here.
from libc.stdint cimport INT64_MAX
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, memset

from ext.arena cimport arena_allocate, arena_free, arena_init, arena_trim
from ext.atomics cimport *
from ext.http_head cimport FIELD_ACCEPT_ENCODING, Field

cdef enum:
    MIN_RESERVE = 1048576
    MAX_RESERVE = 67108864


cdef inline uint64_t rotl(uint64_t x, int b) noexcept nogil:
    return (x << b) | (x >> (64 - b))


cdef uint64_t hash_bytes(const uint64_t* secret, const uint8_t* data, uint64_t n) noexcept nogil:
    """SipHash-1-3 (Aumasson and Bernstein 2012; the variant that CPython and Rust hash strings with)."""
    cdef uint64_t v0 = secret[0] ^ 0x736f6d6570736575ULL
    cdef uint64_t v1 = secret[1] ^ 0x646f72616e646f6dULL
    cdef uint64_t v2 = secret[0] ^ 0x6c7967656e657261ULL
    cdef uint64_t v3 = secret[1] ^ 0x7465646279746573ULL
    cdef uint64_t word, last = n << 56
    cdef uint64_t i = 0
    cdef int round
    while True:
        if i + 8 <= n:
            memcpy(&word, data + i, 8)
        else:
            word = last
            if n > i:
                memcpy(&word, data + i, n - i)
                word = (word & ((<uint64_t>1 << (8 * (n - i))) - 1)) | last
        v3 ^= word
        v0 += v1; v1 = rotl(v1, 13); v1 ^= v0; v0 = rotl(v0, 32)
        v2 += v3; v3 = rotl(v3, 16); v3 ^= v2
        v0 += v3; v3 = rotl(v3, 21); v3 ^= v0
        v2 += v1; v1 = rotl(v1, 17); v1 ^= v2; v2 = rotl(v2, 32)
        v0 ^= word
        if i + 8 > n:
            break
        i += 8
    v2 ^= 0xff
    for round in range(3):
        v0 += v1; v1 = rotl(v1, 13); v1 ^= v0; v0 = rotl(v0, 32)
        v2 += v3; v3 = rotl(v3, 16); v3 ^= v2
        v0 += v3; v3 = rotl(v3, 21); v3 ^= v0
        v2 += v1; v1 = rotl(v1, 17); v1 ^= v2; v2 = rotl(v2, 32)
    return v0 ^ v1 ^ v2 ^ v3


cdef uint64_t hash_key(Store* store, uint32_t origin, const uint8_t* key, uint32_t n) noexcept nogil:
    cdef uint64_t mixed[2]
    mixed[0] = store.secret[0] + origin
    mixed[1] = store.secret[1]
    return hash_bytes(mixed, key, n)


# --- epochs -----------------------------------------------------------------------------------------------------------
# QSBR (McKenney; Hart et al. 2007). Both sides touch a worker's epoch by read-modify-write only: these are totally
# ordered, so either the reclaimer sees the worker online, or the worker sees all that was unlinked before.

cdef void epoch_enter(Store* store, uint32_t worker) noexcept nogil:
    exchange_u64(&store.workers[worker].epoch, load_u64_seq(&store.epoch))


cdef void epoch_leave(Store* store, uint32_t worker) noexcept nogil:
    store_u64(&store.workers[worker].epoch, 0)


cdef void retire(Store* store, void* piece, uint64_t size) noexcept nogil:
    """Frees `piece` (of `size` bytes; 0: an Object) once every online worker has passed."""
    cdef Retired* ring
    cdef uint64_t i, capacity
    if piece == NULL:
        return
    if store.retired_n == store.retired_capacity:
        capacity = store.retired_capacity * 2
        ring = <Retired*>malloc(capacity * sizeof(Retired))
        if ring == NULL:
            return              # leaks one piece rather than freeing it under a reader
        for i in range(store.retired_n):
            ring[i] = store.retired[(store.retired_first + i) & (store.retired_capacity - 1)]
        free(store.retired)
        store.retired = ring
        store.retired_first = 0
        store.retired_capacity = capacity
    ring = &store.retired[(store.retired_first + store.retired_n) & (store.retired_capacity - 1)]
    ring.piece = piece
    ring.size = size
    # What readers hold on to doesn't come free within a pass, so it must not keep others from being evicted.
    ring.weight = size
    if size == 0 and load_u64(&(<Object*>piece).refs) == 0:
        ring.weight = (<Object*>piece).n_filled_bytes
    ring.epoch = add_u64(&store.epoch, 1) + 1
    store.retired_n += 1
    store.retired_bytes += ring.weight


cdef void reclaim(Store* store) noexcept nogil:
    """Frees what no worker can still see. An object that is still referenced goes to the ring's end.

    `refs` can't rise from 0 any more by then: no worker can find the object."""
    cdef uint64_t least = ~<uint64_t>0
    cdef uint64_t epoch, n
    cdef uint32_t w
    cdef Retired item
    cdef Object* object
    for w in range(store.n_workers):
        epoch = add_u64(&store.workers[w].epoch, 0)
        if epoch != 0 and epoch < least:
            least = epoch
    n = store.retired_n
    while n:
        n -= 1
        item = store.retired[store.retired_first & (store.retired_capacity - 1)]
        if item.epoch > least:
            break
        store.retired_first += 1
        store.retired_n -= 1
        store.retired_bytes -= item.weight
        if item.size:
            arena_free(&store.arena, item.piece, item.size)
            continue
        object = <Object*>item.piece
        if load_u64(&object.refs) != 0:
            retire(store, object, 0)
        else:
            object_destroy(store, object)


cdef void object_destroy(Store* store, Object* object) noexcept nogil:
    cdef uint64_t i
    unqueue(store, object)
    for i in range(object.directory.n):
        if object.directory.slices[i].data != NULL:
            arena_free(&store.arena, object.directory.slices[i].data, object.directory.slices[i].capacity)
    arena_free(&store.arena, object.directory, directory_bytes(object.directory.n))
    if object.head != NULL:
        arena_free(&store.arena, object.head, object.head.size)
    if object.vary_key != NULL:
        arena_free(&store.arena, object.vary_key, object.vary_key_length)
    arena_free(&store.arena, object, sizeof(Object))


# --- memory -----------------------------------------------------------------------------------------------------------

cdef inline uint64_t directory_bytes(uint64_t n) noexcept nogil:
    return sizeof(Directory) + (n - 1) * sizeof(Slice)


cdef void* store_allocate(Store* store, uint64_t size) noexcept nogil:
    """Memory within the budget, evicting for it; NULL when what was evicted isn't reclaimed yet or all is in use.

    May evict any object without references, and full slices of any strong one: callers look again at what they had."""
    cdef void* piece = arena_allocate(&store.arena, size, load_u64_relaxed(&store.outside) + store.reserve)
    cdef int attempt
    if piece != NULL:
        return piece
    for attempt in range(64):
        reclaim(store)
        piece = arena_allocate(&store.arena, size, load_u64_relaxed(&store.outside) + store.reserve)
        if piece != NULL:
            return piece
        # What is retired comes free within a pass of the workers: evicting more meanwhile would empty the store.
        if store.retired_bytes > 4 * size + 2 * store.slice_bytes:
            break
        if evict(store, size) == 0:
            if store.n_marks == 0:
                break
            drop_marks(store, INT64_MAX, 1024)
    store.n_refused += 1
    return NULL


cdef bint store_open(Store* store, uint64_t limit, uint32_t slice_bytes, uint32_t n_workers, const uint8_t* secret) noexcept nogil:
    cdef uint64_t n = 1024
    memset(store, 0, sizeof(Store))
    store.epoch = 1
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
    arena_trim(&store.arena)
    free(store.retired)
    store.retired = NULL
    pthread_mutex_destroy(&store.lock)


# --- bodies -----------------------------------------------------------------------------------------------------------

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


cdef void object_release(Object* object) noexcept nogil:
    add_u64(&object.refs, <uint64_t>-1)


cdef bint grow_directory(Store* store, Object* object, uint64_t n) noexcept nogil:
    cdef Directory* old = object.directory
    cdef Directory* new
    cdef uint64_t i
    cdef uint64_t size = old.n * 2
    if size < 16:
        size = 16
    if size < n:
        size = n
    if n > MAX_SLICES:
        return False
    new = <Directory*>store_allocate(store, directory_bytes(size))
    if new == NULL:
        return False
    old = object.directory      # unchanged: allocation only evicts others or empties slices in place
    memset(new, 0, directory_bytes(size))
    new.n = size
    for i in range(old.n):
        new.slices[i].data = old.slices[i].data
        new.slices[i].filled = old.slices[i].filled
        new.slices[i].capacity = old.slices[i].capacity
        # A reader that sets `wanted` in the old directory now asks twice, which costs one exchange.
        new.slices[i].wanted = load_u32(&old.slices[i].wanted)
    store_ptr(<void**>&object.directory, new)
    retire(store, old, directory_bytes(old.n))
    return True


cdef uint8_t* object_room(Store* store, Object* object, int64_t offset, uint64_t* n) noexcept nogil:
    """Memory for body bytes from `offset` on, which must be where its slice is filled to. NULL: none just now."""
    cdef uint64_t index = <uint64_t>offset // store.slice_bytes
    cdef uint32_t within = <uint32_t>(<uint64_t>offset % store.slice_bytes)
    cdef uint32_t capacity
    cdef uint8_t* data
    cdef uint8_t* old
    cdef Slice* slice
    if index >= object.directory.n and (object.total_length >= 0 or not grow_directory(store, object, index + 1)):
        return NULL
    slice = &object.directory.slices[index]
    if within != slice.filled:
        return NULL
    if slice.data == NULL or within == slice.capacity:
        if object.total_length >= 0:
            capacity = store.slice_bytes
            if <int64_t>((index + 1) * store.slice_bytes) > object.total_length:
                capacity = <uint32_t>(object.total_length - <int64_t>(index * store.slice_bytes))
        elif index > 0:
            capacity = store.slice_bytes
        elif slice.data == NULL:
            capacity = FIRST_ROOM_BYTES if store.slice_bytes > FIRST_ROOM_BYTES else store.slice_bytes
        else:
            capacity = slice.capacity * 2 if slice.capacity * 2 < store.slice_bytes else store.slice_bytes
        if capacity <= within:
            return NULL
        data = <uint8_t*>store_allocate(store, capacity)
        if data == NULL:
            return NULL
        slice = &object.directory.slices[index]
        old = slice.data
        if within != slice.filled:      # evicted meanwhile: the caller's offset is no longer the slice's end
            arena_free(&store.arena, data, capacity)
            return NULL
        if old != NULL:
            memcpy(data, old, within)
            store_ptr(<void**>&slice.data, data)
            retire(store, old, slice.capacity)
        else:
            store_ptr(<void**>&slice.data, data)
        slice.capacity = capacity
    n[0] = slice.capacity - within
    return slice.data + within


cdef uint32_t take_waiting(Object* object) noexcept nogil:
    """The workers to wake, each once."""
    return exchange_u32(&object.waiting, 0)


cdef uint32_t object_commit(Store* store, Object* object, int64_t offset, uint64_t n) noexcept nogil:
    """Publishes `n` bytes that were put in object_room(offset). Returns the workers to wake.

    The slice stays wanted: a reader at its end waits for the fill and must not ask again at each append."""
    cdef Slice* slice = &object.directory.slices[<uint64_t>offset // store.slice_bytes]
    object.n_filled_bytes += n
    store_u32_seq(&slice.filled, slice.filled + <uint32_t>n)
    return take_waiting(object)


cdef bint is_whole(Store* store, Object* object) noexcept nogil:
    """Whether each byte is in memory."""
    return object.total_length >= 0 and object.n_filled_bytes == <uint64_t>object.total_length


cdef uint32_t object_finish(Store* store, Object* object, int64_t total_length) noexcept nogil:
    """The body is whole and `total_length` long. Memory that was taken in excess is given back."""
    cdef Slice* slice
    cdef uint8_t* data
    cdef uint64_t last = 0, i
    cdef uint32_t size
    if total_length > 0:
        last = <uint64_t>(total_length - 1) // store.slice_bytes
    for i in range(last, object.directory.n):
        # Room that was taken before the end was known, and nothing came.
        if object.directory.slices[i].filled == 0:
            empty_slice(store, object, i)
    if last < object.directory.n:
        slice = &object.directory.slices[last]
        size = slice.filled
        if slice.data != NULL and slice.capacity > size + size // 4 + 64:
            data = <uint8_t*>store_allocate(store, size)
            slice = &object.directory.slices[last]
            if data != NULL and slice.data != NULL and slice.filled == size:
                memcpy(data, slice.data, size)
                retire(store, slice.data, slice.capacity)
                store_ptr(<void**>&slice.data, data)
                slice.capacity = size
            elif data != NULL:      # evicted by the allocation
                arena_free(&store.arena, data, size)
    store_i64_seq(&object.total_length, total_length)
    if not object.flags & OBJECT_COMPLETE and object.entry != NULL:
        store.n_objects += 1
    or_u32(&object.flags, OBJECT_COMPLETE)
    return take_waiting(object)


cdef uint32_t object_fail(Store* store, Object* object) noexcept nogil:
    """The source broke off: out of the table, and every reader breaks its transfer."""
    table_detach(store, object)
    or_u32(&object.flags, OBJECT_FAILED)
    return take_waiting(object)


cdef void drop_before(Store* store, Object* object, int64_t offset) noexcept nogil:
    """Empties the slices that end at or before `offset`: a private body is kept only until it is sent."""
    cdef uint64_t i = 0
    cdef Slice* slice
    while i < object.directory.n and <int64_t>((i + 1) * store.slice_bytes) <= offset:
        empty_slice(store, object, i)
        i += 1


cdef uint64_t empty_slice(Store* store, Object* object, uint64_t index) noexcept nogil:
    cdef Slice* slice = &object.directory.slices[index]
    cdef uint8_t* data = slice.data
    cdef uint64_t capacity = slice.capacity
    if data == NULL:
        return 0
    object.n_filled_bytes -= slice.filled
    # body_at says why a reader that comes in between is safe.
    store_u32_seq(&slice.filled, 0)
    store_ptr(<void**>&slice.data, NULL)
    slice.capacity = 0
    store_u32(&slice.wanted, 0)
    retire(store, data, capacity)
    return capacity


cdef uint8_t* body_at(Store* store, Object* object, int64_t offset, uint64_t* n) noexcept nogil:
    """Body bytes at `offset` and how many there are in a row; NULL: not here now. Good until the pass ends.

    `filled` is read on both sides of `data`. Read before only, it could be that of memory evicted since, with `data`
    already that of a refill that has not got as far; read after only, that of memory grown since. The lesser of both is
    good for the memory in between: only full slices are emptied, and old memory lives on until this pass ends."""
    cdef Directory* directory = <Directory*>load_ptr(<void**>&object.directory)
    cdef uint64_t index = <uint64_t>offset // store.slice_bytes
    cdef uint32_t within = <uint32_t>(<uint64_t>offset % store.slice_bytes)
    cdef uint32_t filled, filled_after
    cdef uint8_t* data
    if index >= directory.n:
        return NULL
    filled = load_u32_seq(&directory.slices[index].filled)
    if filled <= within:
        return NULL
    data = <uint8_t*>load_ptr(<void**>&directory.slices[index].data)
    if data == NULL:
        return NULL
    filled_after = load_u32_seq(&directory.slices[index].filled)
    if filled_after < filled:
        filled = filled_after
        if filled <= within:
            return NULL
    n[0] = filled - within
    return data + within


cdef bint body_wait(Store* store, Object* object, int64_t offset, uint32_t worker) noexcept nogil:
    """Asks for a wake-up at the next append; True when there is something to do at once. The caller has already put
    itself into its worker's list (sequentially consistent pair with object_commit)."""
    cdef uint64_t n
    or_u32(&object.waiting, <uint32_t>1 << worker)
    if body_at(store, object, offset, &n) != NULL:
        return True
    if load_u32_seq(&object.flags) & OBJECT_FAILED:
        return True
    return load_i64_seq(&object.total_length) == offset


# --- the table --------------------------------------------------------------------------------------------------------

cdef Table* table_new(Store* store, uint64_t n) noexcept nogil:
    cdef uint64_t size = sizeof(Table) + (n - 1) * sizeof(Entry*)
    cdef Table* table = <Table*>store_allocate(store, size)
    if table == NULL:
        return NULL
    memset(table, 0, size)
    table.mask = n - 1
    table.size = size
    return table


cdef inline uint8_t* entry_key(Entry* entry) noexcept nogil:
    return <uint8_t*>entry + sizeof(Entry)


cdef Entry* table_find(Store* store, uint64_t hash, uint32_t origin, const uint8_t* key, uint32_t n) noexcept nogil:
    cdef Table* table = <Table*>load_ptr(<void**>&store.table)
    cdef uint64_t i = hash & table.mask
    cdef Entry* entry
    while True:
        entry = <Entry*>load_ptr(<void**>&table.buckets[i])
        if entry == NULL:
            return NULL
        if (<uint64_t>entry != 1 and entry.hash == hash and entry.origin == origin and entry.key_length == n
                and memcmp(entry_key(entry), key, n) == 0):
            return entry
        i = (i + 1) & table.mask


cdef void table_put(Table* table, Entry* entry) noexcept nogil:
    cdef uint64_t i = entry.hash & table.mask
    while <uint64_t>table.buckets[i] > 1:
        i = (i + 1) & table.mask
    if table.buckets[i] == NULL:
        table.n_taken += 1
    table.n_live += 1
    store_ptr(<void**>&table.buckets[i], entry)


cdef bint table_grow(Store* store) noexcept nogil:
    """Keeps at least a third of the buckets NULL, so that a probe ends soon; also sweeps tombstones out."""
    cdef Table* old = store.table
    cdef Table* new
    cdef uint64_t i, n
    if old.n_taken * 3 < (old.mask + 1) * 2:
        return True
    n = (old.mask + 1) * 2 if old.n_live * 3 >= old.mask + 1 else old.mask + 1
    new = table_new(store, n)
    if new == NULL:
        return old.n_taken * 8 < (old.mask + 1) * 7
    for i in range(old.mask + 1):
        if <uint64_t>old.buckets[i] > 1:
            table_put(new, old.buckets[i])
    store_ptr(<void**>&store.table, new)
    retire(store, old, old.size)
    return True


cdef Entry* entry_get(Store* store, uint64_t hash, uint32_t origin, const uint8_t* key, uint32_t n) noexcept nogil:
    cdef Entry* entry = table_find(store, hash, origin, key, n)
    cdef uint32_t size = sizeof(Entry) + n
    if entry != NULL:
        return entry
    entry = <Entry*>store_allocate(store, size)
    if entry == NULL:
        return NULL
    memset(entry, 0, sizeof(Entry))
    memcpy(entry_key(entry), key, n)
    entry.hash = hash
    entry.origin = origin
    entry.key_length = n
    entry.size = size
    if not table_grow(store):
        arena_free(&store.arena, entry, size)
        return NULL
    table_put(store.table, entry)
    return entry


cdef void entry_prune(Store* store, Entry* entry) noexcept nogil:
    """Takes an entry without variants and without a mark out of the table."""
    cdef Table* table = store.table
    cdef uint64_t i = entry.hash & table.mask
    if entry.n_variants != 0 or entry.unshareable_until_ns != 0:
        return
    while table.buckets[i] != entry:
        if table.buckets[i] == NULL:
            return
        i = (i + 1) & table.mask
    store_ptr(<void**>&table.buckets[i], <void*>1)
    table.n_live -= 1
    if entry.vary != NULL:
        retire(store, entry.vary, sizeof(VaryNames) + entry.vary.n)
    retire(store, entry, entry.size)


cdef bint mark_unshareable(Store* store, uint64_t hash, uint32_t origin, const uint8_t* key, uint32_t n, int64_t until_ns) noexcept nogil:
    """Remembers until then that the key's responses can't be shared; 0 forgets it. The oldest marks make room for new
    ones: an entry without variants is no object, so that nothing else would ever take it out. False: no memory."""
    cdef Entry* entry
    if until_ns == 0:
        entry = table_find(store, hash, origin, key, n)
        if entry == NULL:
            return True
        unmark(store, entry)
        entry_prune(store, entry)
        return True
    entry = entry_get(store, hash, origin, key, n)
    if entry == NULL:
        return False
    unmark(store, entry)
    store_i64(&entry.unshareable_until_ns, until_ns)
    entry.older_mark = store.newest_mark
    entry.newer_mark = NULL
    if store.newest_mark != NULL:
        store.newest_mark.newer_mark = entry
    else:
        store.oldest_mark = entry
    store.newest_mark = entry
    store.n_marks += 1
    if store.n_marks > MAX_MARKS:
        drop_marks(store, INT64_MAX, 1)
    return True


cdef void unmark(Store* store, Entry* entry) noexcept nogil:
    if entry.unshareable_until_ns == 0:
        return
    store_i64(&entry.unshareable_until_ns, 0)
    if entry.newer_mark != NULL:
        entry.newer_mark.older_mark = entry.older_mark
    else:
        store.newest_mark = entry.older_mark
    if entry.older_mark != NULL:
        entry.older_mark.newer_mark = entry.newer_mark
    else:
        store.oldest_mark = entry.newer_mark
    store.n_marks -= 1


cdef void drop_marks(Store* store, int64_t before_ns, uint64_t most) noexcept nogil:
    """Forgets up to `most` of the oldest marks that end before then."""
    cdef Entry* entry
    while most and store.oldest_mark != NULL and store.oldest_mark.unshareable_until_ns < before_ns:
        most -= 1
        entry = store.oldest_mark
        unmark(store, entry)
        entry_prune(store, entry)


cdef void unlink_variant(Entry* entry, Object* object) noexcept nogil:
    cdef Object** link = &entry.variants
    while link[0] != NULL and link[0] != object:
        link = &link[0].next_variant
    if link[0] == object:
        # A reader that stands on `object` goes on through its next_variant, which stays.
        store_ptr(<void**>link, object.next_variant)
        entry.n_variants -= 1


cdef void table_detach(Store* store, Object* object) noexcept nogil:
    """Takes an object out of the table; its memory follows when its readers and the workers have passed."""
    cdef Entry* entry = object.entry
    if entry == NULL:
        return
    if object.flags & OBJECT_COMPLETE:
        store.n_objects -= 1
    unlink_variant(entry, object)
    object.entry = NULL
    or_u32(&object.flags, OBJECT_DETACHED)
    entry_prune(store, entry)
    retire(store, object, 0)


cdef VaryNames* vary_names(Store* store, Entry* entry, const uint8_t* vary, uint32_t n) noexcept nogil:
    """The entry's names when they are the same, else new ones (not published yet). NULL: no memory."""
    cdef VaryNames* names = entry.vary
    if names != NULL and names.n == n and memcmp(<uint8_t*>names + sizeof(VaryNames), vary, n) == 0:
        return names
    names = <VaryNames*>store_allocate(store, sizeof(VaryNames) + n)
    if names != NULL:
        store.last_vary_id += 1
        names.id = store.last_vary_id
        names.n = n
        memcpy(<uint8_t*>names + sizeof(VaryNames), vary, n)
    return names


cdef bint table_insert(Store* store, Object* object, uint64_t hash, uint32_t origin, const uint8_t* key, uint32_t n, const uint8_t* vary, uint32_t vary_length, const uint8_t* vary_key, uint32_t vary_key_length) noexcept nogil:
    """Makes an object findable, in place of the variant with the same Vary values. False: no memory."""
    cdef Entry* entry = entry_get(store, hash, origin, key, n)
    cdef Object* other
    cdef Object* following
    cdef VaryNames* names = NULL
    cdef VaryNames* old_names
    if entry == NULL:
        return False
    # Nothing is evicted out of this entry while it is worked on: an allocation below may evict, and prune it.
    entry.n_variants += 1
    old_names = entry.vary
    if vary_length:
        object.vary_key = <uint8_t*>store_allocate(store, vary_key_length) if vary_key_length else NULL
        names = vary_names(store, entry, vary, vary_length)
        if names == NULL or (vary_key_length and object.vary_key == NULL):
            if names != NULL and names != old_names:
                arena_free(&store.arena, names, sizeof(VaryNames) + vary_length)
            if object.vary_key != NULL:
                arena_free(&store.arena, object.vary_key, vary_key_length)
                object.vary_key = NULL
            entry.n_variants -= 1
            entry_prune(store, entry)
            return False
        memcpy(object.vary_key, vary_key, vary_key_length)
        object.vary_key_length = vary_key_length
        object.vary_id = names.id
    object.entry = entry
    object.next_variant = entry.variants
    store_ptr(<void**>&entry.variants, object)
    if names != old_names:
        store_ptr(<void**>&entry.vary, names)
        if old_names != NULL:
            retire(store, old_names, sizeof(VaryNames) + old_names.n)
    if object.flags & OBJECT_COMPLETE:
        store.n_objects += 1
    # An older variant with other Vary names can no longer be compared; one with the same values is replaced.
    other = object.next_variant
    while other != NULL:
        following = other.next_variant
        if (other.vary_id != object.vary_id or (entry.n_variants > MAX_VARIANTS and following == NULL)
                or (other.vary_key_length == vary_key_length
                    and (vary_key_length == 0 or memcmp(other.vary_key, vary_key, vary_key_length) == 0))):
            table_detach(store, other)
        other = following
    unmark(store, entry)
    return True


# --- variants ---------------------------------------------------------------------------------------------------------

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
                if value[j] == 9 or (value[j] == 32 and j and value[j - 1] == 32):
                    continue
                out[used] = value[j]
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


cdef Object* entry_match(Entry* entry, const uint8_t* data, const RequestHead* head) noexcept nogil:
    """The newest variant that this request may get (RFC 9111 section 4.1), or NULL."""
    cdef uint8_t wanted[MAX_VARY_BYTES]
    cdef int n = 0
    cdef uint32_t id = 0
    cdef VaryNames* names = <VaryNames*>load_ptr(<void**>&entry.vary)
    cdef Object* object
    if names != NULL:
        id = names.id
        n = vary_key_of(<uint8_t*>names + sizeof(VaryNames), names.n, data, head, wanted)
        if n < 0:
            return NULL
    object = <Object*>load_ptr(<void**>&entry.variants)
    while object != NULL:
        if object.vary_id == id and object.vary_key_length == <uint32_t>n and (n == 0 or memcmp(object.vary_key, wanted, n) == 0):
            return object
        object = <Object*>load_ptr(<void**>&object.next_variant)
    return NULL


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


cdef uint64_t evict_object(Store* store, Object* object, uint64_t bytes) noexcept nogil:
    """What one object can give: all of it, or about `bytes` in slices of one that is read and can be fetched again."""
    cdef uint64_t freed = 0
    cdef uint64_t i
    cdef Slice* slice
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
    for i in range(object.directory.n):
        # Only a full slice: a fill may write to any other, which would find its place gone and never get on. While the
        # length isn't known the first slice grows, so it is full only at its largest.
        slice = &object.directory.slices[i]
        if slice.data == NULL or slice.filled != slice.capacity:
            continue
        if object.total_length >= 0 or slice.capacity == store.slice_bytes:
            freed += empty_slice(store, object, i)
            if freed >= bytes:
                break
    return freed


cdef uint64_t evict(Store* store, uint64_t bytes) noexcept nogil:
    """Evicts until about `bytes` are on their way to be freed. Returns how many; 0: nothing can go."""
    cdef uint64_t freed = 0
    cdef uint64_t steps = 2 * store.n_queued + 2
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
            freed += evict_object(store, object, bytes - freed)
        object = following
    store.hand = object
    return freed


cdef uint64_t over_budget(Store* store) noexcept nogil:
    """How many bytes objects must give back, so that connections have their reserve."""
    cdef uint64_t sum = store.arena.mapped + load_u64_relaxed(&store.outside) + store.reserve
    return sum - store.arena.limit if sum > store.arena.limit else 0
