"""What of membership can be set, with the defaults of RFC 9776 section 8 (RFC 9777 section 9 has the same)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from accelerator.protocols.membership.messages import SSM_RANGES, Prefix, is_within

ROBUSTNESS_MAX = 7
# What a stranger's query may make us wait for is bounded: its code can say 31,744 s.
INTERVAL_MAX_S = 3600.0
# So can the time to answer within (3,174 s, MLDv2 8,387 s). Who answers earlier than it must breaks nothing.
RESPONSE_MAX_S = 60.0


@dataclass(frozen=True, slots=True)
class Timing:
    """Times of the router side. `late_s`: how long after a timer's end a report still counts, for hosts that answer
    at the last moment of the response time and packets that wait in a queue."""

    robustness: int = 2
    interval_s: float = 125.0
    response_s: float = 10.0
    last_member_interval_s: float = 1.0
    last_member_count: int | None = None  # None: the robustness
    late_s: float = 0.5

    @property
    def startup_interval_s(self) -> float:
        return self.interval_s / 4

    @property
    def n_last_member_queries(self) -> int:
        return self.last_member_count or self.robustness

    @property
    def last_member_time_s(self) -> float:
        """RFC 9776 section 8.8."""
        return self.last_member_interval_s * self.n_last_member_queries

    @property
    def membership_s(self) -> float:
        """RFC 9776 section 8.4."""
        return self.robustness * self.interval_s + self.response_s + self.late_s

    @property
    def other_querier_s(self) -> float:
        """RFC 9776 section 8.5."""
        return self.robustness * self.interval_s + self.response_s / 2

    @property
    def older_version_s(self) -> float:
        """RFC 9776 sections 8.12 and 8.13."""
        return self.robustness * self.interval_s + self.response_s


class QuerierMode(Enum):
    """`IF_NONE`: take part in the election, but leave the office to a querier that was there first. `ALWAYS`: query and
    forward whoever else does. `NEVER`: don't query, and forward all the same: who sets this knows who queries."""

    IF_NONE = "if-none"
    ALWAYS = "always"
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class Admission:
    """Which groups and sources may be asked for on an interface, and how many. None: any. `hosts_refused`: who gets
    none, IPv4 only, since MLD's senders are link-local."""

    groups: tuple[Prefix, ...] | None = None
    sources: tuple[Prefix, ...] | None = None
    ssm: tuple[Prefix, ...] = SSM_RANGES
    n_groups_max: int = 4096
    n_groups_host_max: int = 1024  # that one sender was the first to ask for
    n_sources_max: int = 512  # of one group
    n_sources_all_max: int = 8192  # of all groups: each is a route in the kernel
    hosts_refused: tuple[Prefix, ...] = ()

    def allows_group(self, group: bytes) -> bool:
        return self.groups is None or is_within(group, self.groups)

    def allows_source(self, source: bytes) -> bool:
        return self.sources is None or is_within(source, self.sources)

    def is_ssm(self, group: bytes) -> bool:
        return is_within(group, self.ssm)


@dataclass(frozen=True, slots=True)
class RouterSettings:
    timing: Timing = Timing()
    querier: QuerierMode = QuerierMode.IF_NONE
    admission: Admission = Admission()
    other_present_max_s: float = 900.0  # a query that would silence us for longer is dropped
    has_fast_leave: bool = False  # for links with one host, or whose switch sends the leave of the last one only


@dataclass(frozen=True, slots=True)
class HostSettings:
    """Of the host side. `version_min`: older queriers don't make us speak an older version than this, since an old
    query, or a forged one, takes every source filter away for minutes."""

    robustness: int = 2
    unsolicited_interval_s: float = 1.0  # RFC 9776 section 8.11
    unsolicited_interval_v2_s: float = 10.0  # RFC 2236 section 8.10
    older_querier_s: float = 260.0  # RFC 9776 section 8.12, of queriers that tell no interval
    version_min: int = 1
