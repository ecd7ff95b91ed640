# Counter names and the numpy dtypes of the shared rows. The structs themselves are in layout.pxd; no behaviour lives here.
import numpy as np

# (column, name, meaning). One source for the counter rows, `accelctl`, /metrics and the documentation.
COUNTERS = (
    (C_REQUESTS, "requests", "requests answered: hits + misses + collapsed + passed + refused"),
    (C_HITS, "hits", "answered from the store, with 304, 206 and permitted stale"),
    (C_MISSES, "misses", "fetched from an origin for this viewer first"),
    (C_COLLAPSED, "collapsed", "joined another viewer's fetch or validation"),
    (C_PASSED, "passed", "passed through, not shareable"),
    (C_REFUSED, "refused", "answered by an error of our own"),
    (C_BYTES_TO_VIEWERS, "bytes_to_viewers", "body bytes sent to viewers"),
    (C_BYTES_FROM_ORIGIN, "bytes_from_origin", "body bytes received from origins"),
    (C_CONNECTIONS_ACCEPTED, "connections_accepted", "connections accepted"),
    (C_CONNECTIONS_CLOSED, "connections_closed", "connections closed, for any reason"),
    (C_REFUSED_CONNECTIONS_ALL, "refused_connections_all", "connections refused: the cap on all connections"),
    (C_REFUSED_CONNECTIONS_ADDRESS, "refused_connections_address", "connections refused: the cap per viewer address"),
    (C_REFUSED_ZONE, "refused_zone", "requests refused: the listener is not for the viewer's zone"),
    (C_STATUS_400, "status_400", "own answers 400, syntax"),
    (C_STATUS_404, "status_404", "own answers 404, host known but no path"),
    (C_STATUS_405, "status_405", "own answers 405, method not allowed"),
    (C_STATUS_408, "status_408", "own answers 408, head too slow"),
    (C_STATUS_413, "status_413", "own answers 413, request body not allowed"),
    (C_STATUS_414, "status_414", "own answers 414, target too long"),
    (C_STATUS_416, "status_416", "own answers 416, range not satisfiable"),
    (C_STATUS_421, "status_421", "own answers 421, unknown host"),
    (C_STATUS_431, "status_431", "own answers 431, head too large"),
    (C_STATUS_501, "status_501", "own answers 501, coding or method not implemented"),
    (C_STATUS_502, "status_502", "own answers 502, bad or refused origin"),
    (C_STATUS_503, "status_503", "own answers 503, overload or drain"),
    (C_STATUS_504, "status_504", "own answers 504, origin time-out or validation impossible"),
    (C_STATUS_505, "status_505", "own answers 505, HTTP version"),
    (C_NOT_MODIFIED, "not_modified", "304 answered from the store"),
    (C_PARTIAL_RESPONSES, "partial_responses", "206 answered from the store"),
    (C_PREFLIGHTS, "preflights", "CORS preflights answered at the edge"),
    (C_HEALTH_PROBES, "health_probes", "health probes answered"),
    (C_STALE_SERVED, "stale_served", "stale responses served with permission"),
    (C_EXCHANGES, "exchanges", "requests handed to the control plane"),
    (C_EXCHANGES_EXHAUSTED, "exchanges_exhausted", "requests refused: no exchange slot free"),
    (C_EXCHANGES_CANCELLED, "exchanges_cancelled", "exchanges whose last viewer left"),
    (C_REVALIDATIONS_BACKGROUND, "revalidations_background", "background refreshes begun by stale-while-revalidate"),
    (C_SLICES_WANTED, "slices_wanted", "absent slices asked for by readers"),
    (C_BROKEN_TRANSFERS, "broken_transfers", "responses broken off because their source failed"),
    (C_CLOSED_IDLE, "closed_idle", "idle connections closed"),
    (C_CLOSED_SLOW_HEAD, "closed_slow_head", "connections closed: head too slow"),
    (C_CLOSED_SLOW_READER, "closed_slow_reader", "connections closed: below the minimum send rate"),
    (C_CLOSED_BY_VIEWER, "closed_by_viewer", "responses cut by the viewer"),
    (C_CLOSED_MEMORY, "closed_memory", "connections closed: no memory for a buffer"),
    (C_PASSES, "worker_passes", "passes of the worker loops"),
    (C_WAKEUPS, "worker_wakeups", "worker wake-ups sent by the control plane"),
    (C_UPSTREAM_REQUESTS, "upstream_requests", "requests sent to origins"),
    (C_UPSTREAM_ERRORS, "upstream_errors", "requests to origins that failed"),
    (C_UPSTREAM_RESUMED, "upstream_resumed", "broken fills resumed by Range and If-Range"),
    (C_VALIDATIONS, "validations", "conditional requests sent to origins"),
    (C_VALIDATED, "validated", "conditional requests answered 304"),
    (C_STORED, "stored", "responses stored"),
    (C_NOT_STORED, "not_stored", "responses not stored"),
    (C_TRUNCATED, "truncated", "fills that broke off and were not stored as whole"),
    (C_SHARED_ERRORS, "shared_errors", "origin errors shared with the requests already waiting"),
    (C_PURGED, "purged", "objects purged by an operator"),
    (C_EVICTIONS, "evictions", "objects evicted for memory"),
    (C_MEMORY_REFUSED, "memory_refused", "allocations refused by the memory budget"),
    (C_ACCESS_LOG_DROPPED, "access_log_dropped", "answers not in the access log: its ring was full"),
    (C_REFUSALS_UNLISTED, "refusals_unlisted", "refusals told by their number only: too many at once"),
    (C_STATUS_411, "status_411", "own answers 411, a chunked body for an HTTP/1.0 origin"),
    (C_STATUS_417, "status_417", "own answers 417, unknown expectation"),
    (C_BYTES_FROM_VIEWERS, "bytes_from_viewers", "body bytes of requests received from viewers"),
    (C_UPLOADS, "uploads", "requests with a body that were passed on"),
    (C_UPLOADS_ABORTED, "uploads_aborted", "request bodies that the viewer broke off, spoiled or let go on too long"),
    (C_UPLOADS_CUT, "uploads_cut", "request bodies not read to their end because the answer came first"),
    (C_CLOSED_SLOW_BODY, "closed_slow_body", "requests refused: the body stalled"),
    (C_INTERIM_SENT, "interim_sent", "interim responses (1xx) passed to viewers"),
    (C_INVALIDATED, "invalidated", "objects dropped because a request has changed their resource"),
    (C_STREAMS, "streams", "event streams passed, which don't count as the origin's connections"),
    (C_TUNNELS_OPENED, "tunnels_opened", "Upgrade tunnels opened"),
    (C_TUNNELS_CLOSED, "tunnels_closed", "Upgrade tunnels closed, for any reason"),
    (C_TUNNELS_REFUSED, "tunnels_refused", "Upgrade requests refused: the origin's cap on tunnels, or no descriptors"),
    (C_TUNNEL_HANDSHAKES_REFUSED, "tunnel_handshakes_refused", "Upgrade requests refused: a viewer's bad handshake"),
    (C_TUNNEL_HANDSHAKES_FAILED, "tunnel_handshakes_failed", "Upgrade requests failed: an origin's wrong 101"),
    (C_TUNNEL_BYTES_TO_VIEWERS, "tunnel_bytes_to_viewers", "bytes that tunnels carried to viewers"),
    (C_TUNNEL_BYTES_TO_ORIGINS, "tunnel_bytes_to_origins", "bytes that tunnels carried to origins"),
    (C_TUNNELS_ENDED_IDLE, "tunnels_ended_idle", "Upgrade tunnels closed: idle for longer than the policy allows"),
    (C_UPGRADES_IGNORED, "upgrades_ignored", "requests to change to HTTP/2 or TLS, answered without that"),
    (C_AUTHORISATIONS, "authorisations", "requests whose credential wasn't known yet, so that it was judged"),
    (C_REFUSED_CREDENTIAL, "refused_credential", "requests refused: the viewer's credential doesn't cover them"),
    (C_REFUSED_CONNECTIONS_OVERLOAD, "refused_connections_overload", "connections refused: memory is short"),
    (C_CLOSED_OVERLOAD, "closed_overload", "connections closed after their answer: memory is short"),
    (C_H2_CONNECTIONS, "h2_connections", "connections that spoke HTTP/2"),
    (C_H2_STREAMS, "h2_streams", "requests that came over HTTP/2"),
    (C_H2_PROTOCOL_ERRORS, "h2_protocol_errors", "HTTP/2 connections closed: the viewer broke the protocol"),
    (C_H2_FLOOD_RESETS, "h2_flood_resets", "HTTP/2 connections closed: too many requests taken back or spoiled (rapid reset)"),
    (C_H2_FLOOD_FIELDS, "h2_flood_fields", "HTTP/2 requests reset: fields that unpack to far more than the limit"),
    (C_H2_FLOOD_CONTINUATIONS, "h2_flood_continuations", "HTTP/2 connections closed: a field block in too many frames"),
    (C_H2_FLOOD_SETTINGS, "h2_flood_settings", "HTTP/2 connections closed: too many SETTINGS"),
    (C_H2_FLOOD_PINGS, "h2_flood_pings", "HTTP/2 connections closed: too many PINGs"),
    (C_H2_FLOOD_PRIORITIES, "h2_flood_priorities", "HTTP/2 connections closed: too many PRIORITY or PRIORITY_UPDATE"),
    (C_H2_FLOOD_WINDOWS, "h2_flood_windows", "HTTP/2 connections closed: far more WINDOW_UPDATEs than data"),
    (C_H2_FLOOD_EMPTY_DATA, "h2_flood_empty_data", "HTTP/2 connections closed: too many empty DATA"),
    (C_H2_FLOOD_UNKNOWN, "h2_flood_unknown", "HTTP/2 connections closed: too many frames of unknown types"),
    (C_H2_STALLED, "h2_stalled", "HTTP/2 answers reset: the viewer kept their window shut (also in closed_slow_reader)"),
)

