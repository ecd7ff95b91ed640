# AccessReader: the consumer of the workers' access records. Makes lines of them without the GIL. No file is known here.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, strlen

from ext.access_ring cimport *
from ext.access_ring import digest_of_query as digest_of_query
from ext.atomics cimport *
from ext.siphash cimport hash_bytes
from ext.workers cimport Workers

cdef extern from "<time.h>" nogil:
    ctypedef long time_t
    cdef struct tm:
        int tm_sec
        int tm_min
        int tm_hour
        int tm_mday
        int tm_mon
        int tm_year
    tm* gmtime_r(const time_t*, tm*)

cdef extern from "<arpa/inet.h>" nogil:
    enum: AF_INET
    enum: AF_INET6
    const char* inet_ntop(int, const void*, char*, uint32_t)

cdef enum:
    RECORDS = 8192              # 3 MiB a worker
    LINE_BYTES = 4096           # more than any line: a path of 296 bytes, each escaped to six, and three names of 64
    NAME_BYTES_MAX = 256
    ZONE_SETS_MAX = 16

HOW = ("hit", "miss", "collapsed", "passed", "refused", "tunnel")
cdef const char* NOTHING = b""
cdef const char** HOW_NAMES = [b"hit", b"miss", b"collapsed", b"passed", b"refused", b"tunnel"]
cdef const char** FWD_NAMES = [b"", b"uri-miss", b"vary-miss", b"stale", b"partial", b"bypass", b"request", b"method"]
cdef const char** HTTP_NAMES = [b"HTTP/1.1", b"HTTP/1.0", b"h2", b"h2"]
cdef const char** TLS_NAMES = [b"", b"old", b"1.2", b"1.3"]
cdef const char** METHOD_NAMES = [b"", b"GET", b"HEAD", b"OPTIONS", b"POST", b"PUT", b"DELETE", b"PATCH", b"CONNECT", b"TRACE"]


cdef struct Names:              # NUL-terminated, of letters, digits, '-' and '_': they need no escape
    uint64_t generation
    uint32_t n
    const char** texts


cdef struct Writing:
    char* out
    uint64_t used
    uint64_t room
    int64_t wall_offset_ns
    uint64_t day_key[2]
    Names listeners
    Names origins
    Names zones[16]
    uint32_t n_zones
    int64_t second              # that `stamp` is of
    char stamp[80]


cdef const char* name_of(const Names* names, int64_t index) noexcept nogil:
    if 0 <= index < names.n:
        return names.texts[index]
    return NOTHING


cdef const char* zone_name(const Writing* to, const AccessRecord* record) noexcept nogil:
    cdef uint32_t i
    for i in range(to.n_zones):
        if to.zones[i].generation == record.generation:
            return name_of(&to.zones[i], record.zone)
    return NOTHING


cdef void put(Writing* to, const char* text) noexcept nogil:
    cdef uint64_t n = strlen(text)
    memcpy(to.out + to.used, text, n)
    to.used += n


cdef void put_name(Writing* to, const char* key, const char* name) noexcept nogil:
    if name[0]:
        to.used += snprintf(to.out + to.used, LINE_BYTES, ",\"%s\":\"%.256s\"", key, name)


cdef void put_path(Writing* to, const AccessRecord* record) noexcept nogil:
    """JSON text: whatever is not plain ASCII stands for its byte, U+0000 to U+00FF."""
    cdef const char* digits = b"0123456789abcdef"
    cdef uint32_t i, n = record.path_length if record.path_length < RECORD_PATH_BYTES else RECORD_PATH_BYTES
    cdef uint8_t byte
    for i in range(n):
        byte = record.path[i]
        if 32 <= byte < 127 and byte != 34 and byte != 92:
            to.out[to.used] = <char>byte
            to.used += 1
        else:
            memcpy(to.out + to.used, b"\\u00", 4)
            to.out[to.used + 4] = digits[byte >> 4]
            to.out[to.used + 5] = digits[byte & 15]
            to.used += 6


cdef void shown_viewer(const uint8_t* address, uint32_t flags, const uint64_t* day_key, char* out) noexcept nogil:
    """At most 64 bytes: a network, or a keyed hash; empty where nothing is kept."""
    cdef char text[48]
    out[0] = 0
    if flags & RECORD_HAS_ADDRESS:
        snprintf(out, 64, "%016llx", <unsigned long long>hash_bytes(day_key, address, 16))
    elif flags & RECORD_HAS_NETWORK:
        if address[10] == 0xff and address[11] == 0xff:
            inet_ntop(AF_INET, address + 12, text, sizeof(text))
            snprintf(out, 64, "%s/24", text)
        else:
            inet_ntop(AF_INET6, address, text, sizeof(text))
            snprintf(out, 64, "%s/48", text)


