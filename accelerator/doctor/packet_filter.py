"""What a host's own nft rules do to one packet that comes in or passes, as far as can be told from outside. Pure.

Three-valued: a match on what isn't known of the packet (a mark, a set that changes) may or may not hold, so the answer
is the set of verdicts that are possible. Only where that is {"drop"} may somebody be told that a packet is dropped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any

_DEPTH_MAX = 16
_FAMILIES = ("ip", "ip6", "inet")
_ACCEPT, _DROP, _GO_ON, _RETURN = "accept", "drop", "", "return"
_PROTOCOLS = {"icmp": 1, "igmp": 2, "tcp": 6, "udp": 17, "ipv6-icmp": 58, "icmpv6": 58}


@dataclass(frozen=True, slots=True)
class Packet:
    """A first packet of its kind, as it reaches the hook. `source`, `interface_out` "": not known. Port 0: it has none;
    None: not known."""

    interface: str
    destination: str
    protocol: str  # igmp, ipv6-icmp, udp, tcp
    port: int | None = 0
    source: str = ""
    interface_out: str = ""
    icmp_type: str = ""  # as nft prints it


@dataclass(frozen=True, slots=True)
class Dropper:
    """The base chain that surely drops the packet."""

    family: str
    table: str
    chain: str


def dropper_of(ruleset: Mapping[str, Any], packet: Packet, hook: str = "input") -> Dropper | None:
    """`ruleset`: what `nft -j list ruleset` prints. None: nothing drops it for sure."""
    tables = _Ruleset(ruleset)
    for chain in tables.base_chains(hook):
        key = (chain["family"], chain["table"], chain["name"])
        outcomes = tables.run(key, packet, 0)
        verdicts = {each if each in (_ACCEPT, _DROP) else chain.get("policy", _ACCEPT) for each in outcomes}
        if verdicts == {_DROP}:
            return Dropper(*key)
    return None


class _Ruleset:
    def __init__(self, ruleset: Mapping[str, Any]) -> None:
        self.chains: list[Mapping[str, Any]] = []
        self.rules: dict[tuple[str, str, str], list[Sequence[Any]]] = {}
        self.sets: dict[tuple[str, str, str], Sequence[Any]] = {}
        for item in ruleset.get("nftables", ()):
            if "chain" in item:
                self.chains.append(item["chain"])
            elif "rule" in item:
                rule = item["rule"]
                self.rules.setdefault((rule["family"], rule["table"], rule["chain"]), []).append(rule.get("expr", ()))
            for kind in ("set", "map"):
                if kind in item:
                    named = item[kind]
                    self.sets[named["family"], named["table"], named["name"]] = named.get("elem", ())

    def base_chains(self, hook: str) -> Iterator[Mapping[str, Any]]:
        for chain in self.chains:
            if chain.get("hook") == hook and chain.get("type") == "filter" and chain["family"] in _FAMILIES:
                yield chain

    def run(self, key: tuple[str, str, str], packet: Packet, depth: int) -> set[str]:
        """What may come out of a chain; "" stands for its end."""
        outcomes: set[str] = set()
        if key[0] != "inet" and (":" in packet.destination) != (key[0] == "ip6"):
            return {_ACCEPT}
        for expression in self.rules.get(key, ()):
            holds, verdicts = self._rule(key, expression, packet, depth)
            if holds is False:
                continue
            ending = verdicts - {_GO_ON}
            outcomes |= ending
            if holds and _GO_ON not in verdicts:
                break
        else:
            outcomes.add(_GO_ON)
        return {_GO_ON if each == _RETURN else each for each in outcomes} if depth else outcomes

    def _rule(
        self, key: tuple[str, str, str], expression: Sequence[Any], packet: Packet, depth: int
    ) -> tuple[bool | None, set[str]]:
        holds: bool | None = True
        for statement in expression:
            name = next(iter(statement), "")
            if name == "match":
                found = self._matches(key, statement["match"], packet)
                if found is False:
                    return False, set()
                holds = holds if found else None
            elif name in ("accept", "drop", "return"):
                return holds, {name}
            elif name in ("reject", "queue"):  # a queue's reader decides: it may let the packet go on
                return holds, {_DROP} if name == "reject" else {_DROP, _ACCEPT}
            elif name in ("jump", "goto"):
                target = (key[0], key[1], statement[name]["target"])
                if depth >= _DEPTH_MAX:
                    return None, {_ACCEPT, _DROP}
                found_there = self.run(target, packet, depth + 1)
                if name == "goto":
                    found_there = {_RETURN if each == _GO_ON else each for each in found_there}
                return holds, found_there
            elif name == "vmap":
                return None, self._map_verdicts(key, statement["vmap"], packet)
            elif name in ("xt", "limit", "quota", "connlimit", "synproxy"):
                holds = None
        return holds, {_GO_ON}

    def _map_verdicts(self, key: tuple[str, str, str], vmap: Mapping[str, Any], packet: Packet) -> set[str]:
        value = _value_of(vmap.get("key"), packet)
        rows = vmap.get("data")
        rows = self.sets.get((key[0], key[1], rows[1:]), ()) if isinstance(rows, str) else (rows or {}).get("set", ())
        verdicts: set[str] = set()
        for row in rows:
            member, verdict = row
            found = None if value is None else self._is_in(key, value, member)
            name = next(iter(verdict), "")
            outcome = {name} if name in ("accept", "drop", "return") else {_ACCEPT, _DROP}
            if found:
                return outcome
            if found is None:
                verdicts |= outcome
        return verdicts | {_GO_ON}

    def _matches(self, key: tuple[str, str, str], match: Mapping[str, Any], packet: Packet) -> bool | None:
        value = _value_of(match.get("left"), packet)
        if not value:  # not known; or the packet has no such header, and no match on it holds, not even `!=`
            return None if value is None else False
        found = self._is_in(key, value, match.get("right"))
        if found is None or match.get("op") in ("==", "in"):
            return found
        return not found if match.get("op") == "!=" else None

    def _is_in(self, key: tuple[str, str, str], value: str, right: Any) -> bool | None:
        """Whether the packet's value is what the rule names: a scalar, a prefix, a range, one of a set."""
        if isinstance(right, str) and right.startswith("@"):
            right = {"set": self.sets.get((key[0], key[1], right[1:]), ())}
        if isinstance(right, list):
            right = {"set": right}
        if isinstance(right, Mapping):
            if "set" in right:
                return _any(self._is_in(key, value, each) for each in right["set"])
            if "elem" in right:
                return self._is_in(key, value, right["elem"].get("val"))
            if "prefix" in right:
                return _is_within(value, f"{right['prefix']['addr']}/{right['prefix']['len']}")
            if "range" in right:
                low, high = right["range"]
                return _is_between(value, low, high)
            return None
        text = str(right)
        if text.endswith("*"):
            return value.startswith(text[:-1])
        if value == text or str(_PROTOCOLS.get(value)) == text:
            return True
        return _is_within(value, text) if "." in text or ":" in text else False


