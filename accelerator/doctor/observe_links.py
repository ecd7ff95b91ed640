"""Looks at this box's interfaces, bridges, routes and packet filter. Changes nothing, judges nothing.

Read from /sys, /proc and by ioctl; routes, bridges' queriers and rules are asked of iproute2 and nft, which every
installation has that lets them be set.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import struct
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from accelerator.doctor.facts import Bridge, Link

_SIOCETHTOOL = 0x8946
_ETHTOOL_GFLAGS, _ETHTOOL_GGRO = 0x25, 0x2B
_FLAG_LRO = 1 << 15
_IFF_UP = 1
_TOOL_TIMEOUT_S = 5.0
_IPPROTO_IGMP = "0002"
# What in the kernel answers for an option of its configuration.
_KERNEL_FILES = {
    "ip_mroute": "/proc/net/ip_mr_vif",
    "ip6_mroute": "/proc/net/ip6_mr_vif",
    "igmp": "/proc/net/igmp",
}


class ToolMissingError(Exception):
    """A program is not there, or refused: one clear line."""


def read_links() -> dict[str, Link]:
    """All interfaces by name."""
    everywhere = _rp_filter("all")
    bridges = _bridges()
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as asking:
        for _, name in socket.if_nameindex():
            folder = Path("/sys/class/net") / name
            try:
                flags = int((folder / "flags").read_text(), 16)
                mtu = int((folder / "mtu").read_text())
            except (OSError, ValueError):
                continue  # it went between the two
            offloads = _ethtool(asking, name, _ETHTOOL_GFLAGS)
            gro = _ethtool(asking, name, _ETHTOOL_GGRO)
            found[name] = Link(
                name, bool(flags & _IFF_UP), mtu, max(everywhere, _rp_filter(name)),
                None if offloads is None else bool(offloads & _FLAG_LRO), None if gro is None else bool(gro),
                bridges.get(name), _port_of(folder),
            )  # fmt: skip
    return found


def _port_of(folder: Path) -> str:
    """"": of none. A VRF leaves its members what comes in there."""
    try:
        master = (folder / "master").readlink().name
        is_vrf = "DEVTYPE=vrf" in (folder / "master" / "uevent").read_text()
    except OSError:
        return ""
    return "" if is_vrf else master


def _rp_filter(name: str) -> int:
    return number_of(f"/proc/sys/net/ipv4/conf/{name}/rp_filter") or 0


def number_of(path: str) -> int | None:
    """A file with one number."""
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):
        return None


def _ethtool(asking: socket.socket, name: str, command: int) -> int | None:
    """struct ethtool_value behind struct ifreq (linux/ethtool.h). None: the device doesn't say."""
    import ctypes

    value = ctypes.create_string_buffer(struct.pack("II", command, 0))
    request = struct.pack("16sP", name.encode()[:15], ctypes.addressof(value)) + bytes(16)
    try:
        fcntl.ioctl(asking.fileno(), _SIOCETHTOOL, request)
    except OSError:
        return None
    return int(struct.unpack("II", value.raw[:8])[1])


def _bridges() -> dict[str, Bridge]:
    folders = [path for path in Path("/sys/class/net").glob("*/bridge") if path.is_dir()]
    if not folders:
        return {}
    try:
        told = {each["ifname"]: each for each in _json_of("ip", "-j", "-d", "link", "show", "type", "bridge")}
    except ToolMissingError:
        told = {}
    found = {}
    for folder in folders:
        name = folder.parent.name
        state = told.get(name, {}).get("linkinfo", {}).get("info_data", {}).get("mcast_querier_ipv4_addr", "")
        is_querier = number_of(str(folder / "multicast_querier")) == 1
        snooping = number_of(str(folder / "multicast_snooping")) == 1
        found[name] = Bridge(snooping, is_querier, "" if is_querier else str(state or _heard_by(name)))
    return found


