# Bodies in slices behind body.pxd: room, commit, finish, wait. Knows nothing of keys nor of the eviction queue.
from libc.string cimport memcpy, memset

from ext.arena cimport arena_free
from ext.atomics cimport *
from ext.reclaim cimport retire, store_allocate, store_allocate_sendable


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
        new.slices[i].first = old.slices[i].first
        # A reader that sets `wanted` in the old directory now asks twice, which costs one exchange.
        new.slices[i].wanted = load_u32(&old.slices[i].wanted)
        new.slices[i].reading = load_u32(&old.slices[i].reading)
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
    if slice.data == NULL or within - slice.first == slice.capacity:
        if object.flags & OBJECT_STREAM:
            return stream_room(store, object, index, within, n)
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
        # What one viewer reads once isn't worth the fresh pages that a reference needs.
        if object.flags & OBJECT_PRIVATE:
            data = <uint8_t*>store_allocate(store, capacity)
        else:
            data = <uint8_t*>store_allocate_sendable(store, capacity)
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
            store_u32(&slice.reading, SLICE_UNREAD)
            store_ptr(<void**>&slice.data, data)
        slice.capacity = capacity
    n[0] = slice.capacity - (within - slice.first)
    return slice.data + (within - slice.first)


cdef uint8_t* stream_room(Store* store, Object* object, uint64_t index, uint32_t within, uint64_t* n) noexcept nogil:
    """More room for a stream: small, and twice as large as what its reader has not read yet."""
    cdef Slice* slice = &object.directory.slices[index]
    cdef uint32_t unread = within - slice.first if slice.data != NULL else 0
    cdef uint32_t capacity = 2 * unread if unread > STREAM_ROOM_BYTES // 2 else STREAM_ROOM_BYTES
    cdef uint32_t first = within - unread
    cdef uint8_t* data
    if capacity > store.slice_bytes - first:
        capacity = store.slice_bytes - first
    data = <uint8_t*>store_allocate(store, capacity)
    if data == NULL:
        return NULL
    slice = &object.directory.slices[index]
    if slice.data != NULL:
        memcpy(data, slice.data, unread)
        retire(store, slice.data, slice.capacity)
    # The reader looks at `data` only where something is unread, and then `first` is what it was.
    store_u32(&slice.first, first)
    store_ptr(<void**>&slice.data, data)
    slice.capacity = capacity
    n[0] = capacity - unread
    return data + unread


cdef void object_trim(Store* store, Object* object) noexcept nogil:
    """Gives a stream's memory back where its reader has read all of it."""
    cdef uint64_t last = object.directory.n
    cdef Slice* slice
    cdef int64_t want = load_i64(&object.want)
    cdef int64_t end
    while last and object.directory.slices[last - 1].data == NULL:
        last -= 1
    if last == 0 or not object.flags & OBJECT_STREAM:
        return
    slice = &object.directory.slices[last - 1]
    end = <int64_t>((last - 1) * store.slice_bytes) + slice.filled
    if want < end or slice.filled == slice.first:
        return
    count_filled(store, object, -<int64_t>(slice.filled - slice.first))
    retire(store, slice.data, slice.capacity)
    store_ptr(<void**>&slice.data, NULL)
    store_u32(&slice.first, slice.filled)
    slice.capacity = 0


cdef uint32_t take_waiting(Object* object) noexcept nogil:
    """The workers to wake, each once."""
    return exchange_u32(&object.waiting, 0)