cdef void put_line(Writing* to, const AccessRecord* record) noexcept nogil:
    cdef int64_t at_ns = record.ended_ns + to.wall_offset_ns
    cdef time_t second = at_ns // 1000000000
    cdef tm t
    cdef char viewer[64]
    cdef int64_t duration_us = record.duration_ns // 1000
    if second != to.second:
        to.second = second
        gmtime_r(&second, &t)
        snprintf(to.stamp, sizeof(to.stamp), "%04d-%02d-%02dT%02d:%02d:%02d", t.tm_year + 1900, t.tm_mon + 1, t.tm_mday,
                 t.tm_hour, t.tm_min, t.tm_sec)
    if duration_us < 0:
        duration_us = 0
    to.used += snprintf(to.out + to.used, LINE_BYTES, "{\"at\":\"%s.%03dZ\"", to.stamp, <int>(at_ns % 1000000000 // 1000000))
    put_name(to, b"listener", name_of(&to.listeners, record.listener))
    put_name(to, b"origin", name_of(&to.origins, record.origin))
    put_name(to, b"http", HTTP_NAMES[record.protocol & 3])
    put_name(to, b"tls", TLS_NAMES[record.protocol >> SPOKE_TLS_SHIFT & 3])
    if record.method < 10:
        put_name(to, b"method", METHOD_NAMES[record.method])
    if record.path_length:
        put(to, b",\"path\":\"")
        put_path(to, record)
        put(to, b"\"")
        if record.path_length > RECORD_PATH_BYTES:
            to.used += snprintf(to.out + to.used, LINE_BYTES, ",\"path_bytes\":%u", <unsigned>record.path_length)
    if record.query:
        to.used += snprintf(to.out + to.used, LINE_BYTES, ",\"query\":\"%012llx\"", <unsigned long long>record.query)
    to.used += snprintf(to.out + to.used, LINE_BYTES, ",\"status\":%u,\"bytes\":%llu,\"duration_ms\":%lld.%03d", <unsigned>record.status,
                        <unsigned long long>record.bytes, <long long>(duration_us // 1000), <int>(duration_us % 1000))
    if record.how < 6:
        put_name(to, b"how", HOW_NAMES[record.how])
    if record.how != 0 and record.fwd_reason < 8:
        put_name(to, b"fwd", FWD_NAMES[record.fwd_reason])
    put_name(to, b"zone", zone_name(to, record))
    shown_viewer(record.address, record.flags, to.day_key, viewer)
    put_name(to, b"viewer", viewer)
    if record.flags & RECORD_IS_CUT:
        put(to, b",\"cut\":true")
    put(to, b"}\n")


cdef bint fill_names(Names* names, list texts) except False:
    """`texts` outlive the use."""
    cdef bytes text
    names.texts = <const char**>calloc(len(texts) + 1, sizeof(char*))
    if names.texts == NULL:
        raise MemoryError
    names.n = 0
    for text in texts:
        names.texts[names.n] = text
        names.n += 1
    return True


cdef class AccessReader:
    """One thread's, from beginning to end. `open()` before tables with `access_log` are published."""

    cdef Workers plane

    def __init__(self, Workers plane):
        self.plane = plane

    def open(self) -> None:
        """Makes the rings for the access log; they stay. Raises MemoryError."""
        cdef AccessRing* ring
        cdef uint32_t i
        for i in range(self.plane.n_workers):
            if load_ptr(<void**>&self.plane.workers[i].access) == NULL:
                ring = access_ring_new(RECORDS)
                if ring == NULL:
                    raise MemoryError
                store_ptr(<void**>&self.plane.workers[i].access, ring)

    def lines(self, int64_t wall_offset_ns, bytes day_key, list listeners, list origins, list zones,
              uint64_t bytes_max=1048576) -> tuple:
        """(JSON lines, how many) of the oldest records, up to about `bytes_max`. `listeners`, `origins`: names by index;
        `zones`: [(generation, names by index)], the newest first."""
        cdef Writing to
        cdef uint32_t i
        cdef uint64_t n = 0
        cdef AccessRing* ring
        cdef AccessRecord* record
        if len(day_key) != 16:
            raise ValueError("a day's key has 16 bytes")
        zones = zones[:ZONE_SETS_MAX]
        to.used = 0
        to.second = -1
        to.n_zones = 0
        to.listeners.texts = to.origins.texts = NULL
        to.wall_offset_ns = wall_offset_ns
        memcpy(to.day_key, <const char*>day_key, 16)
        to.room = bytes_max + LINE_BYTES
        to.out = <char*>malloc(to.room)
        try:
            if to.out == NULL:
                raise MemoryError
            fill_names(&to.listeners, listeners)
            fill_names(&to.origins, origins)
            for generation, names in zones:
                to.zones[to.n_zones].generation = generation
                fill_names(&to.zones[to.n_zones], names)
                to.n_zones += 1
            with nogil:
                for i in range(self.plane.n_workers):
                    ring = <AccessRing*>load_ptr(<void**>&self.plane.workers[i].access)
                    while ring != NULL and to.used < to.room - LINE_BYTES:
                        record = access_ring_first(ring)
                        if record == NULL:
                            break
                        put_line(&to, record)
                        access_ring_release(ring)
                        n += 1
            return to.out[:to.used], n
        finally:
            free(to.out)
            free(to.listeners.texts)
            free(to.origins.texts)
            for i in range(to.n_zones):
                free(to.zones[i].texts)

    def refusals(self, bytes day_key, list zones) -> dict:
        """{(status, whether its framing was at fault, listener index, zone name, viewer): how many} since the last call."""
        cdef uint32_t i, j
        cdef AccessRecord record
        cdef AccessRecord* first
        cdef uint64_t key[2]
        cdef char viewer[64]
        found = {}
        names = dict(zones)
        memcpy(key, <const char*>day_key, 16)
        for i in range(self.plane.n_workers):
            for j in range(1024):
                first = access_ring_first(self.plane.workers[i].refusals)
                if first == NULL:
                    break
                record = first[0]
                access_ring_release(self.plane.workers[i].refusals)
                shown_viewer(record.address, record.flags, key, viewer)
                there = names.get(record.generation, ())
                zone = there[record.zone] if 0 <= record.zone < len(there) else b""
                cause = (record.status, bool(record.flags & RECORD_IS_FRAMING), record.listener, zone, viewer)
                found[cause] = found.get(cause, 0) + 1
        return found
