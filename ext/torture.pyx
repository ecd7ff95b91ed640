# The store's torture test, compiled: readers without the GIL against one writer, each byte checked. Nothing of the
# appliance uses this; tests/dataplane/test_torture.py runs it, also under the sanitizers, before any socket is opened.
from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

import os
import threading

from ext.atomics cimport *
from ext.exchange cimport (
    MESSAGE_WAKE,
    RING_REQUEST,
    Mailbox,
    Message,
    Ring,
    RingItem,
    mailbox_awake,
    mailbox_may_sleep,
    mailbox_post,
    mailbox_take,
    ring_close,
    ring_open,
    ring_pop,
    ring_push,
)
from ext.body cimport *
from ext.http_head cimport RequestHead, parse_request
from ext.reclaim cimport *
from ext.store cimport *
from ext.table cimport *
from ext.torture_reader cimport run_reader
from ext.vary cimport MAX_VARY_BYTES, vary_key_of

cdef extern from "<sys/eventfd.h>" nogil:
    enum: EFD_NONBLOCK
    enum: EFD_CLOEXEC
    int eventfd(unsigned int, int)

cdef extern from "<unistd.h>" nogil:
    int close(int)
    ssize_t read(int, void*, size_t)

cdef extern from "<stdlib.h>" nogil:
    int posix_memalign(void**, size_t, size_t)

cdef extern from "<sched.h>" nogil:
    int sched_yield()

PROBLEMS = {
    WRONG_BYTE: "a body byte of another object or place", WRONG_HEAD: "a head that is torn or of another object",
    WRONG_KEY: "an entry of another key", WRONG_VARIANT: "a variant of another request", LOST_WAKE_UP: "a lost wake-up",
    PAST_THE_END: "bytes beyond the body's end", OVER_THE_LIMIT: "memory over the limit",
    NEVER_RECLAIMED: "memory that is never reclaimed", LOST_PLACE: "a fill that lost its place",
}


cdef void wake(World* world, Object* object, uint32_t mask) noexcept nogil:
    cdef Message message
    cdef uint32_t i
    memset(&message, 0, sizeof(message))
    message.kind = MESSAGE_WAKE
    message.object = object
    for i in range(world.n_readers):
        if mask >> i & 1:
            add_u64(&object.refs, 1)
            if not mailbox_post(&world.readers[i].mailbox, &message):
                add_u64(&object.refs, <uint64_t>-1)


cdef Head* new_head(World* world, uint32_t key, uint64_t seed) noexcept nogil:
    cdef uint32_t n = <uint32_t>(chance(&world.random) % 700)
    cdef Head* head = <Head*>store_allocate(&world.store, sizeof(Head) + n)
    cdef uint32_t i
    if head == NULL:
        return NULL
    memset(head, 0, sizeof(Head))
    head.size = sizeof(Head) + n
    head.status = key
    head.lines_length = n
    head.last_modified_s = <int64_t>seed
    head.validated_ns = <int64_t>(chance(&world.random) % 0xffffffffULL)
    head.fresh_until_ns = head.validated_ns + 7
    head.stale_until_ns = head.validated_ns * 3
    for i in range(n):
        head_bytes(head)[i] = <uint8_t>(head.validated_ns + i)
    return head


cdef Entry* some_entry(World* world) noexcept nogil:
    cdef uint8_t text[KEY_BYTES]
    key_of(<uint32_t>(chance(&world.random) % world.n_keys), text)
    return table_find(&world.store, hash_key(&world.store, 3, text, KEY_BYTES), 3, text, KEY_BYTES)


