# Slabs and page-exact maps behind the contract of arena.pxd. Knows nothing of objects.
#
# Under a sanitizer each piece is a malloc of its own, so that AddressSanitizer sees a use after free that a slab
# would hide; the accounting stays the same.
from libc.stdint cimport uintptr_t
from libc.stdlib cimport free, malloc

from ext.atomics cimport load_u64_relaxed, store_u64_relaxed
from ext.sendable cimport pool_close, pool_give, pool_has, pool_open, pool_take

cdef extern from "<sys/mman.h>" nogil:
    void* mmap(void*, size_t, int, int, int, long)
    int munmap(void*, size_t)
    enum: PROT_READ
    enum: PROT_WRITE
    enum: MAP_PRIVATE
    enum: MAP_ANONYMOUS
    void* MAP_FAILED

cdef extern from * nogil:
    """
    #if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    #define ACC_SANITIZED 1
    #else
    #define ACC_SANITIZED 0
    #endif
    """
    enum: ACC_SANITIZED


cdef inline uint32_t class_of(uint64_t size) noexcept nogil:
    cdef uint64_t base = 64
    cdef uint32_t index = 0
    if size <= 64:
        return 0
    while size > base * 2:
        base *= 2
        index += 4
    return index + <uint32_t>((size - base + base // 4 - 1) // (base // 4))


cdef inline uint32_t class_bytes(uint32_t index) noexcept nogil:
    cdef uint32_t base = 64 << (index // 4)
    return base + (base // 4) * (index % 4)


cdef inline uint64_t page_up(uint64_t size) noexcept nogil:
    return (size + 4095) & ~<uint64_t>4095


cdef void* map_bytes(uint64_t size) noexcept nogil:
    cdef void* area = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    return NULL if area == MAP_FAILED else area


cdef Slab* map_slab() noexcept nogil:
    cdef uintptr_t area = <uintptr_t>map_bytes(2 * SLAB_BYTES)
    if area == 0:
        return NULL
    cdef uintptr_t start = (area + SLAB_BYTES - 1) & ~<uintptr_t>(SLAB_BYTES - 1)
    if start > area:
        munmap(<void*>area, start - area)
    munmap(<void*>(start + SLAB_BYTES), area + SLAB_BYTES - start)
    return <Slab*>start


cdef inline bint fits(Arena* arena, uint64_t more, uint64_t outside) noexcept nogil:
    return arena.mapped + more + outside <= arena.limit


cdef inline void account(Arena* arena, uint64_t mapped, uint64_t used) noexcept nogil:
    store_u64_relaxed(&arena.mapped, mapped)
    store_u64_relaxed(&arena.used, used)


cdef void arena_init(Arena* arena, uint64_t limit) noexcept nogil:
    cdef int i
    arena.limit = limit
    arena.mapped = 0
    arena.used = 0
    arena.n_spare = 0
    for i in range(N_CLASSES):
        arena.partial[i] = NULL
    pool_open(&arena.pool, limit)


cdef void arena_close(Arena* arena) noexcept nogil:
    """All pieces have been given back."""
    arena_trim(arena)
    pool_close(&arena.pool)


cdef void arena_trim(Arena* arena) noexcept nogil:
    """Gives the spare maps back: the first thing to go when memory is short."""
    while arena.n_spare:
        arena.n_spare -= 1
        munmap(arena.spare[arena.n_spare], SPARE_BYTES)
        account(arena, arena.mapped - SPARE_BYTES, arena.used)


cdef void* allocate_large(Arena* arena, uint64_t size, uint64_t outside) noexcept nogil:
    cdef uint64_t bytes = page_up(size)
    cdef void* piece
    if bytes == SPARE_BYTES and arena.n_spare:
        arena.n_spare -= 1
        account(arena, arena.mapped, arena.used + size)
        return arena.spare[arena.n_spare]
    if not fits(arena, bytes, outside):
        arena_trim(arena)
        if not fits(arena, bytes, outside):
            return NULL
    piece = map_bytes(bytes)
    if piece != NULL:
        account(arena, arena.mapped + bytes, arena.used + size)
    return piece


cdef void* arena_allocate_sendable(Arena* arena, uint64_t size, uint64_t outside) noexcept nogil:
    """As arena_allocate; large pieces are such that sockets may keep pages of them (sendable.pxd), where the kernel can."""
    cdef uint64_t bytes = page_up(size)
    cdef void* piece
    if size <= LARGEST_PIECE:
        return arena_allocate(arena, size, outside)
    if not fits(arena, bytes, outside):
        arena_trim(arena)
        if not fits(arena, bytes, outside):
            return NULL
    piece = pool_take(&arena.pool, size)
    if piece == NULL:
        return arena_allocate(arena, size, outside)
    account(arena, arena.mapped + bytes, arena.used + size)
    return piece


cdef void* arena_allocate(Arena* arena, uint64_t size, uint64_t outside) noexcept nogil:
    """`size` bytes, or NULL when the limit (less `outside`, which others count against it) would be passed."""
    cdef uint32_t index, i
    cdef Slab* slab
    cdef char* piece
    if ACC_SANITIZED:
        if not fits(arena, size, outside):
            return NULL
        piece = <char*>malloc(size)
        if piece != NULL:
            account(arena, arena.mapped + size, arena.used + size)
        return piece
    if size > LARGEST_PIECE:
        return allocate_large(arena, size, outside)
    index = class_of(size)
    slab = arena.partial[index]
    if slab == NULL:
        if not fits(arena, SLAB_BYTES, outside):
            arena_trim(arena)
            if not fits(arena, SLAB_BYTES, outside):
                return NULL
        slab = map_slab()
        if slab == NULL:
            return NULL
        slab.class_index = index
        slab.piece_bytes = class_bytes(index)
        slab.n_pieces = (SLAB_BYTES - 64) // slab.piece_bytes
        slab.n_used = 0
        slab.next = NULL
        slab.previous = NULL
        slab.free = NULL
        piece = <char*>slab + 64
        for i in range(slab.n_pieces):
            (<void**>piece)[0] = slab.free
            slab.free = piece
            piece += slab.piece_bytes
        arena.partial[index] = slab
        account(arena, arena.mapped + SLAB_BYTES, arena.used)
    piece = <char*>slab.free
    slab.free = (<void**>piece)[0]
    slab.n_used += 1
    if slab.free == NULL:
        unlink_slab(arena, slab)
    account(arena, arena.mapped, arena.used + size)
    return piece


cdef void unlink_slab(Arena* arena, Slab* slab) noexcept nogil:
    if slab.previous != NULL:
        slab.previous.next = slab.next
    else:
        arena.partial[slab.class_index] = slab.next
    if slab.next != NULL:
        slab.next.previous = slab.previous
    slab.next = NULL
    slab.previous = NULL


cdef void arena_free(Arena* arena, void* piece, uint64_t size) noexcept nogil:
    """Gives back a piece of exactly the size that it was asked for with."""
    cdef Slab* slab
    cdef uint64_t bytes
    cdef bint was_full
    if piece == NULL:
        return
    if size > LARGEST_PIECE and pool_has(&arena.pool, piece):
        bytes = page_up(size) if pool_give(&arena.pool, piece, size) else 0
        account(arena, arena.mapped - bytes, arena.used - size)
        return
    if ACC_SANITIZED:
        free(piece)
        account(arena, arena.mapped - size, arena.used - size)
        return
    if size > LARGEST_PIECE:
        bytes = page_up(size)
        if bytes == SPARE_BYTES and arena.n_spare < SPARE_MAPS:
            arena.spare[arena.n_spare] = piece
            arena.n_spare += 1
            account(arena, arena.mapped, arena.used - size)
        else:
            munmap(piece, bytes)
            account(arena, arena.mapped - bytes, arena.used - size)
        return
    slab = <Slab*>(<uintptr_t>piece & ~<uintptr_t>(SLAB_BYTES - 1))
    was_full = slab.free == NULL
    (<void**>piece)[0] = slab.free
    slab.free = piece
    slab.n_used -= 1
    account(arena, arena.mapped, arena.used - size)
    if was_full:
        slab.previous = NULL
        slab.next = arena.partial[slab.class_index]
        if slab.next != NULL:
            slab.next.previous = slab
        arena.partial[slab.class_index] = slab
    if slab.n_used == 0:
        unlink_slab(arena, slab)
        munmap(slab, SLAB_BYTES)
        account(arena, arena.mapped - SLAB_BYTES, arena.used)
