# Relays as Python sees them: RelayPlane, and RelayBench for tests without sockets. Rows and indices only; sockets are
# opened by whoever calls, and held here for as long as a worker may read them.
from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

import threading

import numpy as np

from ext.atomics cimport *
from ext.precedence cimport Precedence
from ext.relay cimport *
from ext.relay_align cimport align_open
from ext.relay_ask cimport ASK_AGAIN_NS, ASK_BYTES, ask_write
from ext.relay_input cimport relay_close, relay_expire, relay_gauges, relay_open, relay_take, source_allowed
from ext.relay_turns cimport LATE_BUCKETS, W_EARLY, W_LATE, W_PRESSED_NS, WORKER_STRIDE
from ext.relay_wire cimport FORMAT_DETECT, FORMAT_RTP
from ext.relay_worker cimport *
from ext.stream cimport stream_publish
from ext.stream_plane cimport Ring
from ext.workers cimport Workers

cdef extern from "<stdlib.h>" nogil:
    int posix_memalign(void**, size_t, size_t)

SLOTS = MAX_RELAYS
LEGS = MAX_LEGS
OUTPUTS = MAX_OUTPUTS
DESTINATION_BYTES = sizeof(Destination)
FORMATS = ("unknown", "rtp", "ts", "opaque")
OUTPUT_FORMATS = {"keep": OUT_KEEP, "strip": OUT_STRIP, "stamp": OUT_STAMP}
SEGMENTS = ("unknown", "on", "off")
MODES = {"merge": MODE_MERGE, "backup": MODE_BACKUP}

# (column, name, meaning). One source for the rows, `accelctl relay`, /metrics and the documentation.
RELAY_COUNTERS = (
    (R_DATAGRAMS, "datagrams", "datagrams received on all legs"),
    (R_BYTES, "bytes", "their bytes"),
    (R_PACKETS, "packets", "packets sent on in order, each once"),
    (R_PACKET_BYTES, "packet_bytes", "their payload bytes"),
    (R_LOST, "lost", "packets that never came, from no leg and no repair"),
    (R_REPAIRED, "repaired", "packets given back by repair packets (SMPTE 2022-1) or retransmission (RFC 4588)"),
    (R_MERGED, "merged", "packets that one leg missed and another brought (SMPTE 2022-7)"),
    (R_REORDERED, "reordered", "packets put back in order"),
    (R_DUPLICATE, "duplicate", "packets that were there already"),
    (R_LATE, "late", "packets that came after they were given up"),
    (R_EMPTY, "empty", "RTP packets without payload: not sent on"),
    (R_RESTARTS, "restarts", "streams that began anew: other source, other sequence, or after silence"),
    (R_SWITCHES, "switches", "changes between input and backup"),
    (R_FEC_PACKETS, "fec_packets", "repair packets kept"),
    (R_REPAIR_REFUSED, "repair_refused", "repairs whose result would not have fitted the stream"),
    (R_DROP_SOURCE, "drop_source", "dropped: the sender is not on the list"),
    (R_DROP_SENDER, "drop_sender", "dropped: of another sender's stream, while the first one sends"),
    (R_DROP_OWN, "drop_own", "dropped: sent by one of our own outputs"),
    (R_DROP_LINK, "drop_link", "dropped: of the same IPv6 group, but by another interface than the input's"),
    (R_DROP_OVERSIZE, "drop_oversize", "dropped: larger than the relay's datagrams may be"),
    (R_DROP_MALFORMED, "drop_malformed", "dropped: not RTP, or cut off"),
    (R_DROP_RTCP, "drop_rtcp", "dropped: RTCP on the media port"),
    (R_DROP_TYPE, "drop_type", "dropped: another payload type"),
    (R_DROP_SSRC, "drop_ssrc", "dropped: another source, alone"),
    (R_DROP_JUMP, "drop_jump", "dropped: out of sequence, alone"),
    (R_DROP_FORMAT, "drop_format", "dropped: not what the stream carries"),
    (R_DROP_APART, "drop_apart", "dropped: of an input whose packets can't be put beside the other's (yet)"),
    (R_DROP_STANDBY, "drop_standby", "left: from an input that stands by"),
    (R_DROP_RATE, "drop_rate", "dropped: beyond the relay's bitrate"),
    (R_DROP_FEC_MALFORMED, "drop_fec_malformed", "dropped: repair packets that can't be read"),
    (R_DROP_FEC_REFUSED, "drop_fec_refused", "dropped: repair packets of no stream that there is"),
    (R_ASKED, "asked", "requests for missing packets (RFC 4585), each packet's and each time"),
    (R_RETRANSMITTED, "retransmitted", "packets that came by retransmission (RFC 4588)"),
    (R_DROP_RETRANSMITTED, "drop_retransmitted", "retransmissions of what was not asked for, or is there already"),
    (R_TS_PACKETS, "ts_packets", "transport packets in what was sent on"),
    (R_TS_DAMAGED, "ts_damaged", "transport packets that are damaged or unreadable"),
    (R_TS_CONTINUITY, "ts_continuity", "transport packets out of continuity"),
    (R_TS_PCR_JUMPS, "ts_pcr_jumps", "clock references that jumped"),
    (R_TS_RANDOM_ACCESS, "ts_random_access", "random access points of the video"),
)
RELAY_GAUGES = (
    (R_TS_RATE_BPS, "ts_rate_bps"), (R_JITTER_NS, "jitter_ns"), (R_LAST_NS, "last_ns"), (R_FORMAT, "format"),
    (R_ACTIVE_LEG, "active_leg"), (R_PAYLOAD_TYPE, "payload_type"),
)
LEG_COLUMNS = (
    (L_DATAGRAMS, "datagrams"), (L_BYTES, "bytes"), (L_FIRST, "first"), (L_LOST, "lost"), (L_JITTER_NS, "jitter_ns"),
    (L_LAST_NS, "last_ns"), (L_DROP_KERNEL, "drop_kernel"), (L_APART, "apart"),
)
OUTPUT_COLUMNS = (
    (O_PACKETS, "packets"), (O_BYTES, "bytes"), (O_CALLS, "calls"), (O_TRAINS, "trains"), (O_DROP_FULL, "drop_full"),
    (O_DROP_REFUSED, "drop_refused"), (O_DROP_SIZE, "drop_size"), (O_DROP_BACKLOG, "drop_backlog"),
    (O_RECEIVERS, "receivers"), (O_SEGMENTS, "segments"),
)


