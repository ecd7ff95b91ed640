"""Policy keys of one WAN link: how content comes to the site, how much of it may be video. No check across keys."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from accelerator.policy.values import (
    InterfaceName,
    ListenAddress,
    PinnedAddress,
    Section,
    rate_between,
)

LINKS_MAX = 16


class Link(Section):
    interface: InterfaceName = Field(description="The interface that leads to it.")
    down: Annotated[int, *rate_between("64kbit/s", "400Gbit/s")] | None = Field(
        default=None, description="What the link carries towards the site; left out: not known."
    )
    video: Annotated[int, *rate_between("64kbit/s", "400Gbit/s")] | None = Field(
        default=None,
        description="The most that this box fetches with, headers of the network included; left out: no bound.",
    )
    gateway: PinnedAddress | None = Field(
        default=None,
        description="The next router on it, for origins that name this link; left out: as the system's routes say.",
    )
    probe: ListenAddress | None = Field(
        default=None,
        description="ADDRESS:PORT behind it that takes TCP connections while the link works; left out: only the "
        "interface's state is watched.",
    )