def _heard_by(name: str) -> str:
    """The querier that a bridge knows, which iproute2 6.1 doesn't print: IFLA_BR_MCAST_QUERIER_STATE, by netlink."""
    from pyroute2 import IPRoute

    with IPRoute() as netlink:
        for link in netlink.get_links(ifname=name):
            info = link.get_nested("IFLA_LINKINFO", "IFLA_INFO_DATA")
            state = info.get_attr("IFLA_BR_MCAST_QUERIER_STATE") if info is not None else None
            if state is None:
                return ""
            raw = state if isinstance(state, bytes | bytearray) else bytes.fromhex(str(state).replace(":", ""))
            return querier_in(bytes(raw))
    return ""


def querier_in(raw: bytes) -> str:
    """BRIDGE_QUERIER_IP_ADDRESS (1) of nested attributes (linux/if_bridge.h)."""
    place = 0
    while place + 4 <= len(raw):
        length, kind = struct.unpack_from("HH", raw, place)
        if length < 4 or place + length > len(raw):
            return ""
        if kind & 0x3FFF == 1 and length == 8:
            return socket.inet_ntoa(raw[place + 4 : place + 8])
        place += (length + 3) & ~3
    return ""


def route_to(address: str) -> str:
    """The interface by which packets to an address leave; "" where there is none."""
    try:
        routes = _json_of("ip", "-j", "route", "get", address)
    except ToolMissingError:
        return ""
    return str(routes[0].get("dev", "")) if routes else ""


def read_ruleset() -> dict[str, Any]:
    """The host's nft rules. Raises ToolMissingError: they can't be read."""
    found = _json_of("nft", "-j", "list", "ruleset")
    if not isinstance(found, dict):
        raise ToolMissingError("nft prints something else than rules")
    return found


def has_old_iptables() -> bool:
    """Whether rules of the old iptables are there, which nft doesn't list."""
    try:
        return bool(Path("/proc/net/ip_tables_names").read_text().split())
    except OSError:
        return False


def _json_of(*command: str) -> Any:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TOOL_TIMEOUT_S, check=False,
            env={**os.environ, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as fault:
        raise ToolMissingError(f"{command[0]} can't be run: {fault}") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise ToolMissingError(f"{command[0]}: {lines[0] if lines else 'it failed'}")
    try:
        return json.loads(done.stdout or "[]")
    except ValueError:
        raise ToolMissingError(f"{command[0]} prints no JSON") from None


def read_kernel(names: Iterable[str]) -> dict[str, bool]:
    """Which of them this kernel has."""
    return {name: _has_nf_tables() if name == "nf_tables" else Path(_KERNEL_FILES[name]).exists() for name in names}


def _has_nf_tables() -> bool:
    try:
        _json_of("nft", "-j", "list", "tables")
    except ToolMissingError as fault:
        return "Operation not permitted" in str(fault) or "can't be run" in str(fault)
    return True


def routing_daemons() -> list[tuple[int, str]]:
    """Programs, other than ours, that hold an IGMP socket in this network namespace while the kernel routes multicast:
    only multicast routing daemons do."""
    if (number_of("/proc/sys/net/ipv4/conf/all/mc_forwarding") or 0) == 0:
        return []
    inodes = set()
    for line in Path("/proc/net/raw").read_text().splitlines()[1:]:
        words = line.split()
        if words[1].endswith(f":{_IPPROTO_IGMP}"):
            inodes.add(words[9])
    found = []
    own = os.readlink("/proc/self/ns/net")
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(folder / "ns/net") != own or _is_ours(folder):
                continue
            held = {os.readlink(each) for each in (folder / "fd").iterdir()}
            name = (folder / "comm").read_text().strip()
        except OSError:
            continue  # it went, or isn't ours to look at
        if any(f"socket:[{inode}]" in held for inode in inodes):
            found.append((int(folder.name), name))
    return sorted(found)


def _is_ours(folder: Path) -> bool:
    """netd, or a process that it started: its keeper, and what answers for multicast."""
    words = (folder / "cmdline").read_bytes()
    return b"accelerator-netd" in words or b"accelerator.netd" in words or b"\0accelerator.kernel." in words
