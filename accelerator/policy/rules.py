"""What keys of a policy mean together: references, addresses and routes taken twice, loops, locks. Parses no value."""

from __future__ import annotations

import os.path
from collections.abc import Mapping
from typing import Final

from accelerator.errors import Problem
from accelerator.policy.addresses import Address, literal
from accelerator.policy.compile import ROUTES_MAX, n_routes
from accelerator.policy.credentials import problems_of
from accelerator.policy.link_rules import link_findings
from accelerator.policy.model import Listener, Origin, Policy
from accelerator.policy.multicast_rules import multicast_findings
from accelerator.policy.relay_rules import relay_findings, udpxy_findings, window_findings
from accelerator.policy.shape import keys_of, section_at
from accelerator.policy.steering_rules import steering_findings
from accelerator.policy.tree import Map, Mark, Path, key_mark, value_mark, walk
from accelerator.policy.units import nearest, quoted

_PLAIN_NAME: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")

_EVERY_ADDRESS: Final = ("0.0.0.0", "::")


def dotted(path: Path) -> str:
    """`origins.media.from`: list indices left out (the place tells), odd names in quotes."""
    return ".".join(
        step if set(step) <= _PLAIN_NAME and len(step) <= 64 else quoted(step) for step in path if isinstance(step, str)
    )


# Percent of the disk. What is pinned in an evicted segment is written anew: at three quarters a byte costs three more.
PINNED_MOST = 75


