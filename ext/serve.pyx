# The way of a request behind serve.pxd: route, look up, answer or ask. No freshness rules: they are compiled into each head.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memchr, memcmp, memcpy

from ext.access_ring cimport NO_ORIGIN
from ext.atomics cimport *
from ext.authorise cimport JUDGED_NO, JUDGED_YES, TAG_BYTES, judge
from ext.connection cimport *
from ext.directives cimport accepts_stale, refuses_stored
from ext.exchange cimport *
from ext.h2_requests cimport stream_credit
from ext.http_grammar cimport same
from ext.http_head cimport *
from ext.layout cimport *
from ext.receive cimport begin_body
from ext.body cimport body_at
from ext.request cimport (
    ByteRange,
    RANGE_OK,
    RANGE_SEVERAL,
    ROUTE_NO_PATH,
    ROUTE_UNKNOWN_HOST,
    build_key,
    first_field,
    range_bounds,
    route,
    select_ranges,
    zone_of,
)
from ext.respond cimport AS_COLLAPSED, AS_HIT, AS_MISS, AS_PASSED, is_not_modified, may_range, respond_error, respond_object, respond_preflight
from ext.sockets cimport acc_mark_socket
from ext.store cimport *
from ext.table cimport entry_match, hash_key, table_find
from ext.upload cimport UPLOAD_WHOLE, Upload, upload_release

cdef enum:
    GRANTED = -1                # of ask_whether; not DONE, PENDING or CLOSED
    REWRITTEN = 1               # what such a key begins with: all others begin with a slash

cdef const char* ROOT_PATH = b"/"
cdef const char* PAC_PATH = b"/proxy.pac"
cdef const char* WPAD_PATH = b"/wpad.dat"
cdef const char* STEERING_PATH = b"/.well-known/accelerator/steering"
cdef const char* STEERING_FIRST_PATH = b"/.well-known/accelerator/steering/first"
cdef const char* HEALTH_PATH = b"/.well-known/accelerator/health"


# --- asking the control plane -----------------------------------------------------------------------------------------

cdef Exchange** bucket_of(Worker* w, uint64_t hash) noexcept nogil:
    return &w.exchange_buckets[hash & (EXCHANGE_BUCKETS - 1)]


cdef void leave_bucket(Worker* w, Exchange* e) noexcept nogil:
    cdef Exchange** link = bucket_of(w, e.hash)
    while link[0] != NULL:
        if link[0] == e:
            link[0] = e.next_in_bucket
            return
        link = &link[0].next_in_bucket


cdef Exchange* new_exchange(Worker* w, Connection* c, uint32_t kind, const uint8_t* data, const RequestHead* head,
                            uint32_t origin, uint64_t hash, const uint8_t* key, uint32_t key_length, Object* object, Upload* upload) noexcept nogil:
    cdef Exchange* e = exchange_take(w, head.length + key_length)
    cdef const Field* field
    if e == NULL:
        count(&w.counters[C_EXCHANGES_EXHAUSTED], 1)
        return NULL
    e.head_length = put_head(c, e.bytes, data, head.length)
    memcpy(e.bytes + e.head_length, key, key_length)
    e.key_length = key_length
    e.kind = kind
    e.origin = origin
    e.hash = hash
    e.listener = c.listener
    e.zone = c.zone
    e.arrival_ns = c.arrival_ns
    e.tables_generation = w.tables.generation
    e.fwd_reason = c.fwd_reason
    if head.count[FIELD_RANGE] == 1 and head.method == METHOD_GET:
        field = first_field(head, FIELD_RANGE)
        if range_bounds(data + field.value, field.value_length, &e.range_first, &e.range_last) != RANGE_OK:
            e.range_first = -1
            e.range_last = -1
    if object != NULL:
        add_u64(&object.refs, 1)
        e.object = object
    if upload != NULL:
        add_u64(&upload.refs, 1)
        e.upload = upload
    count(&w.counters[C_EXCHANGES], 1)
    ring_push(&w.ring, RING_REQUEST, e.index, e.generation, NULL)   # as large as the slots are many: never full
    w.must_ring = 1
    return e


