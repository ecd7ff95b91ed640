# An object's body: slices that are absent, filling or in memory. Readers use body_at and body_wait, inside a pass; all
# else is for writers, with Store.lock held.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from ext.store cimport Directory, FIRST_ROOM_BYTES, MAX_SLICES, OBJECT_COMPLETE, OBJECT_FAILED, OBJECT_PRIVATE, OBJECT_STREAM, SLICE_PASSED, SLICE_UNREAD, SLICE_WATCHED, STREAM_ROOM_BYTES, Object, Slice, Store, count_filled

cdef inline uint64_t directory_bytes(uint64_t n) noexcept nogil:
    return sizeof(Directory) + (n - 1) * sizeof(Slice)

cdef uint8_t* body_at(Store* store, Object* object, int64_t offset, uint64_t* n) noexcept nogil
cdef bint body_wait(Store* store, Object* object, int64_t offset, uint32_t worker) noexcept nogil
cdef bint body_passed(Store* store, Object* object, int64_t start, int64_t end) noexcept nogil

cdef void object_release(Object* object) noexcept nogil
cdef uint8_t* object_room(Store* store, Object* object, int64_t offset, uint64_t* n) noexcept nogil
cdef uint32_t object_commit(Store* store, Object* object, int64_t offset, uint64_t n) noexcept nogil
cdef uint32_t object_finish(Store* store, Object* object, int64_t total_length) noexcept nogil
cdef uint32_t take_waiting(Object* object) noexcept nogil
cdef int64_t object_lead(Store* store, Object* object, int64_t offset, int64_t most) noexcept nogil
cdef bint object_watch(Store* store, Object* object, int64_t offset) noexcept nogil
cdef bint is_whole(Store* store, Object* object) noexcept nogil
cdef void drop_before(Store* store, Object* object, int64_t offset) noexcept nogil
cdef uint64_t empty_slice(Store* store, Object* object, uint64_t index) noexcept nogil
cdef void object_trim(Store* store, Object* object) noexcept nogil
cdef bint object_attach(Store* store, Object* object, uint64_t index, uint8_t* data, uint32_t n, uint32_t* mask) noexcept nogil