cdef uint32_t object_commit(Store* store, Object* object, int64_t offset, uint64_t n) noexcept nogil:
    """Publishes `n` bytes that were put in object_room(offset). Returns the workers to wake.

    The slice stays wanted: a reader at its end waits for the fill and must not ask again at each append."""
    cdef Slice* slice = &object.directory.slices[<uint64_t>offset // store.slice_bytes]
    count_filled(store, object, <int64_t>n)
    store_u32_seq(&slice.filled, slice.filled + <uint32_t>n)
    return take_waiting(object)


cdef bint object_attach(Store* store, Object* object, uint64_t index, uint8_t* data, uint32_t n, uint32_t* mask) noexcept nogil:
    """A whole slice that was made elsewhere (store_allocate of `n` bytes) takes the place of an absent one; `mask` gets the
    workers to wake. False: another came first, or is coming; `data` stays the caller's."""
    cdef Slice* slice
    if index >= object.directory.n or object.total_length < 0:
        return False
    slice = &object.directory.slices[index]
    if slice.data != NULL or slice.filled != 0:
        return False
    store_u32(&slice.reading, SLICE_UNREAD)
    store_ptr(<void**>&slice.data, data)
    slice.capacity = n
    mask[0] = object_commit(store, object, <int64_t>(index * store.slice_bytes), n)
    return True


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
        if slice.data != NULL and slice.first == 0 and slice.capacity > size + size // 4 + 64:
            data = <uint8_t*>store_allocate_sendable(store, size)
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
    count_filled(store, object, -<int64_t>(slice.filled - slice.first))
    # body_at says why a reader that comes in between is safe.
    store_u32_seq(&slice.filled, 0)
    perturb()
    store_ptr(<void**>&slice.data, NULL)
    slice.capacity = 0
    store_u32(&slice.first, 0)
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
    cdef uint32_t filled, filled_after, first
    cdef uint8_t* data
    if index >= directory.n:
        return NULL
    filled = load_u32_seq(&directory.slices[index].filled)
    if filled <= within:
        return NULL
    perturb()
    data = <uint8_t*>load_ptr(<void**>&directory.slices[index].data)
    if data == NULL:
        return NULL
    perturb()
    filled_after = load_u32_seq(&directory.slices[index].filled)
    if filled_after < filled:
        filled = filled_after
        if filled <= within:
            return NULL
    first = load_u32(&directory.slices[index].first)    # of a stream: it moves only where nothing is unread
    if within < first:
        return NULL
    n[0] = filled - within
    return data + (within - first)


cdef bint body_wait(Store* store, Object* object, int64_t offset, uint32_t worker) noexcept nogil:
    """Asks for a wake-up at the next append; True when there is something to do at once. The caller has already put
    itself into its worker's list (sequentially consistent pair with object_commit)."""
    cdef uint64_t n
    cdef int64_t total
    perturb()
    or_u32(&object.waiting, <uint32_t>1 << worker)
    perturb()
    if body_at(store, object, offset, &n) != NULL:
        return True
    if load_u32_seq(&object.flags) & OBJECT_FAILED:
        return True
    total = load_i64_seq(&object.total_length)
    return total >= 0 and offset >= total


cdef bint body_passed(Store* store, Object* object, int64_t start, int64_t end) noexcept nogil:
    """A reader got from `start` to `end`: the slices that it leaves behind may be evicted before those ahead of it.
    Whether a fill rests at one of them."""
    cdef Directory* directory = <Directory*>load_ptr(<void**>&object.directory)
    cdef uint64_t i = <uint64_t>start // store.slice_bytes
    cdef uint64_t after = <uint64_t>end // store.slice_bytes
    cdef bint is_watched = False
    if end == load_i64(&object.total_length):
        after += 1
    while i < after and i < directory.n:
        # The line is shared with `filled`, which all read: written once.
        if load_u32_relaxed(&directory.slices[i].reading) != SLICE_PASSED:
            is_watched |= exchange_u32(&directory.slices[i].reading, SLICE_PASSED) == SLICE_WATCHED
        i += 1
    return is_watched


cdef int64_t object_lead(Store* store, Object* object, int64_t offset, int64_t most) noexcept nogil:
    """How many bytes before `offset` no reader has been through, in a row and up to a slice more than `most`. By slices:
    a fill is ahead of its own readers by this, wherever others are in the same body. What was evicted unread counts: a
    fill without readers would else go on for ever where memory is short."""
    cdef Slice* slices = object.directory.slices
    cdef int64_t start = offset
    cdef int64_t i = (offset - 1) // <int64_t>store.slice_bytes
    while i >= 0 and offset - start <= most and load_u32(&slices[i].reading) != SLICE_PASSED:
        start = i * <int64_t>store.slice_bytes
        i -= 1
    return offset - start


cdef bint object_watch(Store* store, Object* object, int64_t offset) noexcept nogil:
    """Has readers tell when one of them has been through the slice of `offset`. False: one has already."""
    cdef Slice* slice = &object.directory.slices[<uint64_t>offset // store.slice_bytes]
    if exchange_u32(&slice.reading, SLICE_WATCHED) == SLICE_PASSED:
        store_u32(&slice.reading, SLICE_PASSED)
        return False
    return True
