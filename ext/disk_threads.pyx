# What the disk tier's threads do, behind disk_threads.pxd: files, positions, checksums. No Python object, no decision: no
# index, no eviction, no retry.
from libc.errno cimport EINTR, EIO, ENOENT, EOPNOTSUPP, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport realloc
from libc.string cimport memcmp, memcpy, memset

from ext.disk_record cimport *
from ext.exchange cimport bell_ring
from ext.serve cimport now_ns
from ext.store cimport *

cdef extern from "<errno.h>" nogil:
    enum: ECANCELED

cdef extern from "<fcntl.h>" nogil:
    enum: O_RDONLY
    enum: O_WRONLY
    enum: O_CREAT
    enum: O_EXCL
    enum: O_TRUNC
    enum: O_CLOEXEC
    enum: FALLOC_FL_KEEP_SIZE
    enum: FALLOC_FL_PUNCH_HOLE
    enum: O_RDWR
    enum: POSIX_FADV_RANDOM
    int openat(int, const char*, int, ...)
    int fallocate(int, int, int64_t, int64_t)
    int posix_fadvise(int, int64_t, int64_t, int)

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void* iov_base
        size_t iov_len
    ssize_t preadv(int, const iovec*, int, int64_t)

cdef extern from "<unistd.h>" nogil:
    int close(int)
    int fsync(int)
    int ftruncate(int, int64_t)
    int fdatasync(int)
    int unlinkat(int, const char*, int)
    int linkat(int, const char*, int, const char*, int)
    ssize_t pwrite(int, const void*, size_t, int64_t)
    ssize_t write(int, const void*, size_t)
    ssize_t pread(int, void*, size_t, int64_t)

cdef extern from "<stdio.h>" nogil:
    int renameat(int, const char*, int, const char*)

cdef extern from "<sys/stat.h>" nogil:
    struct stat_t "stat":
        int64_t st_size
        uint64_t st_nlink
    int fstat(int, stat_t*)


cdef enum:
    SCAN_BYTES = 4096           # read for each header: many small records come with one call
    ZERO_BYTES = 65536


# --- queues -----------------------------------------------------------------------------------------------------------

cdef bint queue_open(Queue* queue) noexcept nogil:
    return pthread_mutex_init(&queue.lock, NULL) == 0 and pthread_cond_init(&queue.is_filled, NULL) == 0


cdef void queue_close(Queue* queue) noexcept nogil:
    pthread_mutex_lock(&queue.lock)
    queue.is_closing = 1
    pthread_cond_broadcast(&queue.is_filled)
    pthread_mutex_unlock(&queue.lock)


cdef void queue_push(Queue* queue, Job* job) noexcept nogil:
    job.next = NULL
    pthread_mutex_lock(&queue.lock)
    if queue.last != NULL:
        queue.last.next = job
    else:
        queue.first = job
    queue.last = job
    pthread_cond_signal(&queue.is_filled)
    pthread_mutex_unlock(&queue.lock)


cdef Job* queue_pop(Queue* queue) noexcept nogil:
    """The next job; NULL: the queue is closed, and empty."""
    cdef Job* job
    pthread_mutex_lock(&queue.lock)
    while queue.first == NULL and not queue.is_closing:
        pthread_cond_wait(&queue.is_filled, &queue.lock)
    job = queue.first
    if job != NULL:
        queue.first = job.next
        if queue.first == NULL:
            queue.last = NULL
    pthread_mutex_unlock(&queue.lock)
    return job


cdef void finish(Disk* disk, Job* job) noexcept nogil:
    job.next = NULL
    pthread_mutex_lock(&disk.lock)
    if disk.done_last != NULL:
        disk.done_last.next = job
    else:
        disk.done = job
    disk.done_last = job
    pthread_mutex_unlock(&disk.lock)
    bell_ring(&disk.bell)


# --- the writer -------------------------------------------------------------------------------------------------------

cdef int write_all(int fd, const uint8_t* data, uint64_t n, int64_t offset) noexcept nogil:
    """0 or an errno. `offset` -1: where the file is."""
    cdef ssize_t done
    while n:
        done = write(fd, data, n) if offset < 0 else pwrite(fd, data, n, offset)
        if done < 0:
            if errno == EINTR:
                continue
            return errno
        if done == 0:
            return EIO
        data += done
        n -= <uint64_t>done
        if offset >= 0:
            offset += done
    return 0


cdef void segment_name(uint64_t segment, char* name) noexcept nogil:
    snprintf(name, NAME_BYTES, b"seg-%016llx.log", <unsigned long long>segment)


