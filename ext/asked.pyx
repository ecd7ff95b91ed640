# Exchange: a worker's question, and the ways to answer it. Decides nothing.
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uintptr_t
from libc.stdlib cimport malloc
from libc.string cimport memcpy, memset

from ext.atomics cimport *
from ext.exchange cimport (
    ANSWER_ALL,
    ANSWER_DONE,
    ANSWER_ERROR,
    ANSWER_LEADER,
    ANSWER_MATCH,
    ANSWER_REFUSE,
    ANSWER_STALE,
    ANSWER_STREAM,
    ANSWER_TUNNEL,
    MATCH_JOINED,
    MATCH_RESTORED,
    MESSAGE_ANSWER,
    MESSAGE_INTERIM,
    MESSAGE_ROOM,
    MESSAGE_SPLIT,
    OTHERS_AGAIN,
    Message,
)
from ext.store cimport Object
from ext.stored cimport wrap
from ext.stream_plane cimport Ring
from ext.tunnel cimport Tunnel, tunnel_new
from ext.upload cimport UPLOAD_ABORTED, UPLOAD_WHOLE, upload_release, upload_take, upload_there

cdef extern from "<unistd.h>" nogil:
    int close(int)

KINDS = ("miss", "stale", "refresh", "want", "alone", "pass", "tunnel", "authorise", "stream")


cdef class Exchange:
    """One question of a worker. Answered exactly once, or its slot is lost: the last reference answers 502."""

    @property
    def identity(self):
        return (self.worker, self.index, self.generation)

    def __dealloc__(self):
        if not self.is_answered and self.plane is not None and self.plane.shared != NULL:
            post_answer(self, ANSWER_ERROR, NULL, 502, 0, False, 0)

    def interim(self, bytes head) -> None:
        """A 1xx head, with its empty line, for the first asker; lost where there is no memory, never out of order."""
        cdef Message message
        if self.is_answered:
            return
        memset(&message, 0, sizeof(Message))
        message.kind = MESSAGE_INTERIM
        message.index = self.index
        message.generation = self.generation
        message.n_bytes = <uint32_t>len(head)
        message.bytes = <uint8_t*>malloc(len(head) + 1)
        if message.bytes == NULL:
            return
        memcpy(message.bytes, <const char*>head, len(head))
        self.plane.post(self.worker, &message)

    def split(self) -> None:
        """The first asker waits on, the others ask for themselves at once."""
        cdef Message message
        if self.is_answered:
            return
        memset(&message, 0, sizeof(Message))
        message.kind = MESSAGE_SPLIT
        message.index = self.index
        message.generation = self.generation
        self.plane.post(self.worker, &message)

    def match(self, int fwd_status=0, bint stored=True, bint joined=False) -> None:
        """Everybody who waits looks again: the answer is in the table. `joined`: another exchange has fetched it."""
        post_answer(self, ANSWER_MATCH, NULL, 0, fwd_status, stored, MATCH_JOINED if joined else OTHERS_AGAIN)

    def restored(self) -> None:
        """Everybody who waits looks again: it came from the disk."""
        post_answer(self, ANSWER_MATCH, NULL, 0, 0, True, MATCH_RESTORED)

    def alone(self, int fwd_status=0) -> None:
        """Everybody who waits asks for himself at once."""
        post_answer(self, ANSWER_MATCH, NULL, 0, fwd_status, False, 0)

    def leader(self, StoredObject stored, int fwd_status=0, int others=0) -> None:
        """`stored` is for the first asker alone. `others` 0: they ask for themselves at once; 1: they look again, one
        of them leads; a status: our own error."""
        post_answer(self, ANSWER_LEADER, stored.object, 0, fwd_status, False, others)

    def everybody(self, StoredObject stored, int fwd_status=0) -> None:
        """`stored` answers all who wait now, and nobody later."""
        post_answer(self, ANSWER_ALL, stored.object, 0, fwd_status, False, 0)

    def stale(self, StoredObject stored, int fwd_status=0) -> None:
        """The stored object may be served stale to those who wait now and match it; the others look again."""
        post_answer(self, ANSWER_STALE, stored.object, 0, fwd_status, True, 0)

    def error(self, int status) -> None:
        """Our own error to everybody who waits."""
        post_answer(self, ANSWER_ERROR, NULL, status, 0, False, 0)

    def refuse(self, int status) -> None:
        """Our own error to the first asker, whose request is at fault; the others look again."""
        post_answer(self, ANSWER_REFUSE, NULL, status, 0, False, 0)

    def done(self) -> None:
        """Nobody waits (refresh, want): only frees the slot."""
        post_answer(self, ANSWER_DONE, NULL, 0, 0, False, 0)

    def tunnel(self, int fd, bytes head, bytes first, bint is_websocket, int64_t idle_ns=0) -> bool:
        """Joins the first asker with the socket `fd`, which is taken over in any case: `head` (a 101 of ours), then
        `first` go to the viewer before what is read from it. `idle_ns`: closed after so long without a byte; 0: never.
        False: no memory, and the answer is 503."""
        cdef bytes opening = head + first
        cdef Message message
        cdef Tunnel* tunnel = NULL
        if not self.is_answered:
            tunnel = tunnel_new(fd, self.origin, is_websocket, idle_ns, <const uint8_t*><const char*>opening,
                                <uint32_t>len(opening), <uint32_t>len(head))
        if tunnel == NULL:
            close(fd)
            self.error(503)
            return False
        self.is_answered = True
        memset(&message, 0, sizeof(Message))
        message.kind = MESSAGE_ANSWER
        message.index = self.index
        message.generation = self.generation
        message.disposition = ANSWER_TUNNEL
        message.status = 101
        message.detail = 101
        message.tunnel = tunnel
        self.plane.post(self.worker, &message)
        return True


    def stream(self, Ring ring) -> None:
        """The asker reads `ring`; None: gets the head of such an answer."""
        cdef Message message
        if self.is_answered:
            return
        self.is_answered = True
        memset(&message, 0, sizeof(Message))
        message.kind = MESSAGE_ANSWER
        message.index = self.index
        message.generation = self.generation
        message.disposition = ANSWER_STREAM
        message.status = 200
        if ring is not None:
            add_u64(&ring.stream.refs, 1)
            message.stream = ring.stream
        self.plane.post(self.worker, &message)


