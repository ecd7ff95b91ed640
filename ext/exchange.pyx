# Rings, bells and mailboxes behind exchange.pxd. Carries items, knows nothing of what they mean.
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from ext.atomics cimport *

cdef extern from "<unistd.h>" nogil:
    ssize_t write(int, const void*, size_t)
    ssize_t read(int, void*, size_t)


cdef bint ring_open(Ring* ring, uint64_t capacity) noexcept nogil:
    """`capacity`: a power of two."""
    ring.head = 0
    ring.tail = 0
    ring.mask = capacity - 1
    ring.items = <RingItem*>calloc(capacity, sizeof(RingItem))
    return ring.items != NULL


cdef void ring_close(Ring* ring) noexcept nogil:
    free(ring.items)
    ring.items = NULL


cdef bint ring_push(Ring* ring, uint32_t what, uint32_t index, uint32_t generation, Object* object) noexcept nogil:
    cdef uint64_t head = load_u64_relaxed(&ring.head)
    cdef RingItem* item
    if head - load_u64(&ring.tail) > ring.mask:
        return False
    item = &ring.items[head & ring.mask]
    item.what = what
    item.index = index
    item.generation = generation
    item.object = object
    item.upload = NULL
    store_u64(&ring.head, head + 1)
    return True


cdef bint ring_push_body(Ring* ring, Upload* upload) noexcept nogil:
    cdef uint64_t head = load_u64_relaxed(&ring.head)
    cdef RingItem* item
    if head - load_u64(&ring.tail) > ring.mask:
        return False
    item = &ring.items[head & ring.mask]
    memset(item, 0, sizeof(RingItem))
    item.what = RING_BODY
    item.upload = upload
    store_u64(&ring.head, head + 1)
    return True


cdef bint ring_is_half_full(Ring* ring) noexcept nogil:
    """Whether what may be dropped should be: the rest of the ring belongs to what may not. Asked by the producer."""
    return (load_u64_relaxed(&ring.head) - load_u64(&ring.tail)) * 2 > ring.mask


cdef bint ring_pop(Ring* ring, RingItem* item) noexcept nogil:
    cdef uint64_t tail = load_u64_relaxed(&ring.tail)
    if tail == load_u64(&ring.head):
        return False
    item[0] = ring.items[tail & ring.mask]
    store_u64(&ring.tail, tail + 1)
    return True


cdef void bell_ring(Bell* bell) noexcept nogil:
    cdef uint64_t one = 1
    if exchange_u32(&bell.is_rung, 1) == 0:
        write(bell.fd, &one, 8)


cdef void bell_hear(Bell* bell) noexcept nogil:
    """Called before the rings are emptied: what is pushed later rings again."""
    cdef uint64_t n
    read(bell.fd, &n, 8)
    exchange_u32(&bell.is_rung, 0)


cdef bint mailbox_post(Mailbox* mailbox, const Message* message) noexcept nogil:
    """Copies `message` in; wakes the worker only when it sleeps. False: no memory, nothing was posted."""
    cdef Message* copy = <Message*>malloc(sizeof(Message))
    cdef void* newest
    if copy == NULL:
        return False
    memcpy(copy, message, sizeof(Message))
    while True:
        newest = load_ptr(<void**>&mailbox.newest)
        copy.next = <Message*>newest
        if cas_ptr(<void**>&mailbox.newest, newest, copy):
            break
    wake_sleeper(mailbox)
    return True


cdef void wake_sleeper(Mailbox* mailbox) noexcept nogil:
    cdef uint64_t one = 1
    if load_u32_seq(&mailbox.is_sleeping) and exchange_u32(&mailbox.is_sleeping, 0):
        add_u64_relaxed(&mailbox.wakeups, 1)
        write(mailbox.fd, &one, 8)


cdef void mailbox_ring(Mailbox* mailbox, uint64_t bits) noexcept nogil:
    """As a message that says only which streams have more."""
    or_u64(&mailbox.bell, bits)
    wake_sleeper(mailbox)


cdef uint64_t mailbox_hear(Mailbox* mailbox) noexcept nogil:
    """The bits rung since the last call."""
    if load_u64_relaxed(&mailbox.bell) == 0:
        return 0
    return exchange_u64(&mailbox.bell, 0)


cdef Message* mailbox_take(Mailbox* mailbox) noexcept nogil:
    """All messages, oldest first. The caller frees each."""
    cdef Message* message
    cdef Message* following
    cdef Message* first = NULL
    if load_ptr(<void**>&mailbox.newest) == NULL:
        return NULL
    message = <Message*>exchange_ptr(<void**>&mailbox.newest, NULL)
    while message != NULL:
        following = message.next
        message.next = first
        first = message
        message = following
    return first


cdef bint mailbox_may_sleep(Mailbox* mailbox) noexcept nogil:
    """Says that the worker is about to sleep; False when something came in between."""
    store_u32_seq(&mailbox.is_sleeping, 1)
    if load_ptr_seq(<void**>&mailbox.newest) == NULL and load_u64_seq(&mailbox.bell) == 0:
        return True
    store_u32_seq(&mailbox.is_sleeping, 0)
    return False


cdef void mailbox_awake(Mailbox* mailbox) noexcept nogil:
    store_u32_seq(&mailbox.is_sleeping, 0)
