# Memory whose pages a socket may keep: bodies that many viewers read leave without being copied (sendfile). The pages
# belong to a memfd; who gives a piece back gives its pages back too, so that the piece's next tenant has others, and what the
# kernel or a reader on this machine still holds stays what it was. Never written twice, in short
# (docs/decisions/0196-bodies-by-reference.md). One caller at a time takes and gives; writing needs no lock. Knows no store.
from libc.stdint cimport uint32_t, uint64_t, uintptr_t

from ext.sockets cimport msghdr

cdef enum:
    EXTENT_LEAST = 65536        # address space comes in extents of powers of two; memory is what is touched
    N_EXTENTS = 6               # up to 2 MiB
    EXTENT_MOST = 2097152
    SPAN_FACTOR = 16            # address space by limit: an extent is at most twice its piece, and sizes don't share

cdef struct Extents:            # given back, of one size
    uint64_t* offsets
    uint64_t n
    uint64_t room

cdef struct Pool:
    int file                    # -1: the kernel gave none, and nothing is taken from here
    char* base
    uint64_t span
    uint64_t fresh              # nothing from here on was ever used
    Extents extents[6]

cdef void pool_open(Pool* pool, uint64_t limit) noexcept nogil
cdef void pool_close(Pool* pool) noexcept nogil
cdef void* pool_take(Pool* pool, uint64_t size) noexcept nogil
cdef bint pool_give(Pool* pool, void* piece, uint64_t size) noexcept nogil

cdef inline bint pool_has(const Pool* pool, const void* piece) noexcept nogil:
    return pool.file >= 0 and <uintptr_t>piece - <uintptr_t>pool.base < pool.span

cdef ssize_t sendable_writev(const Pool* pool, int fd, const msghdr* message, uint64_t* n_by_reference) noexcept nogil