cdef object rows(uint32_t n, uint32_t stride):
    """Zeroed counter rows whose first is on a cache line of its own."""
    raw = np.zeros(n * stride + 8, dtype="u8")
    skip = (-raw.ctypes.data % 64) // 8
    return raw[skip:skip + n * stride].reshape(n, stride)


cdef class Settings:
    """Of one relay, checked. `legs`: (fd, "media"|"fec"|"rtx", ((16-byte address, bits), ...)); -1 for fd without sockets.
    `groups`: for each leg that takes an IPv6 group by one interface the group, else nothing: see RelayPlane.set_link."""

    cdef readonly object legs
    cdef Relay* relay

    def __cinit__(self, *, legs, mode="merge", is_rtp=False, wait_ns=0, failover_ns=500_000_000, window_packets=256,
                  slot_bytes=1536, payload_type=255, clock_hz=90000, cap_bytes_s=0, ask_to=b"", ask_ssrc=0, ask_name=b"", rtx_type=255,
                  is_wrapped=False, groups=()):
        cdef Relay* r
        cdef Leg* leg
        if not 1 <= len(legs) <= MAX_LEGS or mode not in MODES or not 0 <= wait_ns <= 10_000_000_000:
            raise ValueError("1 to 4 legs, mode merge or backup, wait of at most 10 s")
        if window_packets & (window_packets - 1) or not 64 <= window_packets <= 65536:
            raise ValueError("window_packets must be a power of two from 64 to 65536")
        if not 64 <= slot_bytes <= 65535 or not 0 <= payload_type <= 255 or not 1000 <= clock_hz <= 1_000_000:
            raise ValueError("slot_bytes 64 to 65535, payload_type 0 to 127 or 255, clock_hz 1,000 to 1,000,000")
        if failover_ns <= 0 or legs[0][1] != "media":
            raise ValueError("the first leg carries media, failover takes time")
        r = <Relay*>calloc(1, sizeof(Relay))
        if r == NULL:
            raise MemoryError
        self.relay = r
        self.legs = legs
        r.mode = MODES[mode]
        r.wanted_format = FORMAT_RTP if is_rtp else FORMAT_DETECT
        r.wait_ns = wait_ns
        r.failover_ns = failover_ns
        r.slot_bytes = slot_bytes
        r.payload_type = payload_type
        r.clock_hz = clock_hz
        r.cap_bytes_s = cap_bytes_s
        r.n_legs = len(legs)
        has_fec = False
        for i, (fd, kind, sources) in enumerate(legs):
            leg = &r.legs[i]
            leg.fd = fd
            leg.kind = {"media": LEG_MEDIA, "fec": LEG_FEC, "rtx": LEG_RTX}[kind]
            has_fec = has_fec or kind == "fec"
            r.n_media += kind == "media"
            r.ask_leg = i if kind == "rtx" else r.ask_leg
            if len(sources) > MAX_SOURCES:
                raise ValueError("too many source networks")
            leg.n_sources = len(sources)
            for j, (address, bits) in enumerate(sources):
                if len(address) != 16 or not 0 <= bits <= 128:
                    raise ValueError("a source is 16 bytes and at most 128 bits")
                memcpy(leg.sources[j].address, <const char*>address, 16)
                leg.sources[j].bits = bits
        for i, group in enumerate(groups):
            if i >= r.n_legs or len(group) not in (0, 16):
                raise ValueError("a group is 16 bytes, or none, of a leg that there is")
            if group:
                memcpy(r.legs[i].group, <const char*>group, 16)
                r.legs[i].is_held = 1
        r.is_wrapped = is_wrapped
        is_aligned = (is_wrapped or not is_rtp) and mode == "merge" and r.n_media > 1
        if not relay_open(r, window_packets, has_fec) or (is_aligned and not align_open(r)):
            raise MemoryError
        if ask_to:
            self._ask(ask_to, ask_ssrc, ask_name, rtx_type)

    cdef _ask(self, bytes to, uint32_t ssrc, bytes name, uint8_t rtx_type):
        """`to`: a row of a fan-out table, whom missing packets are asked from."""
        cdef Relay* r = self.relay
        if len(to) != sizeof(Destination) or len(name) != sizeof(r.ask_name) or rtx_type > 127 or r.legs[r.ask_leg].kind != LEG_RTX:
            raise ValueError("asking needs a leg of kind rtx, a destination, 16 bytes of name and a payload type")
        r.asks = <Ask*>calloc(r.mask + 1, sizeof(Ask))
        if r.asks == NULL:
            raise MemoryError
        memcpy(r.ask_to, <const char*>to, sizeof(r.ask_to))
        memcpy(&r.ask_length, <const char*>to + sizeof(r.ask_to), sizeof(r.ask_length))
        memcpy(r.ask_name, <const char*>name, sizeof(r.ask_name))
        r.ask_ssrc = ssrc
        r.rtx_type = rtx_type
        r.ask_again_ns = ASK_AGAIN_NS

    def __dealloc__(self):
        if self.relay != NULL:
            relay_close(self.relay)
            free(self.relay)


