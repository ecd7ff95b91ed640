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
        host = f"[{self.host}]" if ":" in self.host else self.host
        is_default = self.port == (443 if self.is_tls else 80)
        return (host if is_default else f"{host}:{self.port}").encode("ascii")

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority.decode()}"


@dataclass(frozen=True)
class OriginSettings:
    """How to reach an origin. `resolve`: addresses used in place of name resolution, allowed whatever they are."""

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
    idle_s: float = 60.0
    own_listeners: frozenset[tuple[str, int]] = field(default_factory=frozenset)

    def reaches_same(self, other: OriginSettings) -> bool:
        """Whether connections opened under `other` may be reused under these settings."""
        return (self.upstreams, self.resolve, self.ca_file, self.own_listeners) == (
            other.upstreams, other.resolve, other.ca_file, other.own_listeners)  # fmt: skip


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
    interim_skipped: int = 0
    failures: int = 0
    timeouts: int = 0
    excess_bytes: int = 0
    excess_connections: int = 0
    addresses_refused: int = 0
    resolve_failures: int = 0
    resolved_by_last_good: int = 0
