# What the data plane has stored, as Python makes, finds and counts it. Every call takes the store's lock; nothing here runs
# per request of a hit. Workers and their tables are plane.pyx's.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport free, malloc

from ext.arena cimport arena_free, arena_trim
from ext.atomics cimport *
from ext.body cimport *
from ext.http_head cimport RequestHead, parse_request
from ext.layout cimport *
from ext.request cimport build_key, route
from ext.serve cimport now_ns
from ext.store cimport *
from ext.stored cimport StoredObject, make_head, wrap
from ext.table cimport drop_marks, entry_match, hash_key, mark_unshareable, table_find


cdef class Contents(Workers):
    """The store's part of Plane."""

    def create(self, uint32_t origin, int64_t total_length, int status, bytes status_line, bytes lines, bytes short_lines,
               bytes etag, int64_t last_modified_s, int64_t fresh_until_ns, int64_t stale_until_ns, int64_t validated_ns,
               int64_t born_ns, int flags, bint is_private, bint is_strong, int kind=0, int class_index=0):
        """An object that isn't in the table yet; None when there is no memory. Arguments as in StoredObject.set_head."""
        cdef Store* store = &self.shared.store
        cdef Head* head
        cdef Object* object = NULL
        cdef StoredObject stored
        cdef uint32_t object_flags = (OBJECT_PRIVATE if is_private else 0) | (OBJECT_STRONG if is_strong else 0)
        pthread_mutex_lock(&store.lock)
        head = make_head(store, status, status_line, lines, short_lines, etag, last_modified_s, fresh_until_ns,
                         stale_until_ns, validated_ns, born_ns, flags)
        if head != NULL:
            object = object_new(store, head, total_length, origin, object_flags)
            if object == NULL:
                arena_free(&store.arena, head, head.size)
        if object != NULL:
            object.kind = <uint8_t>kind
            object.class_index = <uint8_t>class_index
            object.handles = 1
        pthread_mutex_unlock(&store.lock)
        if object == NULL:
            return None
        stored = StoredObject.__new__(StoredObject)
        stored.plane = self
        stored.object = object
        return stored

    def route(self, bytes host, bytes path) -> int:
        """The origin row of a viewer's host (without port) and path; -1 unknown host, -2 no path."""
        cdef uint32_t strip = 0
        cdef int origin = route(self.shared.tables, host, <uint32_t>len(host), path, <uint32_t>len(path), &strip)
        return origin if strip == 0 else -1     # what is stored is known by the origin's own hosts and paths

    def key_of(self, uint32_t origin, bytes path) -> bytes:
        """The key of a path with its query, as the workers build it."""
        cdef bytearray out = bytearray(len(path) + 1)
        n = build_key(self.shared.tables, origin, path, <uint32_t>len(path), <uint8_t*><char*>out)
        return bytes(out[:n])

    def find(self, uint32_t origin, bytes key) -> list:
        """All variants of a key, newest first."""
        cdef Store* store = &self.shared.store
        cdef Entry* entry
        cdef Object* object
        cdef Object* variants[MAX_VARIANTS + 1]
        cdef int n = 0, i
        # No Python object is made under the lock: that may collect garbage, and a StoredObject's end takes the lock.
        pthread_mutex_lock(&store.lock)
        entry = table_find(store, hash_key(store, origin, key, <uint32_t>len(key)), origin, key, <uint32_t>len(key))
        if entry != NULL:
            object = entry.variants
            while object != NULL and n <= MAX_VARIANTS:
                add_u64(&object.refs, 1)
                variants[n] = object
                n += 1
                object = object.next_variant
        pthread_mutex_unlock(&store.lock)
        found = []
        for i in range(n):
            found.append(wrap(self, variants[i]))
            object_release(variants[i])
        return found

    def match(self, uint32_t origin, bytes key, bytes request_head):
        """The variant that a worker would find for this request now, or None."""
        cdef Store* store = &self.shared.store
        cdef RequestHead head
        cdef Entry* entry
        cdef Object* object = NULL
        if parse_request(request_head, len(request_head), &head) <= 0:
            return None
        pthread_mutex_lock(&store.lock)
        entry = table_find(store, hash_key(store, origin, key, <uint32_t>len(key)), origin, key, <uint32_t>len(key))
        if entry != NULL:
            object = entry_match(entry, request_head, &head)
        if object != NULL:
            add_u64(&object.refs, 1)
        pthread_mutex_unlock(&store.lock)
        if object == NULL:
            return None
        found = wrap(self, object)
        object_release(object)
        return found

    def mark_unshareable(self, uint32_t origin, bytes key, int64_t until_ns) -> bool:
        """Remembers that a key's responses can't be shared, so that nobody queues behind one; 0 forgets it."""
        cdef Store* store = &self.shared.store
        cdef bint done
        pthread_mutex_lock(&store.lock)
        drop_marks(store, now_ns(), 16)
        done = mark_unshareable(store, hash_key(store, origin, key, <uint32_t>len(key)), origin, key, <uint32_t>len(key), until_ns)
        pthread_mutex_unlock(&store.lock)
        return done

    def objects(self) -> list:
        """[(origin, key, StoredObject)] of all that is in the table."""
        cdef Store* store = &self.shared.store
        cdef Table* table
        cdef Entry* entry
        cdef Object* object
        cdef Object** listed
        cdef uint64_t i, n = 0, room = 0
        # Gathered without making a Python object, as in find(). The keys are good afterwards too: an entry outlives its
        # last object by a pass and a reclaim(), which only this thread can call.
        pthread_mutex_lock(&store.lock)
        table = store.table
        for i in range(table.mask + 1):
            entry = table.buckets[i]
            if <uintptr_t>entry > 1:
                room += entry.n_variants
        listed = <Object**>malloc((room + 1) * sizeof(Object*))
        for i in range(table.mask + 1 if listed != NULL else 0):
            entry = table.buckets[i]
            object = entry.variants if <uintptr_t>entry > 1 else NULL
            while object != NULL:
                add_u64(&object.refs, 1)
                listed[n] = object
                n += 1
                object = object.next_variant
        pthread_mutex_unlock(&store.lock)
        if listed == NULL:
            raise MemoryError
        found = []
        for i in range(n):
            entry = listed[i].entry
            stored = wrap(self, listed[i])
            object_release(listed[i])
            if entry != NULL:       # a finalizer may have run meanwhile, and detached it
                found.append((entry.origin, (<char*>entry + sizeof(Entry))[:entry.key_length], stored))
        free(listed)
        return found

    def tally(self, uint64_t begin, uint64_t n, uint64_t[:, ::1] sums) -> tuple:
        """Adds (complete variants, their body bytes in memory) of `n` buckets from `begin` to the row of each origin.

        Returns (the next bucket, how many there are); a table that grew or shrank meanwhile is to be begun anew."""
        cdef Store* store = &self.shared.store
        cdef Table* table
        cdef Entry* entry
        cdef Object* object
        cdef uint64_t i, end, n_buckets, n_rows = <uint64_t>sums.shape[0]
        if sums.shape[1] < 2 or n_rows == 0:
            raise ValueError("two columns are needed")
        with nogil:
            pthread_mutex_lock(&store.lock)
            table = store.table
            n_buckets = table.mask + 1
            end = n_buckets if n > n_buckets or begin > n_buckets - n else begin + n
            for i in range(begin, end):
                entry = table.buckets[i]
                if <uintptr_t>entry <= 1 or entry.origin >= n_rows:
                    continue
                object = entry.variants
                while object != NULL:
                    if object.flags & OBJECT_COMPLETE:
                        sums[entry.origin, 0] += 1
                        sums[entry.origin, 1] += object.n_filled_bytes
                    object = object.next_variant
            pthread_mutex_unlock(&store.lock)
        return (end if end > begin else n_buckets), n_buckets

    def give_up(self, uint64_t bytes) -> None:
        """Of the memory limit, objects leave `bytes` to the machine: what is over goes with the next reclaim()."""
        cdef Store* store = &self.shared.store
        pthread_mutex_lock(&store.lock)
        store.given_up = bytes
        arena_trim(&store.arena)
        pthread_mutex_unlock(&store.lock)

    @property
    def memory(self) -> dict:
        """Bytes: `mapped` for objects (of which `used` asked for, `retired` waiting), `outside` for connections, `limit`."""
        cdef Store* store = &self.shared.store
        return {
            "mapped": load_u64_relaxed(&store.arena.mapped), "used": load_u64_relaxed(&store.arena.used),
            "retired": store.retired_bytes, "outside": load_u64_relaxed(&store.outside), "limit": store.arena.limit,
        }

    def set_quota(self, uint8_t class_index, uint64_t bytes_) -> None:
        """The most body bytes that a class may have in memory, held at each reclaim(); 0: no bound of its own."""
        pthread_mutex_lock(&self.shared.store.lock)
        self.shared.store.class_quota[class_index] = bytes_
        pthread_mutex_unlock(&self.shared.store.lock)

    def class_bytes(self, uint8_t class_index) -> int:
        """Body bytes of a class in memory."""
        return self.shared.store.class_bytes[class_index]

    @property
    def n_objects(self) -> int:
        return self.shared.store.n_objects
