"""The policy, version 1, as typed and frozen values: each key's default and description. No YAML, no check across keys.

What a value may be is in values.py, an origin's keys in origin_model.py, a relay's in relay_model.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, PlainValidator, WithJsonSchema

from accelerator.policy import addresses
from accelerator.policy.link_model import LINKS_MAX, MARKS_MAX, Link, Mark
from accelerator.policy.multicast_model import Multicast
from accelerator.policy.origin_model import Credential, Origin, Timeouts, Verify
from accelerator.policy.relay_model import RELAYS_MAX, Dscp, Relay, RelayOutput, Udpxy
from accelerator.policy.steering_model import Steering
from accelerator.policy.values import (
    MEBIBYTE,
    SITE_NAME,
    ListenAddress,
    Name,
    Names,
    Network,
    Section,
    Switch,
    empty_means,
    percent_between,
    rate_between,
    site_name,
    size_between,
    text_of,
    time_between,
    whole_between,
    worker_count,
)

__all__ = ["Credential", "Link", "Origin", "Policy", "Relay", "RelayOutput", "Timeouts", "Verify"]

# Zones travel to the data plane as bits of one 64-bit word.
ZONES_MAX = 64


class Site(Section):
    name: Annotated[str, *text_of(site_name, f"^{SITE_NAME.pattern}$", "lyon")] = Field(
        description="What this box calls itself: in Cache-Status and Via, and in every report."
    )


class Zone(Section):
    nets: Annotated[tuple[Network, ...], empty_means(tuple)] = Field(
        default=(),
        max_length=4096,
        description="The networks of this zone's viewers. The most specific network wins, then the first zone.",
    )
    multicast: Literal["allowed", "never"] = Field(
        default="allowed", description="never: relays send no multicast there, as on Wi-Fi, where it is slow and lossy."
    )


class Class(Section):
    store: Literal["memory", "disk"] = Field(
        default="disk",
        description="Where objects of this class are kept: on the disk too, where cache.disk is; or never there.",
    )
    quota: Annotated[int, *percent_between("1%", "100%")] = Field(
        default=100,
        description="The most of the disk that objects of this class may take; of memory, where they are only there.",
    )
    pin: bool = Field(
        default=False,
        description="Whether what of this class is on the disk stays there until it is purged, up to the quota.",
    )
    guarantee: Annotated[int, *percent_between("0%", "100%")] = Field(
        default=0, description="What of its link's video budget this class has for sure while it fetches."
    )
    ceiling: Annotated[int, *percent_between("1%", "100%")] = Field(
        default=100, description="The most of its link's video budget that this class may fetch with."
    )
    dscp: Dscp = Field(
        default="CS0", description="The mark of what this box sends for it, to origins and to viewers."
    )
    max_offline: Annotated[float, *time_between("1s", "3650d")] | None = Field(
        default=None,
        description="What was not checked with its origin for so long is checked before it is used, however fresh it "
        "is, and not used where that fails; left out: no limit. Of a class's and an origin's the shorter one holds.",
    )


class Disk(Section):
    path: Annotated[str, *text_of(addresses.parse_folder, r"^[^\x00]+$", "cache")] = Field(
        default="cache", description="Folder of the disk tier, relative to the state directory. It is the tier's alone."
    )
    size: Annotated[int, *size_between("64MiB", "65536GiB")] = Field(
        default=20 * 1024 * MEBIBYTE, description="The most that the disk tier takes."
    )
    encrypt: Literal["if-key", "always", "never"] = Field(
        default="if-key",
        description="if-key: sealed where the credentials have a disk.key; always: no start without one; never: plain.",
    )


class Cache(Section):
    memory: Annotated[int, *size_between("16MiB", "4096GiB")] = Field(
        default=512 * MEBIBYTE,
        description="Hard limit of memory for stored objects, their heads and the connections' buffers.",
    )
    disk: Disk | None = Field(default=None, description="What survives a restart; left out: memory only.")


class Listener(Section):
    address: ListenAddress = Field(description="IP address and port where viewers connect; port 0 takes any free port.")
    zones: Annotated[tuple[Name, ...], empty_means(tuple)] = Field(
        default=(),
        max_length=ZONES_MAX,
        description="Only viewers of these zones are served here; left out: everybody.",
    )
    tls: Names = Field(
        default=(),
        max_length=64,
        description="Speaks HTTPS only, with this certificate: NAME.crt and NAME.key among the credentials. Of several "
        "the viewer's host chooses, and the first one is for everybody else.",
    )
    legacy: Switch = Field(
        default=False, description="TLS 1.0 and 1.1 and weaker suites too, for old players: on a listener of its own."
    )
    http2: Literal["tls", "cleartext", "never"] = Field(
        default="tls",
        description="HTTP/2 besides HTTP/1.1: offered over TLS; cleartext: to who begins with it, without TLS; never.",
    )


class Admin(Section):
    address: ListenAddress = Field(
        description="IP address and port of the dashboard, /healthz and /metrics; never where viewers connect."
    )
    token: Literal["changes", "always"] = Field(
        default="changes",
        description="When the dashboard wants the admin token: for changes, or always, also for reading and /metrics.",
    )


class Limits(Section):
    connections: Annotated[int, *whole_between(1, 10_000_000)] = Field(
        default=65_536,
        description="Viewers' connections at once, in all; the process's limit of open files bounds it too.",
    )
    connections_per_address: Annotated[int, *whole_between(1, 10_000_000)] = Field(
        default=20_000, description="Connections of one IP address at once. A branch behind NAT is one address."
    )
    head_timeout: Annotated[float, *time_between("100ms", "1h")] = Field(
        default=10.0, description="From the first byte of a request until its head is complete, else 408."
    )
    body_timeout: Annotated[float, *time_between("100ms", "1h")] = Field(
        default=30.0, description="Longest time without any byte of a request's body, else 408."
    )
    idle_timeout: Annotated[float, *time_between("1s", "1d")] = Field(
        default=75.0, description="How long a connection may stay open between two requests."
    )
    send_rate: Annotated[int, *rate_between("0bit/s", "1Gbit/s")] = Field(
        default=8_000, description="A viewer that takes less than this for long is disconnected; 0bit/s: never."
    )
    drain: Annotated[float, *time_between("0s", "1h")] = Field(
        default=30.0, description="How long running responses may go on after SIGTERM."
    )


class Privacy(Section):
    viewer: Literal["zone", "hash", "truncate"] = Field(
        default="zone",
        description="What logs and statistics keep of a viewer: zone (no address at all), hash (keyed, another key "
        "each day that is never on disk), truncate (IPv4 to /24, IPv6 to /48).",
    )
    retention: Annotated[float, *time_between("1h", "366d")] = Field(
        default=30 * 86_400.0,
        description="How long anything about viewers is kept; logs.access.retention can only shorten it.",
    )


class AccessLog(Section):
    enabled: Switch = Field(default=False, description="Write a line for each answer to a viewer.")
    retention: Annotated[float, *time_between("1h", "366d")] = Field(
        default=7 * 86_400.0, description="No line is kept for longer, nor for longer than privacy.retention."
    )
    max_size: Annotated[int, *size_between("1MiB", "1024GiB")] = Field(
        default=256 * MEBIBYTE, description="Of all its files; the oldest go first."
    )


class SecurityLog(Section):
    retention: Annotated[float, *time_between("1d", "1096d")] = Field(
        default=183 * 86_400.0, description="No line is kept for longer. The CNIL advises six to twelve months."
    )
    max_size: Annotated[int, *size_between("1MiB", "1024GiB")] = Field(
        default=64 * MEBIBYTE, description="Of all its files; the oldest go first."
    )


class Logs(Section):
    access: AccessLog = Field(default=AccessLog(), description="Who was answered what; off by default.")
    security: SecurityLog = Field(default=SecurityLog(), description="Who changed what, and what was refused.")


class Policy(Section):
    version: Annotated[
        Literal[1], BeforeValidator(lambda value: 1 if value == "1" else value), WithJsonSchema({"const": 1})
    ] = Field(description="The version of this format.")
    site: Site = Field(description="Which box this is.")
    zones: Annotated[Mapping[Name, Zone], empty_means(dict)] = Field(
        default={}, max_length=ZONES_MAX, description="Who is where: viewers' networks, by name."
    )
    links: Annotated[Mapping[Name, Link], empty_means(dict)] = Field(
        default={},
        max_length=LINKS_MAX,
        description="Ways out of the site, by name; the first one is where origins go that name none.",
    )
    marks: Annotated[Mapping[Name, Mark], empty_means(dict)] = Field(
        default={},
        max_length=MARKS_MAX,
        description="Traffic of others that this box forwards and marks on its way, by name; accelerator-netd does it.",
    )
    classes: Annotated[Mapping[Name, Class], empty_means(dict)] = Field(
        default={},
        max_length=256,
        description="Kinds of content, by name; their order is their priority, first = highest.",
    )
    cache: Cache = Field(default=Cache(), description="Where content is kept, and how much.")
    listen: Annotated[Mapping[Name, Listener], empty_means(dict)] = Field(
        default={}, max_length=256, description="Where viewers connect, by name."
    )
    admin: Admin | None = Field(
        default=None, description="Where the dashboard, /healthz and /metrics are; left out: nowhere."
    )
    workers: Annotated[
        int,
        PlainValidator(worker_count),
        PlainSerializer(lambda number: number or "auto"),
        WithJsonSchema({"anyOf": [{"const": "auto"}, {"type": "integer", "minimum": 1, "maximum": 64}]}),
    ] = Field(
        default=0, description="Edge workers: a number, or auto, which leaves a share of a core to everything else."
    )
    origins: Annotated[Mapping[Name, Origin], empty_means(dict)] = Field(
        default={},
        max_length=4096,
        description="Where content comes from, by name. The most specific host wins, then the longest path.",
    )
    limits: Limits = Field(default=Limits(), description="What viewers may take of the box.")
    relays: Annotated[Mapping[Name, Relay], empty_means(dict)] = Field(
        default={}, max_length=RELAYS_MAX, description="Datagram streams in, and to whom they go, by name."
    )
    udpxy: Udpxy = Field(
        default=Udpxy(), description="Groups that viewers may ask for by address: /udp/[SOURCE@]GROUP:PORT and /rtp/."
    )
    multicast: Multicast = Field(default=Multicast(), description="Multicast from one link to others.")
    steering: Steering = Field(default=Steering(), description="How viewers come to the box, besides by host names.")
    privacy: Privacy = Field(default=Privacy(), description="What is kept of viewers, and for how long.")
    logs: Logs = Field(default=Logs(), description="What is written below STATE_DIR/logs.")
    locked: Annotated[tuple[Annotated[str, *text_of(str)], ...], empty_means(tuple)] = Field(
        default=(),
        max_length=1000,
        description="Keys (dotted, such as origins.media.from) that files merged later can't set.",
    )
