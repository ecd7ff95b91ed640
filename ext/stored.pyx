# StoredObject: one object as the control plane sees it. Every call that changes shared memory takes the store's lock.
from cpython.buffer cimport PyBUF_WRITE
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcpy

from ext.atomics cimport *
from ext.body cimport *
from ext.http_head cimport RequestHead, parse_request
from ext.reclaim cimport retire, store_allocate
from ext.store cimport *
from ext.table cimport hash_key, table_detach, table_insert
from ext.tags cimport MAX_TAGS, tags_set
from ext.vary cimport MAX_VARY_BYTES, vary_key_of


cdef class StoredObject:
    """One object, by reference: it stays while this lives, in the table or not."""

    def __dealloc__(self):
        if self.object == NULL or self.plane is None or self.plane.shared == NULL:
            return
        cdef Store* store = &self.plane.shared.store
        pthread_mutex_lock(&store.lock)
        self.object.handles -= 1
        # Never listed, and nobody is left who could list it.
        if self.object.handles == 0 and self.object.entry == NULL and not self.object.flags & OBJECT_DETACHED:
            or_u32(&self.object.flags, OBJECT_DETACHED)
            retire(store, self.object, 0)
        object_release(self.object)
        pthread_mutex_unlock(&store.lock)

    def __eq__(self, other):
        return isinstance(other, StoredObject) and (<StoredObject>other).object == self.object

    def __hash__(self):
        return hash(<uintptr_t>self.object)

    @property
    def total_length(self) -> int:
        return load_i64(&self.object.total_length)

    @property
    def filled_bytes(self) -> int:
        return self.object.n_filled_bytes

    @property
    def is_complete(self) -> bool:
        return bool(self.object.flags & OBJECT_COMPLETE)

    @property
    def is_failed(self) -> bool:
        return bool(self.object.flags & OBJECT_FAILED)

    @property
    def is_filling(self) -> bool:
        return bool(self.object.flags & OBJECT_FILLING)

    @property
    def is_listed(self) -> bool:
        return self.object.entry != NULL

    @property
    def is_strong(self) -> bool:
        return bool(self.object.flags & OBJECT_STRONG)

    @property
    def n_readers(self) -> int:
        return load_u32(&self.object.readers)

    @property
    def want(self) -> int:
        """The furthest byte that a reader is at."""
        return load_i64(&self.object.want)

    @property
    def has_waiting(self) -> bool:
        return load_u32_seq(&self.object.waiting) != 0

    @property
    def origin(self) -> int:
        return self.object.origin

    @property
    def status(self) -> int:
        return self.object.head.status

    @property
    def fresh_until_ns(self) -> int:
        return self.object.head.fresh_until_ns

    @property
    def stale_until_ns(self) -> int:
        return self.object.head.stale_until_ns

    @property
    def born_ns(self) -> int:
        return self.object.head.born_ns

    @property
    def validated_ns(self) -> int:
        return self.object.head.validated_ns

    @property
    def kind(self) -> int:
        return self.object.kind

    @property
    def class_index(self) -> int:
        return self.object.class_index

    @property
    def generation(self) -> int:
        """Its name on the disk; 0: it isn't kept there."""
        return self.object.generation

    @generation.setter
    def generation(self, uint64_t generation):
        self.object.generation = generation

    @property
    def tags(self) -> tuple:
        """Numbers of its tags, as set_tags() was given them."""
        return tuple([self.object.tags[i].tag for i in range(self.object.n_tags)])

    def set_tags(self, tags) -> bool:
        """Makes it findable by tagged_objects(), by at most 256 numbers, while it is in the table. False: no memory."""
        cdef Store* store = &self.plane.shared.store
        cdef uint64_t numbers[MAX_TAGS]
        cdef uint32_t n = 0
        cdef bint done
        if len(tags) > MAX_TAGS:
            raise ValueError("more tags than an object can have")
        for tag in tags:
            numbers[n] = tag
            n += 1
        if n == 0 and self.object.n_tags == 0:
            return True
        pthread_mutex_lock(&store.lock)
        done = tags_set(store, self.object, numbers, n)
        pthread_mutex_unlock(&store.lock)
        return done

    @property
    def key(self):
        """The key that it is listed under, or None."""
        cdef Entry* entry = self.object.entry
        return None if entry == NULL else (<char*>entry + sizeof(Entry))[:entry.key_length]

    @property
    def vary(self) -> tuple:
        """(names, values) that it is listed under, as insert_as() takes them."""
        cdef Entry* entry = self.object.entry
        if entry == NULL or self.object.vary_id == 0 or entry.vary == NULL or entry.vary.id != self.object.vary_id:
            return b"", b""
        return ((<char*>entry.vary + sizeof(VaryNames))[:entry.vary.n],
                (<char*>self.object.vary_key)[:self.object.vary_key_length])

    def head_parts(self) -> tuple:
        """(lines, lines of a 304, etag, flags, last-modified)."""
        cdef Head* head = self.object.head
        cdef char* bytes_ = <char*>head_bytes(head)
        cdef uint32_t short_at = head.status_line_length + head.lines_length
        return (bytes_[head.status_line_length:short_at], bytes_[short_at:short_at + head.short_length],
                bytes_[head.etag:head.etag + head.etag_length] if head.etag else b"", head.flags, head.last_modified_s)

    def lines(self) -> bytes:
        """The stored field lines, as they were given."""
        cdef Head* head = self.object.head
        return head_bytes(head)[head.status_line_length:head.status_line_length + head.lines_length]

    def set_head(self, int status, bytes status_line, bytes lines, bytes short_lines, bytes etag, int64_t last_modified_s,
                 int64_t fresh_until_ns, int64_t stale_until_ns, int64_t validated_ns, int64_t born_ns, int flags) -> bool:
        """Swaps the immutable head (a 304, or a playlist whose lifetime is known now). False: no memory."""
        cdef Store* store = &self.plane.shared.store
        cdef Head* old
        cdef Head* new
        pthread_mutex_lock(&store.lock)
        new = make_head(store, status, status_line, lines, short_lines, etag, last_modified_s, fresh_until_ns,
                        stale_until_ns, validated_ns, born_ns, flags)
        if new != NULL:
            old = self.object.head
            store_ptr(<void**>&self.object.head, new)
            retire(store, old, old.size)
        pthread_mutex_unlock(&store.lock)
        return new != NULL

    def insert(self, bytes key, bytes vary, bytes request_head) -> bool:
        """Makes it findable under its origin and `key`; `vary`: lower-case names, each ended by a newline; the values
        are taken from `request_head`. Replaces the variant with the same values. False: no memory, values too long, or
        it is or was listed already: an object is listed once."""
        cdef Store* store = &self.plane.shared.store
        cdef RequestHead head
        cdef uint8_t values[MAX_VARY_BYTES]
        cdef int n = 0
        cdef bint done
        cdef uint64_t hash
        if self.object.entry != NULL or self.object.flags & (OBJECT_DETACHED | OBJECT_FAILED):
            return False
        if vary:
            if parse_request(request_head, len(request_head), &head) <= 0:
                return False
            n = vary_key_of(vary, <uint32_t>len(vary), request_head, &head, values)
            if n < 0:
                return False
        pthread_mutex_lock(&store.lock)
        hash = hash_key(store, self.object.origin, key, <uint32_t>len(key))
        done = table_insert(store, self.object, hash, self.object.origin, key, <uint32_t>len(key),
                            vary, <uint32_t>len(vary), values, <uint32_t>n)
        pthread_mutex_unlock(&store.lock)
        return done

    def insert_as(self, bytes key, bytes vary, bytes values) -> bool:
        """insert() for one that was listed before, under these Vary values."""
        cdef Store* store = &self.plane.shared.store
        cdef bint done
        if self.object.entry != NULL or self.object.flags & (OBJECT_DETACHED | OBJECT_FAILED) or len(values) > MAX_VARY_BYTES:
            return False
        pthread_mutex_lock(&store.lock)
        done = table_insert(store, self.object, hash_key(store, self.object.origin, key, <uint32_t>len(key)),
                            self.object.origin, key, <uint32_t>len(key), vary, <uint32_t>len(vary), values,
                            <uint32_t>len(values))
        pthread_mutex_unlock(&store.lock)
        return done

    def visit(self) -> None:
        """Counts as asked for again, as a worker's hit does."""
        store_u8_relaxed(&self.object.visited, 1)

    def mark_on_disk(self) -> None:
        """Every slice of it can be read from the disk: who is answered with it has a hit, wherever it is now."""
        or_u32(&self.object.flags, OBJECT_ON_DISK)

    @property
    def is_by_slices(self) -> bool:
        return bool(self.object.flags & OBJECT_BY_SLICES)

    def mark_by_slices(self) -> None:
        """Its origin knows one range a request: several are fetched slice by slice, however far apart."""
        or_u32(&self.object.flags, OBJECT_BY_SLICES)

    def mark_wanted(self, uint64_t index) -> None:
        """Readers that come to this slice wait and don't ask: it is on its way."""
        if index < self.object.directory.n:
            exchange_u32(&self.object.directory.slices[index].wanted, 1)

    def detach(self) -> None:
        """Out of the table; readers go on."""
        cdef Store* store = &self.plane.shared.store
        pthread_mutex_lock(&store.lock)
        table_detach(store, self.object)
        pthread_mutex_unlock(&store.lock)

    def room(self, int64_t offset, int64_t most):
        """A writable memoryview of at most `most` bytes at `offset`, or None when there is no memory now, or `offset` isn't
        where its slice is filled to (has_bytes says where that is). It is good until commit() or end_fill()."""
        cdef Store* store = &self.plane.shared.store
        cdef uint64_t n = 0
        cdef uint8_t* data
        pthread_mutex_lock(&store.lock)
        data = object_room(store, self.object, offset, &n)
        if data != NULL and self.object.directory.n > <uint64_t>offset // store.slice_bytes:
            store_u32(&self.object.directory.slices[offset // store.slice_bytes].wanted, 1)
        pthread_mutex_unlock(&store.lock)
        if data == NULL:
            return None
        if <int64_t>n > most:
            n = <uint64_t>most
        return PyMemoryView_FromMemory(<char*>data, n, PyBUF_WRITE)

    def commit(self, int64_t offset, uint64_t n) -> None:
        """Publishes bytes that were put into room(offset) and wakes who waits for them. Raises ValueError for bytes that
        room() gave no place for."""
        cdef Store* store = &self.plane.shared.store
        cdef uint32_t mask
        cdef Slice* slice
        if offset < 0 or <uint64_t>offset // store.slice_bytes >= self.object.directory.n:
            raise ValueError("commit() outside of room()")
        slice = &self.object.directory.slices[<uint64_t>offset // store.slice_bytes]
        if <uint64_t>offset % store.slice_bytes != slice.filled or n > slice.capacity - (slice.filled - slice.first):
            raise ValueError("commit() outside of room()")
        pthread_mutex_lock(&store.lock)
        mask = object_commit(store, self.object, offset, n)
        pthread_mutex_unlock(&store.lock)
        self.plane.wake(self.object, mask)

    def begin_fill(self) -> None:
        self.object.fills += 1
        or_u32(&self.object.flags, OBJECT_FILLING)

    def end_fill(self) -> None:
        """The fill is over; readers at a slice that it left unfilled ask again."""
        cdef Store* store = &self.plane.shared.store
        cdef uint64_t i
        if self.object.fills == 0:
            raise ValueError("end_fill() without begin_fill()")
        self.object.fills -= 1
        pthread_mutex_lock(&store.lock)
        if self.object.fills == 0:
            and_u32(&self.object.flags, ~<uint32_t>OBJECT_FILLING)
        for i in range(self.object.directory.n):
            store_u32(&self.object.directory.slices[i].wanted, 0)
        pthread_mutex_unlock(&store.lock)
        self.plane.wake(self.object, take_waiting(self.object))

    def forget_want(self) -> None:
        """Lets readers ask again for what they wait for."""
        cdef uint64_t i
        for i in range(self.object.directory.n):
            exchange_u32(&self.object.directory.slices[i].wanted, 0)
        self.plane.wake(self.object, take_waiting(self.object))

    def finish(self, int64_t total_length) -> None:
        """The body is whole."""
        cdef Store* store = &self.plane.shared.store
        cdef uint32_t mask
        pthread_mutex_lock(&store.lock)
        mask = object_finish(store, self.object, total_length)
        pthread_mutex_unlock(&store.lock)
        self.plane.wake(self.object, mask)

    @property
    def is_whole(self) -> bool:
        return is_whole(&self.plane.shared.store, self.object)

    def fail(self) -> None:
        """The source broke off for good: out of the table, readers' transfers are broken."""
        cdef Store* store = &self.plane.shared.store
        cdef uint32_t mask
        pthread_mutex_lock(&store.lock)
        mask = object_fail(store, self.object)
        pthread_mutex_unlock(&store.lock)
        self.plane.wake(self.object, mask)

    def pause_at(self, int64_t offset) -> bool:
        """Asks for a nudge when a reader gets to `offset`. False: somebody waits already, so don't pause."""
        store_i64_seq(&self.object.resume_at, offset)
        if load_u32_seq(&self.object.waiting) or load_i64(&self.object.want) >= offset:
            store_i64_seq(&self.object.resume_at, INT64_MAX)
            return False
        return True

    def lead(self, int64_t offset, int64_t most) -> int:
        """How far a fill at `offset` is ahead of its readers, by slices; not further than a slice more than `most`."""
        return object_lead(&self.plane.shared.store, self.object, offset, most)

    def rest_until(self, int64_t offset, int64_t place) -> bool:
        """A fill at `place` rests until a reader has been through the slice at `offset`: then nudge, or a want of who is
        at `place` all the same. False: one has been already."""
        cdef Store* store = &self.plane.shared.store
        cdef uint64_t i = <uint64_t>place // store.slice_bytes
        if not object_watch(store, self.object, offset):
            return False
        if i < self.object.directory.n:
            exchange_u32(&self.object.directory.slices[i].wanted, 0)
        self.plane.wake(self.object, take_waiting(self.object))
        return True

    def unpause(self) -> None:
        store_i64_seq(&self.object.resume_at, INT64_MAX)

    def become_stream(self) -> None:
        """An endless private body: its memory is given back by trim(), and who closes his side has left."""
        or_u32(&self.object.flags, OBJECT_STREAM)

    def trim(self) -> None:
        """Gives back what the stream's reader has read; memoryviews of room() are no good from here on."""
        cdef Store* store = &self.plane.shared.store
        pthread_mutex_lock(&store.lock)
        object_trim(store, self.object)
        pthread_mutex_unlock(&store.lock)

    def drop_before(self, int64_t offset) -> None:
        """Empties what a private body's reader has passed."""
        cdef Store* store = &self.plane.shared.store
        pthread_mutex_lock(&store.lock)
        drop_before(store, self.object, offset)
        pthread_mutex_unlock(&store.lock)

    def has_bytes(self, int64_t offset) -> int:
        """How many body bytes there are in a row from `offset` on, within its slice."""
        cdef uint64_t n = 0
        if body_at(&self.plane.shared.store, self.object, offset, &n) == NULL:
            return 0
        return n

    def body(self, int64_t most) -> bytes:
        """Up to `most` bytes of the body's start, copied (for playlists)."""
        cdef uint64_t n
        cdef int64_t offset = 0
        cdef uint8_t* data
        parts = []
        while offset < most:
            data = body_at(&self.plane.shared.store, self.object, offset, &n)
            if data == NULL:
                break
            if <int64_t>n > most - offset:
                n = <uint64_t>(most - offset)
            parts.append((<char*>data)[:n])
            offset += n
        return b"".join(parts)


cdef Head* make_head(Store* store, int status, bytes status_line, bytes lines, bytes short_lines, bytes etag,
                     int64_t last_modified_s, int64_t fresh_until_ns, int64_t stale_until_ns, int64_t validated_ns,
                     int64_t born_ns, int flags):
    cdef uint64_t size = sizeof(Head) + len(status_line) + len(lines) + len(short_lines) + len(etag)
    cdef Head* head = <Head*>store_allocate(store, size)
    cdef uint8_t* out
    if head == NULL:
        return NULL
    out = head_bytes(head)
    head.size = <uint32_t>size
    head.status = status
    head.flags = flags
    head.fresh_until_ns = fresh_until_ns
    head.stale_until_ns = stale_until_ns
    head.validated_ns = validated_ns
    head.born_ns = born_ns
    head.last_modified_s = last_modified_s
    head.status_line_length = <uint32_t>len(status_line)
    head.lines_length = <uint32_t>len(lines)
    head.short_length = <uint32_t>len(short_lines)
    memcpy(out, <const char*>status_line, len(status_line))
    out += len(status_line)
    memcpy(out, <const char*>lines, len(lines))
    out += len(lines)
    memcpy(out, <const char*>short_lines, len(short_lines))
    out += len(short_lines)
    memcpy(out, <const char*>etag, len(etag))
    head.etag_length = <uint32_t>len(etag)
    head.etag = <uint32_t>(out - head_bytes(head)) if etag else 0
    return head


cdef StoredObject wrap(Workers plane, Object* object):
    """With a reference of its own; the caller has one, so that the object can't go meanwhile."""
    cdef StoredObject stored = StoredObject.__new__(StoredObject)
    add_u64(&object.refs, 1)
    object.handles += 1
    stored.plane = plane
    stored.object = object
    return stored
