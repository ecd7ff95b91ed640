# Keys and their variants in one open-addressing table. Readers use table_find and entry_match, inside a pass; all else is
# for writers, with Store.lock held.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from ext.http_head cimport RequestHead
from ext.store cimport Entry, Object, Store, Table

cdef uint64_t hash_key(Store* store, uint32_t origin, const uint8_t* key, uint32_t n) noexcept nogil
cdef Entry* table_find(Store* store, uint64_t hash, uint32_t origin, const uint8_t* key, uint32_t n) noexcept nogil
cdef Object* entry_match(Entry* entry, const uint8_t* data, const RequestHead* head) noexcept nogil

cdef Table* table_new(Store* store, uint64_t n) noexcept nogil
cdef bint table_insert(Store* store, Object* object, uint64_t hash, uint32_t origin, const uint8_t* key, uint32_t n, const uint8_t* vary, uint32_t vary_length, const uint8_t* vary_key, uint32_t vary_key_length) noexcept nogil
cdef void table_detach(Store* store, Object* object) noexcept nogil
cdef void entry_prune(Store* store, Entry* entry) noexcept nogil
cdef bint mark_unshareable(Store* store, uint64_t hash, uint32_t origin, const uint8_t* key, uint32_t n, int64_t until_ns) noexcept nogil
cdef void drop_marks(Store* store, int64_t before_ns, uint64_t most) noexcept nogil
cdef void unmark(Store* store, Entry* entry) noexcept nogil
