# The data plane as Python sees it: its tables, its workers, what they ask. What it has stored is contents.pyx's. Every call that changes shared memory takes the store's lock; nothing here
# runs per request of a hit. Names and policy stay outside: rows and indices only.
from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

import os
import threading

import numpy as np

from ext.addresses cimport ADDRESS_BUCKETS, AddressCount
from ext.asked cimport Exchange, take_exchange
from ext.atomics cimport *
from ext.authorise cimport GRANT_SLOTS
from ext.body cimport *
from ext.connection cimport EXCHANGE_SLOTS, Grant, Shared, Worker
from ext.contents cimport Contents
from ext.edge cimport edge_close, edge_open, edge_run
from ext.exchange cimport *
from ext.layout cimport *
from ext.reclaim cimport reclaim
from ext.serve cimport now_ns
from ext.store cimport *
from ext.stored cimport wrap
from ext.upload cimport upload_release
from ext.table cimport drop_marks
from ext.tls_context cimport TlsServer, free_tickets, publish_tickets
from ext.tls_types cimport TicketKeys

from ext import layout as _layout
from ext.asked import KINDS as KINDS

cdef extern from "<sys/eventfd.h>" nogil:
    enum: EFD_NONBLOCK
    enum: EFD_CLOEXEC
    int eventfd(unsigned int, int)

cdef extern from "<sys/prctl.h>" nogil:
    enum: PR_SET_NAME
    int prctl(int, ...)

cdef extern from "<unistd.h>" nogil:
    int close(int)
    ssize_t write(int, const void*, size_t)

cdef extern from "<stdlib.h>" nogil:
    int posix_memalign(void**, size_t, size_t)

FLAG_MUST_VALIDATE = HEAD_MUST_VALIDATE
FLAG_NO_BODY = HEAD_NO_BODY
FLAG_HAS_AGE = HEAD_HAS_AGE
FLAG_MAY_BE_STALE = HEAD_MAY_BE_STALE
FLAG_DATE_IS_STRONG = HEAD_DATE_IS_STRONG
FOREVER_NS = INT64_MAX
MAX_ALLOW_BYTES = 512       # the same
MAX_SITE_BYTES = 255        # heads are composed in buffers of fixed size
_COLUMN = {name: column for column, name, _ in _layout.COUNTERS}