cdef int close_segment(Disk* disk) noexcept nogil:
    cdef stat_t status
    cdef int error = 0
    if disk.fd >= 0:
        if disk.is_dirty and fdatasync(disk.fd) != 0:
            error = errno
        disk.is_dirty = 0
        if fstat(disk.fd, &status) == 0:
            ftruncate(disk.fd, status.st_size)      # gives back what was preallocated and not used
        close(disk.fd)
        disk.fd = -1
    return error


cdef int open_segment(Disk* disk, Job* job) noexcept nogil:
    """Makes the file of a new segment, with its head, preallocated. 0 or an errno."""
    cdef char name[NAME_BYTES]
    cdef SegmentHead head
    cdef int error
    close_segment(disk)
    segment_name(job.segment, name)
    disk.fd = openat(disk.directory, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0o600)
    if disk.fd < 0:
        return errno
    disk.segment = job.segment
    if fallocate(disk.fd, FALLOC_FL_KEEP_SIZE, 0, <int64_t>disk.segment_bytes) != 0 and errno != EOPNOTSUPP:
        return errno
    segment_compose(&head, job.segment, (<Record*>job.memory).salt)
    error = write_all(disk.fd, <uint8_t*>&head, sizeof(head), 0)
    if error:
        return error
    # The name must outlive a power cut, or what is synced into the file is lost with it.
    return 0 if fsync(disk.directory) == 0 else errno


cdef int do_write(Disk* disk, Job* job) noexcept nogil:
    cdef Record* record = <Record*>job.memory
    cdef char name[NAME_BYTES]
    cdef int error = 0
    if job.segment == disk.bad_segment:
        return ECANCELED        # after a torn record nothing of this segment would be found again
    if disk.fd < 0 or disk.segment != job.segment:
        error = open_segment(disk, job)
        if error and disk.fd >= 0:
            segment_name(job.segment, name)
            unlinkat(disk.directory, name, 0)
    if not error and not record_finish(record, job.memory + RECORD_HEADER, job.offset, job.key if job.has_key else NULL):
        error = EIO
    if not error:
        error = write_all(disk.fd, job.memory, job.n, <int64_t>job.offset)
        disk.is_dirty = 1
    if not error and job.must_sync:
        error = do_sync(disk)
    if error:
        disk.bad_segment = job.segment
        disk.is_dirty = 0       # what a failed write left is not worth waiting for
        close_segment(disk)
    return error


cdef int do_sync(Disk* disk) noexcept nogil:
    """0 or an errno. A failed sync isn't repeated: the kernel has dropped what it could not write."""
    if disk.fd < 0 or not disk.is_dirty:
        return 0
    disk.is_dirty = 0
    if fdatasync(disk.fd) == 0:
        return 0
    disk.bad_segment = disk.segment
    return errno


cdef int zero_range(int fd, int64_t offset, int64_t n) noexcept nogil:
    """Overwrites a range in place. 0 or an errno."""
    cdef uint8_t zeros[ZERO_BYTES]
    cdef int64_t piece
    cdef int error
    memset(zeros, 0, ZERO_BYTES)
    while n > 0:
        piece = n if n < ZERO_BYTES else ZERO_BYTES
        error = write_all(fd, zeros, <uint64_t>piece, offset)
        if error:
            return error
        offset += piece
        n -= piece
    return 0


cdef int shred(Disk* disk, const char* name) noexcept nogil:
    """Overwrites a small file, and removes it: its blocks must not be found on the raw disk. 0 or an errno; one that
    isn't there is none."""
    cdef stat_t status
    cdef int error = 0
    cdef int fd = openat(disk.directory, name, O_WRONLY | O_CLOEXEC)
    if fd < 0:
        return 0 if errno == ENOENT else errno
    if fstat(fd, &status) != 0:
        error = errno
    elif status.st_nlink == 1:  # else it is the living one, under its second name
        error = zero_range(fd, 0, status.st_size)
        if not error and fdatasync(fd) != 0:
            error = errno
    close(fd)
    if not error and unlinkat(disk.directory, name, 0) != 0:
        error = errno
    return error


