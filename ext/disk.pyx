# DiskIo, by which the control plane speaks to the disk's threads (disk_threads.pxd). No decision is taken here.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

import os
import threading

from ext.arena cimport arena_free
from ext.atomics cimport *
from ext.body cimport object_attach
from ext.disk_record cimport *
from ext.disk_threads cimport *
from ext.exchange cimport bell_hear
from ext.reclaim cimport store_allocate
from ext.store cimport *
from ext.stored cimport StoredObject
from ext.workers cimport Workers

cdef extern from "<sys/eventfd.h>" nogil:
    enum: EFD_NONBLOCK
    enum: EFD_CLOEXEC
    int eventfd(unsigned int, int)

cdef extern from "<unistd.h>" nogil:
    int close(int)

cdef extern from "<openssl/crypto.h>" nogil:
    void OPENSSL_cleanse(void*, size_t)

READ, WRITE, SYNC, SCAN, UNLINK, REPLACE = JOB_READ, JOB_WRITE, JOB_SYNC, JOB_SCAN, JOB_UNLINK, JOB_REPLACE
BAD, OTHER, LOCKED, NEWER = RECORD_BAD, RECORD_OTHER, RECORD_LOCKED, RECORD_NEWER


cdef class DiskIo:
    """The threads on one directory, which must exist. `plane`: whose memory the slices are read into and queued writes
    are counted against; None: slices can't be read, only records. `bell_fd` becomes readable when take() has something.

    `aside_bytes` of the memory limit are the queue's from the start, used or not: were they taken when a slice is queued,
    with all memory full of objects, the next connection would find none.

    Each job has a number, which its result in take() comes back with. Raises OSError."""

    def __cinit__(self, str path, Workers plane, int readers=2, uint64_t segment_bytes=268435456, uint64_t aside_bytes=0):
        cdef int i
        self._kept = {}
        self._threads = []
        self.path = path
        self.plane = plane
        self.disk = <Disk*>calloc(1, sizeof(Disk))
        if self.disk == NULL:
            raise MemoryError
        self.disk.fd = -1
        self.disk.directory = -1
        self.disk.bell.fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
        pthread_mutex_init(&self.disk.lock, NULL)
        if self.disk.bell.fd < 0 or not queue_open(&self.disk.writes) or not queue_open(&self.disk.reads):
            raise MemoryError
        self.disk.segment_bytes = segment_bytes
        self.disk.aside_bytes = aside_bytes
        if plane is not None:
            add_u64(&plane.shared.store.outside, aside_bytes)
        self.disk.directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        for i in range(1 + max(1, readers)):
            thread = threading.Thread(target=self._run, args=(i == 0,), name="disk-write" if i == 0 else f"disk-read-{i}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _run(self, bint is_writer):
        cdef Disk* disk = self.disk
        with nogil:
            if is_writer:
                run_writer(disk)
            else:
                run_reader(disk)

    def close(self, double patience_s=10.0) -> bool:
        """Ends the threads after what is queued. False: the disk hangs, and they with it; their memory stays theirs."""
        queue_close(&self.disk.writes)
        queue_close(&self.disk.reads)
        for thread in self._threads:
            thread.join(patience_s)
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        if not self._threads and self.disk.directory >= 0:
            close(self.disk.directory)
            self.disk.directory = -1
            if self.plane is not None and self.plane.shared != NULL:
                add_u64(&self.plane.shared.store.outside, load_u64(&self.disk.queued_bytes) - self._counted())
            self.disk.aside_bytes = 0
        return not self._threads

    def __dealloc__(self):
        cdef Job* job
        if self.disk == NULL or self._threads:
            return              # a thread that hangs in the kernel still looks at it
        job = self.disk.done
        while job != NULL:
            self.disk.done = job.next
            self._free(job)
            job = self.disk.done
        pthread_mutex_destroy(&self.disk.lock)
        pthread_mutex_destroy(&self.disk.writes.lock)
        pthread_cond_destroy(&self.disk.writes.is_filled)
        pthread_mutex_destroy(&self.disk.reads.lock)
        pthread_cond_destroy(&self.disk.reads.is_filled)
        if self.disk.directory >= 0:
            close(self.disk.directory)
        if self.disk.bell.fd >= 0:
            close(self.disk.bell.fd)
        free(self.disk)
        self.disk = NULL

    cdef Job* _job(self, uint32_t kind, uint64_t segment, uint64_t offset, bytes key) except NULL:
        cdef Job* job
        if key is not None and len(key) != 32:
            raise ValueError("a key of 32 bytes")
        if not self._threads:
            raise ValueError("closed")
        job = <Job*>calloc(1, sizeof(Job))
        if job == NULL:
            raise MemoryError
        self.last_id += 1
        job.id = self.last_id
        job.kind = kind
        job.segment = segment
        job.offset = offset
        if key is not None:
            job.has_key = 1
            memcpy(job.key, <const char*>key, 32)
        return job

    cdef void _charge(self, int64_t n):
        cdef uint64_t before = self._counted()
        add_u64(&self.disk.queued_bytes, <uint64_t>n)
        if self.plane is not None and self.plane.shared != NULL:
            add_u64(&self.plane.shared.store.outside, self._counted() - before)

    cdef uint64_t _counted(self) noexcept:
        cdef uint64_t queued = load_u64(&self.disk.queued_bytes)
        return queued if queued > self.disk.aside_bytes else self.disk.aside_bytes

    cdef void _free(self, Job* job):
        cdef Store* store
        if job.kind == JOB_WRITE and job.memory != NULL:
            self._charge(-<int64_t>job.n)
        if job.in_arena:
            if job.memory != NULL and self.plane.shared != NULL:
                store = &self.plane.shared.store
                pthread_mutex_lock(&store.lock)
                arena_free(&store.arena, job.memory, job.n)
                pthread_mutex_unlock(&store.lock)
        else:
            free(job.memory)
        free(job.offsets)
        free(job.parts)
        OPENSSL_cleanse(job.key, 32)
        free(job)

    cdef Job* _writing(self, uint64_t segment, uint64_t offset, tuple row, uint64_t length, bytes key) except NULL:
        """`row`: kind, sequence, key digest, variant, generation, slice index, total length, wall_ns, class, origin, salt."""
        cdef Job* job = self._job(JOB_WRITE, segment, offset, key)
        cdef Record* record
        cdef bytes digest, salt
        cdef uint64_t n = record_bytes(length)
        try:
            job.memory = <uint8_t*>malloc(n)
            if job.memory == NULL:
                raise MemoryError
            job.n = n
            self._charge(<int64_t>n)
            record = <Record*>job.memory
            memset(record, 0, RECORD_HEADER)
            (record.kind, record.sequence, digest, record.variant, record.generation, record.slice_index,
             record.total_length, record.wall_ns, record.class_id, record.origin_id, salt) = row
            if len(digest) != 16 or len(salt) != 16 or length > RECORD_MOST:
                raise ValueError("digest and salt have 16 bytes, a payload no more than 8 MiB")
            memcpy(record.key, <const char*>digest, 16)
            memcpy(record.salt, <const char*>salt, 16)
            record.segment = segment
            record.length = <uint32_t>length
            memset(job.memory + RECORD_HEADER + length, 0, n - RECORD_HEADER - length)
        except BaseException:
            self._free(job)
            raise
        return job

    def write(self, uint64_t segment, uint64_t offset, tuple row, bytes payload, bytes key=None, bint must_sync=False) -> int:
        """Queues a record for its place. `row` as in _writing; `key`: seals it; `must_sync`: done when it is on the disk."""
        cdef Job* job = self._writing(segment, offset, row, len(payload), key)
        memcpy(job.memory + RECORD_HEADER, <const char*>payload, len(payload))
        job.must_sync = must_sync
        job_id = job.id
        queue_push(&self.disk.writes, job)
        return job_id

    def write_slice(self, uint64_t segment, uint64_t offset, tuple row, StoredObject stored, uint64_t index, bytes key=None) -> int:
        """Queues a copy of one full slice of an object. 0: it is not in memory as a whole."""
        cdef Store* store = &stored.plane.shared.store
        cdef Slice* slice
        cdef Job* job
        cdef int64_t length
        if index >= stored.object.directory.n or stored.object.total_length < 0:
            return 0
        length = stored.object.total_length - <int64_t>(index * store.slice_bytes)
        if length > store.slice_bytes:
            length = store.slice_bytes
        slice = &stored.object.directory.slices[index]
        # Only the control plane, which runs this, frees what a slice points at.
        if length <= 0 or slice.data == NULL or slice.filled != <uint32_t>length:
            return 0
        job = self._writing(segment, offset, row, <uint64_t>length, key)
        memcpy(job.memory + RECORD_HEADER, slice.data, <size_t>length)
        job_id = job.id
        queue_push(&self.disk.writes, job)
        return job_id

    def sync(self) -> int:
        cdef Job* job = self._job(JOB_SYNC, 0, 0, None)
        job_id = job.id
        queue_push(&self.disk.writes, job)
        return job_id

    def unlink(self, bytes name) -> int:
        """Of a file in the directory; one that isn't there is no error."""
        cdef Job* job = self._job(JOB_UNLINK, 0, 0, None)
        job_id = job.id
        memcpy(job.name, <const char*>name, min(len(name), NAME_BYTES - 1))
        queue_push(&self.disk.writes, job)
        return job_id

    def shred(self, bytes name) -> int:
        """Of a file in the directory, overwritten before it goes; one that isn't there is no error."""
        cdef Job* job = self._job(JOB_SHRED, 0, 0, None)
        job_id = job.id
        memcpy(job.name, <const char*>name, min(len(name), NAME_BYTES - 1))
        queue_push(&self.disk.writes, job)
        return job_id

    def wipe(self, uint64_t segment, uint32_t class_id, uint64_t before, bint overwrites) -> int:
        """Takes the records of a class with a lower sequence than `before` out of a segment, with their names."""
        cdef Job* job = self._job(JOB_WIPE, segment, class_id, None)
        job.n = before
        job.must_sync = overwrites
        job_id = job.id
        queue_push(&self.disk.writes, job)
        return job_id

    def replace(self, bytes name, list parts, bint shreds=False) -> int:
        """Writes a whole file, with its CRC32C after it, in place of the old one, which is there until the new one is.
        `shreds`: the old one is overwritten then."""
        cdef Job* job = self._job(JOB_REPLACE, 0, 0, None)
        cdef uint64_t i
        job.must_sync = shreds
        job_id = job.id
        memcpy(job.name, <const char*>name, min(len(name), NAME_BYTES - 1))
        job.n_parts = len(parts)
        job.parts = <Part*>calloc(len(parts) + 1, sizeof(Part))
        if job.parts == NULL:
            self._free(job)
            raise MemoryError
        for i in range(job.n_parts):
            job.parts[i].data = <const uint8_t*><const char*><bytes>parts[i]
            job.parts[i].n = len(parts[i])
        self._kept[job_id] = parts
        queue_push(&self.disk.writes, job)
        return job_id

    def read(self, uint64_t segment, uint64_t offset, uint64_t length, int kind, uint64_t generation, bytes key=None,
             uint32_t index=0, bytes digest=None) -> int:
        """Asks for a record's payload; its result has the bytes. A slice is asked for by its index and its key's digest."""
        cdef Job* job
        if length > RECORD_MOST:
            return 0
        job = self._job(JOB_READ, segment, offset, key)
        job.memory = <uint8_t*>malloc(length + 1)
        if job.memory == NULL:
            self._free(job)
            raise MemoryError
        job.n = length
        job.record.kind = <uint8_t>kind
        job.record.slice_index = index
        if digest is not None and len(digest) == 16:
            memcpy(job.record.key, <const char*>digest, 16)
        job.record.generation = generation
        job_id = job.id
        queue_push(&self.disk.reads, job)
        return job_id

    def read_slice(self, uint64_t segment, uint64_t offset, uint64_t length, bytes digest, uint64_t generation,
                   StoredObject stored, uint32_t index, bytes key=None) -> int:
        """Asks for a slice, into memory of the store's; take() publishes it where nothing came first. 0: no memory."""
        cdef Store* store = &stored.plane.shared.store
        cdef Job* job
        cdef uint8_t* piece
        cdef int64_t expected = load_i64(&stored.object.total_length) - <int64_t>index * store.slice_bytes
        if expected > store.slice_bytes:
            expected = store.slice_bytes
        if expected <= 0 or <uint64_t>expected != length or len(digest) != 16 or stored.plane is not self.plane:
            return 0
        job = self._job(JOB_READ, segment, offset, key)
        pthread_mutex_lock(&store.lock)
        piece = <uint8_t*>store_allocate(store, length)
        pthread_mutex_unlock(&store.lock)
        if piece == NULL:
            self._free(job)
            return 0
        job.memory = piece
        job.in_arena = 1
        job.n = length
        job.record.kind = RECORD_SLICE
        job.record.generation = generation
        job.record.slice_index = index
        memcpy(job.record.key, <const char*>digest, 16)
        job_id = job.id
        self._kept[job_id] = stored
        queue_push(&self.disk.reads, job)
        return job_id

    def scan(self, uint64_t segment, uint64_t offset=0) -> int:
        """Asks for the headers of a segment; its result has (rows, offsets, end): buffers of Record and of u64."""
        cdef Job* job = self._job(JOB_SCAN, segment, offset, None)
        job_id = job.id
        queue_push(&self.disk.reads, job)
        return job_id

    @property
    def bell_fd(self) -> int:
        return self.disk.bell.fd

    @property
    def queued_bytes(self) -> int:
        """Bytes of writes that wait or are under way."""
        return load_u64(&self.disk.queued_bytes)

    def take(self) -> list:
        """[(number, kind, error, value, took_ns)] since the last call. `error`: 0, an errno, or BAD, OTHER, LOCKED, NEWER.
        `value`: a record's (digest, payload); of a slice, whether it is what readers get now; of a scan (rows, offsets, end)."""
        cdef Job* job
        cdef Job* following
        bell_hear(&self.disk.bell)
        pthread_mutex_lock(&self.disk.lock)
        job = self.disk.done
        self.disk.done = NULL
        self.disk.done_last = NULL
        pthread_mutex_unlock(&self.disk.lock)
        taken = []
        while job != NULL:
            following = job.next
            value = None
            kept = self._kept.pop(job.id, None)
            if job.error == 0 and job.kind == JOB_READ:
                if job.in_arena:
                    value = self._publish(job, kept)
                else:
                    value = ((<char*>job.record.key)[:16], (<char*>job.memory)[:job.n])
            elif job.kind == JOB_SCAN:
                value = ((<char*>job.memory)[:job.n * sizeof(Record)], (<char*>job.offsets)[:job.n * 8], job.end)
            taken.append((job.id, job.kind, job.error, value, job.took_ns))
            self._free(job)
            job = following
        return taken

    cdef bint _publish(self, Job* job, StoredObject stored):
        cdef Store* store = &self.plane.shared.store
        cdef uint32_t mask = 0
        cdef bint done
        pthread_mutex_lock(&store.lock)
        done = object_attach(store, stored.object, job.record.slice_index, job.memory, <uint32_t>job.n, &mask)
        pthread_mutex_unlock(&store.lock)
        if done:
            job.memory = NULL
            self.plane.wake(stored.object, mask)
        return done
