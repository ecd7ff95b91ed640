# What the planes share as flat memory: counter rows and the compiled tables. Offsets and indices only, no names.
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    MAX_WORKERS = 32            # bits of an object's waiting mask

cdef enum:                      # one column each of the counter rows; the table in layout.pyx gives name and meaning
    C_REQUESTS = 0
    C_HITS
    C_MISSES
    C_COLLAPSED
    C_PASSED
    C_REFUSED
    C_BYTES_TO_VIEWERS
    C_BYTES_BY_REFERENCE
    C_BYTES_FROM_ORIGIN
    C_CONNECTIONS_ACCEPTED
    C_CONNECTIONS_CLOSED
    C_REFUSED_CONNECTIONS_ALL
    C_REFUSED_CONNECTIONS_ADDRESS
    C_REFUSED_ZONE
    C_STATUS_400
    C_STATUS_404
    C_STATUS_405
    C_STATUS_408
    C_STATUS_413
    C_STATUS_414
    C_STATUS_416
    C_STATUS_421
    C_STATUS_431
    C_STATUS_501
    C_STATUS_502
    C_STATUS_503
    C_STATUS_504
    C_STATUS_505
    C_NOT_MODIFIED
    C_PARTIAL_RESPONSES
    C_PREFLIGHTS
    C_HEALTH_PROBES
    C_OWN_PAGES
    C_STALE_SERVED
    C_EXCHANGES
    C_EXCHANGES_EXHAUSTED
    C_EXCHANGES_CANCELLED
    C_REVALIDATIONS_BACKGROUND
    C_SLICES_WANTED
    C_BROKEN_TRANSFERS
    C_CLOSED_IDLE
    C_CLOSED_SLOW_HEAD
    C_CLOSED_SLOW_READER
    C_CLOSED_BY_VIEWER
    C_CLOSED_MEMORY
    C_PASSES
    C_WAKEUPS
    C_UPSTREAM_REQUESTS
    C_UPSTREAM_ERRORS
    C_UPSTREAM_RESUMED
    C_VALIDATIONS
    C_VALIDATED
    C_STORED
    C_NOT_STORED
    C_TRUNCATED
    C_SHARED_ERRORS
    C_PURGED
    C_EVICTIONS
    C_MEMORY_REFUSED
    C_ACCESS_LOG_DROPPED
    C_REFUSALS_UNLISTED
    C_STATUS_411
    C_STATUS_417
    C_BYTES_FROM_VIEWERS
    C_UPLOADS
    C_UPLOADS_ABORTED
    C_UPLOADS_CUT
    C_CLOSED_SLOW_BODY
    C_INTERIM_SENT
    C_INVALIDATED
    C_STREAMS
    C_TUNNELS_OPENED
    C_TUNNELS_CLOSED
    C_TUNNELS_REFUSED
    C_TUNNEL_HANDSHAKES_REFUSED
    C_TUNNEL_HANDSHAKES_FAILED
    C_TUNNEL_BYTES_TO_VIEWERS
    C_TUNNEL_BYTES_TO_ORIGINS
    C_TUNNELS_ENDED_IDLE
    C_UPGRADES_IGNORED
    C_AUTHORISATIONS
    C_REFUSED_CREDENTIAL
    C_REFUSED_CONNECTIONS_OVERLOAD
    C_CLOSED_OVERLOAD
    C_H2_CONNECTIONS
    C_H2_STREAMS
    C_H2_PROTOCOL_ERRORS
    C_H2_FLOOD_RESETS
    C_H2_FLOOD_FIELDS
    C_H2_FLOOD_CONTINUATIONS
    C_H2_FLOOD_SETTINGS
    C_H2_FLOOD_PINGS
    C_H2_FLOOD_PRIORITIES
    C_H2_FLOOD_WINDOWS
    C_H2_FLOOD_EMPTY_DATA
    C_H2_FLOOD_UNKNOWN
    C_H2_STALLED
    C_TLS_HANDSHAKES
    C_TLS_RESUMED
    C_TLS_VERSION_12
    C_TLS_VERSION_OLD
    C_TLS_FAILED_VERSION
    C_TLS_FAILED_SUITE
    C_TLS_FAILED_REFUSED
    C_TLS_FAILED_PLAIN
    C_TLS_FAILED_BROKEN
    C_TLS_FAILED_LEFT
    C_TLS_FAILED_SLOW
    C_TLS_BROKEN
    C_RELAY_READERS
    C_RELAY_SKIPS
    C_RELAY_SILENT
    C_GAVE_WAY
    N_COUNTERS
    MAX_ORIGINS = 8192          # rows with figures of their own; those beyond count with row 0
    ORIGIN_COLUMNS = 8          # requests, hits, body bytes to viewers, then:
    ORIGIN_TUNNELS_ENDED = 3    # of those that the control plane has given
    ORIGIN_TUNNEL_BYTES_TO_VIEWERS = 4
    ORIGIN_TUNNEL_BYTES_TO_ORIGIN = 5
    COUNTER_STRIDE = 160        # columns of a row: a multiple of 8, so that rows stand on their own cache lines

