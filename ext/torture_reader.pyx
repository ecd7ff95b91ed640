# The torture test's readers: what a worker does with the store, at random, without the GIL, each byte checked.
from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport free
from libc.string cimport memcmp

from ext.atomics cimport *
from ext.body cimport *
from ext.exchange cimport (
    RING_REQUEST,
    Message,
    mailbox_awake,
    mailbox_may_sleep,
    mailbox_take,
    ring_push,
)
from ext.reclaim cimport *
from ext.store cimport *
from ext.table cimport *
from ext.torture cimport *

cdef extern from "<poll.h>" nogil:
    cdef struct pollfd:
        int fd
        short events
        short revents
    enum: POLLIN
    int poll(pollfd*, unsigned long, int)

cdef extern from "<unistd.h>" nogil:
    ssize_t read(int, void*, size_t)

cdef extern from "<sched.h>" nogil:
    int sched_yield()


cdef void check_head(Reader* r, Object* object, uint32_t key) noexcept nogil:
    cdef Head* head = <Head*>load_ptr(<void**>&object.head)
    cdef uint8_t* text = head_bytes(head)
    cdef uint32_t i
    if (head.status != key or head.fresh_until_ns != head.validated_ns + 7 or head.stale_until_ns != head.validated_ns * 3
            or head.lines_length + sizeof(Head) != head.size):
        problem(r.world, WRONG_HEAD, key)
        return
    for i in range(head.lines_length):
        if text[i] != <uint8_t>(head.validated_ns + i):
            problem(r.world, WRONG_HEAD, key)
            return


cdef int64_t check_body(Reader* r, Object* object, uint64_t seed, int64_t offset, uint64_t most) noexcept nogil:
    """How many bytes are at `offset`, at most `most`, each looked at; -1: none now."""
    cdef uint64_t n = 0, i
    cdef int64_t total
    cdef uint8_t* data = body_at(&r.world.store, object, offset, &n)
    if data == NULL:
        return -1
    total = load_i64_seq(&object.total_length)
    if total >= 0 and offset + <int64_t>n > total:
        problem(r.world, PAST_THE_END, <uint64_t>offset)
    if n > most:
        n = most
    for i in range(n):
        if data[i] != byte_of(seed, offset + <int64_t>i):
            problem(r.world, WRONG_BYTE, <uint64_t>offset + i)
            break
    r.n_bytes += n
    return <int64_t>n


cdef void let_go(Reader* r, uint32_t i) noexcept nogil:
    cdef Object* object = r.held[i].object
    r.n_held -= 1
    r.held[i] = r.held[r.n_held]
    add_u32(&object.readers, <uint32_t>-1)
    add_u64(&object.refs, <uint64_t>-1)


cdef bint step(Reader* r, Held* held) noexcept nogil:
    """Reads on. True: done with it."""
    cdef Object* object = held.object
    cdef Directory* directory
    cdef uint64_t index
    cdef int64_t n, total
    cdef int turns = 0
    while turns < 4:
        turns += 1
        n = check_body(r, object, held.seed, held.offset, 1 + chance(&r.random) % 20000)
        if n > 0:
            held.offset += n
            continue
        total = load_i64_seq(&object.total_length)
        if total >= 0 and held.offset >= total:
            return True
        if load_u32(&object.flags) & OBJECT_FAILED:
            return True
        held.is_waiting = True
        if body_wait(&r.world.store, object, held.offset, r.index):
            held.is_waiting = False
            continue
        directory = <Directory*>load_ptr(<void**>&object.directory)
        index = <uint64_t>held.offset // r.world.store.slice_bytes
        if index < directory.n and exchange_u32(&directory.slices[index].wanted, 1) == 0:
            add_u64(&object.refs, 1)
            if ring_push(&r.ring, RING_REQUEST, <uint32_t>index, 0, object):
                r.n_wants += 1
            else:
                exchange_u32(&directory.slices[index].wanted, 0)
                add_u64(&object.refs, <uint64_t>-1)
                held.is_waiting = False
                return True
        return False
    return False


