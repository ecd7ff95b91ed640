# DiskIo, as other modules of ext may see it.
from libc.stdint cimport int64_t, uint32_t, uint64_t

from ext.disk_threads cimport Disk, Job
from ext.stored cimport StoredObject
from ext.workers cimport Workers

cdef class DiskIo:
    cdef Disk* disk
    cdef Workers plane
    cdef object _threads
    cdef dict _kept             # what jobs point at, by their number
    cdef readonly str path
    cdef uint64_t last_id

    cdef Job* _job(self, uint32_t kind, uint64_t segment, uint64_t offset, bytes key) except NULL
    cdef Job* _writing(self, uint64_t segment, uint64_t offset, tuple row, uint64_t length, bytes key) except NULL
    cdef void _charge(self, int64_t n)
    cdef uint64_t _counted(self) noexcept
    cdef void _free(self, Job* job)
    cdef bint _publish(self, Job* job, StoredObject stored)
