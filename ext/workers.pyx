# Posting to workers, behind workers.pxd. Plane makes and frees what this class points at.
from ext.atomics cimport *
from ext.body cimport object_release
from ext.exchange cimport MESSAGE_WAKE, mailbox_post


cdef class Workers:
    """What StoredObject and Exchange hold on to."""

    cdef void post(self, uint32_t worker, Message* message):
        if message.object != NULL:
            add_u64(&message.object.refs, 1)
        if not mailbox_post(&self.workers[worker].mailbox, message) and message.object != NULL:
            object_release(message.object)

    cdef void wake(self, Object* object, uint32_t mask):
        cdef Message message
        cdef uint32_t i
        if mask == 0:
            return
        message.next = NULL
        message.object = object
        message.kind = MESSAGE_WAKE
        for i in range(self.n_workers):
            if mask >> i & 1:
                self.post(i, &message)