cdef void point_counters(Relay* r, uint64_t* relay_row, uint64_t* legs_row, uint64_t* outputs_row) noexcept:
    cdef uint32_t i
    r.counters = relay_row
    for i in range(<uint32_t>MAX_LEGS):
        r.legs[i].counters = legs_row + i * LEG_STRIDE
    for i in range(<uint32_t>MAX_OUTPUTS):
        r.outputs[i].counters = outputs_row + i * OUTPUT_STRIDE


cdef class RelayPlane:
    """The relay workers and their relays. Every call is the control plane's, from one thread.

    `relays[slot]`, `legs[slot * LEGS + leg]`, `outputs[slot * OUTPUTS + output]`: counter rows, uint64, written by the
    relay's worker alone. They begin at 0 when a relay is added."""

    cdef RelayWorker** workers
    cdef readonly uint32_t n_workers
    cdef readonly object relays
    cdef readonly object legs
    cdef readonly object outputs
    cdef readonly object worker_rows
    cdef uint64_t[:, ::1] relay_view
    cdef uint64_t[:, ::1] leg_view
    cdef uint64_t[:, ::1] output_view
    cdef uint64_t[:, ::1] worker_view
    cdef uint64_t* epoch
    cdef object _threads
    cdef object _settings       # slot -> (Settings, worker, sockets)
    cdef object _fanouts        # slot -> address of the newest
    cdef object _lists          # worker -> address of the newest
    cdef object _rings          # slot -> Ring
    cdef object _own            # worker -> address of the newest
    cdef object _retired        # [(worker, epoch, address or None, what is held)]
    cdef uint32_t _taken        # how many relays there have been
    cdef Workers _beside

    def __cinit__(self, uint32_t workers=1, Workers beside=None):
        """`beside`: the plane whose edge workers let ours go first."""
        cdef uint32_t i
        if not 0 < workers <= MAX_RELAY_WORKERS:
            raise ValueError(f"workers must be 1 to {MAX_RELAY_WORKERS}")
        self._threads = []
        self._settings = {}
        self._fanouts = {}
        self._lists = {}
        self._rings = {}
        self._own = {}
        self._retired = []
        self.relay_view = self.relays = rows(MAX_RELAYS, RELAY_STRIDE)
        self.leg_view = self.legs = rows(MAX_RELAYS * MAX_LEGS, LEG_STRIDE)
        self.output_view = self.outputs = rows(MAX_RELAYS * MAX_OUTPUTS, OUTPUT_STRIDE)
        self.worker_view = self.worker_rows = rows(workers, WORKER_STRIDE)
        self.epoch = <uint64_t*>calloc(1, sizeof(uint64_t))
        self.workers = <RelayWorker**>calloc(workers, sizeof(RelayWorker*))
        if self.epoch == NULL or self.workers == NULL:
            raise MemoryError
        self.epoch[0] = 1
        self.n_workers = workers
        for i in range(workers):
            if posix_memalign(<void**>&self.workers[i], 64, sizeof(RelayWorker)) != 0:
                self.workers[i] = NULL
                raise MemoryError
            if not worker_open(self.workers[i], self.epoch, &self.worker_view[i, 0]):
                raise MemoryError
            self._publish_list(i)
        self._beside = beside

    def __dealloc__(self):
        cdef uint32_t i
        if self.workers != NULL:
            for i in range(self.n_workers):
                if self.workers[i] != NULL:
                    worker_close(self.workers[i])
                    free(self.workers[i])
            free(self.workers)
        if self._retired is not None:
            for _, _, address, _ in self._retired:
                _free(address)
            for kept in (self._fanouts, self._lists, self._own):
                for address in kept.values():
                    _free(address)
        free(self.epoch)

    def start(self) -> None:
        cdef Precedence* beside
        cdef uint32_t index
        if self._beside is not None:
            beside = &self._beside.shared.precedence
            for index in range(self.n_workers):
                beside.claims[index].since_ns = INT64_MAX
                self.workers[index].claim = &beside.claims[index]
            store_u32(&beside.n, self.n_workers)
        for i in range(self.n_workers):
            thread = threading.Thread(target=self._run, args=(i,), name=f"relay-{i}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _run(self, uint32_t index):
        cdef RelayWorker* worker = self.workers[index]
        with nogil:
            worker_run(worker)

    def native_ids(self) -> list:
        """Of the workers' threads, as the kernel numbers them."""
        return [thread.native_id for thread in self._threads]

    def workers_state(self) -> list:
        """[(passes, alive)] by worker; one that is well makes a pass each second."""
        return [(int(self.worker_rows[i, 0]), i < len(self._threads) and self._threads[i].is_alive())
                for i in range(self.n_workers)]

    def late(self) -> list:
        """By worker: how many trains began so late after their hold or pace, [n] being less than 2^n microseconds."""
        return [[int(n) for n in row[W_LATE:W_LATE + LATE_BUCKETS]] for row in self.worker_rows]

    def pressed(self) -> list:
        """[(nanoseconds short of time, trains that left early for it)] by worker."""
        return [(int(row[W_PRESSED_NS]), int(row[W_EARLY])) for row in self.worker_rows]

    def set_early(self, bint is_always) -> None:
        """For tests: what the workers do only when they are short of time, trains were late and they are idle again."""
        for i in range(self.n_workers):
            store_u32(&self.workers[i].turns.is_always_early, is_always)

    def close(self) -> None:
        """Ends the workers. Sockets stay their owners' to close."""
        if not self._threads:
            return
        for i in range(self.n_workers):
            exchange_u32(&self.workers[i].closing, 1)
            worker_wake(self.workers[i])
        for thread in self._threads:
            thread.join()
        if self._beside is not None:
            store_u32(&self._beside.shared.precedence.n, 0)
        self._threads = []
        self.collect()

    # --- publishing ---------------------------------------------------------------------------------------------------

    def _retire(self, uint32_t worker, address, held=None):
        """Frees `address` and lets go of `held` once the worker has begun a pass after now."""
        if address is not None or held is not None:
            self._retired.append((worker, add_u64(self.epoch, 1) + 1, address, held))
        self.collect()

    def collect(self) -> int:
        """Frees what no worker can still read; returns how much is left."""
        cdef uint64_t seen
        left = []
        for item in self._retired:
            seen = add_u64(&self.workers[<uint32_t>item[0]].epoch, 0)
            if seen == 0 or seen >= <uint64_t>item[1]:
                _free(item[2])
            else:
                left.append(item)
        self._retired = left
        return len(left)

    def _publish_list(self, uint32_t worker):
        cdef RelayList* made = <RelayList*>calloc(1, sizeof(RelayList))
        cdef Settings settings
        if made == NULL:
            raise MemoryError
        for slot, (settings, of_worker, _) in self._settings.items():
            if of_worker == worker:
                made.relays[<uint32_t>slot] = settings.relay
                made.n = max(made.n, <uint32_t>slot + 1)
        exchange_ptr(<void**>&self.workers[worker].list, made)
        old = self._lists.get(worker)
        self._lists[worker] = <uintptr_t>made
        return old

    def add(self, uint32_t slot, Settings settings, sockets=(), *, receives=True) -> None:
        """Puts a relay into a free slot: its worker receives from now on, or from receive() on. `sockets`: held until
        after remove()."""
        cdef uint32_t worker = slot % self.n_workers
        cdef Relay* r = settings.relay
        if slot >= MAX_RELAYS or slot in self._settings:
            raise ValueError("the slot is taken, or beyond the last")
        if r.counters != NULL:
            raise ValueError("settings serve one relay")
        self._taken += 1
        r.id = (self._taken & 0x7FFFFF) * MAX_RELAYS + slot
        self.relays[slot] = 0
        self.legs[slot * MAX_LEGS:(slot + 1) * MAX_LEGS] = 0
        self.outputs[slot * MAX_OUTPUTS:(slot + 1) * MAX_OUTPUTS] = 0
        point_counters(r, &self.relay_view[slot, 0], &self.leg_view[slot * MAX_LEGS, 0], &self.output_view[slot * MAX_OUTPUTS, 0])
        self._settings[slot] = (settings, worker, tuple(sockets))
        self._retire(worker, self._publish_list(worker))
        if receives:
            self.receive(slot)

    def receive(self, uint32_t slot) -> None:
        """What comes from now on, and what waits in the sockets, is relayed. Once."""
        cdef Settings settings
        cdef uint32_t i
        settings, worker, _ = self._settings[slot]
        for i in range(settings.relay.n_legs):
            if not worker_watch(self.workers[<uint32_t>worker], settings.relay.legs[i].fd, settings.relay, i):
                self.remove(slot)
                raise OSError("a socket of the relay can't be watched")
        worker_wake(self.workers[<uint32_t>worker])

    def remove(self, uint32_t slot) -> None:
        """Takes a relay away; its memory and sockets are let go when its worker has passed: see collect()."""
        cdef Settings settings
        cdef uint32_t i
        settings, worker, sockets = self._settings.pop(slot)
        for i in range(settings.relay.n_legs):
            worker_unwatch(self.workers[<uint32_t>worker], settings.relay.legs[i].fd)
        old = self._publish_list(worker)
        self._retire(worker, old, (settings, sockets, self._rings.pop(slot, None)))
        fanout = self._fanouts.pop(slot, None)
        if fanout is not None:
            self._retire(worker, fanout)
        worker_wake(self.workers[<uint32_t>worker])

    def open_output(self, uint32_t slot, uint32_t index, int fd, *, format="keep", hold_ns=5_000_000, pace_bytes_s=0,
                    train_packets=TRAIN_PACKETS, train_bytes=0, ssrc=0, sequence=0, segments=True, is_pace_measured=False) -> None:
        """Describes an output that no published fan-out names; its socket stays the caller's until remove()."""
        cdef Settings settings = self._settings[slot][0]
        if index >= MAX_OUTPUTS or not 1 <= train_packets <= TRAIN_PACKETS:
            raise ValueError("output or train out of range")
        self.outputs[slot * MAX_OUTPUTS + index] = 0
        open_output(settings.relay, index, fd, OUTPUT_FORMATS[format], hold_ns, pace_bytes_s, train_packets, train_bytes, ssrc,
                    sequence, segments)
        settings.relay.outputs[index].is_pace_measured = <uint8_t>bool(is_pace_measured)

    def set_receivers(self, uint32_t slot, receivers) -> None:
        """`receivers`: [(output, destinations)], destinations being packed rows of DESTINATION_BYTES. Published whole:
        every packet goes to the old ones or to the new ones."""
        settings, worker, sockets = self._settings[slot]
        cdef Fanout* made = make_fanout((<Settings>settings).relay, receivers)
        exchange_ptr(<void**>&(<Settings>settings).relay.fanout, made)
        for output, destinations in receivers:
            self.outputs[slot * MAX_OUTPUTS + output, O_RECEIVERS] = len(destinations) // sizeof(Destination)
        old = self._fanouts.get(slot)
        self._fanouts[slot] = <uintptr_t>made
        self._retire(worker, old)

    def set_stream(self, uint32_t slot, Ring ring) -> None:
        """What the relay brings also goes into `ring`, which no other relay writes; None: no longer."""
        settings, worker, sockets = self._settings[slot]
        old = self._rings.pop(slot, None)
        if ring is not None:
            self._rings[slot] = ring
        exchange_ptr(<void**>&(<Settings>settings).relay.stream, ring.stream if ring is not None else NULL)
        if old is not None:
            self._retire(worker, None, old)

    def set_link(self, uint32_t slot, uint32_t leg, uint32_t link) -> None:
        """The number of the interface by which a leg of `groups` takes its group; 0: none."""
        cdef Settings settings
        settings, _, _ = self._settings[slot]
        if leg >= settings.relay.n_legs or not settings.relay.legs[leg].is_held:
            raise ValueError("a leg that is held to an interface")
        store_u32(&settings.relay.legs[leg].link, link)

    def set_own(self, own) -> None:
        """`own`: [(16-byte address, all zero: any; port)] that our outputs send from: never relayed again."""
        cdef OwnSockets* made
        cdef uint32_t worker, i
        cdef uint16_t number
        for worker in range(self.n_workers):
            made = <OwnSockets*>calloc(1, sizeof(OwnSockets) + len(own) * 18)
            if made == NULL:
                raise MemoryError
            made.n = len(own)
            made.port = <uint16_t*>(made + 1)
            made.address = <uint8_t*>(made.port + len(own))
            for i in range(made.n):
                address, port = own[i]
                if len(address) != 16:
                    raise ValueError("16 bytes of address")
                memcpy(made.address + 16 * i, <const char*>address, 16)
                number = port
                made.port[i] = number
                made.ports[number >> 6] |= <uint64_t>1 << (number & 63)
            exchange_ptr(<void**>&self.workers[worker].own, made)
            old = self._own.get(worker)
            self._own[worker] = <uintptr_t>made
            self._retire(worker, old)


def _free(address):
    if address is not None:
        free(<void*><uintptr_t>address)


cdef void open_output(Relay* r, uint32_t index, int fd, int format, int64_t hold_ns, uint64_t pace_bytes_s, uint32_t train_packets,
                      uint32_t train_bytes, uint32_t ssrc, uint16_t sequence, bint segments) noexcept:
    cdef Output* o = &r.outputs[index]
    o.fd = fd
    o.format = <uint8_t>format
    o.segments = SEGMENTS_UNKNOWN if segments else SEGMENTS_OFF
    o.is_new = 1
    o.train_packets = train_packets
    o.train_bytes = train_bytes
    o.hold_ns = hold_ns
    o.pace_bytes_s = pace_bytes_s
    o.ssrc = ssrc
    o.sequence = sequence
    o.segment_good = o.segment_limit = o.n_refused = 0


cdef Fanout* make_fanout(Relay* r, receivers) except NULL:
    cdef Fanout* made
    cdef uint64_t total = sum(len(packed) for _, packed in receivers)
    if len(receivers) > MAX_OUTPUTS or any(len(packed) % sizeof(Destination) for _, packed in receivers):
        raise ValueError("too many outputs, or rows of the wrong size")
    if any(not 0 <= output < MAX_OUTPUTS or r.outputs[<uint32_t>output].train_packets == 0 for output, _ in receivers):
        raise ValueError("an output that was not opened")
    made = <Fanout*>calloc(1, sizeof(Fanout) + total)
    if made == NULL:
        raise MemoryError
    made.destinations = <Destination*>(made + 1)
    at = 0
    for i, (output, packed) in enumerate(receivers):
        made.rows[<uint32_t>i].output = output
        made.rows[<uint32_t>i].first = at
        made.rows[<uint32_t>i].n = len(packed) // sizeof(Destination)
        memcpy(made.destinations + <uint32_t>at, <const char*>packed, len(packed))
        at += made.rows[<uint32_t>i].n
    made.n_rows = len(receivers)
    return made


cdef class RelayBench:
    """One relay without sockets or worker, for tests: datagrams and the time go in, packets come out."""

    cdef Settings settings
    cdef Ring ring
    cdef readonly object counters
    cdef readonly object legs
    cdef readonly object outputs
    cdef uint64_t[:, ::1] relay_view
    cdef uint64_t[:, ::1] leg_view
    cdef uint64_t[:, ::1] output_view
    cdef uint64_t taken

    def __cinit__(self, Settings settings):
        self.settings = settings
        self.relay_view = self.counters = rows(1, RELAY_STRIDE)
        self.leg_view = self.legs = rows(MAX_LEGS, LEG_STRIDE)
        self.output_view = self.outputs = rows(MAX_OUTPUTS, OUTPUT_STRIDE)
        point_counters(settings.relay, &self.relay_view[0, 0], &self.leg_view[0, 0], &self.output_view[0, 0])

    def take(self, uint32_t leg, bytes data, int64_t now, bytes sender=bytes(16)) -> list:
        """Packets released by this datagram, in order. `sender`: whose, 16 bytes."""
        if leg >= self.settings.relay.n_legs or len(sender) != 16:
            raise IndexError("no such leg, or no address")
        memcpy(self.settings.relay.came_from, <const char*>sender, 16)
        relay_take(self.settings.relay, leg, <const uint8_t*><const char*>data, <uint32_t>len(data), now)
        return self._released()

    def ask(self, int64_t now) -> bytes:
        """The RTCP packet that asks for what is missing; empty: nothing is due."""
        cdef uint8_t packet[ASK_BYTES]
        cdef uint32_t size = ask_write(self.settings.relay, now, packet) if self.settings.relay.asks != NULL else 0
        return (<const char*>packet)[:size]

    def expire(self, int64_t now) -> list:
        """Packets released because a hole was given up."""
        relay_expire(self.settings.relay, now)
        return self._released()

    def _released(self):
        cdef Relay* r = self.settings.relay
        cdef Slot* slot
        found = []
        while self.taken < r.n_ready:
            sequence = r.ready[self.taken & r.mask]
            slot = &r.slots[<uint64_t>sequence & r.mask]
            if slot.sequence != <uint64_t>sequence:
                raise AssertionError("a released slot was taken again")
            found.append((<const char*>slot_data(r, sequence))[:slot.length])
            self.taken += 1
        return found

    def set_stream(self, Ring ring) -> None:
        self.ring = ring
        self.settings.relay.stream = ring.stream if ring is not None else NULL

    def publish(self, int64_t now) -> None:
        """Readers of the stream are told of what came, when it is time."""
        stream_publish(self.settings.relay.stream, now)

    def known(self) -> dict:
        """Counters and gauges by name."""
        relay_gauges(self.settings.relay)
        return {name: int(self.counters[0, column]) for column, name, *_ in (*RELAY_COUNTERS, *RELAY_GAUGES)}


def allows(Settings settings, uint32_t leg, bytes address) -> bool:
    """For tests: whether a leg takes datagrams from `address` (16 bytes)."""
    if len(address) != 16 or leg >= settings.relay.n_legs:
        raise ValueError("16 bytes of address, and a leg that there is")
    return source_allowed(&settings.relay.legs[leg], address)
