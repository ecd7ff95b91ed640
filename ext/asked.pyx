# Exchange: a worker's question, and the ways to answer it. Decides nothing.
from ext.atomics cimport *
from ext.exchange cimport (
    ANSWER_ALL,
    ANSWER_DONE,
    ANSWER_ERROR,
    ANSWER_LEADER,
    ANSWER_MATCH,
    ANSWER_REFUSE,
    ANSWER_STALE,
    MATCH_JOINED,
    MESSAGE_ANSWER,
    OTHERS_AGAIN,
    Message,
)
from ext.store cimport Object
from ext.stored cimport wrap

KINDS = ("miss", "stale", "refresh", "want", "alone")


cdef class Exchange:
    """One question of a worker. Answered exactly once, or its slot is lost: the last reference answers 502."""

    @property
    def identity(self):
        return (self.worker, self.index, self.generation)

    def __dealloc__(self):
        if not self.is_answered and self.plane is not None and self.plane.shared != NULL:
            post_answer(self, ANSWER_ERROR, NULL, 502, 0, False, 0)

    def match(self, int fwd_status=0, bint stored=True, bint joined=False) -> None:
        """Everybody who waits looks again: the answer is in the table. `joined`: another exchange has fetched it."""
        post_answer(self, ANSWER_MATCH, NULL, 0, fwd_status, stored, MATCH_JOINED if joined else OTHERS_AGAIN)

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


cdef void post_answer(Exchange exchange, uint32_t disposition, Object* object, uint32_t status, uint32_t detail,
                      bint is_stored, int64_t value):
    cdef Message message
    if exchange.is_answered:
        return
    exchange.is_answered = True
    message.next = NULL
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
    return exchange
