# The table of keys behind table.pxd: entries, their variants, marks. Readers follow published pointers without a lock.
from libc.stdint cimport INT64_MAX
from libc.string cimport memcmp, memcpy, memset

from ext.arena cimport arena_free
from ext.atomics cimport *
from ext.reclaim cimport retire, store_allocate
from ext.siphash cimport hash_bytes
from ext.store cimport *
from ext.tags cimport tags_unlink
from ext.vary cimport MAX_VARY_BYTES, vary_key_of


cdef uint64_t hash_key(Store* store, uint32_t origin, const uint8_t* key, uint32_t n) noexcept nogil:
    cdef uint64_t mixed[2]
    mixed[0] = store.secret[0] + origin
    mixed[1] = store.secret[1]
    return hash_bytes(mixed, key, n)


cdef Table* table_new(Store* store, uint64_t n) noexcept nogil:
    cdef uint64_t size = sizeof(Table) + (n - 1) * sizeof(Entry*)
    cdef Table* table = <Table*>store_allocate(store, size)
    if table == NULL:
        return NULL
    memset(table, 0, size)
    table.mask = n - 1
    table.size = size
    return table


cdef inline uint8_t* entry_key(Entry* entry) noexcept nogil:
    return <uint8_t*>entry + sizeof(Entry)


cdef Entry* table_find(Store* store, uint64_t hash, uint32_t origin, const uint8_t* key, uint32_t n) noexcept nogil:
    cdef Table* table = <Table*>load_ptr(<void**>&store.table)
    cdef uint64_t i = hash & table.mask
    cdef Entry* entry
    while True:
        entry = <Entry*>load_ptr(<void**>&table.buckets[i])
        if entry == NULL:
            return NULL
        if (<uint64_t>entry != 1 and entry.hash == hash and entry.origin == origin and entry.key_length == n
                and memcmp(entry_key(entry), key, n) == 0):
            return entry
        i = (i + 1) & table.mask


cdef void table_put(Table* table, Entry* entry) noexcept nogil:
    cdef uint64_t i = entry.hash & table.mask
    while <uint64_t>table.buckets[i] > 1:
        i = (i + 1) & table.mask
    if table.buckets[i] == NULL:
        table.n_taken += 1
    table.n_live += 1
    store_ptr(<void**>&table.buckets[i], entry)


cdef bint table_grow(Store* store) noexcept nogil:
    """Keeps at least a third of the buckets NULL, so that a probe ends soon; also sweeps tombstones out."""
    cdef Table* old = store.table
    cdef Table* new
    cdef uint64_t i, n
    if old.n_taken * 3 < (old.mask + 1) * 2:
        return True
    n = (old.mask + 1) * 2 if old.n_live * 3 >= old.mask + 1 else old.mask + 1
    new = table_new(store, n)
    if new == NULL:
        return old.n_taken * 8 < (old.mask + 1) * 7
    for i in range(old.mask + 1):
        if <uint64_t>old.buckets[i] > 1:
            table_put(new, old.buckets[i])
    store_ptr(<void**>&store.table, new)
    retire(store, old, old.size)
    return True


cdef Entry* entry_get(Store* store, uint64_t hash, uint32_t origin, const uint8_t* key, uint32_t n) noexcept nogil:
    cdef Entry* entry = table_find(store, hash, origin, key, n)
    cdef uint32_t size = sizeof(Entry) + n
    if entry != NULL:
        return entry
    entry = <Entry*>store_allocate(store, size)
    if entry == NULL:
        return NULL
    memset(entry, 0, sizeof(Entry))
    memcpy(entry_key(entry), key, n)
    entry.hash = hash
    entry.origin = origin
    entry.key_length = n
    entry.size = size
    if not table_grow(store):
        arena_free(&store.arena, entry, size)
        return NULL
    table_put(store.table, entry)
    return entry


cdef void entry_prune(Store* store, Entry* entry) noexcept nogil:
    """Takes an entry without variants and without a mark out of the table."""
    cdef Table* table = store.table
    cdef uint64_t i = entry.hash & table.mask
    if entry.n_variants != 0 or entry.unshareable_until_ns != 0:
        return
    while table.buckets[i] != entry:
        if table.buckets[i] == NULL:
            return
        i = (i + 1) & table.mask
    store_ptr(<void**>&table.buckets[i], <void*>1)
    table.n_live -= 1
    if entry.vary != NULL:
        retire(store, entry.vary, sizeof(VaryNames) + entry.vary.n)
    retire(store, entry, entry.size)


cdef bint mark_unshareable(Store* store, uint64_t hash, uint32_t origin, const uint8_t* key, uint32_t n, int64_t until_ns) noexcept nogil:
    """Remembers until then that the key's responses can't be shared; 0 forgets it. The oldest marks make room for new
    ones: an entry without variants is no object, so that nothing else would ever take it out. False: no memory."""
    cdef Entry* entry
    if until_ns == 0:
        entry = table_find(store, hash, origin, key, n)
        if entry == NULL:
            return True
        unmark(store, entry)
        entry_prune(store, entry)
        return True
    entry = entry_get(store, hash, origin, key, n)
    if entry == NULL:
        return False
    unmark(store, entry)
    store_i64(&entry.unshareable_until_ns, until_ns)
    entry.older_mark = store.newest_mark
    entry.newer_mark = NULL
    if store.newest_mark != NULL:
        store.newest_mark.newer_mark = entry
    else:
        store.oldest_mark = entry
    store.newest_mark = entry
    store.n_marks += 1
    if store.n_marks > MAX_MARKS:
        drop_marks(store, INT64_MAX, 1)
    return True