cdef void look_up(Reader* r) noexcept nogil:
    cdef World* world = r.world
    cdef uint8_t text[KEY_BYTES]
    cdef uint32_t key = <uint32_t>(chance(&r.random) % load_u32(&world.n_keys))
    cdef uint32_t variant = <uint32_t>(chance(&r.random) % N_VARIANTS)
    cdef uint64_t hash, seed, n
    cdef Entry* entry
    cdef Object* object
    cdef int64_t offset
    key_of(key, text)
    hash = hash_key(&world.store, 3, text, KEY_BYTES)
    entry = table_find(&world.store, hash, 3, text, KEY_BYTES)
    if entry == NULL:
        return
    load_i64(&entry.unshareable_until_ns)
    object = entry_match(entry, world.request_bytes[variant], &world.requests[variant])
    if object == NULL:
        return
    r.n_found += 1
    if object.kind != NO_VARY and object.kind != variant:
        problem(world, WRONG_VARIANT, object.kind)
    if object.origin != 3:
        problem(world, WRONG_KEY, key)
    check_head(r, object, key)
    if not load_u8_relaxed(&object.visited):
        store_u8_relaxed(&object.visited, 1)
    seed = <uint64_t>(<Head*>load_ptr(<void**>&object.head)).last_modified_s
    for n in range(chance(&r.random) % 4):
        offset = <int64_t>(chance(&r.random) % 300000)
        check_body(r, object, seed, offset, 64)
    if r.n_held < HELD and load_u32(&world.must_stop) == 0:
        add_u64(&object.refs, 1)
        add_u32(&object.readers, 1)
        r.held[r.n_held].object = object
        r.held[r.n_held].offset = <int64_t>(chance(&r.random) % 200000) if chance(&r.random) % 4 == 0 else 0
        r.held[r.n_held].seed = seed
        r.held[r.n_held].is_waiting = False
        r.n_held += 1


cdef void read_mail(Reader* r) noexcept nogil:
    cdef Message* m = mailbox_take(&r.mailbox)
    cdef Message* following
    cdef uint32_t i
    while m != NULL:
        following = m.next
        r.n_wakes += 1
        for i in range(r.n_held):
            if r.held[i].object == m.object:
                r.held[i].is_waiting = False
        add_u64(&m.object.refs, <uint64_t>-1)
        free(m)
        m = following


cdef bint nap(Reader* r, int ms) noexcept nogil:
    """Sleeps offline, as a worker does. True: woken."""
    cdef pollfd waited
    cdef uint64_t ignored
    cdef int n
    if not mailbox_may_sleep(&r.mailbox):
        return True
    epoch_leave(&r.world.store, r.index)
    waited.fd = r.mailbox.fd
    waited.events = POLLIN
    n = poll(&waited, 1, ms)
    epoch_enter(&r.world.store, r.index)
    mailbox_awake(&r.mailbox)
    if n > 0:
        read(r.mailbox.fd, &ignored, 8)
    return n > 0 or load_ptr(<void**>&r.mailbox.newest) != NULL


cdef void run_reader(Reader* r) noexcept nogil:
    cdef World* world = r.world
    cdef uint32_t i, n_waiting, turn
    while load_u32(&world.must_stop) < 2 and load_u32(&world.problem) == 0:
        epoch_leave(&world.store, r.index)
        epoch_enter(&world.store, r.index)
        read_mail(r)
        for turn in range(<uint32_t>(chance(&r.random) % 16)):
            look_up(r)
        n_waiting = 0
        i = 0
        while i < r.n_held:
            if r.held[i].is_waiting:
                n_waiting += 1
            elif step(r, &r.held[i]) or chance(&r.random) % 2000 == 0:
                let_go(r, i)
                continue
            i += 1
        if n_waiting and n_waiting == r.n_held and (n_waiting == HELD or load_u32(&world.must_stop)):
            r.n_sleeps += 1
            if not nap(r, PATIENCE_MS):
                problem(world, LOST_WAKE_UP, n_waiting)     # the writer never rests that long while readers wait
        elif load_u32(&world.must_stop) and r.n_held == 0:
            store_u32_seq(&r.is_done, 1)
            nap(r, 1)
    while r.n_held:
        let_go(r, 0)
    read_mail(r)
    epoch_leave(&world.store, r.index)


# --- the writer -------------------------------------------------------------------------------------------------------
