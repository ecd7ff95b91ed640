"""Reads JSON's values that came from a socket or a disk: each gives what was asked for, or raises StateError with one
clear line. No kind of desired state is known here."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address, ip_network

from accelerator.errors import AcceleratorError

_INTERFACE_NAME_MAX = 15


class StateError(AcceleratorError):
    """A desired state that makes no sense: nothing of it is taken over."""


def mapping(value: object, what: str, keys: set[str]) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise StateError("value", f"{what} is no mapping")
    unknown = sorted(str(key) for key in value.keys() - keys)
    if unknown:
        raise StateError("value", f"{what} has no key {unknown[0]!r:.60}")
    return value


def items(value: object, what: str) -> list[object]:
    if not isinstance(value, list):
        raise StateError("value", f"{what} is no list")
    return value


def text(given: Mapping[str, object], key: str, what: str) -> str:
    value = given.get(key)
    if not isinstance(value, str) or not 0 < len(value) <= 64 or not value.isprintable():
        raise StateError("value", f"{what}'s {key} is a text of 1 to 64 printable characters")
    return value


def interface(value: object, where: str) -> str:
    """What the kernel takes as a name (dev_valid_name)."""
    if (
        not isinstance(value, str)
        or not 0 < len(value) <= _INTERFACE_NAME_MAX
        or value in (".", "..")
        or any(each in "/:" or each.isspace() or not each.isprintable() for each in value)
    ):
        raise StateError("value", f"{where}: {value!r:.40} is no interface name")
    return value


def number(given: Mapping[str, object], key: str, usual: float, low: float, high: float, where: str) -> float:
    value = given.get(key, usual)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise StateError("value", f"{where}: {key} is a number from {low} to {high}")
    return value


def whole(given: Mapping[str, object], key: str, usual: int, low: int, high: int, where: str) -> int:
    value = number(given, key, usual, low, high, where)
    if not isinstance(value, int):
        raise StateError("value", f"{where}: {key} is a whole number")
    return value


def choice(given: Mapping[str, object], key: str, usual: str, known: tuple[str, ...], where: str) -> str:
    value = given.get(key, usual)
    if not isinstance(value, str) or value not in known:
        raise StateError("value", f"{where}: {key} is one of {', '.join(known)}")
    return value


def networks(value: object, where: str) -> tuple[str, ...] | None:
    if value is None:
        return None
    return tuple(network(each, where) for each in items(value, where))


def network(value: object, where: str) -> str:
    # A scope ("fe80::%eth0") may be any text, and would go on as it is into nft's.
    if not isinstance(value, str) or "%" in value:
        raise StateError("value", f"{where}: {value!r:.40} is no network")
    try:
        return str(ip_network(value))
    except ValueError:
        raise StateError("value", f"{where}: {value!r:.60} is no network") from None


def address(value: object, where: str) -> str:
    if not isinstance(value, str) or "%" in value:
        raise StateError("value", f"{where}: {value!r:.40} is no address")
    try:
        return str(ip_address(value))
    except ValueError:
        raise StateError("value", f"{where}: {value!r:.60} is no address") from None


def ports(value: object, where: str) -> tuple[int, ...]:
    listed = items(value, where)
    if any(isinstance(each, bool) or not isinstance(each, int) or not 0 < each < 65536 for each in listed):
        raise StateError("value", f"{where}: a port is a number from 1 to 65535")
    return tuple(each for each in listed if isinstance(each, int))
