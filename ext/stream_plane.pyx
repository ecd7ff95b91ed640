# Ring: makes and frees a stream's memory, within the store's budget; closes it; says what is known of it. Names and
# policy stay outside.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from ext.atomics cimport *
from ext.reclaim cimport retire, store_allocate
from ext.store cimport Store, pthread_mutex_lock, pthread_mutex_unlock
from ext.stream cimport *

CHUNK = CHUNK_BYTES
CHUNKS_MIN = MIN_CHUNKS


cdef class Ring:
    """`bytes`: of the window and what is spare; at least CHUNKS_MIN chunks. `index`: streams of different indices wake
    their readers apart. One relay at a time writes it. It is freed when nobody reads it any more, and until then kept by
    who made it; a ring that is dropped while it has readers stays in memory as long as its plane."""

    def __cinit__(self, Workers plane, uint64_t bytes, *, uint32_t index, int64_t hold_ns, int64_t silence_ns):
        cdef uint64_t n_chunks = bytes // CHUNK_BYTES
        cdef uint64_t head = (sizeof(Stream) + 63) & ~<uint64_t>63
        cdef uint64_t size
        cdef Store* store = &plane.shared.store
        cdef Stream* s
        cdef uint32_t i
        if n_chunks < MIN_CHUNKS or bytes > 1 << 32 or hold_ns < 0 or silence_ns <= 0:
            raise ValueError("a ring of 8 chunks to 4 GiB, times that aren't negative")
        self.plane = plane
        size = head + n_chunks * (sizeof(Chunk) + CHUNK_BYTES)
        pthread_mutex_lock(&store.lock)
        s = <Stream*>store_allocate(store, size)
        pthread_mutex_unlock(&store.lock)
        if s == NULL:
            raise MemoryError("no memory for a stream within cache.memory")
        memset(s, 0, head + n_chunks * sizeof(Chunk))
        s.store = store
        s.size = size
        s.chunks = <Chunk*>(<uint8_t*>s + head)
        s.data = <uint8_t*>(s.chunks + n_chunks)
        s.n_chunks = <int64_t>n_chunks
        s.n_spare = <int64_t>(n_chunks // 4)
        s.capacity = n_chunks * CHUNK_BYTES
        s.entry = s.entry_chunk = -1
        s.index = index
        s.hold_ns = hold_ns
        s.silence_ns = silence_ns
        s.n_workers = plane.n_workers
        s.refs = 1
        for i in range(plane.n_workers):
            s.mailboxes[i] = &plane.workers[i].mailbox
        self.stream = s

    def __dealloc__(self):
        cdef Store* store
        if self.stream == NULL or self.plane is None or self.plane.shared == NULL:
            return
        store = &self.plane.shared.store
        if add_u64(&self.stream.refs, <uint64_t>-1) == 1:
            pthread_mutex_lock(&store.lock)
            retire(store, self.stream, self.stream.size)
            pthread_mutex_unlock(&store.lock)

    @property
    def readers(self) -> int:
        return load_u32(&self.stream.readers)

    @property
    def has_readers(self) -> bool:
        """Also those whose answer is on its way to their worker."""
        return load_u64(&self.stream.refs) > 1

    @property
    def has_entry(self) -> bool:
        """Whether a reader who comes now has a place to begin at."""
        cdef int64_t entry = load_i64(&self.stream.entry)
        return entry >= 0 and entry * CHUNK_BYTES >= load_i64(&self.stream.oldest)

    def close(self) -> None:
        """Readers get what is published, and then their end."""
        store_u32_seq(&self.stream.is_closed, 1)
        stream_ring(self.stream, exchange_u32(&self.stream.waiting, 0))

    def known(self) -> dict:
        s = self.stream
        return {
            "readers": load_u32(&s.readers), "published": load_i64(&s.published), "oldest": load_i64(&s.oldest),
            "published_ns": load_i64_relaxed(&s.published_ns),
            "packets": load_u64_relaxed(&s.n_packets), "refused": load_u64_relaxed(&s.n_refused),
            "stalled": load_u64_relaxed(&s.n_stalled), "skips": load_u64_relaxed(&s.n_skips),
            "bytes": load_u64_relaxed(&s.n_bytes), "capacity": s.capacity, "size": s.size,
        }
