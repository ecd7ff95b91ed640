# The memfd and writing from it, behind sendable.pxd.
from libc.errno cimport EINVAL, errno
from libc.stdlib cimport free, realloc
from libc.string cimport memset

from ext.sockets cimport MSG_DONTWAIT, MSG_NOSIGNAL, iovec, sendmsg

cdef extern from "<sys/types.h>" nogil:
    ctypedef long off_t

cdef extern from "<sys/mman.h>" nogil:
    int memfd_create(const char*, unsigned int)
    void* mmap(void*, size_t, int, int, int, off_t)
    int munmap(void*, size_t)
    int madvise(void*, size_t, int)
    enum: MFD_CLOEXEC
    enum: PROT_READ
    enum: PROT_WRITE
    enum: MAP_SHARED
    enum: MAP_NORESERVE
    enum: MADV_NOHUGEPAGE
    enum: MADV_DONTDUMP
    void* MAP_FAILED

cdef extern from "<fcntl.h>" nogil:
    int fallocate(int, int, off_t, off_t)
    enum: FALLOC_FL_PUNCH_HOLE
    enum: FALLOC_FL_KEEP_SIZE

cdef extern from "<unistd.h>" nogil:
    int ftruncate(int, off_t)
    int close(int)

cdef extern from "<sys/sendfile.h>" nogil:
    ssize_t sendfile(int, int, off_t*, size_t)

cdef extern from "<sys/socket.h>" nogil:
    enum: MSG_MORE

cdef extern from * nogil:
    """
    #ifndef MFD_NOEXEC_SEAL
    #define MFD_NOEXEC_SEAL 8U      /* since Linux 6.3 */
    #endif
    #if defined(__SANITIZE_ADDRESS__)
    #include <sanitizer/asan_interface.h>
    #else
    #define ASAN_POISON_MEMORY_REGION(piece, size) ((void)(piece), (void)(size))
    #define ASAN_UNPOISON_MEMORY_REGION(piece, size) ((void)(piece), (void)(size))
    #endif
    """
    enum: MFD_NOEXEC_SEAL
    void ASAN_POISON_MEMORY_REGION(void*, size_t)
    void ASAN_UNPOISON_MEMORY_REGION(void*, size_t)

cdef enum:
    REFERENCE_LEAST = 32768     # below this a copy costs no more than a second system call


cdef inline uint32_t extent_of(uint64_t size) noexcept nogil:
    cdef uint32_t index = 0
    while <uint64_t>EXTENT_LEAST << index < size:
        index += 1
    return index


cdef void pool_open(Pool* pool, uint64_t limit) noexcept nogil:
    cdef void* base
    cdef uint64_t span = (limit // EXTENT_MOST + 1) * EXTENT_MOST * SPAN_FACTOR
    memset(pool, 0, sizeof(Pool))
    pool.file = memfd_create("bodies", MFD_CLOEXEC | MFD_NOEXEC_SEAL)
    if pool.file < 0 and errno == EINVAL:
        pool.file = memfd_create("bodies", MFD_CLOEXEC)
    if pool.file < 0:
        return
    if ftruncate(pool.file, <off_t>span) == 0:
        base = mmap(NULL, span, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, pool.file, 0)
        # In a huge page a hole is zeros, written over what a socket may still hold.
        if base != MAP_FAILED and (madvise(base, span, MADV_NOHUGEPAGE) == 0 or errno == EINVAL):
            madvise(base, span, MADV_DONTDUMP)
            pool.base = <char*>base
            pool.span = span
            return
        if base != MAP_FAILED:
            munmap(base, span)
    close(pool.file)
    pool.file = -1


cdef void pool_close(Pool* pool) noexcept nogil:
    cdef int i
    if pool.file < 0:
        return
    ASAN_UNPOISON_MEMORY_REGION(pool.base, pool.fresh)
    munmap(pool.base, pool.span)
    close(pool.file)
    pool.file = -1
    for i in range(N_EXTENTS):
        free(pool.extents[i].offsets)


cdef void* pool_take(Pool* pool, uint64_t size) noexcept nogil:
    """Address space for `size` bytes, all zero. NULL: none left, or too large a piece."""
    cdef Extents* extents
    cdef uint32_t index
    cdef uint64_t offset
    if pool.file < 0 or size > EXTENT_MOST:
        return NULL
    index = extent_of(size)
    extents = &pool.extents[index]
    if extents.n:
        extents.n -= 1
        offset = extents.offsets[extents.n]
    else:
        offset = pool.fresh
        if <uint64_t>EXTENT_LEAST << index > pool.span - offset:
            return NULL
        pool.fresh += <uint64_t>EXTENT_LEAST << index
    ASAN_UNPOISON_MEMORY_REGION(pool.base + offset, size)
    return pool.base + offset


cdef bint pool_give(Pool* pool, void* piece, uint64_t size) noexcept nogil:
    """Gives back a piece of exactly the size that was asked for. False: the kernel keeps its pages, and nobody gets them."""
    cdef uint32_t index = extent_of(size)
    cdef Extents* extents = &pool.extents[index]
    cdef uint64_t offset = <uint64_t>(<char*>piece - pool.base)
    cdef uint64_t room
    cdef uint64_t* grown
    ASAN_POISON_MEMORY_REGION(piece, size)
    if fallocate(pool.file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, <off_t>offset, <off_t>(<uint64_t>EXTENT_LEAST << index)) != 0:
        return False
    if extents.n == extents.room:
        room = 2 * extents.room if extents.room else 64
        grown = <uint64_t*>realloc(extents.offsets, room * sizeof(uint64_t))
        if grown == NULL:
            return True         # this address space is lost, its memory isn't
        extents.offsets = grown
        extents.room = room
    extents.offsets[extents.n] = offset
    extents.n += 1
    return True


cdef inline bint is_by_reference(const Pool* pool, const iovec* part) noexcept nogil:
    return part.iov_len >= REFERENCE_LEAST and pool_has(pool, part.iov_base)


cdef ssize_t sendable_writev(const Pool* pool, int fd, const msghdr* message, uint64_t* n_by_reference) noexcept nogil:
    """sendmsg, but that large parts in the pool go by reference, which `n_by_reference` counts. The same answers: bytes
    that the socket took, or -1 with errno when it took none. Whoever calls ignores SIGPIPE."""
    cdef size_t first = 0, last, i, n = message.msg_iovlen
    cdef ssize_t written, total = 0
    cdef size_t wanted
    cdef off_t offset
    cdef msghdr run
    while first < n:
        if is_by_reference(pool, &message.msg_iov[first]):
            wanted = message.msg_iov[first].iov_len
            offset = <char*>message.msg_iov[first].iov_base - pool.base
            written = sendfile(fd, pool.file, &offset, wanted)
            if written > 0:
                n_by_reference[0] += <uint64_t>written
            last = first + 1
        else:
            last = first
            wanted = 0
            while last < n and not is_by_reference(pool, &message.msg_iov[last]):
                wanted += message.msg_iov[last].iov_len
                last += 1
            run = message[0]
            run.msg_iov = &message.msg_iov[first]
            run.msg_iovlen = last - first
            written = sendmsg(fd, &run, MSG_NOSIGNAL | MSG_DONTWAIT | (MSG_MORE if last < n else 0))
        if written < 0:
            return total if total else -1
        total += written
        if <size_t>written < wanted:
            break
        first = last
    return total
