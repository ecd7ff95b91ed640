# The index of tags behind tags.pxd: a list of tagged objects in each bucket. Objects unlink themselves as they leave the table.
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from ext.arena cimport arena_free
from ext.atomics cimport add_u64
from ext.body cimport object_release
from ext.reclaim cimport store_allocate
from ext.store cimport *
from ext.stored cimport wrap
from ext.workers cimport Workers


cdef inline Tagged** bucket_of(Store* store, uint64_t tag) noexcept nogil:
    return &store.tag_buckets[(tag ^ tag >> 32) & (TAG_BUCKETS - 1)]


cdef bint tags_set(Store* store, Object* object, const uint64_t* tags, uint32_t n) noexcept nogil:
    """Gives an object these tags in place of those that it had. False: no memory, and it has the old ones."""
    cdef uint64_t size = TAG_BUCKETS * sizeof(Tagged*)
    cdef Tagged* rows = NULL
    cdef Tagged** bucket
    cdef uint32_t i
    if store.tag_buckets == NULL and n:
        store.tag_buckets = <Tagged**>store_allocate(store, size)
        if store.tag_buckets == NULL:
            return False
        memset(store.tag_buckets, 0, size)
    if n:
        rows = <Tagged*>store_allocate(store, n * sizeof(Tagged))
        if rows == NULL:
            return False
    tags_unlink(store, object)
    tags_free(store, object)
    object.tags = rows
    object.n_tags = n
    for i in range(n):
        bucket = bucket_of(store, tags[i])
        rows[i].tag = tags[i]
        rows[i].object = object
        rows[i].previous = NULL
        rows[i].next = bucket[0]
        if bucket[0] != NULL:
            bucket[0].previous = &rows[i]
        bucket[0] = &rows[i]
    return True


cdef void tags_unlink(Store* store, Object* object) noexcept nogil:
    """It can't be found by its tags any more; they stay known of it."""
    cdef Tagged* row
    cdef uint32_t i
    for i in range(object.n_tags):
        row = &object.tags[i]
        if row.object == NULL:
            continue            # unlinked already
        row.object = NULL
        if row.previous != NULL:
            row.previous.next = row.next
        else:
            bucket_of(store, row.tag)[0] = row.next
        if row.next != NULL:
            row.next.previous = row.previous


cdef void tags_free(Store* store, Object* object) noexcept nogil:
    if object.tags != NULL:
        arena_free(&store.arena, object.tags, object.n_tags * sizeof(Tagged))
    object.tags = NULL
    object.n_tags = 0


def tagged_objects(Workers plane, uint64_t tag, int64_t origin=-1) -> list:
    """[(origin, key, StoredObject)] of what is in the table with this tag, of one origin's row or (-1) of all."""
    cdef Store* store = &plane.shared.store
    cdef Tagged* row
    cdef Object** listed = NULL
    cdef Entry* entry
    cdef uint64_t n = 0, i
    # No Python object is made under the lock, as in Plane.objects().
    pthread_mutex_lock(&store.lock)
    if store.tag_buckets != NULL:
        row = bucket_of(store, tag)[0]
        while row != NULL:
            n += 1
            row = row.next
    listed = <Object**>malloc((n + 1) * sizeof(Object*))
    n = 0
    row = bucket_of(store, tag)[0] if listed != NULL and store.tag_buckets != NULL else NULL
    while row != NULL:
        if row.tag == tag and row.object.entry != NULL and (origin < 0 or row.object.origin == <uint64_t>origin):
            add_u64(&row.object.refs, 1)
            listed[n] = row.object
            n += 1
        row = row.next
    pthread_mutex_unlock(&store.lock)
    if listed == NULL:
        raise MemoryError
    found = []
    for i in range(n):
        entry = listed[i].entry
        stored = wrap(plane, listed[i])
        object_release(listed[i])
        if entry != NULL:
            found.append((entry.origin, (<char*>entry + sizeof(Entry))[:entry.key_length], stored))
    free(listed)
    return found