cdef class Plane(Contents):
    """The store and its workers.

    `workers`: edge threads. `memory_limit_bytes`: hard, counts all that objects, heads, connection buffers and what
    waits to be reclaimed take. `exchange_slots`: keys that each worker may have in question at once. `bell_fd` becomes
    readable when take() has something, or memory has to be given back."""

    cdef readonly object counters
    cdef uint64_t[:, ::1] columns
    cdef object _threads
    cdef object _bodies          # identities of uploads that have moved
    cdef object _tables          # [(epoch, arrays)]: the newest last
    cdef object _old_tickets     # [(epoch, address)] of keys that a worker may still read
    cdef readonly uint64_t generation

    def __cinit__(self, uint32_t workers, uint64_t memory_limit_bytes, uint32_t slice_bytes=1048576,
                  uint32_t exchange_slots=EXCHANGE_SLOTS):
        cdef uint32_t i
        cdef bytes secret = os.urandom(32)
        if not 0 < workers <= MAX_WORKERS:
            raise ValueError(f"workers must be 1 to {MAX_WORKERS}")
        if not 0 < exchange_slots <= EXCHANGE_SLOTS:
            raise ValueError(f"exchange_slots must be 1 to {EXCHANGE_SLOTS}")
        self.n_workers = workers
        raw = np.zeros((workers + 2) * COUNTER_STRIDE, dtype="u8")
        skip = (-raw.ctypes.data % 64) // 8
        self.counters = raw[skip:skip + (workers + 1) * COUNTER_STRIDE].reshape(workers + 1, COUNTER_STRIDE)
        self.columns = self.counters
        self._threads = []
        self._bodies = []
        self._tables = []
        self._old_tickets = []
        if posix_memalign(<void**>&self.shared, 64, sizeof(Shared)) != 0:
            self.shared = NULL
            raise MemoryError
        memset(self.shared, 0, sizeof(Shared))
        self.shared.bell.fd = -1
        self.workers = <Worker**>calloc(workers, sizeof(Worker*))
        if self.workers == NULL:
            raise MemoryError
        if not store_open(&self.shared.store, memory_limit_bytes, slice_bytes, workers, secret):
            raise MemoryError
        memcpy(self.shared.addresses.secret, (<const char*>secret) + 16, 16)
        pthread_mutex_init(&self.shared.addresses.lock, NULL)
        self.shared.addresses.buckets = <AddressCount*>calloc(ADDRESS_BUCKETS, sizeof(AddressCount))
        self.shared.grants = <Grant*>calloc(GRANT_SLOTS, sizeof(Grant))
        self.shared.bell.fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
        if self.shared.addresses.buckets == NULL or self.shared.grants == NULL or self.shared.bell.fd < 0:
            raise MemoryError
        for i in range(workers):
            self.workers[i] = <Worker*>calloc(1, sizeof(Worker))
            if self.workers[i] == NULL or not edge_open(self.workers[i], self.shared, i, &self.columns[i + 1, 0], exchange_slots):
                raise MemoryError

    def __dealloc__(self):
        cdef uint32_t i
        if self.shared == NULL:
            return
        if self.workers != NULL:
            for i in range(self.n_workers):
                if self.workers[i] != NULL:
                    edge_close(self.workers[i])
                    free(self.workers[i])
            free(self.workers)
        store_close(&self.shared.store)
        if self._tables is not None:
            for _, address, _ in self._tables:
                free(<void*><uintptr_t>address)
        if self._old_tickets is not None:
            for _, address in self._old_tickets:
                free_tickets(<TicketKeys*><uintptr_t>address)
        free_tickets(self.shared.tickets)
        free(self.shared.addresses.buckets)
        free(self.shared.grants)
        pthread_mutex_destroy(&self.shared.addresses.lock)
        if self.shared.bell.fd >= 0:
            close(self.shared.bell.fd)
        free(self.shared)
        self.shared = NULL

    # --- tables -------------------------------------------------------------------------------------------------------

    def publish(self, bytes strings, tuple site, hosts, paths, origins, nets, listeners, parameters, limits, tls=()) -> int:
        """Publishes compiled rows (numpy arrays of the dtypes in ext.layout) and returns their generation. The old ones
        are kept until every worker has passed. Raises TypeError or ValueError for rows that workers could not read.
        `tls`: a TlsServer for each listener, or None; connections that are open keep theirs."""
        cdef Tables* tables = <Tables*>calloc(1, sizeof(Tables) + len(listeners) * sizeof(void*))
        cdef Tables* old
        cdef TlsServer server
        if tables == NULL:
            raise MemoryError
        for array, dtype in ((hosts, _layout.HOST_DTYPE), (paths, _layout.PATH_DTYPE), (origins, _layout.ORIGIN_DTYPE),
                             (nets, _layout.NET_DTYPE), (listeners, _layout.LISTENER_DTYPE),
                             (parameters, _layout.STRING_DTYPE), (limits, _layout.LIMITS_DTYPE)):
            if array.dtype != dtype or not array.flags.c_contiguous:
                free(tables)
                raise TypeError("a table has the wrong dtype")
        if (len(limits) != 1 or not 0 < site[1] <= MAX_SITE_BYTES or site[0] + site[1] > len(strings)
                or len(tls) > len(listeners) or not all(each is None or isinstance(each, TlsServer) for each in tls)):
            free(tables)
            raise ValueError("one row of limits, a site's name of 1 to 255 bytes within `strings`, a TlsServer a listener")
        if len(origins) and (origins["allow_length"].max() > MAX_ALLOW_BYTES or
                             (origins["allow"].astype("u8") + origins["allow_length"]).max() > len(strings) or
                             (origins["method"].astype("u8") + origins["n_methods"]).max() > len(parameters)):
            free(tables)
            raise ValueError("an origin's methods point beyond their table, or Allow is too long")
        if len(nets) and (nets["prefix_bits"].max() > 128 or nets["zone"].max() > 63):
            free(tables)
            raise ValueError("a network of more than 128 bits, or a zone above 63")
        for array, start, length in ((hosts, "pattern", "pattern_length"), (paths, "prefix", "prefix_length"),
                                     (parameters, "start", "length")):
            if len(array) and (array[start].astype("u8") + array[length]).max() > len(strings):
                free(tables)
                raise ValueError("a row points beyond `strings`")
        for start, length in (("credential", "n_credentials"), ("header", "n_headers"), ("cookie", "n_cookies")):
            if len(origins) and (origins[start].astype("u8") + origins[length]).max() > len(parameters):
                free(tables)
                raise ValueError("an origin points beyond `parameters`")
        self.generation += 1
        tables.generation = self.generation
        tables.strings = <uint8_t*><const char*>strings
        tables.site, tables.site_length = site
        tables.hosts = <HostRow*><uintptr_t>hosts.ctypes.data
        tables.n_hosts = len(hosts)
        tables.paths = <PathRow*><uintptr_t>paths.ctypes.data
        tables.origins = <OriginRow*><uintptr_t>origins.ctypes.data
        tables.n_origins = len(origins)
        tables.nets = <NetRow*><uintptr_t>nets.ctypes.data
        tables.n_nets = len(nets)
        tables.listeners = <ListenerRow*><uintptr_t>listeners.ctypes.data
        tables.n_listeners = len(listeners)
        tables.tls = <void**>(tables + 1)
        for index, server in enumerate(tls):
            tables.tls[<uint32_t>index] = server.settings if server is not None else NULL
        tables.parameters = <StringRow*><uintptr_t>parameters.ctypes.data
        memcpy(&tables.limits, <void*><uintptr_t>limits.ctypes.data, sizeof(LimitsRow))
        old = <Tables*>exchange_ptr(<void**>&self.shared.tables, tables)
        epoch = add_u64(&self.shared.store.epoch, 1) + 1
        if self._tables:
            newest = self._tables.pop()
            self._tables.append((epoch, newest[1], newest[2]))
        self._tables.append((0, <uintptr_t>tables, (strings, hosts, paths, origins, nets, listeners, parameters, tls)))
        return self.generation

    def set_ticket_keys(self, list keys, uint32_t sealing) -> None:
        """Session tickets are sealed with one of `keys` (80 bytes each: name, cipher's, MAC's), and opened with any."""
        publish_tickets(self.shared, keys, sealing, self._old_tickets)
        self._free_tables()

    def acknowledged(self) -> int:
        """The oldest generation that a worker may still read."""
        self._free_tables()
        return (<Tables*><uintptr_t>self._tables[0][1]).generation if self._tables else 0

    def _free_tables(self):
        cdef uint64_t epoch, least = ~<uint64_t>0
        cdef uint32_t i
        if self.n_pins:
            return
        for i in range(self.n_workers):
            epoch = add_u64(&self.shared.store.workers[i].epoch, 0)
            if epoch and epoch < least:
                least = epoch
        while self._old_tickets and self._old_tickets[0][0] <= least:
            free_tickets(<TicketKeys*><uintptr_t>self._old_tickets.pop(0)[1])
        while len(self._tables) > 1 and self._tables[0][0] <= least:
            free(<void*><uintptr_t>self._tables.pop(0)[1])

    # --- workers ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts the worker threads; tables must be published."""
        if self.shared.tables == NULL:
            raise RuntimeError("publish tables first")
        for i in range(self.n_workers):
            self.workers[i].tables = self.shared.tables
            thread = threading.Thread(target=self._run, args=(i,), name=f"edge-{i}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _run(self, uint32_t index):
        cdef Worker* worker = self.workers[index]
        name = b"edge-%d" % index
        prctl(PR_SET_NAME, <const char*>name)     # what `top -H` and a debugger show
        with nogil:
            edge_run(worker)

    def listen(self, int fd, uint32_t index) -> None:
        """Lets every worker accept from a listening, non-blocking socket. `index`: its row in the listeners' table."""
        self._tell(MESSAGE_LISTEN, index, fd)

    def unlisten(self, uint32_t index) -> None:
        self._tell(MESSAGE_UNLISTEN, index, 0)

    def drain(self, int idle_ms=0, int64_t period_ms=0) -> None:
        """No new connections; idle ones close, others after their response. `idle_ms`: another process serves at our
        addresses, so that idle ones may ask once more within this, and the health probe goes on. Tunnels are closed
        one after the other within `period_ms`."""
        self._tell(MESSAGE_DRAIN, 0, idle_ms, period_ms)

    def poke(self) -> None:
        """Makes each worker begin a pass, also one that sleeps: who asks next whether it moved has a proof."""
        cdef uint64_t one = 1
        cdef uint32_t i
        for i in range(self.n_workers):
            write(self.workers[i].mailbox.fd, &one, 8)

    def close(self) -> None:
        """Ends the workers and their connections at once."""
        if not self._threads:
            return
        self._tell(MESSAGE_CLOSE, 0, 0)
        for thread in self._threads:
            thread.join()
        self._threads = []

    def _tell(self, uint32_t kind, uint32_t index, int fd, int64_t value=0):
        cdef Message message
        cdef uint32_t i
        for i in range(self.n_workers):
            memset(&message, 0, sizeof(Message))
            message.kind = kind
            message.index = index
            message.detail = <uint32_t>fd
            message.value = value
            self.post(i, &message)

    # --- exchanges ----------------------------------------------------------------------------------------------------

    @property
    def bell_fd(self) -> int:
        return self.shared.bell.fd

    def take(self) -> tuple:
        """(new exchanges, identities of cancelled ones, objects nudged) since the last call."""
        cdef RingItem item
        cdef uint32_t i
        asked = []
        cancelled = []
        nudged = []
        bell_hear(&self.shared.bell)
        if over_budget(&self.shared.store):
            self.reclaim()
        for i in range(self.n_workers):
            while ring_pop(&self.workers[i].ring, &item):
                if item.what == RING_REQUEST:
                    asked.append(take_exchange(self, &self.workers[i].exchanges[item.index]))
                elif item.what == RING_CANCEL:
                    cancelled.append((i, item.index, item.generation))
                elif item.what == RING_BODY:
                    exchange_u32(&item.upload.is_told, 0)
                    self._bodies.append(<uintptr_t>item.upload)
                    upload_release(item.upload)
                else:
                    exchange_u32(&item.object.nudged, 0)
                    nudged.append(wrap(self, item.object))
                    object_release(item.object)
        return asked, cancelled, nudged

    def bodies(self) -> list:
        """RequestBody.identity of those that have more, or their end, as the calls of take() since the last one heard."""
        moved, self._bodies = self._bodies, []
        return moved

    # --- pressure -----------------------------------------------------------------------------------------------------

    def set_overload(self, uint32_t rung) -> None:
        """What the workers give up from now on: protocols/overload.py."""
        store_u32(&self.shared.overload, rung)

    def reclaim(self) -> None:
        """Frees what no worker can see any more; evicts what connections need of the limit; forgets marks that ended."""
        cdef Store* store = &self.shared.store
        cdef uint64_t over
        cdef int attempt
        pthread_mutex_lock(&store.lock)
        drop_marks(store, now_ns(), 1024)
        hold_quotas(store)
        reclaim(store)
        over = over_budget(store)
        for attempt in range(64):
            if over <= store.retired_bytes or evict(store, over - store.retired_bytes) == 0:
                break
            reclaim(store)
            over = over_budget(store)
        pthread_mutex_unlock(&store.lock)
        self._free_tables()

    # --- figures ------------------------------------------------------------------------------------------------------

    def count(self, str name, uint64_t n=1) -> None:
        """Adds to the control plane's own row."""
        cdef int column = _COLUMN[name]
        count(&self.columns[0, column], n)

    def totals(self) -> dict:
        """Each counter summed over its rows."""
        cdef int column
        cdef uint32_t i
        cdef uint64_t total
        result = {}
        for column, name, _ in _layout.COUNTERS:
            total = 0
            for i in range(self.n_workers + 1):
                total += load_u64_relaxed(&self.columns[i, column])
            result[name] = total
        result["evictions"] = self.shared.store.n_evictions
        result["memory_refused"] = self.shared.store.n_refused
        total = 0
        for i in range(self.n_workers):
            total += load_u64_relaxed(&self.workers[i].mailbox.wakeups)
        result["worker_wakeups"] = total
        return result

    def origin_totals(self, origins) -> dict:
        """{origin row: (requests, hits, body bytes to viewers)} of the rows asked for."""
        return self._origin_sums(origins, 0)

    def origin_tunnels(self, origins) -> dict:
        """{origin row: (tunnels that have ended, bytes to viewers, bytes to the origin)} of the rows asked for."""
        return self._origin_sums(origins, ORIGIN_TUNNELS_ENDED)

    def _origin_sums(self, origins, int first):
        cdef uint32_t i, row
        cdef int column
        result = {}
        for origin in origins:
            row = origin if origin < MAX_ORIGINS else 0
            sums = [0, 0, 0]
            for i in range(self.n_workers):
                for column in range(3):
                    sums[column] += load_u64_relaxed(&self.workers[i].by_origin[row * ORIGIN_COLUMNS + first + column])
            result[origin] = tuple(sums)
        return result

    @property
    def n_connections(self) -> int:
        return load_u64_relaxed(&self.shared.n_connections)

    def workers_state(self) -> list:
        """[(connections, passes, alive)] by worker."""
        return [
            (load_u64_relaxed(&self.workers[i].n_connections), load_u64_relaxed(&self.workers[i].progress),
             i < len(self._threads) and self._threads[i].is_alive())
            for i in range(self.n_workers)
        ]
