# The workers and what they share, as the Python-visible classes need them: posting and waking.
from libc.stdint cimport uint32_t

from ext.connection cimport Shared, Worker
from ext.exchange cimport Message
from ext.store cimport Object

cdef class Workers:
    cdef Shared* shared
    cdef Worker** workers
    cdef readonly uint32_t n_workers
    cdef uint32_t n_pins        # threads besides the control plane's that read the published tables

    cdef void post(self, uint32_t worker, Message* message)
    cdef void wake(self, Object* object, uint32_t mask)