cdef void begin(World* world) noexcept nogil:
    cdef Store* store = &world.store
    cdef uint8_t text[KEY_BYTES]
    cdef uint8_t values[MAX_VARY_BYTES]
    cdef uint32_t key = <uint32_t>(chance(&world.random) % world.n_keys)
    cdef uint64_t seed = chance(&world.random)
    cdef int64_t length = <int64_t>(chance(&world.random) % (4000 if chance(&world.random) % 4 else 400000))
    cdef bint is_known = chance(&world.random) % 3 != 0
    cdef uint32_t variant = <uint32_t>(chance(&world.random) % N_VARIANTS)
    cdef const char* names = b"accept-language\n"
    cdef uint32_t n_names = 16
    cdef bint varies = key % 3 == 0
    cdef int n_values = 0
    cdef Fill* fill
    cdef Object* object = NULL
    cdef Head* head = new_head(world, key, seed)
    if head != NULL:
        object = object_new(store, head, length if is_known else -1, 3,
                            OBJECT_STRONG if chance(&world.random) % 2 else 0)
        if object == NULL:
            retire(store, head, head.size)
    if object == NULL:
        world.n_no_memory += 1
        return
    world.n_created += 1
    if chance(&world.random) % 16 == 0:
        names = b"x-reader\n"
        n_names = 9
    object.kind = <uint8_t>variant if varies else NO_VARY
    object.fills = 1
    or_u32(&object.flags, OBJECT_FILLING)
    key_of(key, text)
    if varies:
        n_values = vary_key_of(<const uint8_t*>names, n_names, world.request_bytes[variant], &world.requests[variant], values)
    if not table_insert(store, object, hash_key(store, 3, text, KEY_BYTES), 3, text, KEY_BYTES,
                        <const uint8_t*>names, n_names if varies else 0, values, <uint32_t>n_values):
        world.n_no_memory += 1
    fill = &world.fills[world.n_fills]
    world.n_fills += 1
    fill.object = object
    fill.offset = 0
    fill.end = length
    fill.seed = seed
    fill.is_refill = False


cdef void end_fill(World* world, uint32_t i) noexcept nogil:
    cdef Fill* fill = &world.fills[i]
    cdef Object* object = fill.object
    cdef uint64_t k
    object.fills -= 1
    if object.fills == 0:
        and_u32(&object.flags, ~<uint32_t>OBJECT_FILLING)
    for k in range(object.directory.n):
        store_u32(&object.directory.slices[k].wanted, 0)
    wake(world, object, take_waiting(object))
    # As a StoredObject's end does.
    if object.entry == NULL and not object.flags & OBJECT_DETACHED and object.fills == 0:
        or_u32(&object.flags, OBJECT_DETACHED)
        retire(&world.store, object, 0)
    object_release(object)
    world.n_fills -= 1
    world.fills[i] = world.fills[world.n_fills]