cdef int ask(Worker* w, Connection* c, uint32_t kind, const uint8_t* data, uint32_t n, const RequestHead* head,
             uint32_t origin, uint64_t hash, const uint8_t* key, uint32_t key_length, Object* object) noexcept nogil:
    """Waits for the control plane: joins the exchange of the same key, or begins one."""
    cdef Exchange* e = NULL
    c.is_leader = 0
    c.is_joined = 0
    c.is_restored = 0
    if kind < EXCHANGE_ALONE:
        e = bucket_of(w, hash)[0]
        while e != NULL:
            if (e.is_joinable and e.hash == hash and e.origin == origin and e.key_length == key_length
                    and memcmp(e.bytes + e.head_length, key, key_length) == 0):
                break
            e = e.next_in_bucket
    if e == NULL:
        e = new_exchange(w, c, kind, data, head, origin, hash, key, key_length, object, NULL)
        if e == NULL:
            return respond_error(w, c, 503, head.content_length > 0 or head.chunked)
        c.is_leader = 1
        if kind < EXCHANGE_ALONE:
            e.is_joinable = 1
            e.next_in_bucket = bucket_of(w, hash)[0]
            bucket_of(w, hash)[0] = e
    else:
        c.is_joined = 1
    c.head_length = head.length
    c.exchange = e
    list_append(&e.waiters, c)
    if not keep_input(w, c, data, n):
        count(&w.counters[C_CLOSED_MEMORY], 1)
        connection_close(w, c, True)
        return CLOSED
    c.state = STATE_WAIT
    set_deadline(w, c, w.now_ns + w.tables.origins[origin].wait_ns)
    return PENDING


cdef void refresh_behind(Worker* w, Connection* c, const uint8_t* data, const RequestHead* head, uint32_t origin,
                         uint64_t hash, const uint8_t* key, uint32_t key_length, Object* object) noexcept nogil:
    """stale-while-revalidate (RFC 5861 section 3): one refresh at a time per object, nobody waits for it."""
    if load_u32_relaxed(&object.refreshing) or exchange_u32(&object.refreshing, 1):
        return
    if new_exchange(w, c, EXCHANGE_REFRESH, data, head, origin, hash, key, key_length, object, NULL) == NULL:
        exchange_u32(&object.refreshing, 0)
        return
    count(&w.counters[C_REVALIDATIONS_BACKGROUND], 1)


cdef int ask_whether(Worker* w, Connection* c, const uint8_t* data, uint32_t n, const RequestHead* head, uint32_t origin,
                     bint has_body) noexcept nogil:
    """Whether the viewer may have what he asks for, before anything is looked up: GRANTED if so, else what respond_error
    or ask said. What was judged is looked at anew each time, so that an answer is never taken for a permission."""
    cdef uint8_t tag[TAG_BYTES]
    cdef uint64_t hash
    cdef uint32_t judged = judge(w, data, head, origin, tag)
    if judged == JUDGED_YES:
        if c.is_authorising:    # from here on as if the request came now
            c.is_authorising = 0
            c.n_tries = 0
            c.is_joined = 0
            c.is_leader = 0
            c.is_stored = 0
            c.fwd_status = 0
        return GRANTED
    if judged == JUDGED_NO:
        count(&w.counters[C_REFUSED_CREDENTIAL], 1)
        return respond_error(w, c, w.tables.origins[origin].refusal, has_body)
    if c.n_asked == MAX_TRIES:
        return respond_error(w, c, 503, has_body)
    c.n_asked += 1
    c.is_authorising = 1
    count(&w.counters[C_AUTHORISATIONS], 1)
    memcpy(&hash, tag + 1, 8)
    return ask(w, c, EXCHANGE_AUTHORISE, data, n, head, origin, hash, tag, TAG_BYTES, NULL)


# --- the way of a request ---------------------------------------------------------------------------------------------

cdef bint is_manifest(const uint8_t* path, uint32_t n) noexcept nogil:
    """By the end of its name: .m3u8, .m3u, .mpd."""
    cdef uint32_t end = 0
    while end < n and path[end] != 63:
        end += 1
    return ((end > 5 and same(path + end - 5, b".m3u8", 5))
            or (end > 4 and (same(path + end - 4, b".m3u", 4) or same(path + end - 4, b".mpd", 4))))


