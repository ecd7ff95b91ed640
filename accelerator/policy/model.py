"""The policy, version 1, as typed and frozen values: each key's default and description. No YAML, no check across keys.

Values come as the text that was written (see units.py) and are converted by what their key expects. Values that already
have the right type are taken too, so that a dump can be read again. An empty section counts as left out.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from ipaddress import IPv4Network, IPv6Network
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)

from accelerator.policy import addresses, units

T = TypeVar("T")

MEBIBYTE = 2**20
# Zones travel to the data plane as bits of one 64-bit word.
ZONES_MAX = 64

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
_SITE_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")
_QUANTITY = r"^[0-9]{1,15}(\.[0-9]{1,6})?"


def _quantity(
    parse: Callable[[str], T], form: Callable[[T], str], unit_names: Mapping[str, int], lowest: str, highest: str
) -> tuple[PlainValidator, PlainSerializer, WithJsonSchema]:
    """A number with a unit between two bounds, which are written as a policy writes them; dumped as text again."""
    low: Any = parse(lowest)
    high: Any = parse(highest)

    def convert(value: object) -> T:
        if isinstance(value, str):
            value = parse(value)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ValueError(f"expected text such as '{highest}'")
        if not low <= value <= high:
            raise ValueError(f"must be from {lowest} to {highest}")
        return value  # type: ignore[return-value]  # T is the int or float that `parse` gives

    schema = {"type": "string", "pattern": f"{_QUANTITY}({'|'.join(unit_names)})$"}
    return PlainValidator(convert), PlainSerializer(form, return_type=str), WithJsonSchema(schema)


def _size(lowest: str, highest: str) -> Any:
    return _quantity(units.parse_size_bytes, units.format_size, units.SIZE_UNITS, lowest, highest)


def _rate(lowest: str, highest: str) -> Any:
    return _quantity(units.parse_rate_bps, units.format_rate, units.RATE_UNITS, lowest, highest)


def _percent(lowest: str, highest: str) -> Any:
    return _quantity(units.parse_percent, units.format_percent, units.PERCENT_UNITS, lowest, highest)


def _time(lowest: str, highest: str) -> Any:
    return _quantity(units.parse_time_s, units.format_time, units.TIME_UNITS_MS, lowest, highest)


def _text(parse: Callable[[str], T], pattern: str | None = None, example: str | None = None) -> Any:
    """Text that `parse` reads; dumped as text again."""

    def convert(value: object) -> T:
        if isinstance(value, list | dict) or value is None:
            raise ValueError("expected text")
        return parse(str(value))

    schema: dict[str, Any] = {"type": "string"}
    if pattern is not None:
        schema["pattern"] = pattern
    if example is not None:
        schema["examples"] = [example]
    return PlainValidator(convert), PlainSerializer(str), WithJsonSchema(schema)


def _whole(lowest: int, highest: int) -> Any:
    def convert(value: object) -> int:
        if isinstance(value, str):
            value = units.parse_whole(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError("expected a whole number")
        if not lowest <= value <= highest:
            raise ValueError(f"must be from {lowest} to {highest}")
        return value

    return PlainValidator(convert), WithJsonSchema({"type": "integer", "minimum": lowest, "maximum": highest})


def _switch(value: object) -> bool:
    if isinstance(value, bool):
        return value
    if not isinstance(value, str):
        raise ValueError("expected true or false")
    return units.parse_switch(value)


def _workers(value: object) -> int:
    if value == "auto":
        return 0
    if isinstance(value, str):
        try:
            value = units.parse_whole(value)
        except ValueError:
            raise ValueError(f"expected auto or a number of workers, got {units.quoted(str(value))}") from None
        if not 1 <= value <= 64:
            raise ValueError("must be auto, or from 1 to 64")
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError("expected auto or a number of workers")
    return value


def _name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise ValueError(
            f"{units.quoted(value)} is not a name: a letter, then letters, digits, '-' and '_', at most 64 characters"
        )
    return value


def _site_name(value: str) -> str:
    if not _SITE_NAME.fullmatch(value):
        raise ValueError(
            f"{units.quoted(value)} is not a site's name: letters, digits, '.', '-' and '_', at most 64 characters"
        )
    return value


def _file_name(value: object, info: ValidationInfo) -> addresses.FileName:
    if not isinstance(value, str) or not value or "\0" in value or "\n" in value:
        raise ValueError("expected text, the name of a file")
    folder: str = (info.context or {}).get("folder", "")
    return addresses.FileName(value, os.path.join(folder, value))


def _empty_means(none: Any) -> BeforeValidator:
    return BeforeValidator(lambda value: none() if value is None else value)


Name = Annotated[str, AfterValidator(_name), WithJsonSchema({"type": "string", "pattern": f"^{_NAME.pattern}$"})]
Network = Annotated[IPv4Network | IPv6Network, *_text(addresses.parse_network, example="10.12.0.0/22")]
ListenAddress = Annotated[
    addresses.Address, *_text(addresses.parse_listen_address, r"^.+:[0-9]{1,5}$", "127.0.0.1:8080")
]
OriginUrl = Annotated[
    addresses.OriginUrl,
    *_text(addresses.parse_origin_url, r"^[hH][tT][tT][pP][sS]?://[^/?#@]+/?$", "https://media.corp.example"),
]
ProxyUrl = Annotated[
    addresses.ProxyUrl,
    *_text(addresses.parse_proxy_url, r"^[hH][tT][tT][pP]://[^/?#@]+:[0-9]{1,5}/?$", "http://proxy.corp.example:3128"),
]
HostPattern = Annotated[str, *_text(addresses.parse_host_pattern, example="media.lyon.corp.example")]
PathPrefix = Annotated[str, *_text(addresses.parse_path_prefix, r"^/[^?# ]*$", "/live")]
PinnedAddress = Annotated[str, *_text(addresses.parse_pinned_address, example="10.0.0.20")]
Method = Annotated[str, *_text(addresses.parse_method, example="POST")]
FieldName = Annotated[str, *_text(addresses.parse_field_name, example="X-Tenant")]
ParameterName = Annotated[
    str, *_text(addresses.parse_parameter_name, r"^[A-Za-z0-9_.~-]{1,64}$", "token")
]
CredentialField = Annotated[str, *_text(addresses.parse_credential_field, example="Authorization")]
InterfaceName = Annotated[str, *_text(addresses.parse_interface_name, r"^[^/: ]{1,15}$", "eth0")]
MulticastNetwork = Annotated[
    IPv4Network | IPv6Network, *_text(addresses.parse_multicast_network, example="239.0.0.0/8")
]
ShortText = Annotated[str, *_text(addresses.parse_short_text, example="portal")]
FileName = Annotated[
    addresses.FileName,
    PlainValidator(_file_name),
    PlainSerializer(lambda file: file.written),
    WithJsonSchema({"type": "string", "minLength": 1}),
]
Switch = Annotated[bool, PlainValidator(_switch), WithJsonSchema({"type": "boolean"})]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _empty_is_left_out(cls, value: Any) -> Any:
        return {} if value is None else value


class Site(_Section):
    name: Annotated[str, *_text(_site_name, f"^{_SITE_NAME.pattern}$", "lyon")] = Field(
        description="What this box calls itself: in Cache-Status and Via, and in every report."
    )


class Zone(_Section):
    nets: Annotated[tuple[Network, ...], _empty_means(tuple)] = Field(
        default=(),
        max_length=4096,
        description="The networks of this zone's viewers. The most specific network wins, then the first zone.",
    )


class Class(_Section):
    store: Literal["memory", "disk"] = Field(
        default="disk",
        description="Where objects of this class are kept: on the disk too, where cache.disk is; or never there.",
    )
    quota: Annotated[int, *_percent("1%", "100%")] = Field(
        default=100, description="The most of the disk that objects of this class may take."
    )


class Disk(_Section):
    path: Annotated[str, *_text(addresses.parse_folder, r"^[^\x00]+$", "cache")] = Field(
        default="cache", description="Folder of the disk tier, relative to the state directory. It is the tier's alone."
    )
    size: Annotated[int, *_size("64MiB", "65536GiB")] = Field(
        default=20 * 1024 * MEBIBYTE, description="The most that the disk tier takes."
    )
    encrypt: Literal["if-key", "always", "never"] = Field(
        default="if-key",
        description="if-key: sealed where the credentials have a disk.key; always: no start without one; never: plain.",
    )


class Cache(_Section):
    memory: Annotated[int, *_size("16MiB", "4096GiB")] = Field(
        default=512 * MEBIBYTE,
        description="Hard limit of memory for stored objects, their heads and the connections' buffers.",
    )
    disk: Disk | None = Field(default=None, description="What survives a restart; left out: memory only.")


class Listener(_Section):
    address: ListenAddress = Field(description="IP address and port where viewers connect; port 0 takes any free port.")
    zones: Annotated[tuple[Name, ...], _empty_means(tuple)] = Field(
        default=(),
        max_length=ZONES_MAX,
        description="Only viewers of these zones are served here; left out: everybody.",
    )


class Admin(_Section):
    address: ListenAddress = Field(
        description="IP address and port of the dashboard, /healthz and /metrics; never where viewers connect."
    )
    token: Literal["changes", "always"] = Field(
        default="changes",
        description="When the dashboard wants the admin token: for changes, or always, also for reading and /metrics.",
    )


class Timeouts(_Section):
    connect: Annotated[float, *_time("10ms", "10m")] = Field(
        default=3.0, description="Until an upstream has accepted the connection, TLS included."
    )
    head: Annotated[float, *_time("10ms", "1h")] | None = Field(
        default=None,
        description="From the request until the response's head has arrived; left out: 30s, in profile generic 2m "
        "for long polls.",
    )
    body: Annotated[float, *_time("10ms", "1h")] = Field(
        default=30.0,
        description="Longest time without any byte of a response's body, or without the origin taking any of a "
        "request's.",
    )
    stream: Annotated[float, *_time("1s", "1d")] = Field(
        default=3600.0, description="Longest silence of an event stream (text/event-stream)."
    )
    tunnel: Annotated[float, *_time("0s", "30d")] = Field(
        default=0.0, description="Longest time without any byte in a tunnel (WebSocket); 0s: no limit."
    )


class Verify(_Section):
    scheme: Literal["jwt", "cat", "cloudfront", "akamai", "secure-link", "hmac"] = Field(
        description="What the credential is: a JSON Web Token, a Common Access Token (CTA-5007), or a signed URL."
    )
    keys: Annotated[tuple[Name, ...], _empty_means(tuple)] = Field(
        min_length=1,
        max_length=16,
        description="Keys that verify it, by the names of their credentials: NAME.pem, NAME.jwk or NAME.secret.",
    )
    algorithm: (
        Literal["ES256", "EdDSA", "RS256", "HS256", "RSA-SHA1", "RSA-SHA256", "ECDSA-SHA1", "ECDSA-SHA256"] | None
    ) = Field(
        default=None, description="The one algorithm of its signature (jwt, cat, cloudfront), never the token's word."
    )
    issuer: ShortText | None = Field(default=None, description="The `iss` that it must have (jwt, cat).")
    audience: ShortText | None = Field(default=None, description="An `aud` that it must have (jwt, cat).")
    path_claim: ShortText | None = Field(
        default=None, description="The claim that says which paths it is for (jwt); left out: the whole origin."
    )
    resource: ShortText | None = Field(
        default=None, description="Scheme and host of the URL that was signed, https://HOST (cloudfront)."
    )
    signed: ShortText | None = Field(
        default=None,
        description="What is signed (secure-link, hmac), with {path}, {uri}, {expires} and {secret}.",
    )
    max_lifetime: Annotated[float, *_time("1s", "3650d")] = Field(
        default=86_400.0, description="A credential that is valid for longer is refused."
    )
    leeway: Annotated[float, *_time("0s", "5m")] = Field(
        default=5.0, description="How far the issuer's clock and ours may differ."
    )


class Credential(_Section):
    parameters: Annotated[tuple[ParameterName, ...], _empty_means(tuple)] = Field(
        default=(),
        max_length=8,
        description="Parameters of the query that carry the viewer's credential: out of the key. For secure-link and "
        "hmac in this order: signature, expiry, and for hmac perhaps the directory.",
    )
    headers: Annotated[tuple[CredentialField, ...], _empty_means(tuple)] = Field(
        default=(), max_length=4, description="Request fields that carry it."
    )
    cookies: Annotated[tuple[ParameterName, ...], _empty_means(tuple)] = Field(
        default=(), max_length=8, description="Cookies that carry it."
    )
    covers: Literal["object", "directory"] = Field(
        default="object",
        description="What a yes is good for: the one object that was asked for, or its whole directory.",
    )
    verify: Verify | None = Field(default=None, description="How the box verifies it; left out: the origin is asked.")
    ask: Literal["origin"] | None = Field(
        default=None, description="The origin decides: it is asked by HEAD, with the viewer's credential."
    )
    authorise_for: Annotated[float, *_time("1s", "1d")] = Field(
        default=60.0, description="How long a yes is used before the credential is judged again; less where it ends."
    )
    when_unreachable: Literal["refuse", "last-yes"] = Field(
        default="refuse", description="What happens when the origin can't be asked (ask)."
    )
    refusal: Annotated[int, *_whole(401, 403)] = Field(
        default=403, description="The status of a refusal: 401 or 403."
    )


class Origin(_Section):
    from_: tuple[OriginUrl, ...] = Field(
        alias="from",
        min_length=1,
        max_length=64,
        description="Where content comes from, in order: the next one is tried when one fails.",
    )
    hosts: tuple[HostPattern, ...] = Field(
        min_length=1,
        max_length=1000,
        description="Hosts that viewers ask for: exact names, '*.suffix', or '*' for any. Without port.",
    )
    paths: Annotated[tuple[PathPrefix, ...], _empty_means(lambda: ("/",))] = Field(
        default=("/",),
        min_length=1,
        max_length=1000,
        description="Path prefixes that belong to this origin; they end at a segment boundary.",
    )
    class_: Name | None = Field(
        default=None,
        alias="class",
        description="The class that its objects are kept in; left out: none, kept in memory.",
    )
    profile: Literal["media", "generic"] = Field(
        default="media",
        description="media: for video (GET, HEAD, CORS preflights; live playlists and segments recognised). "
        "generic: for portals and APIs, RFC 9111 to the letter.",
    )
    upstream_host: Literal["upstream", "viewer"] = Field(
        default="upstream",
        description="The Host that the origin sees: its own name from `from`, or the one that the viewer asked for.",
    )
    resolve: Annotated[tuple[PinnedAddress, ...], _empty_means(tuple)] = Field(
        default=(),
        max_length=64,
        description="IP addresses to use instead of asking DNS for the names in `from`; with `via`: for the proxy's.",
    )
    resolve_grace: Annotated[float, *_time("0s", "30d")] = Field(
        default=86_400.0, description="How long the last answer of DNS is used when DNS gives none."
    )
    via: ProxyUrl | None = Field(
        default=None,
        description="The company's HTTP proxy, through which this origin is reached: https by CONNECT; left out: none.",
    )
    via_credential: Name | None = Field(
        default=None, description="Log-in for the proxy: NAME.login among the credentials, one line USER:PASSWORD."
    )
    ca: FileName | None = Field(
        default=None,
        description="PEM file of authorities trusted besides the system's, relative to the policy's folder.",
    )
    client_certificate: Name | None = Field(
        default=None, description="What we show an origin that asks for it: NAME.crt, NAME.key among the credentials."
    )
    connections: Annotated[int, *_whole(1, 65536)] = Field(
        default=64, description="Connections to this origin at once; more requests wait for one."
    )
    streams: Annotated[int, *_whole(1, 1_000_000)] = Field(
        default=10_000,
        description="Event streams and, in profile generic, requests that have waited for long, at once; they don't "
        "count as connections.",
    )
    methods: Annotated[tuple[Method, ...], _empty_means(tuple)] = Field(
        default=(),
        max_length=32,
        description="Methods that viewers may use; empty: GET and HEAD in profile media, any in generic. CORS "
        "preflights are always answered in profile media; CONNECT and TRACE never are.",
    )
    body_max: Annotated[int, *_size("1kB", "1024GiB")] | None = Field(
        default=None, description="Largest body of a request; left out: no limit."
    )
    upgrade: Switch = Field(
        default=False,
        description="Profile media: pass Upgrade (WebSocket) to this origin too. Profile generic always does.",
    )
    tunnels: Annotated[int, *_whole(0, 1_000_000)] = Field(
        default=10_000, description="Tunnels (WebSocket) to this origin at once; more are refused. 0: none."
    )
    timeouts: Timeouts = Field(default=Timeouts(), description="How long to wait for this origin.")
    forward: Annotated[tuple[FieldName, ...], _empty_means(tuple)] = Field(
        default=(),
        max_length=64,
        description="Request fields that profile media passes to the origin besides the usual ones.",
    )
    credential: Credential | None = Field(
        default=None,
        description="Where viewers' credentials are, what they cover, and who judges them; left out: nobody does.",
    )
    override_private: Switch = Field(
        default=False,
        description="Store playlists and segments although the origin says no-store or private. "
        "Only for content that every viewer may see.",
    )


    @property
    def head_timeout(self) -> float:
        """`timeouts.head`, in seconds, with the profile's default."""
        if self.timeouts.head is not None:
            return self.timeouts.head
        return 30.0 if self.profile == "media" else 120.0


