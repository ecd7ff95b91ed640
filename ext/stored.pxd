# StoredObject, and how heads and objects are made for it.
from libc.stdint cimport int64_t

from ext.store cimport Head, Object, Store
from ext.workers cimport Workers

cdef class StoredObject:
    cdef Object* object
    cdef readonly Workers plane

cdef StoredObject wrap(Workers plane, Object* object)
cdef Head* make_head(Store* store, int status, bytes status_line, bytes lines, bytes short_lines, bytes etag,
                     int64_t last_modified_s, int64_t fresh_until_ns, int64_t stale_until_ns, int64_t validated_ns,
                     int64_t born_ns, int flags)