cdef int do_wipe(Disk* disk, Job* job) noexcept nogil:
    """Takes a class's records out of a segment: headers lose their names, payloads their blocks; with job.must_sync they
    are overwritten before, and so is what stands behind the last good record."""
    cdef char name[NAME_BYTES]
    cdef Record record
    cdef stat_t status
    cdef int64_t offset = SEGMENT_START, following
    cdef int error = 0
    cdef int fd
    segment_name(job.segment, name)
    fd = openat(disk.directory, name, O_RDWR | O_CLOEXEC)
    if fd < 0:
        return 0 if errno == ENOENT else errno
    if fstat(fd, &status) != 0:
        error = errno
    while not error and offset + RECORD_HEADER <= status.st_size:
        if pread(fd, &record, RECORD_HEADER, offset) != RECORD_HEADER or record_check(&record, job.segment) != RECORD_GOOD:
            break
        following = offset + <int64_t>record_bytes(record.length)
        if record.class_id == job.offset and record.sequence < job.n and record.length:
            record_erase(&record)
            error = write_all(fd, <uint8_t*>&record, RECORD_HEADER, offset)
            if not error and job.must_sync:
                error = zero_range(fd, offset + RECORD_HEADER, record.length)
            # Whole blocks go back to the file system; where it can't, they stay as they are.
            fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset + RECORD_HEADER, record.length)
        offset = following
    if not error and job.must_sync and offset < status.st_size:
        error = zero_range(fd, offset, status.st_size - offset)
    if fdatasync(fd) != 0 and not error:
        error = errno
    close(fd)
    return error


cdef int do_replace(Disk* disk, Job* job) noexcept nogil:
    """A whole file under a new name, synced, then renamed into place. Its last four bytes are its checksum. What it
    replaces is overwritten where job.must_sync says so; until that is done it has a name, by which a start finds it."""
    cdef char old[NAME_BYTES + 8]
    cdef char name[NAME_BYTES + 8]
    cdef uint64_t i
    cdef uint32_t crc = 0
    cdef int error = 0
    cdef int fd
    snprintf(name, sizeof(name), b"%s.new", job.name)
    fd = openat(disk.directory, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o600)
    if fd < 0:
        return errno
    for i in range(job.n_parts):
        crc = crc32c(crc, job.parts[i].data, job.parts[i].n)
        if not error:
            error = write_all(fd, job.parts[i].data, job.parts[i].n, -1)
    if not error:
        error = write_all(fd, <uint8_t*>&crc, 4, -1)
    if not error and fsync(fd) != 0:
        error = errno
    close(fd)
    if not error and job.must_sync:
        snprintf(old, sizeof(old), b"%s.old", job.name)
        error = shred(disk, old)
        if not error and linkat(disk.directory, job.name, disk.directory, old, 0) != 0 and errno != ENOENT:
            error = errno
    if not error and renameat(disk.directory, name, disk.directory, job.name) != 0:
        error = errno
        if job.must_sync:
            unlinkat(disk.directory, old, 0)
    if not error and fsync(disk.directory) != 0:
        error = errno
    if error:
        if not job.must_sync or shred(disk, name) != 0:
            unlinkat(disk.directory, name, 0)
    elif job.must_sync:
        error = shred(disk, old)
    return error


cdef void run_writer(Disk* disk) noexcept nogil:
    cdef Job* job
    cdef int64_t began
    while True:
        job = queue_pop(&disk.writes)
        if job == NULL:
            break
        began = now_ns()
        if job.kind == JOB_WRITE:
            job.error = do_write(disk, job)
        elif job.kind == JOB_SYNC:
            job.error = do_sync(disk)
        elif job.kind == JOB_REPLACE:
            job.error = do_replace(disk, job)
        elif job.kind == JOB_SHRED:
            job.error = shred(disk, job.name)
        elif job.kind == JOB_WIPE:
            job.error = do_wipe(disk, job)
        elif job.kind == JOB_UNLINK:
            # Durable at once: what was purged after its segment was evicted must not be back after a power cut.
            if (unlinkat(disk.directory, job.name, 0) != 0 and errno != ENOENT) or fsync(disk.directory) != 0:
                job.error = errno
        job.took_ns = now_ns() - began
        finish(disk, job)
    close_segment(disk)


# --- the readers ------------------------------------------------------------------------------------------------------

cdef int read_all(int fd, iovec* parts, int n_parts, int64_t offset) noexcept nogil:
    """0, an errno, or RECORD_BAD where the file ends before."""
    cdef ssize_t done
    while n_parts:
        done = preadv(fd, parts, n_parts, offset)
        if done < 0:
            if errno == EINTR:
                continue
            return errno
        if done == 0:
            return RECORD_BAD
        offset += done
        while n_parts and <size_t>done >= parts[0].iov_len:
            done -= <ssize_t>parts[0].iov_len
            parts += 1
            n_parts -= 1
        if n_parts and done:
            parts[0].iov_base = <uint8_t*>parts[0].iov_base + done
            parts[0].iov_len -= <size_t>done
    return 0


