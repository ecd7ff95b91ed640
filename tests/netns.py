"""Network namespaces for tests: named topologies of real kernel stacks, joined by veth pairs and bridges, gone when
the test is. Traffic stays inside. No assertion stands here."""

from __future__ import annotations

import ctypes
import itertools
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable
from typing import Any, TypeVar

Result = TypeVar("Result")
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)
_numbers = itertools.count()


def why_not() -> str | None:
    """Why namespaces can't be made here; None: they can."""
    if shutil.which("ip") is None:
        return "network namespaces need iproute2"
    if os.geteuid() != 0:
        return "network namespaces need root"
    probe = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True, check=False)
    return None if probe.returncode == 0 else f"network namespaces are refused: {probe.stderr.strip()}"


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


class Namespace:
    """One network namespace, with loopback up. IPv6 addresses are usable at once: no duplicate address detection."""

    def __init__(self, label: str) -> None:
        self.name = f"t{os.getpid()}-{next(_numbers)}-{label}"
        run("ip", "netns", "add", self.name)
        self.ip("link", "set", "lo", "up")
        self.sysctl("net.ipv6.conf.all.accept_dad", "0")
        self.sysctl("net.ipv6.conf.default.accept_dad", "0")
        self.sysctl("net.ipv4.conf.all.rp_filter", "0")
        self.sysctl("net.ipv4.conf.default.rp_filter", "0")

    def close(self) -> None:
        run("ip", "netns", "del", self.name)

    def ip(self, *words: str) -> str:
        return run("ip", "-n", self.name, *words)

    def run(self, *command: str) -> str:
        return run("ip", "netns", "exec", self.name, *command)

    def popen(self, *command: str, **options: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(["ip", "netns", "exec", self.name, *command], **options)

    def sysctl(self, name: str, value: str) -> None:
        self.call(lambda: _write(f"/proc/sys/{name.replace('.', '/')}", value))

    def read(self, path: str) -> str:
        """A file of /proc/net as this namespace has it."""
        return self.run("cat", path)

    def call(self, function: Callable[[], Result]) -> Result:
        """What the function gives, called by a thread that is in this namespace: sockets that it opens stay there."""
        outcome: list[Result] = []
        problem: list[BaseException] = []

        def inside() -> None:
            try:
                with open(f"/run/netns/{self.name}") as handle:
                    if _libc.setns(handle.fileno(), _CLONE_NEWNET):
                        raise OSError(ctypes.get_errno(), "setns")
                # /proc/sys/net and /proc/net are those of the thread.
                outcome.append(function())
            except BaseException as error:
                problem.append(error)

        thread = threading.Thread(target=inside)
        thread.start()
        thread.join()
        if problem:
            raise problem[0]
        return outcome[0]

    def index(self, interface: str) -> int:
        return self.call(lambda: socket.if_nametoindex(interface))


def _write(path: str, value: str) -> None:
    with open(path, "w") as file:
        file.write(value)


class Topology:
    """Namespaces and the wires between them. Use with `with`."""

    def __init__(self) -> None:
        self._namespaces: list[Namespace] = []

    def __enter__(self) -> Topology:
        return self

    def __exit__(self, *_: object) -> None:
        for namespace in self._namespaces:
            namespace.close()

    def namespace(self, label: str) -> Namespace:
        made = Namespace(label)
        self._namespaces.append(made)
        return made

    def wire(self, left: Namespace, left_name: str, right: Namespace, right_name: str) -> None:
        """A veth pair, both ends up."""
        left.ip("link", "add", left_name, "type", "veth", "peer", "name", right_name, "netns", right.name)
        left.ip("link", "set", left_name, "up")
        right.ip("link", "set", right_name, "up")

    def proxy(self, n_lans: int = 1) -> tuple[Namespace, Namespace, list[Namespace]]:
        """A box between an upstream and branch links, each with one host:

            source (10.0.0.2) eth0 --- wan (10.0.0.1) box lan0 (10.1.0.1) --- eth0 (10.1.0.2) host 0
                                                          lan1 (10.1.1.1) --- eth0 (10.1.1.2) host 1 ...

        IPv6: fd00:0::/64 upstream, fd00:1:N::/64 downstream, the same last numbers.
        """
        source, box = self.namespace("source"), self.namespace("box")
        self.wire(source, "eth0", box, "wan")
        source.ip("addr", "add", "10.0.0.2/24", "dev", "eth0")
        source.ip("addr", "add", "fd00::2/64", "dev", "eth0", "nodad")
        source.ip("route", "add", "default", "via", "10.0.0.1")
        box.ip("addr", "add", "10.0.0.1/24", "dev", "wan")
        box.ip("addr", "add", "fd00::1/64", "dev", "wan", "nodad")
        hosts = []
        for each in range(n_lans):
            host = self.namespace(f"host{each}")
            self.wire(host, "eth0", box, f"lan{each}")
            host.ip("addr", "add", f"10.1.{each}.2/24", "dev", "eth0")
            host.ip("addr", "add", f"fd00:1:{each}::2/64", "dev", "eth0", "nodad")
            host.ip("route", "add", "default", "via", f"10.1.{each}.1")
            host.ip("-6", "route", "add", "default", "via", f"fd00:1:{each}::1")
            box.ip("addr", "add", f"10.1.{each}.1/24", "dev", f"lan{each}")
            box.ip("addr", "add", f"fd00:1:{each}::1/64", "dev", f"lan{each}", "nodad")
            hosts.append(host)
        return source, box, hosts


def widen(made: socket.socket) -> None:
    """Room for 4 MiB of packets; in a user namespace for as much as net.core.rmem_max allows."""
    try:
        made.setsockopt(socket.SOL_SOCKET, 33, 4 << 20)  # SO_RCVBUFFORCE
    except PermissionError:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)