cdef uint32_t find_key(Worker* w, Connection* c, const uint8_t* data, const RequestHead* head, uint32_t origin, uint64_t* hash) noexcept nogil:
    """The request's key in Worker.key, and its hash."""
    cdef const uint8_t* path = data + head.path
    cdef uint32_t path_length = head.path_length
    cdef uint32_t key_length
    if path_length == 0 or path[0] != 47:       # absolute-form without a path, perhaps with a query: "/" goes before
        w.scratch[0] = 47
        memcpy(w.scratch + 1, path, path_length)
        path = w.scratch
        path_length += 1
    if c.cut and is_manifest(path, path_length):
        # Its URLs may have to be written anew for who came by a prefix: never the object that others get.
        w.key[0] = REWRITTEN
        key_length = 1 + build_key(w.tables, origin, path, path_length, w.key + 1)
    else:
        key_length = build_key(w.tables, origin, path, path_length, w.key)
    hash[0] = hash_key(w.store, origin, w.key, key_length)
    return key_length


cdef bint is_scattered(Worker* w, const uint8_t* data, const RequestHead* request, Object* object) noexcept nogil:
    """Whether the slices that several ranges lack hold more than two slices beyond them: then the parts alone are asked
    for, because a viewer of eight bytes would else cost the origin eight slices (docs/decisions/0130-parts.md)."""
    cdef ByteRange parts[8]     # MAX_PARTS
    cdef Head* head = <Head*>load_ptr(<void**>&object.head)
    cdef const Field* field = first_field(request, FIELD_RANGE)
    cdef int64_t total = load_i64_seq(&object.total_length)
    cdef int64_t size = w.store.slice_bytes, excess = 0, end
    cdef uint32_t n = 0, i, j, flags = load_u32(&object.flags)
    cdef uint64_t here
    cdef bint has_first, has_last
    if (field == NULL or memchr(data + field.value, c",", field.value_length) == NULL
            or request.count[FIELD_RANGE] != 1 or request.method != METHOD_GET or total < 0 or head.status != 200
            or not flags & OBJECT_STRONG or flags & (OBJECT_ON_DISK | OBJECT_BY_SLICES)
            or select_ranges(data + field.value, field.value_length, total, parts, &n) != RANGE_SEVERAL
            or is_not_modified(data, request, head) or not may_range(data, request, head)):
        return False
    for i in range(n):
        has_first = body_at(w.store, object, parts[i].first, &here) != NULL
        has_last = body_at(w.store, object, parts[i].last, &here) != NULL
        for j in range(i):      # slices that one before has counted
            has_first |= parts[j].first // size <= parts[i].first // size <= parts[j].last // size
            has_last |= parts[j].first // size <= parts[i].last // size <= parts[j].last // size
        end = (parts[i].last // size + 1) * size
        if not has_first:
            excess += parts[i].first % size
        if not has_last:
            excess += (end if end < total else total) - 1 - parts[i].last
    return excess > 2 * size


cdef int look_up(Worker* w, Connection* c, const uint8_t* data, uint32_t n, const RequestHead* head, uint32_t origin) noexcept nogil:
    """Answers from the table, or asks."""
    cdef uint8_t* key = w.key
    cdef uint32_t key_length
    cdef uint64_t hash
    cdef Entry* entry
    cdef Object* object = NULL
    cdef Head* stored
    cdef uint32_t how = AS_HIT
    cdef uint32_t kind = EXCHANGE_MISS
    cdef bint is_fresh, is_refused, is_known
    c.log_origin = origin
    key_length = find_key(w, c, data, head, origin, &hash)
    entry = table_find(w.store, hash, origin, key, key_length)
    if entry != NULL:
        object = entry_match(entry, data, head)
        if object == NULL and load_ptr(<void**>&entry.variants) != NULL:
            c.fwd_reason = FWD_VARY_MISS
    if object != NULL and not load_u32(&object.flags) & OBJECT_FAILED:
        if c.n_tries and not c.is_restored:
            how = AS_COLLAPSED if c.is_joined or not c.is_leader else AS_MISS
        stored = <Head*>load_ptr(<void**>&object.head)
        if object == w.permitted:
            count(&w.counters[C_STALE_SERVED], 1)
            return respond_object(w, c, data, n, head, object, AS_HIT)
        if head.known[FIELD_RANGE] and is_scattered(w, data, head, object):
            c.fwd_reason = FWD_PARTIAL
            if not c.n_tries:
                c.arrival_ns = now_ns()
            return ask(w, c, EXCHANGE_ALONE, data, n, head, origin, hash, key, key_length, NULL)
        # Whatever lifetime it was given: what the origin may have withdrawn since is not used unasked (max_offline).
        is_known = (w.tables.origins[origin].offline_ns == 0
                    or w.now_ns - stored.validated_ns <= w.tables.origins[origin].offline_ns)
        is_fresh = is_known and w.now_ns < stored.fresh_until_ns
        # Profile media ignores viewers' directives: reload keys would be a storm at the origin.
        is_refused = w.tables.origins[origin].profile != 0 and refuses_stored(
            data, head, w.now_ns - stored.born_ns, stored.fresh_until_ns - w.now_ns)
        if not c.n_tries and (is_refused or not is_fresh):
            # The pass's time is older than the request may be: a validation that was sent between them doesn't count.
            c.arrival_ns = now_ns()
        if (is_fresh and not is_refused) or c.arrival_ns <= stored.validated_ns:
            return respond_object(w, c, data, n, head, object, how)
        if is_known and w.now_ns < stored.stale_until_ns and not is_refused:
            refresh_behind(w, c, data, head, origin, hash, key, key_length, object)
            count(&w.counters[C_STALE_SERVED], 1)
            return respond_object(w, c, data, n, head, object, how)
        if (not is_fresh and not is_refused and stored.flags & HEAD_MAY_BE_STALE and w.tables.origins[origin].profile != 0
                and accepts_stale(data, head, w.now_ns - stored.fresh_until_ns)):
            count(&w.counters[C_STALE_SERVED], 1)
            return respond_object(w, c, data, n, head, object, how)
        kind = EXCHANGE_STALE
        c.fwd_reason = FWD_REQUEST if is_fresh else FWD_STALE
    else:
        if c.fwd_reason == FWD_NONE:
            c.fwd_reason = FWD_URI_MISS
        if not c.n_tries:
            c.arrival_ns = now_ns()
    # A HEAD is never stored: GETs that joined it would gain nothing.
    if (c.n_tries >= MAX_TRIES or head.method == METHOD_HEAD
            or (entry != NULL and load_i64(&entry.unshareable_until_ns) > w.now_ns)):
        kind = EXCHANGE_ALONE
    return ask(w, c, kind, data, n, head, origin, hash, key, key_length, object if kind == EXCHANGE_STALE else NULL)


cdef bint is_allowed_method(Worker* w, const uint8_t* data, const RequestHead* head, const OriginRow* row) noexcept nogil:
    cdef uint32_t i
    cdef const StringRow* name
    if row.methods >> head.method & 1:
        return True
    for i in range(row.n_methods):
        name = &w.tables.parameters[row.method + i]
        if name.length == head.method_length and memcmp(w.tables.strings + name.start, data + head.start, name.length) == 0:
            return True
    return False


cdef int pass_on(Worker* w, Connection* c, const uint8_t* data, uint32_t n, const RequestHead* head, uint32_t origin, bint has_body) noexcept nogil:
    """A request that is its asker's alone, whatever is stored: with its body, as that comes."""
    cdef uint64_t hash = 0
    cdef uint32_t key_length
    cdef int refused
    cdef Upload* u = NULL
    cdef Exchange* e
    c.log_origin = origin
    if c.n_tries:               # nobody else's answer is his
        return respond_error(w, c, 502, True)
    if has_body:
        # What follows the head is in Worker.input, and nobody reads it again but by what is kept here.
        u = begin_body(w, c, <uint8_t*>data, &n, head, w.tables.origins[origin].body_max, &refused)
        if u == NULL:
            return respond_error(w, c, <uint32_t>refused if refused else 503, True)
    key_length = find_key(w, c, data, head, origin, &hash)
    c.arrival_ns = now_ns()
    e = new_exchange(w, c, EXCHANGE_PASS, data, head, origin, hash, w.key, key_length, NULL, u)
    if e == NULL:
        if u != NULL:
            upload_release(u)
        return respond_error(w, c, 503, has_body)
    c.is_leader = 1
    c.head_length = head.length
    c.exchange = e
    list_append(&e.waiters, c)
    if u != NULL:
        count(&w.counters[C_UPLOADS], 1)
        if u.flags & UPLOAD_WHOLE:
            upload_release(u)
        else:
            c.upload = u
            c.is_readable = 1
            if c.carrier != NULL:
                stream_credit(w, c)
    if not keep_input(w, c, data, n):
        count(&w.counters[C_CLOSED_MEMORY], 1)
        connection_close(w, c, True)
        return CLOSED
    c.state = STATE_WAIT
    set_deadline(w, c, w.now_ns + (w.tables.limits.body_timeout_ns if c.upload != NULL else w.tables.origins[origin].wait_ns))
    return PENDING


cdef bint has_name(const uint8_t* data, const RequestHead* head, uint32_t id, const char* name, uint32_t length) noexcept nogil:
    """Whether a list field names this (lower case) token, with or without a version behind a slash."""
    cdef const uint8_t* p
    cdef const uint8_t* end
    cdef const uint8_t* start
    cdef uint32_t i
    for i in range(head.n_fields):
        if head.fields[i].id != id:
            continue
        p = data + head.fields[i].value
        end = p + head.fields[i].value_length
        while p < end:
            while p < end and (p[0] == c"," or p[0] == c" " or p[0] == c"\t"):
                p += 1
            start = p
            while p < end and p[0] != c"," and p[0] != c" " and p[0] != c"\t" and p[0] != c"/":
                p += 1
            if <uint32_t>(p - start) == length and same(start, name, length):
                return True
            while p < end and p[0] != c",":
                p += 1
    return False


cdef bint wants_tunnel(Worker* w, Connection* c, const uint8_t* data, const RequestHead* head, uint32_t origin) noexcept nogil:
    """Whether the request asks for another protocol that its origin may change to. HTTP/2 and TLS by Upgrade never
    travel: behind us they would carry requests that nobody checks (RFC 9113 section 3.1 has withdrawn h2c). Who asks
    for them is answered without (RFC 9110 section 7.8), as `curl --http2` expects."""
    if (not head.known[FIELD_UPGRADE] or head.method != METHOD_GET or head.minor == 0
            or not w.tables.origins[origin].may_tunnel or not has_name(data, head, FIELD_CONNECTION, b"upgrade", 7)):
        return False
    if (has_name(data, head, FIELD_UPGRADE, b"h2c", 3) or has_name(data, head, FIELD_UPGRADE, b"h2", 2)
            or has_name(data, head, FIELD_UPGRADE, b"http", 4) or has_name(data, head, FIELD_UPGRADE, b"tls", 3)):
        if not c.n_tries:
            count(&w.counters[C_UPGRADES_IGNORED], 1)
        return False
    return True


cdef int ask_tunnel(Worker* w, Connection* c, const uint8_t* data, uint32_t n, const RequestHead* head, uint32_t origin) noexcept nogil:
    """Nothing is looked up: the control plane checks the handshake and asks the origin."""
    cdef uint32_t key_length = head.path_length
    c.fwd_reason = FWD_BYPASS
    c.arrival_ns = now_ns()
    return ask(w, c, EXCHANGE_TUNNEL, data, n, head, origin, 0, data + head.path, key_length, NULL)


cdef int ask_connect(Worker* w, Connection* c, const uint8_t* data, uint32_t n) noexcept nogil:
    """A CONNECT, parsed into w.head: whether it may go where it wants to is the control plane's to say."""
    cdef RequestHead* head = &w.head
    c.is_head = 0
    c.minor = head.minor
    c.close_after = 1
    c.n_tries = 0
    c.cut_at = 0
    c.cut = 0
    c.log_origin = NO_ORIGIN
    c.fwd_status = 0
    c.is_stored = 0
    w.origin = NULL
    if not is_allowed_here(w, c):
        count(&w.counters[C_REFUSED_ZONE], 1)
        return respond_error(w, c, 403, True)
    c.fwd_reason = FWD_BYPASS
    c.arrival_ns = now_ns()
    return ask(w, c, EXCHANGE_TUNNEL, data, n, head, 0, 0, data + head.target, head.target_length, NULL)


cdef bint goes_no_further(const uint8_t* data, const RequestHead* head) noexcept nogil:
    """Whether Max-Forwards says that we are the last to answer (RFC 9110 section 7.6.2). Of several the first counts; what
    is no number is ignored."""
    cdef const Field* field
    cdef uint32_t i, j
    for i in range(head.n_fields):
        field = &head.fields[i]
        if field.name_length != 12 or not same(data + field.name, b"max-forwards", 12):
            continue
        for j in range(field.value_length):
            if data[field.value + j] != 48:
                return False
        return field.value_length > 0
    return False


cdef Object* own_object(Worker* w, const char* path, uint32_t length) noexcept nogil:
    """What the box itself has under a path: stored for origin 0. NULL: nothing."""
    cdef uint64_t hash = hash_key(w.store, 0, <const uint8_t*>path, length)
    cdef Entry* entry = table_find(w.store, hash, 0, <const uint8_t*>path, length)
    return NULL if entry == NULL else <Object*>load_ptr(<void**>&entry.variants)


cdef Object* own_page(Worker* w, const uint8_t* path, uint32_t n) noexcept nogil:
    """The own page of a path, whatever query is behind it. NULL: it is none, or policy has none."""
    cdef uint32_t end = 0
    while end < n and path[end] != 63 and end < 40:
        end += 1
    if end == 10 and memcmp(path, PAC_PATH, 10) == 0:
        return own_object(w, PAC_PATH, 10)
    if end == 9 and memcmp(path, WPAD_PATH, 9) == 0:
        return own_object(w, WPAD_PATH, 9)
    if end == 33 and memcmp(path, STEERING_PATH, 33) == 0:
        return own_object(w, STEERING_PATH, 33)
    if end == 39 and memcmp(path, STEERING_FIRST_PATH, 39) == 0:
        return own_object(w, STEERING_FIRST_PATH, 39)
    return NULL


cdef int answer_health(Worker* w, Connection* c, const uint8_t* data, uint32_t n, const RequestHead* head) noexcept nogil:
    """The routers' probe: a stored object of origin 0, so that an answer proves worker, table and store."""
    cdef Object* object = own_object(w, HEALTH_PATH, 31)
    if object == NULL or w.is_draining == DRAIN_ENDING:
        return respond_error(w, c, 503, False)
    count(&w.counters[C_HEALTH_PROBES], 1)
    return respond_object(w, c, data, n, head, object, AS_HIT)


cdef bint is_allowed_here(Worker* w, Connection* c) noexcept nogil:
    """Whether the listener is for the viewer's zone; the zone is looked up once per connection and policy."""
    cdef uint64_t mask
    if c.zone_generation != w.tables.generation:
        c.zone = zone_of(w.tables, c.address)
        c.zone_generation = w.tables.generation
    if c.listener >= w.tables.n_listeners:
        return False
    mask = w.tables.listeners[c.listener].zone_mask
    return mask == 0 or (c.zone >= 0 and (mask >> c.zone) & 1)


cdef int ask_relay(Worker* w, Connection* c, const uint8_t* data, uint32_t n, const RequestHead* head, uint32_t origin, bint has_body) noexcept nogil:
    """A relay's stream: the control plane says whether it is there, and brings it."""
    c.log_origin = origin
    if c.is_extended:
        return respond_error(w, c, 501, has_body)
    if head.method == METHOD_OPTIONS and not has_body:
        return respond_preflight(w, c, data, head)
    if head.method != METHOD_GET and head.method != METHOD_HEAD:
        return respond_error(w, c, 501 if head.method == METHOD_OTHER else 405, has_body)
    if has_body:
        return respond_error(w, c, 413, True)
    if w.origin.zone_mask and (c.zone < 0 or not (w.origin.zone_mask >> c.zone) & 1):
        count(&w.counters[C_REFUSED_ZONE], 1)
        return respond_error(w, c, 403, False)
    c.fwd_reason = FWD_BYPASS
    return ask(w, c, EXCHANGE_STREAM, data, n, head, origin, 0, data + head.path, head.path_length, NULL)


cdef void mark_answer(Worker* w, Connection* c) noexcept nogil:
    """The class's mark, for the network's queues on the way to the viewer: a system call only where the one before had
    another. Streams share their carrier's socket; who asks for several classes at once gets the last one's."""
    cdef Connection* sender = c if c.carrier == NULL else c.carrier
    if sender.dscp != w.origin.dscp and sender.fd >= 0:
        sender.dscp = <uint8_t>w.origin.dscp
        acc_mark_socket(sender.fd, sender.address, sender.dscp)


cdef int handle(Worker* w, Connection* c, const uint8_t* data, uint32_t n) noexcept nogil:
    """One request, whose head is parsed into w.head; `n` bytes are there from its start on."""
    cdef RequestHead* head = &w.head
    cdef int origin, permitted
    cdef const uint8_t* path = data + head.path
    cdef uint32_t path_length = head.path_length
    cdef uint32_t strip
    cdef Object* page
    cdef bint has_body = head.content_length > 0 or head.chunked
    c.is_head = head.method == METHOD_HEAD
    c.minor = head.minor
    c.close_after = not head.keep_alive or is_last_answer(w)
    if not c.n_tries:
        if c.close_after and head.keep_alive and not w.is_draining:
            count(&w.counters[C_CLOSED_OVERLOAD], 1)
        c.arrival_ns = w.now_ns
        c.log_origin = NO_ORIGIN
        c.fwd_reason = FWD_NONE
        c.fwd_status = 0
        c.is_stored = 0
        c.is_joined = 0
        c.is_leader = 0
        c.is_restored = 0
    c.window_bytes = 0
    w.origin = NULL
    if (c if c.carrier == NULL else c.carrier).is_surplus:
        return respond_error(w, c, 503, True)
    if path_length == 0 or path[0] != 47:
        path = <const uint8_t*>ROOT_PATH
        path_length = 1
    if (not c.is_extended and path_length == 31 and memcmp(path, HEALTH_PATH, 31) == 0 and not has_body
            and (head.method == METHOD_GET or head.method == METHOD_HEAD)):
        return answer_health(w, c, data, n, head)
    if head.form == FORM_ASTERISK and not has_body:
        return respond_preflight(w, c, data, head)
    if not is_allowed_here(w, c):
        count(&w.counters[C_REFUSED_ZONE], 1)
        return respond_error(w, c, 403, True)
    if (w.tables.limits.has_pages and not c.is_extended and head.form == FORM_ORIGIN and not has_body
            and (head.method == METHOD_GET or head.method == METHOD_HEAD)):
        page = own_page(w, path, path_length)
        if page != NULL:
            count(&w.counters[C_OWN_PAGES], 1)
            return respond_object(w, c, data, n, head, page, AS_HIT)
    origin = route(w.tables, data + head.host, head.host_length, path, path_length, &strip)
    c.cut_at = 0
    c.cut = strip
    if strip:
        c.cut_at = head.path
        head.path += strip
        head.path_length -= strip
    if origin == ROUTE_UNKNOWN_HOST:
        return respond_error(w, c, 421, has_body)
    if origin == ROUTE_NO_PATH:
        return respond_error(w, c, 404, has_body)
    w.origin = &w.tables.origins[origin]
    mark_answer(w, c)
    if w.origin.is_relay:
        return ask_relay(w, c, data, n, head, <uint32_t>origin, has_body)
    if not has_body and wants_tunnel(w, c, data, head, <uint32_t>origin):
        if w.origin.rule and w.origin.judges_all:
            permitted = ask_whether(w, c, data, n, head, <uint32_t>origin, False)
            if permitted != GRANTED:
                return permitted
        return ask_tunnel(w, c, data, n, head, <uint32_t>origin)
    if c.is_extended:           # anything else that is answered by 2xx would be taken for the tunnel (RFC 8441 section 5)
        return respond_error(w, c, 501, has_body)
    if not is_allowed_method(w, data, head, w.origin):
        return respond_error(w, c, 501 if head.method == METHOD_OTHER else 405, has_body)
    if w.origin.profile == 0 and head.method <= METHOD_OPTIONS and head.method != METHOD_OTHER:
        if has_body:            # no player sends one, and no cache may look at it (RFC 9110 section 9.3.1)
            return respond_error(w, c, 413, True)
        if head.method == METHOD_OPTIONS:
            return respond_preflight(w, c, data, head)
    if head.method == METHOD_OPTIONS and goes_no_further(data, head):
        return respond_preflight(w, c, data, head) if not has_body else respond_error(w, c, 413, True)
    if w.origin.rule and head.method != METHOD_OPTIONS and (
            w.origin.judges_all or ((head.method == METHOD_GET or head.method == METHOD_HEAD) and not has_body)):
        permitted = ask_whether(w, c, data, n, head, <uint32_t>origin, has_body)
        if permitted != GRANTED:
            return permitted
    if has_body or (head.method != METHOD_GET and head.method != METHOD_HEAD):
        c.fwd_reason = FWD_BYPASS if head.method == METHOD_GET or head.method == METHOD_HEAD else FWD_METHOD
        return pass_on(w, c, data, n, head, <uint32_t>origin, has_body)
    return look_up(w, c, data, n, head, <uint32_t>origin)
