"""A policy's keys about multicast from one link to others: their types, defaults and descriptions. No check across keys
(multicast_rules.py)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from accelerator.policy import addresses
from accelerator.policy.values import (
    InterfaceName,
    MulticastNetwork,
    Name,
    Network,
    Section,
    Switch,
    empty_means,
    text_of,
    time_between,
    whole_between,
)


class MulticastProxy(Section):
    upstream: InterfaceName = Field(description="The interface towards the sources; no other proxy may have it.")
    downstream: tuple[InterfaceName, ...] = Field(
        min_length=1, max_length=31, description="The interfaces towards the viewers; each in one proxy only."
    )
    groups: Annotated[tuple[MulticastNetwork, ...], empty_means(tuple)] = Field(
        default=(), max_length=256, description="Which groups viewers may join; left out: any."
    )
    sources: Annotated[tuple[Network, ...], empty_means(tuple)] = Field(
        default=(), max_length=256, description="Whose packets viewers may have; left out: anybody's."
    )
    group_limit: Annotated[int, *whole_between(1, 65_536)] = Field(
        default=4096, description="Groups at once on one downstream interface, for each family."
    )
    group_limit_per_host: Annotated[int, *whole_between(1, 65_536)] = Field(
        default=1024, description="Of these, groups that one sender of reports was the first to ask for."
    )
    fast_leave: Switch = Field(
        default=False, description="Whoever leaves was the last: for links with one receiver, or a switch that says so."
    )


class MulticastRoute(Section):
    group: Annotated[str, *text_of(addresses.parse_group, example="239.9.0.1")] = Field(
        description="The group whose packets are sent on."
    )
    source: Annotated[str, *text_of(addresses.parse_pinned_address, example="10.1.0.7")] | None = Field(
        default=None, description="Whose packets; left out: anybody's."
    )
    from_: InterfaceName = Field(
        alias="from", description="The interface where they come in; they are asked for there."
    )
    to: tuple[InterfaceName, ...] = Field(
        min_length=1, max_length=31, description="The interfaces where they go out, whether anybody joins or not."
    )


class Querier(Section):
    mode: Literal["if-none", "always", "never"] = Field(
        default="if-none", description="Who asks on downstream links: us unless another does, always us, never us."
    )
    interval: Annotated[float, *time_between("1s", "1h")] = Field(
        default=125.0, description="Between two general queries."
    )
    robustness: Annotated[int, *whole_between(1, 7)] = Field(
        default=2, description="How many messages in a row may be all but one lost before a group ends."
    )
    last_member: Annotated[float, *time_between("100ms", "25s")] = Field(
        default=1.0, description="Between the queries for a last member; a group ends after robustness times that."
    )
    other_present_max: Annotated[float, *time_between("1m", "12h")] = Field(
        default=900.0, description="A query that would silence us for longer than this is dropped."
    )


class Multicast(Section):
    proxies: Annotated[Mapping[Name, MulticastProxy], empty_means(dict)] = Field(
        default={}, max_length=32, description="IGMP and MLD proxies (RFC 4605), by name; accelerator-netd runs them."
    )
    routes: Annotated[Mapping[Name, MulticastRoute], empty_means(dict)] = Field(
        default={}, max_length=256, description="What is sent on whoever joins, by name."
    )
    table: Annotated[int, *whole_between(0, 99_999_999)] = Field(
        default=0, description="The kernel's multicast table; 0: the usual one, which one program at a time can have."
    )
    querier: Querier = Field(default=Querier(), description="Who asks for members on downstream links.")