N_COLUMNS = COUNTER_STRIDE

ORIGIN_DTYPE = np.dtype(
    [("credential", "u4"), ("n_credentials", "u4"), ("profile", "u1"), ("is_used", "u1"), ("class_index", "u2"),
     ("methods", "u2"), ("method", "u4"), ("n_methods", "u4"), ("allow", "u4"), ("allow_length", "u4"),
     ("body_max", "u8"), ("wait_ns", "i8"), ("may_tunnel", "u4"),
     ("header", "u4"), ("n_headers", "u4"), ("cookie", "u4"), ("n_cookies", "u4"), ("rule", "u8"), ("refusal", "u4"),
     ("offline_ns", "i8"), ("judges_all", "u4")]
)
HOST_DTYPE = np.dtype([("pattern", "u4"), ("pattern_length", "u4"), ("path", "u4"), ("n_paths", "u4"), ("kind", "u4")])
PATH_DTYPE = np.dtype([("prefix", "u4"), ("prefix_length", "u4"), ("origin", "u4")])
NET_DTYPE = np.dtype([("network", "u1", 16), ("prefix_bits", "u4"), ("zone", "u4")])
LISTENER_DTYPE = np.dtype([("zone_mask", "u8"), ("is_used", "u4"), ("http2", "u4")])
STRING_DTYPE = np.dtype([("start", "u4"), ("length", "u4")])
LIMITS_DTYPE = np.dtype(
    [("head_timeout_ns", "i8"), ("idle_timeout_ns", "i8"), ("body_timeout_ns", "i8"), ("send_window_ns", "i8"),
     ("send_window_bytes", "u8"), ("connections", "u4"), ("connections_per_address", "u4"), ("access_log", "u4"),
     ("viewer", "u4")]
)


def struct_sizes() -> dict:
    """Sizes in bytes of the C rows, for the test that holds them against the dtypes."""
    return {
        "origin": sizeof(OriginRow), "host": sizeof(HostRow), "path": sizeof(PathRow), "net": sizeof(NetRow),
        "listener": sizeof(ListenerRow), "string": sizeof(StringRow), "limits": sizeof(LimitsRow),
        "n_counters": N_COUNTERS, "stride": COUNTER_STRIDE,
    }