cdef class RequestBody:
    """A passed request's body, as it comes from its viewer. One reader."""

    def __dealloc__(self):
        if self.upload != NULL:
            self.drop()
            upload_release(self.upload)

    @property
    def identity(self) -> int:
        """What Plane.bodies() names it by, while this lives."""
        return <uintptr_t>self.upload

    @property
    def length(self) -> int:
        """Content-Length; -1: chunked."""
        return self.upload.content_length

    @property
    def is_aborted(self) -> bool:
        """Whether the rest will never come."""
        return bool(load_u32(&self.upload.flags) & UPLOAD_ABORTED)

    @property
    def is_over(self) -> bool:
        """Whether all of it has been read."""
        return bool(load_u32(&self.upload.flags) & UPLOAD_WHOLE) and upload_there(self.upload) == 0

    def read(self, uint64_t most) -> bytes:
        """Up to `most` bytes; none: nothing has come, or nothing will."""
        cdef uint64_t n = upload_there(self.upload)
        cdef bytes data
        if n > most:
            n = most
        if n == 0:
            return b""
        data = PyBytes_FromStringAndSize(NULL, n)
        if upload_take(self.upload, <uint8_t*><char*>data, n):
            self.tell_room()
        return data

    def drop(self) -> None:
        """The rest isn't wanted: the worker throws it away."""
        store_u32_seq(&self.upload.is_dropped, 1)
        if exchange_u32(&self.upload.is_full, 0):
            self.tell_room()

    cdef void tell_room(self):
        cdef Message message
        if self.plane is None or self.plane.shared == NULL:
            return
        memset(&message, 0, sizeof(Message))
        message.kind = MESSAGE_ROOM
        message.upload = self.upload
        self.plane.post(self.upload.worker, &message)


cdef void post_answer(Exchange exchange, uint32_t disposition, Object* object, uint32_t status, uint32_t detail,
                      bint is_stored, int64_t value):
    cdef Message message
    if exchange.is_answered:
        return
    exchange.is_answered = True
    memset(&message, 0, sizeof(Message))
    message.object = object
    message.kind = MESSAGE_ANSWER
    message.index = exchange.index
    message.generation = exchange.generation
    message.disposition = disposition
    message.status = status
    message.detail = detail
    message.is_stored = is_stored
    message.value = value
    exchange.plane.post(exchange.worker, &message)


cdef Exchange take_exchange(Workers plane, Slot* e):
    cdef Exchange exchange = Exchange.__new__(Exchange)
    exchange.plane = plane
    exchange.worker = e.worker
    exchange.index = e.index
    exchange.generation = e.generation
    exchange.origin = e.origin
    exchange.listener = e.listener
    exchange.zone = e.zone
    exchange.kind = KINDS[e.kind]
    exchange.arrival_ns = e.arrival_ns
    exchange.offset = e.offset
    exchange.range_first = e.range_first
    exchange.range_last = e.range_last
    exchange.tables_generation = e.tables_generation
    exchange.head = (<char*>e.bytes)[:e.head_length]
    exchange.key = (<char*>e.bytes)[e.head_length:e.head_length + e.key_length]
    if e.object != NULL:
        exchange.stored = wrap(plane, e.object)
    if e.upload != NULL:
        exchange.body = RequestBody.__new__(RequestBody)
        add_u64(&e.upload.refs, 1)
        exchange.body.upload = e.upload
        exchange.body.plane = plane
    return exchange