class Rules:
    """Made before wrong values are taken out of the tree: a name that is written counts even in a wrong section."""

    def __init__(self, root: Map, problems: list[Problem]) -> None:
        self._root = root
        self._problems = problems
        self._zones = self._names("zones")
        self._classes = self._names("classes")
        collections = ("zones", "links", "marks", "classes", "listen", "origins", "relays")
        self._collections = {name: self._names(name) for name in collections}

    def check(self, policy: Policy) -> None:
        """Every rule, on a policy from which wrong values may have been taken out."""
        self._listeners(policy)
        self._zone_nets(policy)
        self._origins(policy)
        self._pins(policy)
        for place, message, is_warning in multicast_findings(policy):
            (self._warn if is_warning else self._error)(self._value("multicast", *place), message)
        for place, message, is_warning in link_findings(policy):
            (self._warn if is_warning else self._error)(self._value(*place), message)
        for place, message, is_warning in steering_findings(policy):
            (self._warn if is_warning else self._error)(self._value("steering", *place), message)
        for below, message, is_warning in relay_findings(policy):
            (self._warn if is_warning else self._error)(self._value("relays", *below), message)
        for below, message, is_warning in udpxy_findings(policy):
            mark = self._value("udpxy", *below) if below else key_mark(self._root, ("udpxy",))
            (self._warn if is_warning else self._error)(mark, message)
        for finding in window_findings(policy):
            self._error(self._value("cache", "memory"), finding.message)
        self._privacy(policy)
        self._locks(policy)

    def _names(self, section: str) -> list[str]:
        node = next((node for _, node in walk(self._root, (section,))), None)
        return list(node.entries) if isinstance(node, Map) else []

    def _error(self, mark: Mark, message: str) -> None:
        self._problems.append(Problem(*mark, message))

    def _warn(self, mark: Mark, message: str) -> None:
        self._problems.append(Problem(*mark, message, is_warning=True))

    def _value(self, *path: str | int) -> Mark:
        return value_mark(self._root, path)

    def _listeners(self, policy: Policy) -> None:
        taken: list[tuple[Address, str, Mark]] = []
        places: list[tuple[Address, Path]] = [(row.address, ("listen", name)) for name, row in policy.listen.items()]
        if policy.admin is not None:
            places.append((policy.admin.address, ("admin",)))
        for address, path in places:
            mark = self._value(*path, "address")
            for other, name, place in taken:
                if _overlap(address, other):
                    self._error(mark, f"{dotted(path)}.address: {address} is already taken by {name} ({place})")
                    break
            taken.append((address, dotted(path), mark))
        if policy.admin is not None and not policy.admin.address.is_loopback:
            readers = "" if policy.admin.token == "always" else "whoever reaches it sees names of origins and videos, "
            self._warn(
                self._value("admin", "address"),
                f"admin.address: {policy.admin.address} is no loopback address: {readers}the admin token crosses the "
                "network unencrypted",
            )
        for name, listener in policy.listen.items():
            for index, zone in enumerate(listener.zones):
                if zone not in self._zones:
                    mark = self._value("listen", name, "zones", index)
                    self._error(mark, f"listen.{name}.zones: unknown zone '{zone}'{nearest(zone, self._zones)}")
            self._tls(name, listener)
        if not self._collections["listen"]:
            self._warn(key_mark(self._root, ("listen",)), "no listeners: nobody can connect")

    def _tls(self, name: str, listener: Listener) -> None:
        path = ("listen", name)
        for index, certificate in enumerate(listener.tls):
            if certificate in listener.tls[:index]:
                self._error(self._value(*path, "tls", index), f"listen.{name}.tls: '{certificate}' stands there twice")
        if listener.legacy:
            what = "TLS 1.0, 1.1 and suites without forward secrecy are taken: only for players that know nothing else"
            if not listener.tls:
                what = "has no effect without tls"
            self._warn(self._value(*path, "legacy"), f"listen.{name}.legacy: {what}")

    def _zone_nets(self, policy: Policy) -> None:
        first: dict[str, str] = {}
        for name, zone in policy.zones.items():
            for index, network in enumerate(zone.nets):
                owner = first.setdefault(str(network), name)
                if owner != name:
                    self._warn(
                        self._value("zones", name, "nets", index),
                        f"zones.{name}.nets: {network} is in zone '{owner}' already, which wins",
                    )

    def _pins(self, policy: Policy) -> None:
        pinned = {name: row for name, row in policy.classes.items() if row.pin}
        for name, row in pinned.items():
            mark = self._value("classes", name, "pin")
            if row.store != "disk" or policy.cache.disk is None:
                self._error(mark, f"classes.{name}.pin: pinned means on the disk: needs store: disk and cache.disk")
        total = sum(row.quota for row in pinned.values())
        if total > PINNED_MOST:
            last = list(pinned)[-1]
            self._error(
                self._value("classes", last, "pin"),
                f"classes.{last}.pin: pinned classes have quotas of {total}% of the disk together, the most is"
                f" {PINNED_MOST}%: the rest has to turn over",
            )

    def _origins(self, policy: Policy) -> None:
        if not self._collections["origins"]:
            self._warn(key_mark(self._root, ("origins",)), "no origins: every request is answered 421")
        own = _own_addresses(policy)
        for name, origin in policy.origins.items():
            if origin.class_ is not None and origin.class_ not in self._classes:
                hint = nearest(origin.class_, self._classes)
                self._error(
                    self._value("origins", name, "class"),
                    f"origins.{name}.class: unknown class '{origin.class_}'{hint}",
                )
            self._loops(name, origin, own)
            self._switches(name, origin)
            self._credential(name, origin)
        if n_routes(policy) > ROUTES_MAX:
            self._error(key_mark(self._root, ("origins",)), f"origins: more than {ROUTES_MAX:,} pairs of host and path")
            return
        self._routes(policy)

    def _routes(self, policy: Policy) -> None:
        owners: dict[tuple[str, str], tuple[str, int]] = {}
        for name, origin in policy.origins.items():
            for host_index, host in enumerate(origin.hosts):
                for path in origin.paths:
                    owner, owner_index = owners.setdefault((host, path), (name, host_index))
                    if owner == name:
                        continue
                    place = self._value("origins", owner, "hosts", owner_index)
                    what = f"host '{host}' with path '{path}' belongs to origin '{owner}' already ({place})"
                    self._error(self._value("origins", name, "hosts", host_index), f"origins.{name}: {what}")

    def _loops(self, name: str, origin: Origin, own: Mapping[tuple[str, int], str]) -> None:
        for index, url in enumerate(origin.from_):
            if _own(own, url.host, url.port):
                self._loop(("origins", name, "from", index), _own(own, url.host, url.port))
        if origin.via is not None and _own(own, origin.via.host, origin.via.port):
            self._loop(("origins", name, "via"), _own(own, origin.via.host, origin.via.port))
        connected_to = origin.from_ if origin.via is None else (origin.via,)
        ports = {url.port for url in connected_to if not literal(url.host)}
        for index, pin in enumerate(origin.resolve):
            for port in sorted(ports):
                if _own(own, pin, port):
                    self._loop(("origins", name, "resolve", index), _own(own, pin, port))

    def _loop(self, path: Path, listener: str) -> None:
        self._error(
            value_mark(self._root, path), f"{dotted(path)}: this is our own {listener}: a request would go in a circle"
        )

    def _switches(self, name: str, origin: Origin) -> None:
        path = ("origins", name)
        if origin.override_private:
            what = (
                "stores playlists and segments that the origin calls no-store or private: any viewer may be given them"
                if origin.profile == "media"
                else "has no effect with profile generic"
            )
            self._warn(self._value(*path, "override_private"), f"origins.{name}.override_private: {what}")
        if origin.forward and origin.profile == "generic":
            self._warn(
                self._value(*path, "forward"),
                f"origins.{name}.forward: has no effect with profile generic, which forwards every field",
            )
        key = "from" if origin.via is None else "via"
        connected_to = origin.from_ if origin.via is None else (origin.via,)
        if origin.resolve and all(literal(url.host) for url in connected_to):
            self._warn(self._value(*path, "resolve"), f"origins.{name}.resolve: has no effect without a name in {key}")
        if origin.ca is not None and not os.path.isfile(origin.ca.path):
            self._warn(self._value(*path, "ca"), f"origins.{name}.ca: there is no file {quoted(origin.ca.path)} here")
        for key, value in (("ca", origin.ca), ("client_certificate", origin.client_certificate)):
            if value is not None and all(url.scheme == "http" for url in origin.from_):
                what = f"origins.{name}.{key}: has no effect without an https URL in from"
                self._warn(self._value(*path, key), what)
        if origin.via_credential is not None and origin.via is None:
            what = f"origins.{name}.via_credential: has no effect without via"
            self._warn(self._value(*path, "via_credential"), what)
        has_http = any(url.scheme == "http" for url in origin.from_)
        if origin.upstream_host == "viewer" and (len(origin.hosts) > 1 or origin.hosts[0].startswith("*")):
            what = "hosts are not told apart in what is stored: viewer needs one exact host; write an origin for each"
            self._error(self._value(*path, "upstream_host"), f"origins.{name}.upstream_host: {what}")
        if origin.via is not None and origin.upstream_host == "viewer" and has_http:
            what = "a proxy sends http requests where their Host says, so the viewer's can't be in them"
            self._error(self._value(*path, "upstream_host"), f"origins.{name}.upstream_host: {what}")

    def _credential(self, name: str, origin: Origin) -> None:
        for below, message, is_warning in problems_of(origin.credential) if origin.credential is not None else ():
            path = ("origins", name, "credential", *below)
            (self._warn if is_warning else self._error)(self._value(*path), f"{dotted(path)}: {message}")

    def _privacy(self, policy: Policy) -> None:
        if policy.privacy.viewer != "zone" and policy.logs.security.retention > policy.privacy.retention:
            self._warn(
                self._value("privacy", "viewer"),
                "privacy.viewer: the security log keeps lines longer than privacy.retention, so it names zones only",
            )

    def _locks(self, policy: Policy) -> None:
        for index, lock in enumerate(policy.locked):
            steps = lock.split(".")
            for position, step in enumerate(steps):
                above = tuple(steps[:position])
                section = section_at(above)
                if section is not None and step in keys_of(section):
                    continue
                known = list(keys_of(section)) if section is not None else self._collections.get(".".join(above))
                mark = self._value("locked", index)
                if section is None and known is not None and step:
                    if step not in known:
                        self._warn(mark, f"locked: {quoted(lock)} names nothing that is there{nearest(step, known)}")
                    continue
                hint = nearest(step, known) if known is not None else ""
                self._error(mark, f"locked: {quoted(lock)} is no key of a policy{hint}")
                break


