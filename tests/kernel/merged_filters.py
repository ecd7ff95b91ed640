"""What hosts behind a proxy have joined, merged as RFC 4605 says, and what routers upstream have heard of it: a kernel
bridge's multicast database, FRR's pimd. No assertion stands here."""

from __future__ import annotations

import json
import random
import socket
from typing import Any

import netns
from frr_box import Frr
from streams import ASM, PORT, SSM

Wanted = tuple[str, frozenset[str]]


class Hosts:
    """Players on the two links' hosts that join and leave: a socket each, real kernels."""

    def __init__(self, hosts: list[netns.Namespace], *, is_v6: bool) -> None:
        self._hosts = hosts
        self._is_v6 = is_v6
        self.sources = [f"2001:db8::{each}" if is_v6 else f"192.0.2.{each}" for each in range(1, 6)]
        self._joined: dict[tuple[int, str], tuple[socket.socket, Wanted]] = {}

    def change(self, source: random.Random) -> None:
        """One join or leave. A host that leaves and joins again at once, in another filter mode, says nothing of the
        leave (net/ipv4/igmp.c, igmpv3_del_delrec)."""
        key = source.randrange(len(self._hosts)), source.choice((ASM[self._is_v6], SSM[self._is_v6]))
        if key in self._joined:
            self._joined.pop(key)[0].close()
            return
        excludes = key[1] == ASM[self._is_v6] and source.random() < 0.5
        few = frozenset(source.sample(self.sources, source.randrange(1, 4)))
        made = netns.join(self._hosts[key[0]], "eth0", key[1], PORT, tuple(sorted(few)), excludes=excludes)
        self._joined[key] = made, ("exclude" if excludes else "include", few)

    def merged(self, group: str) -> Wanted | None:
        """RFC 4605 section 4.1."""
        wanted = [each for (_, of), (_, each) in self._joined.items() if of == group]
        included = frozenset().union(*(few for mode, few in wanted if mode == "include"))
        excluded = [few for mode, few in wanted if mode == "exclude"]
        if excluded:
            return "exclude", frozenset.intersection(*excluded) - included
        return ("include", included) if included else None

    def close(self) -> None:
        for joined, _ in self._joined.values():
            joined.close()


def bridge_above(source: netns.Namespace) -> None:
    """Puts a bridge that snoops and asks, by IGMPv3 and MLDv2, over the upstream's end."""
    options = "mcast_snooping 1 mcast_querier 1 mcast_igmp_version 3 mcast_mld_version 2 mcast_last_member_interval 10"
    source.ip("link", "add", "br0", "type", "bridge", *options.split())
    source.ip("link", "set", "eth0", "master", "br0")
    source.ip("link", "set", "br0", "up")


def bridge_says(source: netns.Namespace, group: str) -> Wanted | None:
    shown = json.loads(source.run("bridge", "-d", "-s", "-j", "mdb", "show", "dev", "br0"))[0]["mdb"]
    entry: dict[str, Any] | None
    entry = next((each for each in shown if each["grp"] == group and "src" not in each), None)
    if entry is None:
        return None
    mode = entry["filter_mode"]
    listed = {each["address"]: float(each["timer"]) for each in entry.get("source_list", [])}
    # In EXCLUDE mode those that are wanted are listed too, as long as their timers run.
    named = frozenset(each for each, timer in listed.items() if (timer > 0) == (mode == "include"))
    return (mode, named) if named or mode == "exclude" else None


def pimd_says(frr: Frr, group: str) -> Wanted | None:
    groups = {each["group"]: each for each in frr.ask("show ip igmp groups").get("eth0", {}).get("groups", [])}
    if group not in groups:
        return None
    mode = groups[group]["mode"].lower()
    sources = frr.ask("show ip igmp sources").get("eth0", {}).get(group, {}).get("sources", [])
    named = frozenset(each["source"] for each in sources if (each["timer"] != "--:--") == (mode == "include"))
    return (mode, named) if named or mode == "exclude" else None
