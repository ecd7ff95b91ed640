"""What an origin is to the upstream client: its upstreams, its limits, its counters. Plain values only, no I/O here."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Upstream:
    """One server of an origin. `host` is a name or an address literal, an IPv6 one without brackets."""

    scheme: str
    host: str
    port: int

    @property
    def is_tls(self) -> bool:
        return self.scheme == "https"

    @property
    def authority(self) -> bytes:
        """Value of Host: the scheme's default port is left out (RFC 9110 section 4.2.3)."""
        is_default = self.port == (443 if self.is_tls else 80)
        return self.authority_with_port.rpartition(b":")[0] if is_default else self.authority_with_port

    @property
    def authority_with_port(self) -> bytes:
        """Target of CONNECT (RFC 9110 section 9.3.6)."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}".encode("ascii")

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority.decode()}"


@dataclass(frozen=True)
class ParentProxy:
    """The company's HTTP proxy on the way to an origin. `authorization`: value of Proxy-Authorization, a secret."""

    host: str
    port: int
    authorization: bytes | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return f"proxy http://[{self.host}]:{self.port}" if ":" in self.host else f"proxy http://{self.host}:{self.port}"


@dataclass(frozen=True)
class ClientCertificate:
    """PEM files of the certificate (chain) that we show origins, and of its key."""

    certificate_file: str
    key_file: str


@dataclass(frozen=True)
class UpstreamEvent:
    """Something that an operator should hear once. `kind`: dns-failed, dns-returned, breaker-open, breaker-closed."""

    kind: str
    subject: str
    message: str


# Answers that say that the upstream as a whole can't: they count as failures of its health. 500 is added for media:
# a portal's 500 is often one page's fault.
GATEWAY_STATUSES = frozenset({502, 503, 504})


@dataclass(frozen=True)
class OriginSettings:
    """How to reach an origin. `resolve`: addresses used in place of resolving the name that is connected to (with
    `via` the proxy's), allowed whatever they are. `resolve_grace_s`: how long the last answer of DNS serves without it.
    """

    name: str
    upstreams: tuple[Upstream, ...]
    resolve: tuple[str, ...] = ()
    ca_file: str | None = None
    connections: int = 64
    # A collapsed key queues once, so this many distinct misses wait on one origin before viewers hear 503.
    queue_limit: int = 10_000
    connect_timeout_s: float = 3.0
    head_timeout_s: float = 30.0
    body_timeout_s: float = 30.0
    stream_timeout_s: float = 3600.0
    streams: int = 10_000
    # A head that is awaited for so long is a long poll's, and leaves `connections`; None: never.
    long_poll_s: float | None = None
    idle_s: float = 60.0
    own_listeners: frozenset[tuple[str, int]] = field(default_factory=frozenset)
    via: ParentProxy | None = None
    client_certificate: ClientCertificate | None = None
    resolve_grace_s: float = 24 * 3600.0
    failure_statuses: frozenset[int] = GATEWAY_STATUSES

    def reaches_same(self, other: OriginSettings) -> bool:
        """Whether connections opened under `other` may be reused under these settings."""
        return self._way() == other._way()

    def _way(self) -> tuple[object, ...]:
        return (
            self.upstreams, self.resolve, self.ca_file, self.own_listeners, self.via, self.client_certificate,
        )  # fmt: skip

    def proxy_for(self, upstream: Upstream) -> ParentProxy | None:
        """The proxy that reads our requests to `upstream` (absolute-form); None: direct, or within a tunnel."""
        return None if upstream.is_tls else self.via


@dataclass
class OriginCounters:
    """Plain counts since start, never reset; every way to lose something has a name."""

    requests: int = 0
    queued: int = 0
    queue_refused: int = 0
    cancelled: int = 0
    connections_opened: int = 0
    connections_reused: int = 0
    connect_failures: int = 0
    retries: int = 0
    failovers: int = 0
    responses: int = 0
    interim_received: int = 0
    streams: int = 0
    streams_refused: int = 0
    failures: int = 0
    timeouts: int = 0
    excess_bytes: int = 0
    excess_connections: int = 0
    addresses_refused: int = 0
    resolve_failures: int = 0
    resolved_by_last_good: int = 0
    breaker_opened: int = 0
    breaker_refused: int = 0
