"""The one bridge between the planes: policy tables become rows, names become indices. Only this file imports `ext`.

No decision is taken here, and nothing here runs per request of a hit.
"""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from ext.access_reader import AccessReader, digest_of_query
from ext.listing import COMPLETE, FILLING, list_objects
from ext.tags import tagged_objects

from accelerator.policy.compile import Tables
from ext import disk as _disk
from ext import layout
from ext.asked import Exchange, RequestBody
from ext.authorise import Grants
from ext.disk import DiskIo
from ext.disk_record import RECORD_DTYPE, START_BYTES, seal_bytes, space_of, unseal_bytes
from ext.disk_record import checksum as disk_checksum
from ext.http_head import HeadError, parse_request, parse_response
from ext.plane import (
    FLAG_DATE_IS_STRONG,
    FLAG_HAS_AGE,
    FLAG_MAY_BE_STALE,
    FLAG_MUST_VALIDATE,
    FLAG_NO_BODY,
    FOREVER_NS,
    Plane,
)
from ext.relay_plane import FORMATS as RELAY_FORMATS
from ext.relay_plane import LEG_COLUMNS as RELAY_LEG_COLUMNS
from ext.relay_plane import LEGS as RELAY_LEGS
from ext.relay_plane import OUTPUT_COLUMNS as RELAY_OUTPUT_COLUMNS
from ext.relay_plane import OUTPUTS as RELAY_OUTPUTS
from ext.relay_plane import RELAY_COUNTERS, RELAY_GAUGES, RelayPlane
from ext.relay_plane import SLOTS as RELAY_SLOTS
from ext.relay_plane import Settings as RelaySettings
from ext.stored import StoredObject
from ext.stream_plane import CHUNK, Ring
from ext.tls_context import TlsServer

__all__ = [
    "COMPLETE", "COUNTER_HELP", "FILLING", "FLAG_DATE_IS_STRONG", "FLAG_HAS_AGE", "FLAG_MAY_BE_STALE",
    "FLAG_MUST_VALIDATE", "FLAG_NO_BODY", "FOREVER_NS",
    "HEALTH_PATH", "RECORD_DTYPE", "RELAY_COUNTERS", "RELAY_FORMATS", "RELAY_GAUGES", "RELAY_LEGS", "RELAY_LEG_COLUMNS",
    "RELAY_OUTPUTS", "RELAY_OUTPUT_COLUMNS", "RELAY_SLOTS", "SLICE_BYTES", "START_BYTES", "DataPlane", "DiskIo",
    "DiskKind", "Exchange", "Grants", "HeadError", "RelayPlane", "RelaySettings", "RequestBody", "Ring", "StoredObject",
    "TlsServer", "digest_of_query", "disk_checksum", "list_objects",
    "parse_request", "parse_response", "seal_bytes", "space_of", "tagged_objects", "unseal_bytes",
]  # fmt: skip

COUNTER_HELP: dict[str, str] = {name: text for _, name, text in layout.COUNTERS}
SLICE_BYTES = 1 << 20
HEALTH_PATH = b"/.well-known/accelerator/health"
# Rows of the box's own objects: the health probe.
BOX_ORIGIN = 0
# By number (ext/http_head.pxd); the first one stands for every other token.
METHODS = ("", "GET", "HEAD", "OPTIONS", "POST", "PUT", "DELETE", "PATCH", "CONNECT", "TRACE")
_ANY_METHOD = 0b1111_1111
NO_LIMIT = (1 << 64) - 1
# The minimum send rate is judged over this: long enough that a player's pause is not taken for an attack.
SEND_WINDOW_S = 20.0
# A listener's name that no policy can have.
INTERCEPTED = "intercept:"
# How long a CONNECT waits for the control plane, whose own time-out is shorter.
CONNECT_WAIT_S = 30.0
# A zone mask that admits nobody: policies with 64 zones apart, no zone has the last bit.
NOBODY = 1 << 63
# Descriptors kept for everything that is not a viewer: upstream connections, listeners, control, files.
SPARE_DESCRIPTORS = 512
# Viewers' send buffers; the kernel doubles the number. Fixed, since what it grows them to by itself (4 MB) costs more
# CPU per byte, and that much memory per slow viewer: docs/decisions/0050-measuring.md. 512 KiB are 200 Mbit/s at 20 ms.
SEND_BUFFER_BYTES = 256 << 10


