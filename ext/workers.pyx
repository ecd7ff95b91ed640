# Posting to workers, behind workers.pxd. Plane makes and frees what this class points at.
from libc.stdlib cimport free
from libc.string cimport memset

from ext.atomics cimport *
from ext.body cimport object_release
from ext.exchange cimport ANSWER_STREAM, ANSWER_TUNNEL, MESSAGE_ANSWER, MESSAGE_WAKE, mailbox_post
from ext.stream cimport Stream
from ext.tunnel cimport tunnel_free
from ext.upload cimport upload_release


cdef class Workers:
    """What StoredObject and Exchange hold on to."""

    cdef void post(self, uint32_t worker, Message* message):
        if message.object != NULL:
            add_u64(&message.object.refs, 1)
        if message.upload != NULL:
            add_u64(&message.upload.refs, 1)
        if mailbox_post(&self.workers[worker].mailbox, message):
            return
        if message.object != NULL:
            object_release(message.object)
        if message.upload != NULL:
            upload_release(message.upload)
        free(message.bytes)
        if message.kind == MESSAGE_ANSWER and message.disposition == ANSWER_TUNNEL:
            tunnel_free(message.tunnel)
        if message.kind == MESSAGE_ANSWER and message.disposition == ANSWER_STREAM and message.stream != NULL:
            add_u64(&(<Stream*>message.stream).refs, <uint64_t>-1)

    cdef void wake(self, Object* object, uint32_t mask):
        cdef Message message
        cdef uint32_t i
        if mask == 0:
            return
        memset(&message, 0, sizeof(Message))
        message.object = object
        message.kind = MESSAGE_WAKE
        for i in range(self.n_workers):
            if mask >> i & 1:
                self.post(i, &message)