class Limits(_Section):
    connections: Annotated[int, *_whole(1, 10_000_000)] = Field(
        default=65_536,
        description="Viewers' connections at once, in all; the process's limit of open files bounds it too.",
    )
    connections_per_address: Annotated[int, *_whole(1, 10_000_000)] = Field(
        default=20_000, description="Connections of one IP address at once. A branch behind NAT is one address."
    )
    head_timeout: Annotated[float, *_time("100ms", "1h")] = Field(
        default=10.0, description="From the first byte of a request until its head is complete, else 408."
    )
    body_timeout: Annotated[float, *_time("100ms", "1h")] = Field(
        default=30.0, description="Longest time without any byte of a request's body, else 408."
    )
    idle_timeout: Annotated[float, *_time("1s", "1d")] = Field(
        default=75.0, description="How long a connection may stay open between two requests."
    )
    send_rate: Annotated[int, *_rate("0bit/s", "1Gbit/s")] = Field(
        default=8_000, description="A viewer that takes less than this for long is disconnected; 0bit/s: never."
    )
    drain: Annotated[float, *_time("0s", "1h")] = Field(
        default=30.0, description="How long running responses may go on after SIGTERM."
    )


class Privacy(_Section):
    viewer: Literal["zone", "hash", "truncate"] = Field(
        default="zone",
        description="What logs and statistics keep of a viewer: zone (no address at all), hash (keyed, another key "
        "each day that is never on disk), truncate (IPv4 to /24, IPv6 to /48).",
    )
    retention: Annotated[float, *_time("1h", "366d")] = Field(
        default=30 * 86_400.0,
        description="How long anything about viewers is kept; logs.access.retention can only shorten it.",
    )