cdef packed struct OriginRow:
    uint32_t credential         # index of the first credential parameter in `parameters`, and how many
    uint32_t n_credentials
    uint8_t profile             # 0 media, 1 generic
    uint8_t is_used
    uint16_t dscp               # the mark of answers
    uint16_t methods            # bit by Method; that of METHOD_OTHER: any other token
    uint32_t method             # index of the first further method in `parameters`, and how many
    uint32_t n_methods
    uint32_t allow              # offset in strings: what Allow says
    uint32_t allow_length
    uint64_t body_max           # bytes of a request's body
    int64_t wait_ns             # how long a viewer waits for a head: longer than the control plane does
    uint32_t may_tunnel         # Upgrade goes to the control plane; else it is ignored (RFC 9110 section 7.8)
    uint32_t header             # fields and cookies that carry the viewer's credential, in `parameters` too
    uint32_t n_headers
    uint32_t cookie
    uint32_t n_cookies
    uint64_t rule               # 0: viewers' credentials are not judged; else part of what a yes is remembered by
    uint32_t refusal            # the status of a no
    int64_t offline_ns          # what was not checked with the origin for longer isn't used; 0: no limit
    uint32_t judges_all         # methods other than GET and HEAD too: the box decides, not the origin
    uint32_t is_relay           # no origin, but a relay's path
    uint64_t zone_mask          # of a relay: whose viewers may read it; 0: every zone

cdef packed struct HostRow:
    uint32_t pattern            # offset in strings
    uint32_t pattern_length
    uint32_t path               # first PathRow and how many
    uint32_t n_paths
    uint32_t kind               # 0 exact, 1 suffix (pattern starts with a dot), 2 any, 3 any, of which only paths are known

cdef packed struct PathRow:
    uint32_t prefix
    uint32_t prefix_length
    uint32_t origin
    uint32_t strip              # bytes that the URL prefix takes before the origin's own path begins; 0: none

cdef packed struct NetRow:
    uint8_t network[16]         # IPv4 as ::ffff:a.b.c.d
    uint32_t prefix_bits
    uint32_t zone

cdef enum:                      # ListenerRow.http2
    HTTP2_OFF = 0
    HTTP2_TLS = 1               # offered by ALPN
    HTTP2_CLEARTEXT = 2         # and taken from who begins with it, without TLS

cdef packed struct ListenerRow:
    uint64_t zone_mask          # 0: every zone
    uint32_t is_used
    uint32_t http2

cdef packed struct StringRow:
    uint32_t start
    uint32_t length

cdef packed struct LimitsRow:
    int64_t head_timeout_ns
    int64_t idle_timeout_ns
    int64_t body_timeout_ns     # without a byte of a request's body
    int64_t send_window_ns      # the minimum send rate is judged over this
    uint64_t send_window_bytes
    uint32_t connections
    uint32_t connections_per_address
    uint32_t access_log         # whether answers are noted
    uint32_t viewer             # what of the viewer: policy.compile.VIEWERS
    uint32_t may_connect        # CONNECT is asked of the control plane; else it gets 501
    uint32_t has_pages          # own pages are in the store, under origin 0

cdef struct Tables:             # immutable once published; freed when every worker has passed
    uint64_t generation
    uint8_t* strings
    uint32_t site
    uint32_t site_length
    HostRow* hosts
    uint32_t n_hosts
    PathRow* paths
    OriginRow* origins
    uint32_t n_origins
    NetRow* nets
    uint32_t n_nets
    ListenerRow* listeners
    uint32_t n_listeners
    void** tls                  # a TlsSettings each (tls.pxd), or NULL: plain
    StringRow* parameters
    LimitsRow limits