class DiskKind:
    """What may be wrong with a record that was read, in an operator's words."""

    _NAMES = {
        _disk.BAD: "torn or changed: its checksum or seal differs",
        _disk.OTHER: "another record stands in its place",
        _disk.LOCKED: "it is sealed, and its key is gone",
        _disk.NEWER: "a newer version wrote it",
    }

    @classmethod
    def name_of(cls, error: int) -> str:
        return cls._NAMES.get(error, "unreadable")


class _Names:
    """Indices by name, which stay through reloads: keys and listeners hold them."""

    def __init__(self, first: tuple[str, ...] = ()) -> None:
        self.names = list(first)
        self._index = {name: i for i, name in enumerate(first)}

    def index(self, name: str) -> int:
        found = self._index.get(name)
        if found is None:
            found = self._index[name] = len(self.names)
            self.names.append(name)
        return found


class _Strings:
    """One blob that rows point into."""

    def __init__(self) -> None:
        self.data = bytearray()

    def add(self, text: str) -> tuple[int, int]:
        start = len(self.data)
        self.data += text.encode()
        return start, len(self.data) - start


class DataPlane:
    """The plane with names. `workers`, `memory_bytes` hold for its life; everything else comes by `publish`."""

    def __init__(self, workers: int, memory_bytes: int) -> None:
        self.plane = Plane(workers, memory_bytes, SLICE_BYTES)
        self._origins = _Names(("",))
        self._listeners = _Names()
        self._sockets: dict[str, socket.socket] = {}
        self._health: StoredObject | None = None
        self._pages: dict[bytes, tuple[tuple[bytes, bytes, bytes], StoredObject]] = {}
        self._restricted: dict[int, frozenset[str]] = {}
        self._servers: dict[int, TlsServer] = {}

    def publish(self, tables: Tables, servers: Mapping[str, TlsServer] | None = None) -> int:
        """Compiles to rows and publishes them whole; returns the generation. `servers`: of listeners that speak TLS."""
        strings = _Strings()
        # RFC 9211 section 2: a token begins with a letter, any other name is a quoted string.
        site = strings.add(tables.site if tables.site[0].isalpha() else f'"{tables.site}"')
        ids = [self._origins.index(origin.name) for origin in tables.origins]
        origins = np.zeros(len(self._origins.names), dtype=layout.ORIGIN_DTYPE)
        origins[BOX_ORIGIN]["is_used"] = 1
        origins[BOX_ORIGIN]["wait_ns"] = int(CONNECT_WAIT_S * 1e9)
        parameters: list[tuple[int, int]] = []
        for origin_id, row in zip(ids, tables.origins, strict=True):
            origin = origins[origin_id]
            origin["credential"], origin["n_credentials"] = len(parameters), len(row.credential_parameters)
            parameters += [strings.add(name) for name in row.credential_parameters]
            origin["profile"], origin["is_used"] = row.profile, 1
            known = {method: 1 << METHODS.index(method) for method in row.methods if method in METHODS}
            origin["methods"] = sum(known.values()) | (_ANY_METHOD if row.any_method else 0)
            others = [method for method in row.methods if method not in known]
            origin["method"], origin["n_methods"] = len(parameters), len(others)
            parameters += [strings.add(method) for method in others]
            origin["allow"], origin["allow_length"] = strings.add(", ".join(row.methods))
            origin["body_max"] = NO_LIMIT if row.body_max_bytes is None else row.body_max_bytes
            origin["wait_ns"] = int(row.wait_s * 1e9)
            origin["may_tunnel"] = row.may_tunnel
            origin["header"], origin["n_headers"] = len(parameters), len(row.credential_headers)
            parameters += [strings.add(name) for name in row.credential_headers]
            origin["cookie"], origin["n_cookies"] = len(parameters), len(row.credential_cookies)
            parameters += [strings.add(name) for name in row.credential_cookies]
            origin["rule"], origin["refusal"] = row.credential_rule, row.refusal
            origin["judges_all"] = row.judges_all
            origin["is_relay"], origin["zone_mask"] = row.is_relay, row.zone_mask
            origin["dscp"] = row.dscp
            origin["offline_ns"] = int(row.max_offline_s * 1e9)
        hosts: list[tuple[int, ...]] = []
        paths: list[tuple[int, ...]] = []
        for host in tables.hosts:
            hosts.append((*strings.add(host.pattern), len(paths), len(host.paths), host.kind))
            paths += [(*strings.add(path.prefix), ids[path.origin], path.strip) for path in host.paths]
        listener_ids = [self._listeners.index(listener.name) for listener in tables.listeners]
        self._listeners.index(INTERCEPTED)
        listeners = np.zeros(len(self._listeners.names), dtype=layout.LISTENER_DTYPE)
        for listener_id, listener in zip(listener_ids, tables.listeners, strict=True):
            listeners[listener_id] = (listener.zone_mask, 1, listener.http2)
            named = frozenset(zone for i, zone in enumerate(tables.zones) if listener.zone_mask >> i & 1)
            self._restricted[listener_id] = named
        # Connections that netd hands us by a socket of its own (services/netd/intercept.py) have no listener.
        listeners[self._listeners.index(INTERCEPTED)] = (0, 1, 0)
        for listener_id, named in self._restricted.items():
            if named and listener_id not in listener_ids:
                # Its connections stay, and so does the restriction that they came by.
                mask = sum(1 << i for i, zone in enumerate(tables.zones) if zone in named)
                listeners[listener_id] = (mask or NOBODY, 0, 0)
        generation: int = self.plane.publish(
            bytes(strings.data), site, _rows(hosts, layout.HOST_DTYPE), _rows(paths, layout.PATH_DTYPE), origins,
            _rows([(list(net.network), net.prefix_bits, net.zone) for net in tables.nets], layout.NET_DTYPE),
            listeners, _rows(parameters, layout.STRING_DTYPE), _limits(tables),
            self._tls_rows(listener_ids, servers or {}),
        )  # fmt: skip
        return generation

    def _tls_rows(self, listener_ids: list[int], servers: Mapping[str, TlsServer]) -> list[TlsServer | None]:
        """By index. One that is leaving keeps its own: what still comes to it must not be answered in the clear."""
        for listener_id in listener_ids:
            server = servers.get(self._listeners.names[listener_id])
            if server is None:
                self._servers.pop(listener_id, None)
            else:
                self._servers[listener_id] = server
        return [self._servers.get(listener_id) for listener_id in range(len(self._listeners.names))]

    def set_ticket_keys(self, keys: list[bytes]) -> None:
        """Session tickets of all listeners: the last one seals."""
        self.plane.set_ticket_keys(keys, len(keys) - 1)

    def access_reader(self) -> AccessReader:
        """For one thread, which reads what workers tell of their answers."""
        return AccessReader(self.plane)

    def origin_names(self) -> list[bytes]:
        """By index; also of origins that are gone."""
        return [name.encode() for name in self._origins.names]

    def listener_names(self) -> list[bytes]:
        return [name.encode() for name in self._listeners.names]

    def origin_id(self, name: str) -> int:
        return self._origins.index(name)

    def origin_name(self, origin_id: int) -> str:
        return self._origins.names[origin_id]

    def listen(self, name: str, listening: socket.socket) -> None:
        """Every worker accepts from `listening` (bound, listening, non-blocking), which stays the caller's to close."""
        self._sockets[name] = listening
        # Accepted sockets inherit it.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        self.plane.listen(listening.fileno(), self._listeners.index(name))

    def unlisten(self, name: str) -> None:
        self.plane.unlisten(self._listeners.index(name))
        self._sockets.pop(name, None)

    def ring(self, window_bytes: int, hold_ns: int, silence_ns: int, index: int) -> Ring:
        """A stream's memory. Raises MemoryError when `cache.memory` has no room."""
        return Ring(self.plane, -(-window_bytes // CHUNK) * CHUNK, index=index, hold_ns=hold_ns, silence_ns=silence_ns)

    def put_health_object(self) -> None:
        """Stores what the viewers' health probe answers with: it went through a worker, the table and the store."""
        # Held, and not fetchable again: eviction leaves it, so that short memory is not taken for a dead box.
        self._health = self._put_own(HEALTH_PATH, b"text/plain; charset=utf-8", b"no-store", b"ok\n")

    def put_pages(self, pages: Iterable[tuple[str, str, str, bytes]]) -> None:
        """The box's own pages: (path, Content-Type, Cache-Control, body) of each; others are gone."""
        wanted = {path.encode(): (kind.encode(), control.encode(), body) for path, kind, control, body in pages}
        for path in [path for path, page in self._pages.items() if wanted.get(path) != page[0]]:
            self._pages.pop(path)[1].detach()
        for path, page in wanted.items():
            if path not in self._pages:
                self._pages[path] = (page, self._put_own(path, *page))

    @property
    def n_objects(self) -> int:
        """Stored ones that origins gave: the box's own pages don't count."""
        return max(0, self.plane.n_objects - len(self._pages) - (self._health is not None))

    def _put_own(self, path: bytes, kind: bytes, control: bytes, body: bytes) -> StoredObject:
        lines = b"Content-Type: " + kind + b"\r\nCache-Control: " + control + b"\r\nAccess-Control-Allow-Origin: *\r\n"
        now_ns = 0
        stored = self.plane.create(
            BOX_ORIGIN, len(body), 200, b"HTTP/1.1 200 OK\r\n", lines, b"", b"", -1, FOREVER_NS, 0, now_ns, now_ns, 0,
            False, False,
        )  # fmt: skip
        room = stored.room(0, len(body)) if stored is not None else None
        if stored is None or room is None:
            raise MemoryError
        room[:] = body
        stored.commit(0, len(body))
        stored.finish(len(body))
        stored.insert(path, b"", b"")
        return stored


def _rows(rows: Iterable[object], dtype: Any) -> Any:
    return np.array(list(rows), dtype=dtype)


def _limits(tables: Tables) -> Any:
    limits = tables.limits
    row = np.zeros(1, dtype=layout.LIMITS_DTYPE)
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = limits.connections
    if soft != resource.RLIM_INFINITY:
        most = min(most, max(soft - SPARE_DESCRIPTORS, soft // 2))
    row["head_timeout_ns"] = int(limits.head_timeout_s * 1e9)
    row["body_timeout_ns"] = int(limits.body_timeout_s * 1e9)
    row["idle_timeout_ns"] = int(limits.idle_timeout_s * 1e9)
    row["send_window_ns"] = int(SEND_WINDOW_S * 1e9)
    row["send_window_bytes"] = int(limits.send_rate_min_Bps * SEND_WINDOW_S)
    row["connections"] = min(most, 100_000)
    row["access_log"] = tables.logs.has_access
    row["may_connect"] = tables.may_connect
    row["has_pages"] = tables.has_pages
    row["viewer"] = tables.logs.viewer
    row["connections_per_address"] = min(limits.connections_per_address, 100_000)
    return row


def worker_count(configured: int) -> int:
    """How many edge workers `workers:` means; auto leaves a share of a core to relays and control."""
    if configured:
        return min(configured, 32)
    return max(1, min(32, len(os.sched_getaffinity(0)) - 1))