def _value_of(left: Any, packet: Packet) -> str | None:
    """What the packet has where the rule looks; None: not known."""
    if not isinstance(left, Mapping):
        return None
    is_v6 = ":" in packet.destination
    if "meta" in left:
        return {
            "iifname": packet.interface,
            "iif": packet.interface,
            "oifname": packet.interface_out or None,
            "oif": packet.interface_out or None,
            "l4proto": packet.protocol,
            "nfproto": "ipv6" if is_v6 else "ipv4",
            "protocol": "ip6" if is_v6 else "ip",
            "pkttype": "multicast" if ip_address(packet.destination).is_multicast else "host",
        }.get(left["meta"].get("key"))
    if "ct" in left:  # the first packet; queries never have an answer, so each of them is one
        return "new" if left["ct"].get("key") == "state" else None
    if "fib" in left:
        is_group = ip_address(packet.destination).is_multicast
        return ("multicast" if is_group else "local") if left["fib"].get("result") == "type" else None
    if "payload" in left:
        protocol, name = left["payload"].get("protocol"), left["payload"].get("field")
        if protocol in ("ip", "ip6"):
            if (protocol == "ip6") != is_v6:
                return ""
            if name == "daddr":
                return packet.destination
            if name == "saddr":
                return packet.source or None
            return packet.protocol if name in ("protocol", "nexthdr") else None
        if protocol == "th" or protocol in _PROTOCOLS:
            if protocol != "th" and _PROTOCOLS.get(protocol) != _PROTOCOLS.get(packet.protocol):
                return ""
            if name == "type" and packet.icmp_type:
                return packet.icmp_type
            return str(packet.port) if name == "dport" and packet.port is not None else None
    return None


def _any(found: Iterator[bool | None]) -> bool | None:
    unknown = False
    for each in found:
        if each:
            return True
        unknown = unknown or each is None
    return None if unknown else False


def _is_within(value: str, network: str) -> bool | None:
    try:
        inside = ip_network(network, strict=False)
        address = ip_address(value)
    except ValueError:
        return False
    return address.version == inside.version and address in inside


def _is_between(value: str, low: Any, high: Any) -> bool | None:
    if value.isdecimal():
        return str(low).isdecimal() and str(high).isdecimal() and int(low) <= int(value) <= int(high)
    try:
        start, address, end = ip_address(low), ip_address(value), ip_address(high)
    except ValueError:
        return None
    return start.version == address.version and int(start) <= int(address) <= int(end)