def join(
    namespace: Namespace,
    interface: str,
    group: str,
    port: int,
    sources: tuple[str, ...] = (),
    *,
    excludes: bool = False,
) -> socket.socket:
    """A socket that has joined a group on an interface, as a player would: of any source, of these, or of all but
    these."""

    def opened() -> socket.socket:
        is_v6 = ":" in group
        family = socket.AF_INET6 if is_v6 else socket.AF_INET
        joined = socket.socket(family, socket.SOCK_DGRAM)
        joined.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        widen(joined)
        joined.bind((group, port))
        index = socket.if_nametoindex(interface)
        level = socket.IPPROTO_IPV6 if is_v6 else socket.IPPROTO_IP

        def address(text: str) -> bytes:
            if is_v6:
                return (b"\x0a\x00" + bytes(6) + socket.inet_pton(socket.AF_INET6, text) + bytes(4)).ljust(128, b"\0")
            return (b"\x02\x00" + bytes(2) + socket.inet_aton(text)).ljust(128, b"\0")

        head = index.to_bytes(4, "little") + bytes(4) + address(group)
        if excludes or not sources:
            joined.setsockopt(level, 42, head)  # MCAST_JOIN_GROUP
        for source in sources:
            # MCAST_BLOCK_SOURCE, MCAST_JOIN_SOURCE_GROUP
            joined.setsockopt(level, 43 if excludes else 46, head + address(source))
        joined.settimeout(5)
        return joined

    return namespace.call(opened)


def sender(namespace: Namespace, interface: str, *, is_v6: bool = False, hops: int = 8) -> socket.socket:
    """A socket that sends to groups out of an interface."""

    def opened() -> socket.socket:
        index = socket.if_nametoindex(interface)
        if is_v6:
            made = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, hops)
        else:
            made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            made.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, bytes(8) + index.to_bytes(4, "little"))
            made.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, hops)
        return made

    return namespace.call(opened)