class AccessLog(_Section):
    enabled: Switch = Field(default=False, description="Write a line for each answer to a viewer.")
    retention: Annotated[float, *_time("1h", "366d")] = Field(
        default=7 * 86_400.0, description="No line is kept for longer, nor for longer than privacy.retention."
    )
    max_size: Annotated[int, *_size("1MiB", "1024GiB")] = Field(
        default=256 * MEBIBYTE, description="Of all its files; the oldest go first."
    )


class SecurityLog(_Section):
    retention: Annotated[float, *_time("1d", "1096d")] = Field(
        default=183 * 86_400.0, description="No line is kept for longer. The CNIL advises six to twelve months."
    )
    max_size: Annotated[int, *_size("1MiB", "1024GiB")] = Field(
        default=64 * MEBIBYTE, description="Of all its files; the oldest go first."
    )


class Logs(_Section):
    access: AccessLog = Field(default=AccessLog(), description="Who was answered what; off by default.")
    security: SecurityLog = Field(default=SecurityLog(), description="Who changed what, and what was refused.")


class MulticastProxy(_Section):
    upstream: InterfaceName = Field(description="The interface towards the sources; no other proxy may have it.")
    downstream: tuple[InterfaceName, ...] = Field(
        min_length=1, max_length=31, description="The interfaces towards the viewers; each in one proxy only."
    )
    groups: Annotated[tuple[MulticastNetwork, ...], _empty_means(tuple)] = Field(
        default=(), max_length=256, description="Which groups viewers may join; left out: any."
    )
    sources: Annotated[tuple[Network, ...], _empty_means(tuple)] = Field(
        default=(), max_length=256, description="Whose packets viewers may have; left out: anybody's."
    )
    group_limit: Annotated[int, *_whole(1, 65_536)] = Field(
        default=4096, description="Groups at once on one downstream interface, for each family."
    )
    fast_leave: Switch = Field(
        default=False, description="Whoever leaves was the last: for links with one receiver, or a switch that says so."
    )