cdef int do_read(Disk* disk, Job* job) noexcept nogil:
    """The record that is wanted, checked and unsealed, or what is wrong. The payload is the caller's only on 0."""
    cdef char name[NAME_BYTES]
    cdef Record record
    cdef Record* want = &job.record
    cdef iovec parts[2]
    cdef int fd, error
    segment_name(job.segment, name)
    fd = openat(disk.directory, name, O_RDONLY | O_CLOEXEC)
    if fd < 0:
        return errno
    parts[0].iov_base = &record
    parts[0].iov_len = RECORD_HEADER
    parts[1].iov_base = job.memory
    parts[1].iov_len = job.n
    error = read_all(fd, parts, 2 if job.n else 1, <int64_t>job.offset)
    close(fd)
    if error:
        return error
    error = record_check(&record, job.segment)
    if error:
        return error
    if (record.kind != want.kind or record.length != job.n or record.generation != want.generation
            or (want.kind == RECORD_SLICE and (record.slice_index != want.slice_index or memcmp(record.key, want.key, 16) != 0))):
        return RECORD_OTHER
    error = record_open(&record, job.memory, job.offset, job.key if job.has_key else NULL)
    memcpy(want, &record, sizeof(Record))
    return error


cdef bint is_blank(const Record* record) noexcept nogil:
    """All zeros: a page that was never written, as a power cut leaves it."""
    cdef const uint64_t* words = <const uint64_t*>record
    cdef uint64_t seen = 0
    for at in range(RECORD_HEADER // 8):
        seen |= words[at]
    return seen == 0


cdef int do_scan(Disk* disk, Job* job) noexcept nogil:
    """The headers of a segment from job.offset on, up to the first that is torn, foreign or out of order. RECORD_BAD where
    that is not what a kill or a power cut leaves (a record cut short, zeros): what lies behind it was synced perhaps."""
    cdef char name[NAME_BYTES]
    cdef uint8_t buffer[SCAN_BYTES]
    cdef SegmentHead* start = <SegmentHead*>buffer
    cdef Record* record
    cdef stat_t status
    cdef uint64_t offset = job.offset
    cdef uint64_t room = 0, within, sequence = 0
    cdef ssize_t n
    cdef int error = 0
    cdef void* grown
    cdef int fd
    segment_name(job.segment, name)
    fd = openat(disk.directory, name, O_RDONLY | O_CLOEXEC)
    if fd < 0:
        return errno
    posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM)
    job.end = 0
    n = pread(fd, buffer, sizeof(SegmentHead), 0)
    if n < 0 or fstat(fd, &status) != 0:
        error = errno
    elif n < <ssize_t>sizeof(SegmentHead) or not segment_check(start, job.segment):
        error = RECORD_BAD
    if offset < SEGMENT_START:
        offset = SEGMENT_START
    while not error:
        n = pread(fd, buffer, SCAN_BYTES, <int64_t>offset)
        if n < 0:
            if errno == EINTR:
                continue
            error = errno
            break
        within = 0
        while within + RECORD_HEADER <= <uint64_t>n:
            record = <Record*>(buffer + within)
            if record_check(record, job.segment) != RECORD_GOOD or (sequence and record.sequence <= sequence):
                n = 0
                error = RECORD_GOOD if is_blank(record) else RECORD_BAD
                break
            if offset + within + record_bytes(record.length) > <uint64_t>status.st_size:
                n = 0
                break
            if job.n == room:
                room = room * 2 if room else 256
                grown = realloc(job.memory, room * sizeof(Record))
                if grown == NULL:
                    error = EIO
                    break
                job.memory = <uint8_t*>grown
                grown = realloc(job.offsets, room * sizeof(uint64_t))
                if grown == NULL:
                    error = EIO
                    break
                job.offsets = <uint64_t*>grown
            memcpy(job.memory + job.n * sizeof(Record), record, sizeof(Record))
            job.offsets[job.n] = offset + within
            job.n += 1
            sequence = record.sequence
            within += record_bytes(record.length)
        offset += within
        if within == 0:
            break
    job.end = offset
    close(fd)
    return error


cdef void run_reader(Disk* disk) noexcept nogil:
    cdef Job* job
    cdef int64_t began
    while True:
        job = queue_pop(&disk.reads)
        if job == NULL:
            break
        began = now_ns()
        if job.kind == JOB_SCAN:
            job.error = do_scan(disk, job)
        else:
            job.error = do_read(disk, job)
        job.took_ns = now_ns() - began
        finish(disk, job)
