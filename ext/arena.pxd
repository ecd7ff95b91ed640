# The arena: all memory that objects take, within a hard limit that counts what is mapped, not what was asked for.
# One caller at a time (the store's mutex). Small pieces come from slabs of size classes four to a doubling (waste at
# most a quarter); larger ones are mapped page-exact, so that segments of any size fill memory without fragmenting it.
from libc.stdint cimport uint64_t, uint8_t, uint32_t

from ext.sendable cimport Pool

cdef enum:
    SLAB_BYTES = 262144         # a slab is aligned to its size: a piece finds its slab by masking
    LARGEST_PIECE = 32768
    N_CLASSES = 37
    SPARE_MAPS = 8              # freed 1 MiB maps kept (and counted) for the next fill: spares page faults
    SPARE_BYTES = 1048576

cdef struct Slab:               # header at the start of each slab
    Slab* next
    Slab* previous
    void* free
    uint32_t n_used
    uint32_t n_pieces
    uint32_t piece_bytes
    uint32_t class_index

cdef struct Arena:
    uint64_t limit              # bytes; never exceeded by mapped + what the caller adds
    uint64_t mapped             # bytes mapped now (read by others relaxed)
    uint64_t used               # bytes asked for and not freed
    Slab* partial[37]           # slabs with free pieces, by class
    void* spare[8]
    uint32_t n_spare
    Pool pool                   # bodies that sockets may keep pages of

cdef void arena_init(Arena* arena, uint64_t limit) noexcept nogil
cdef void arena_close(Arena* arena) noexcept nogil
cdef void* arena_allocate(Arena* arena, uint64_t size, uint64_t outside) noexcept nogil
cdef void* arena_allocate_sendable(Arena* arena, uint64_t size, uint64_t outside) noexcept nogil
cdef void arena_free(Arena* arena, void* piece, uint64_t size) noexcept nogil
cdef void arena_trim(Arena* arena) noexcept nogil