def _overlap(one: Address, other: Address) -> bool:
    if one.port != other.port or one.port == 0 or (":" in one.host) != (":" in other.host):
        return False  # the families are apart, as asyncio sets IPV6_V6ONLY
    # Linux refuses 127.0.0.1:80 beside 0.0.0.0:80 (EADDRINUSE).
    return one.host == other.host or one.host in _EVERY_ADDRESS or other.host in _EVERY_ADDRESS


def _own_addresses(policy: Policy) -> dict[tuple[str, int], str]:
    """(canonical address, port) -> what of ours listens there; "loopback" stands for each loopback address."""
    own: dict[tuple[str, int], str] = {}
    rows = [(f"listen.{name}", row.address) for name, row in policy.listen.items()]
    if policy.admin is not None:
        rows.append(("admin", policy.admin.address))
    for name, address in rows:
        own.setdefault((address.host, address.port), f"{name} ({address})")
        if address.host in _EVERY_ADDRESS:
            own.setdefault(("loopback", address.port), f"{name} ({address})")
    return own


def _own(own: Mapping[tuple[str, int], str], host: str, port: int) -> str:
    """What of ours a host (canonical literal or name) and port are for sure, without asking DNS; empty if nothing."""
    if host == "localhost" or host.endswith(".localhost"):  # RFC 6761 section 6.3
        hosts = ["127.0.0.1", "::1", "loopback"]
    else:
        hosts = [host, "loopback"] if host == "::1" or (host.startswith("127.") and literal(host)) else [host]
    return next((own[host, port] for host in hosts if (host, port) in own), "")
