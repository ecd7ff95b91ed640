"""Desired state: what services want of the kernel, as plain frozen values, and how it is written in JSON. It is read
from a socket and from disk, so every key and value is checked; what is carried out, and how, is elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any

from accelerator.errors import AcceleratorError

_QUERIER_MODES = ("if-none", "always", "never")
_INTERFACE_NAME_MAX = 15


class StateError(AcceleratorError):
    """A desired state that makes no sense: nothing of it is taken over."""


@dataclass(frozen=True, slots=True)
class MulticastProxy:
    """An RFC 4605 proxy for IGMP and MLD. `groups`, `sources`: what hosts may ask for, as networks; None: anything."""

    name: str
    upstream: str
    downstream: tuple[str, ...]
    querier: str = "if-none"
    interval_s: float = 125.0
    robustness: int = 2
    last_member_interval_s: float = 1.0
    fast_leave: bool = False
    groups: tuple[str, ...] | None = None
    sources: tuple[str, ...] | None = None
    n_groups_max: int = 4096
    version_min: int = 1


@dataclass(frozen=True, slots=True)
class DesiredState:
    """Of one service, whole."""

    multicast: tuple[MulticastProxy, ...] = ()


def decode(document: object) -> DesiredState:
    """From JSON's values. StateError names the first problem."""
    top = _mapping(document, "the state", {"multicast"})
    proxies = tuple(_proxy(each) for each in _list(top.get("multicast", []), "multicast"))
    check_interfaces(proxies)
    return DesiredState(proxies)


def encode(state: DesiredState) -> dict[str, Any]:
    """decode() of it gives the same state."""
    proxies = []
    for each in state.multicast:
        known = {name: getattr(each, name) for name in MulticastProxy.__slots__}
        proxies.append({name: list(value) if isinstance(value, tuple) else value for name, value in known.items()})
    return {"multicast": proxies}


def check_interfaces(proxies: tuple[MulticastProxy, ...]) -> None:
    """StateError where an interface has two places: of two proxies one would loop what the other sends, or the
    kernel, which has one route for a flow, could serve only one."""
    places: dict[str, str] = {}
    for proxy in proxies:
        for interface in (proxy.upstream, *proxy.downstream):
            if interface in places:
                raise StateError(
                    "interface", f"{interface} stands in proxy {places[interface]} and in proxy {proxy.name}"
                )
            places[interface] = proxy.name


def _proxy(document: object) -> MulticastProxy:
    known = set(MulticastProxy.__slots__)
    given = _mapping(document, "a multicast proxy", known)
    name = _text(given, "name")
    where = f"multicast proxy {name}"
    downstream = tuple(_interface(each, where) for each in _list(given.get("downstream", []), f"{where}: downstream"))
    if not downstream:
        raise StateError("value", f"{where}: downstream names no interface")
    querier = given.get("querier", "if-none")
    if querier not in _QUERIER_MODES:
        raise StateError("value", f"{where}: querier is one of {', '.join(_QUERIER_MODES)}")
    fast_leave = given.get("fast_leave", False)
    if not isinstance(fast_leave, bool):
        raise StateError("value", f"{where}: fast_leave is true or false")
    return MulticastProxy(
        name,
        _interface(given.get("upstream"), where),
        downstream,
        querier,
        _number(given, "interval_s", 125.0, 1, 3600, where),
        int(_number(given, "robustness", 2, 1, 7, where)),
        _number(given, "last_member_interval_s", 1.0, 0.1, 25, where),
        fast_leave,
        _networks(given.get("groups"), where),
        _networks(given.get("sources"), where),
        int(_number(given, "n_groups_max", 4096, 1, 65536, where)),
        int(_number(given, "version_min", 1, 1, 3, where)),
    )


def _mapping(value: object, what: str, keys: set[str]) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise StateError("value", f"{what} is no mapping")
    unknown = sorted(str(key) for key in value.keys() - keys)
    if unknown:
        raise StateError("value", f"{what} has no key {unknown[0]!r:.60}")
    return value


def _list(value: object, what: str) -> list[object]:
    if not isinstance(value, list):
        raise StateError("value", f"{what} is no list")
    return value


def _text(given: Mapping[str, object], key: str) -> str:
    value = given.get(key)
    if not isinstance(value, str) or not 0 < len(value) <= 64:
        raise StateError("value", f"a multicast proxy's {key} is a text of 1 to 64 characters")
    return value


def _interface(value: object, where: str) -> str:
    """What the kernel takes as a name (dev_valid_name)."""
    if (
        not isinstance(value, str)
        or not 0 < len(value) <= _INTERFACE_NAME_MAX
        or value in (".", "..")
        or any(each in "/:" or each.isspace() or not each.isprintable() for each in value)
    ):
        raise StateError("value", f"{where}: {value!r:.40} is no interface name")
    return value


def _number(given: Mapping[str, object], key: str, usual: float, low: float, high: float, where: str) -> float:
    value = given.get(key, usual)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise StateError("value", f"{where}: {key} is a number from {low} to {high}")
    return value


def _networks(value: object, where: str) -> tuple[str, ...] | None:
    if value is None:
        return None
    try:
        return tuple(str(ip_network(each)) for each in _list(value, where) if isinstance(each, str))
    except ValueError as error:
        raise StateError("value", f"{where}: {error}") from None
