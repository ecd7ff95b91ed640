"""Policy keys of one WAN link, and of traffic of others that is marked on its way. No check across keys."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from accelerator.policy.relay_model import Dscp
from accelerator.policy.values import (
    InterfaceName,
    ListenAddress,
    Network,
    PinnedAddress,
    Section,
    empty_means,
    rate_between,
    whole_between,
)

LINKS_MAX = 16
MARKS_MAX = 64


class Shape(Section):
    ingress: bool = Field(
        default=False, description="All that comes in by the link, in queues of ours instead of the provider's."
    )
    lan: InterfaceName | None = Field(
        default=None, description="Instead of ingress: only what is forwarded from the link to this interface."
    )
    egress: bool = Field(default=False, description="All that goes out by the link.")


class Link(Section):
    interface: InterfaceName = Field(description="The interface that leads to it.")
    down: Annotated[int, *rate_between("64kbit/s", "400Gbit/s")] | None = Field(
        default=None, description="What the link carries towards the site; left out: not known."
    )
    video: Annotated[int, *rate_between("64kbit/s", "400Gbit/s")] | None = Field(
        default=None,
        description="The most that this box fetches with, headers of the network included; left out: no bound.",
    )
    up: Annotated[int, *rate_between("64kbit/s", "400Gbit/s")] | None = Field(
        default=None, description="What the link carries from the site; left out: not known."
    )
    shape: Shape = Field(default=Shape(), description="Queues that a box keeps which stands inline.")
    gateway: PinnedAddress | None = Field(
        default=None,
        description="The next router on it, for origins that name this link; left out: as the system's routes say.",
    )
    probe: ListenAddress | None = Field(
        default=None,
        description="ADDRESS:PORT behind it that takes TCP connections while the link works; left out: only the "
        "interface's state is watched.",
    )


class Mark(Section):
    nets: Annotated[tuple[Network, ...], empty_means(tuple)] = Field(
        default=(), max_length=256, description="Networks of the service, such as a meeting provider's."
    )
    marked: Dscp | None = Field(
        default=None, description="Only packets that have this mark already; left out: whatever they have."
    )
    protocol: Literal["udp", "tcp"] = Field(default="udp", description="What it speaks.")
    ports: Annotated[tuple[Annotated[int, *whole_between(1, 65535)], ...], empty_means(tuple)] = Field(
        default=(), max_length=64, description="The service's ports; left out: all."
    )
    dscp: Dscp = Field(default="EF", description="The mark that its packets get, both ways: AF41, EF, 0 to 63.")
