"""What `steering` means together with the rest of a policy. Pure; how values are written is steering_addresses.py."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from accelerator.policy.model import Policy
from accelerator.policy.units import nearest


class Finding(NamedTuple):
    """`place`: the path from `steering` on."""

    place: tuple[str | int, ...]
    message: str
    is_warning: bool = False


def steering_findings(policy: Policy) -> Iterator[Finding]:
    steering = policy.steering
    owners = {host: name for name, origin in policy.origins.items() for host in origin.hosts}
    for index, host in enumerate(steering.hosts):
        if host in owners:
            yield Finding(
                ("hosts", index),
                f"steering.hosts: {host} is a host of origins.{owners[host]} already: it can't be both"
            )
    if steering.prefix and "*" in owners and not steering.hosts:
        yield Finding(
            ("prefix",),
            f"steering.prefix: origins.{owners['*']} has every host, so steering.hosts must say what the box is called",
        )
    yield from _proxy(policy)
    yield from _intercept(policy)
    yield from _document(policy)


def _proxy(policy: Policy) -> Iterator[Finding]:
    proxy = policy.steering.proxy
    if proxy is None:
        return
    for index, zone in enumerate(proxy.zones):
        if zone not in policy.zones:
            yield Finding(
                ("proxy", "zones", index),
                f"steering.proxy.zones: unknown zone '{zone}'{nearest(zone, list(policy.zones))}"
            )
    plain = [row.address.port for row in policy.listen.values() if not row.tls]
    if proxy.address.port not in plain and 0 not in plain:
        yield Finding(
            ("proxy", "address"),
            f"steering.proxy.address: no listener without TLS has port {proxy.address.port}: browsers would go DIRECT",
            is_warning=True,
        )


def _intercept(policy: Policy) -> Iterator[Finding]:
    intercept = policy.steering.intercept
    if intercept is None:
        return
    for index, net in enumerate(intercept.destinations):
        if net.prefixlen < (8 if net.version == 4 else 32):
            yield Finding(
                ("intercept", "destinations", index),
                f"steering.intercept.destinations: {net} is far more than video servers: their networks only",
            )
    for name, row in policy.listen.items():
        if row.address.port == intercept.port:
            yield Finding(("intercept", "port"), f"steering.intercept.port: listen.{name} has port {intercept.port}")


def _document(policy: Policy) -> Iterator[Finding]:
    document = policy.steering.document
    if document is None:
        return
    if (document.clone_of is None) != (document.host is None):
        missing = "host" if document.host is None else "clone_of"
        yield Finding(("document",), f"steering.document: clone_of and host belong together, and {missing} is missing")
    if document.clone_of is not None and document.clone_of == document.pathways[0]:
        yield Finding(("document", "clone_of"), "steering.document.clone_of: the first pathway can't be made of itself")
    seen: set[str] = set()
    for index, name in enumerate(document.pathways):
        if name in seen:
            yield Finding(("document", "pathways", index), f"steering.document.pathways: {name} stands there twice")
        seen.add(name)
