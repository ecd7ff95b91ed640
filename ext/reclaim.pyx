# Epochs, retired memory, and allocation within the budget, behind reclaim.pxd. What an object is made of, and which of
# them must go, is the store's: it is called through Store.destroy and Store.make_room.
from libc.stdlib cimport free, malloc

from ext.arena cimport Arena, arena_allocate, arena_allocate_sendable, arena_free
from ext.atomics cimport *


# --- epochs -----------------------------------------------------------------------------------------------------------
# QSBR (McKenney; Hart et al. 2007). Both sides touch a worker's epoch by read-modify-write only: these are totally
# ordered, so either the reclaimer sees the worker online, or the worker sees all that was unlinked before.

cdef void epoch_enter(Store* store, uint32_t worker) noexcept nogil:
    cdef uint64_t epoch = load_u64_seq(&store.epoch)
    perturb()
    exchange_u64(&store.workers[worker].epoch, epoch)


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
            store.destroy(store, object)


cdef inline uint64_t left_free(Store* store) noexcept nogil:
    return load_u64_relaxed(&store.outside) + store.reserve + store.given_up


cdef void* store_allocate(Store* store, uint64_t size) noexcept nogil:
    """Memory within the budget, evicting for it; NULL when what was evicted isn't reclaimed yet or all is in use.

    May evict any object without references, and full slices of any strong one: callers look again at what they had."""
    return allocate(store, size, arena_allocate)


cdef void* store_allocate_sendable(Store* store, uint64_t size) noexcept nogil:
    """The same for a body that many may read: sockets may keep its pages (sendable.pxd)."""
    return allocate(store, size, arena_allocate_sendable)


cdef void* allocate(Store* store, uint64_t size, void* (*of_arena)(Arena*, uint64_t, uint64_t) noexcept nogil) noexcept nogil:
    cdef void* piece = of_arena(&store.arena, size, left_free(store))
    cdef int attempt
    if piece != NULL:
        return piece
    for attempt in range(64):
        reclaim(store)
        piece = of_arena(&store.arena, size, left_free(store))
        if piece != NULL:
            return piece
        # What is retired comes free within a pass of the workers: evicting more meanwhile would empty the store.
        if store.retired_bytes > 4 * size + 2 * store.slice_bytes:
            break
        if not store.make_room(store, size):
            break
    store.n_refused += 1
    return NULL
