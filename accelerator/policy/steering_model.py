"""The policy's `steering` as typed, frozen values: how viewers come to the box. No YAML, no check across keys."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from accelerator.policy import steering_addresses
from accelerator.policy.steering_addresses import Authority
from accelerator.policy.values import (
    InterfaceName,
    Name,
    Network,
    Section,
    Switch,
    empty_means,
    text_of,
    time_between,
    whole_between,
)

OwnHost = Annotated[str, *text_of(steering_addresses.parse_own_host, example="box.lyon.corp.example")]
HostPort = Annotated[
    Authority, *text_of(steering_addresses.parse_authority, r"^.+:[0-9]{1,5}$", "box.lyon.corp.example:8080")
]
ReloadUrl = Annotated[
    str, *text_of(steering_addresses.parse_reload_url, r"^https?://.+$", "https://library.corp.example/steer.json")
]


class ExplicitProxy(Section):
    address: HostPort = Field(description="HOST:PORT by which viewers reach a listener of this box, for /proxy.pac.")
    zones: Annotated[tuple[Name, ...], empty_means(tuple)] = Field(
        default=(), max_length=64, description="Only browsers in these zones are sent here; left out: all."
    )


class SteeringDocument(Section):
    pathways: tuple[Name, ...] = Field(
        min_length=1, max_length=16, description="Pathways by their names in manifests, the preferred one first."
    )
    ttl: Annotated[float, *time_between("1s", "1h")] = Field(
        default=60.0, description="Players ask again after this; a new order is known to all of them by then."
    )
    clone_of: Name | None = Field(
        default=None, description="The first pathway is made of this one of the manifest's, with `host` in its URLs."
    )
    host: OwnHost | None = Field(default=None, description="The host that viewers know this box's origins by.")
    reload: ReloadUrl | None = Field(
        default=None, description="Where players ask again; left out: where they got it."
    )


class Intercept(Section):
    interfaces: tuple[InterfaceName, ...] = Field(
        min_length=1, max_length=32, description="Where viewers' packets come in."
    )
    destinations: tuple[Network, ...] = Field(
        min_length=1, max_length=256, description="Networks of video servers: only what goes there is taken."
    )
    ports: Annotated[tuple[Annotated[int, *whole_between(1, 65_535)], ...], empty_means(lambda: (80,))] = Field(
        default=(80,), min_length=1, max_length=16, description="Ports of plain HTTP."
    )
    port: Annotated[int, *whole_between(1024, 65_535)] = Field(
        default=8079, description="Where the box takes them; nobody connects there by himself."
    )


class Steering(Section):
    hosts: Annotated[tuple[OwnHost, ...], empty_means(tuple)] = Field(
        default=(), max_length=64, description="What viewers call the box itself: names or IP addresses."
    )
    prefix: Switch = Field(
        default=False, description="http://BOX/ORIGIN/path is what http://HOST/path of that origin is."
    )
    proxy: ExplicitProxy | None = Field(
        default=None, description="Browsers use the box as their proxy, by /proxy.pac; left out: there is none."
    )
    connect: Annotated[tuple[HostPort, ...], empty_means(tuple)] = Field(
        default=(), max_length=256, description="Where CONNECT may lead, unread; left out: nowhere, and it gets 501."
    )
    intercept: Intercept | None = Field(
        default=None, description="Plain HTTP that passes the box is taken, by accelerator-netd; left out: none."
    )
    document: SteeringDocument | None = Field(
        default=None, description="Content steering for HLS and DASH players; left out: there is none."
    )