cdef void fill_on(World* world, uint32_t i) noexcept nogil:
    cdef Store* store = &world.store
    cdef Fill* fill = &world.fills[i]
    cdef Object* object = fill.object
    cdef uint64_t n = 0, k, most = 1 + chance(&world.random) % 30000
    cdef Slice* slice
    cdef uint8_t* room
    if load_u32(&object.flags) & OBJECT_FAILED:
        end_fill(world, i)
        return
    if chance(&world.random) % 200 == 0 and load_u32(&world.must_stop) == 0:
        world.n_failed += 1
        wake(world, object, object_fail(store, object))
        end_fill(world, i)
        return
    if fill.offset >= fill.end:
        if not fill.is_refill:
            world.n_finished += 1
            wake(world, object, object_finish(store, object, fill.end))
        end_fill(world, i)
        return
    slice = &object.directory.slices[fill.offset // store.slice_bytes] if <uint64_t>fill.offset // store.slice_bytes < object.directory.n else NULL
    if slice != NULL and slice.filled > fill.offset % store.slice_bytes:
        fill.offset += slice.filled - fill.offset % store.slice_bytes      # another fill was here
        return
    room = object_room(store, object, fill.offset, &n)
    if room == NULL:
        world.n_no_memory += 1
        slice = &object.directory.slices[fill.offset // store.slice_bytes] if <uint64_t>fill.offset // store.slice_bytes < object.directory.n else NULL
        if slice != NULL and slice.filled < fill.offset % store.slice_bytes:
            problem(world, LOST_PLACE, <uint64_t>fill.offset)
        if chance(&world.random) % 40 == 0:     # no memory for long: given up, as the control plane does
            world.n_failed += 1
            wake(world, object, object_fail(store, object))
            end_fill(world, i)
        return
    if n > most:
        n = most
    if <int64_t>n > fill.end - fill.offset:
        n = <uint64_t>(fill.end - fill.offset)
    for k in range(n):
        room[k] = byte_of(fill.seed, fill.offset + <int64_t>k)
    wake(world, object, object_commit(store, object, fill.offset, n))
    fill.offset += <int64_t>n


cdef void answer_wants(World* world) noexcept nogil:
    cdef RingItem item
    cdef uint32_t i
    cdef Fill* fill
    cdef Object* object
    cdef Slice* slice
    cdef int64_t start
    for i in range(world.n_readers):
        while world.n_fills < FILLS and ring_pop(&world.readers[i].ring, &item):
            object = item.object
            start = <int64_t>item.index * world.store.slice_bytes
            slice = &object.directory.slices[item.index]
            if load_u32(&object.flags) & OBJECT_FAILED or object.fills or object.total_length < 0 or start >= object.total_length:
                object_release(object)      # a fill is under way, and its end wakes who still waits
                continue
            world.n_refilled += 1
            object.fills += 1
            or_u32(&object.flags, OBJECT_FILLING)
            fill = &world.fills[world.n_fills]
            world.n_fills += 1
            fill.object = object            # with the reference that came along
            fill.offset = start + slice.filled
            fill.end = start + world.store.slice_bytes
            if fill.end > object.total_length:
                fill.end = object.total_length
            fill.seed = <uint64_t>object.head.last_modified_s
            fill.is_refill = True


cdef void write_once(World* world) noexcept nogil:
    cdef Store* store = &world.store
    cdef uint64_t what = chance(&world.random) % 100
    cdef uint8_t text[KEY_BYTES]
    cdef Entry* entry
    cdef Object* object
    cdef Head* head
    cdef Head* old
    cdef uint32_t key
    world.n_operations += 1
    pthread_mutex_lock(&store.lock)
    if what < 12 and world.n_fills < FILLS:
        begin(world)
    elif what < 75 and world.n_fills:
        fill_on(world, <uint32_t>(chance(&world.random) % world.n_fills))
    elif what < 80:
        entry = some_entry(world)
        if entry != NULL and entry.variants != NULL:
            object = entry.variants
            add_u64(&object.refs, 1)            # the allocation may evict it
            head = new_head(world, object.head.status, <uint64_t>object.head.last_modified_s)
            if head != NULL:
                world.n_swapped += 1
                old = object.head
                store_ptr(<void**>&object.head, head)
                retire(store, old, old.size)
            object_release(object)
    elif what < 82:
        entry = some_entry(world)
        if entry != NULL and entry.variants != NULL:
            world.n_purged += 1
            table_detach(store, entry.variants)
    elif what < 85:
        evict(store, chance(&world.random) % 200000)
    elif what < 87:
        world.n_marked += 1
        key = <uint32_t>(chance(&world.random) % world.n_keys)
        key_of(key, text)
        mark_unshareable(store, hash_key(store, 3, text, KEY_BYTES), 3, text, KEY_BYTES,
                         <int64_t>(chance(&world.random) % 3) * 1000)
        drop_marks(store, 1500, 1)
    elif what < 88:
        if world.n_keys < 20000:
            store_u32_seq(&world.n_keys, world.n_keys + 1)
    elif what < 92:
        reclaim(store)
    else:
        answer_wants(world)
    if store.arena.mapped + load_u64_relaxed(&store.outside) > store.arena.limit:
        problem(world, OVER_THE_LIMIT, store.arena.mapped)
    pthread_mutex_unlock(&store.lock)


cdef void finish_all(World* world) noexcept nogil:
    """Readers take nothing new; what they follow comes to its end, or somebody missed a wake-up."""
    cdef uint32_t i
    cdef bint all_done = False
    while not all_done and load_u32(&world.problem) == 0:
        pthread_mutex_lock(&world.store.lock)
        answer_wants(world)
        if world.n_fills:
            fill_on(world, <uint32_t>(chance(&world.random) % world.n_fills))
        reclaim(&world.store)
        pthread_mutex_unlock(&world.store.lock)
        all_done = world.n_fills == 0
        for i in range(world.n_readers):
            all_done = all_done and load_u32_seq(&world.readers[i].is_done)
        sched_yield()
    store_u32_seq(&world.must_stop, 2)


cdef class Torture:
    """`run(seconds)` returns the figures. Raises AssertionError with what a reader or the writer found wrong."""

    cdef World* world
    cdef object _requests

    def __cinit__(self, int readers, uint64_t memory_bytes, uint32_t slice_bytes, uint64_t seed):
        cdef bytes secret = os.urandom(16)
        cdef bytes text
        cdef int i
        if not 0 < readers <= MAX_READERS:
            raise ValueError(f"readers must be 1 to {MAX_READERS}")
        if posix_memalign(<void**>&self.world, 64, sizeof(World)) != 0:
            self.world = NULL
            raise MemoryError
        memset(self.world, 0, sizeof(World))
        if not store_open(&self.world.store, memory_bytes, slice_bytes, readers, secret):
            raise MemoryError
        self.world.random = seed * 2 + 1
        self.world.n_keys = 50
        self.world.n_readers = readers
        self._requests = []
        for i in range(N_VARIANTS):
            text = b"GET /x HTTP/1.1\r\nHost: a\r\nAccept-Language: l%d\r\nX-Reader: l%d\r\n\r\n" % (i, (i + 1) % N_VARIANTS)
            self._requests.append(text)
            self.world.request_bytes[i] = text
            if parse_request(text, len(text), &self.world.requests[i]) <= 0:
                raise ValueError("request")
        for i in range(readers):
            self.world.readers[i].world = self.world
            self.world.readers[i].index = i
            self.world.readers[i].random = seed * 1000003 + i * 7919 + 1
            self.world.readers[i].mailbox.fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
            if not ring_open(&self.world.readers[i].ring, 1024):
                raise MemoryError

    def __dealloc__(self):
        cdef uint32_t i
        if self.world == NULL:
            return
        for i in range(self.world.n_readers):
            close(self.world.readers[i].mailbox.fd)
            ring_close(&self.world.readers[i].ring)
        store_close(&self.world.store)
        free(self.world)

    def _read(self, int index):
        with nogil:
            run_reader(&self.world.readers[index])

    def _write(self):
        cdef uint32_t i
        with nogil:
            while load_u32(&self.world.must_stop) == 0 and load_u32(&self.world.problem) == 0:
                for i in range(64):
                    write_once(self.world)
            finish_all(self.world)

    def run(self, double seconds) -> dict:
        cdef uint32_t i
        cdef RingItem item
        cdef Store* store = &self.world.store
        cdef uint64_t at_start = store.arena.used
        threads = [threading.Thread(target=self._read, args=(n,)) for n in range(self.world.n_readers)]
        threads.append(threading.Thread(target=self._write))
        for thread in threads:
            thread.start()
        writer = threads.pop()
        writer.join(seconds)
        store_u32_seq(&self.world.must_stop, 1)
        for thread in (*threads, writer):
            thread.join()
        if self.world.problem:
            raise AssertionError(f"{PROBLEMS[self.world.problem]} ({self.world.problem_detail})")
        figures = {
            "operations": self.world.n_operations, "created": self.world.n_created, "finished": self.world.n_finished,
            "failed": self.world.n_failed, "swapped": self.world.n_swapped, "purged": self.world.n_purged,
            "marked": self.world.n_marked, "refilled": self.world.n_refilled, "no_memory": self.world.n_no_memory,
            "evictions": store.n_evictions, "keys": self.world.n_keys,
        }
        for name in ("found", "bytes", "sleeps", "wakes", "wants"):
            figures[name] = 0
        for i in range(self.world.n_readers):
            figures["found"] += self.world.readers[i].n_found
            figures["bytes"] += self.world.readers[i].n_bytes
            figures["sleeps"] += self.world.readers[i].n_sleeps
            figures["wakes"] += self.world.readers[i].n_wakes
            figures["wants"] += self.world.readers[i].n_wants
            while ring_pop(&self.world.readers[i].ring, &item):
                object_release(item.object)
        # Nobody reads any more: all but the table itself comes back.
        drop_marks(store, INT64_MAX, ~<uint64_t>0)
        while evict(store, ~<uint64_t>0 >> 1):
            reclaim(store)
        reclaim(store)
        if store.retired_n or store.n_objects or store.n_queued or store.table.n_live or store.arena.used != store.table.size:
            raise AssertionError(
                f"{PROBLEMS[NEVER_RECLAIMED]}: {store.retired_n} retired, {store.n_objects} objects, {store.n_queued} queued, "
                f"{store.table.n_live} entries, {store.arena.used} bytes of {at_start} at the start")
        return figures