class Querier(_Section):
    mode: Literal["if-none", "always", "never"] = Field(
        default="if-none", description="Who asks on downstream links: us unless another does, always us, never us."
    )
    interval: Annotated[float, *_time("1s", "1h")] = Field(default=125.0, description="Between two general queries.")
    robustness: Annotated[int, *_whole(1, 7)] = Field(
        default=2, description="How many messages in a row may be all but one lost before a group ends."
    )
    last_member: Annotated[float, *_time("100ms", "25s")] = Field(
        default=1.0, description="Between the queries for a last member; a group ends after robustness times that."
    )


class Multicast(_Section):
    proxies: Annotated[Mapping[Name, MulticastProxy], _empty_means(dict)] = Field(
        default={}, max_length=32, description="IGMP and MLD proxies (RFC 4605), by name; accelerator-netd runs them."
    )
    querier: Querier = Field(default=Querier(), description="Who asks for members on downstream links.")


class Policy(_Section):
    version: Annotated[
        Literal[1], BeforeValidator(lambda value: 1 if value == "1" else value), WithJsonSchema({"const": 1})
    ] = Field(description="The version of this format.")
    site: Site = Field(description="Which box this is.")
    zones: Annotated[Mapping[Name, Zone], _empty_means(dict)] = Field(
        default={}, max_length=ZONES_MAX, description="Who is where: viewers' networks, by name."
    )
    classes: Annotated[Mapping[Name, Class], _empty_means(dict)] = Field(
        default={},
        max_length=256,
        description="Kinds of content, by name; their order is their priority, first = highest.",
    )
    cache: Cache = Field(default=Cache(), description="Where content is kept, and how much.")
    listen: Annotated[Mapping[Name, Listener], _empty_means(dict)] = Field(
        default={}, max_length=256, description="Where viewers connect, by name."
    )
    admin: Admin | None = Field(
        default=None, description="Where the dashboard, /healthz and /metrics are; left out: nowhere."
    )
    workers: Annotated[
        int,
        PlainValidator(_workers),
        PlainSerializer(lambda number: number or "auto"),
        WithJsonSchema({"anyOf": [{"const": "auto"}, {"type": "integer", "minimum": 1, "maximum": 64}]}),
    ] = Field(
        default=0, description="Edge workers: a number, or auto, which leaves a share of a core to everything else."
    )
    origins: Annotated[Mapping[Name, Origin], _empty_means(dict)] = Field(
        default={},
        max_length=4096,
        description="Where content comes from, by name. The most specific host wins, then the longest path.",
    )
    limits: Limits = Field(default=Limits(), description="What viewers may take of the box.")
    multicast: Multicast = Field(default=Multicast(), description="Multicast from one link to others.")
    privacy: Privacy = Field(default=Privacy(), description="What is kept of viewers, and for how long.")
    logs: Logs = Field(default=Logs(), description="What is written below STATE_DIR/logs.")
    locked: Annotated[tuple[Annotated[str, *_text(str)], ...], _empty_means(tuple)] = Field(
        default=(),
        max_length=1000,
        description="Keys (dotted, such as origins.media.from) that files merged later can't set.",
    )