cdef void unmark(Store* store, Entry* entry) noexcept nogil:
    if entry.unshareable_until_ns == 0:
        return
    store_i64(&entry.unshareable_until_ns, 0)
    if entry.newer_mark != NULL:
        entry.newer_mark.older_mark = entry.older_mark
    else:
        store.newest_mark = entry.older_mark
    if entry.older_mark != NULL:
        entry.older_mark.newer_mark = entry.newer_mark
    else:
        store.oldest_mark = entry.newer_mark
    store.n_marks -= 1


cdef void drop_marks(Store* store, int64_t before_ns, uint64_t most) noexcept nogil:
    """Forgets up to `most` of the oldest marks that end before then."""
    cdef Entry* entry
    while most and store.oldest_mark != NULL and store.oldest_mark.unshareable_until_ns < before_ns:
        most -= 1
        entry = store.oldest_mark
        unmark(store, entry)
        entry_prune(store, entry)


cdef void unlink_variant(Entry* entry, Object* object) noexcept nogil:
    cdef Object** link = &entry.variants
    while link[0] != NULL and link[0] != object:
        link = &link[0].next_variant
    if link[0] == object:
        # A reader that stands on `object` goes on through its next_variant, which stays.
        store_ptr(<void**>link, object.next_variant)
        entry.n_variants -= 1


cdef void table_detach(Store* store, Object* object) noexcept nogil:
    """Takes an object out of the table; its memory follows when its readers and the workers have passed."""
    cdef Entry* entry = object.entry
    if entry == NULL:
        return
    if object.flags & OBJECT_COMPLETE:
        store.n_objects -= 1
    unlink_variant(entry, object)
    tags_unlink(store, object)
    object.entry = NULL
    or_u32(&object.flags, OBJECT_DETACHED)
    entry_prune(store, entry)
    retire(store, object, 0)


cdef VaryNames* vary_names(Store* store, Entry* entry, const uint8_t* vary, uint32_t n) noexcept nogil:
    """The entry's names when they are the same, else new ones (not published yet). NULL: no memory."""
    cdef VaryNames* names = entry.vary
    if names != NULL and names.n == n and memcmp(<uint8_t*>names + sizeof(VaryNames), vary, n) == 0:
        return names
    names = <VaryNames*>store_allocate(store, sizeof(VaryNames) + n)
    if names != NULL:
        store.last_vary_id += 1
        names.id = store.last_vary_id
        names.n = n
        memcpy(<uint8_t*>names + sizeof(VaryNames), vary, n)
    return names


cdef bint table_insert(Store* store, Object* object, uint64_t hash, uint32_t origin, const uint8_t* key, uint32_t n, const uint8_t* vary, uint32_t vary_length, const uint8_t* vary_key, uint32_t vary_key_length) noexcept nogil:
    """Makes an object findable, in place of the variant with the same Vary values. False: no memory."""
    cdef Entry* entry = entry_get(store, hash, origin, key, n)
    cdef Object* other
    cdef Object* following
    cdef VaryNames* names = NULL
    cdef VaryNames* old_names
    if entry == NULL:
        return False
    # Nothing is evicted out of this entry while it is worked on: an allocation below may evict, and prune it.
    entry.n_variants += 1
    old_names = entry.vary
    if vary_length:
        object.vary_key = <uint8_t*>store_allocate(store, vary_key_length) if vary_key_length else NULL
        names = vary_names(store, entry, vary, vary_length)
        if names == NULL or (vary_key_length and object.vary_key == NULL):
            if names != NULL and names != old_names:
                arena_free(&store.arena, names, sizeof(VaryNames) + vary_length)
            if object.vary_key != NULL:
                arena_free(&store.arena, object.vary_key, vary_key_length)
                object.vary_key = NULL
            entry.n_variants -= 1
            entry_prune(store, entry)
            return False
        memcpy(object.vary_key, vary_key, vary_key_length)
        object.vary_key_length = vary_key_length
        object.vary_id = names.id
    object.entry = entry
    object.next_variant = entry.variants
    store_ptr(<void**>&entry.variants, object)
    perturb()
    if names != old_names:
        store_ptr(<void**>&entry.vary, names)
        if old_names != NULL:
            retire(store, old_names, sizeof(VaryNames) + old_names.n)
    if object.flags & OBJECT_COMPLETE:
        store.n_objects += 1
    # An older variant with other Vary names can no longer be compared; one with the same values is replaced.
    other = object.next_variant
    while other != NULL:
        following = other.next_variant
        if (other.vary_id != object.vary_id or (entry.n_variants > MAX_VARIANTS and following == NULL)
                or (other.vary_key_length == vary_key_length
                    and (vary_key_length == 0 or memcmp(other.vary_key, vary_key, vary_key_length) == 0))):
            table_detach(store, other)
        other = following
    unmark(store, entry)
    return True


cdef Object* entry_match(Entry* entry, const uint8_t* data, const RequestHead* head) noexcept nogil:
    """The newest variant that this request may get (RFC 9111 section 4.1), or NULL."""
    cdef uint8_t wanted[MAX_VARY_BYTES]
    cdef int n = 0
    cdef uint32_t id = 0
    cdef VaryNames* names = <VaryNames*>load_ptr(<void**>&entry.vary)
    cdef Object* object
    if names != NULL:
        id = names.id
        n = vary_key_of(<uint8_t*>names + sizeof(VaryNames), names.n, data, head, wanted)
        if n < 0:
            return NULL
    object = <Object*>load_ptr(<void**>&entry.variants)
    while object != NULL:
        if object.vary_id == id and object.vary_key_length == <uint32_t>n and (n == 0 or memcmp(object.vary_key, wanted, n) == 0):
            return object
        object = <Object*>load_ptr(<void**>&object.next_variant)
    return NULL
