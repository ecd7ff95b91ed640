# Tags of objects (what an origin's Cache-Tag and Surrogate-Key say): which objects of the table have one. All of it is
# for writers, with Store.lock held; workers never look here.
from libc.stdint cimport uint32_t, uint64_t

from ext.store cimport Object, Store, Tagged

cdef enum:
    MAX_TAGS = 256              # of one object
    TAG_BUCKETS = 65536         # 512 KiB, made with the first tag: a million objects of four tags are 61 in a bucket

cdef bint tags_set(Store* store, Object* object, const uint64_t* tags, uint32_t n) noexcept nogil
cdef void tags_unlink(Store* store, Object* object) noexcept nogil
cdef void tags_free(Store* store, Object* object) noexcept nogil
