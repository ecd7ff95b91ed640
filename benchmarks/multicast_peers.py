"""The same branch with accelerator-netd, igmpproxy and smcroute in turn: how long after a host's report the first
packet leaves, what a new flow of 2,000 packets/s loses, and what a join of one source becomes on its way up.

Needs root, for network namespaces, and the Debian packages igmpproxy and smcroute. Run:
.venv/bin/python benchmarks/multicast_peers.py [JOINS]

smcroute routes what its file says and hears no host: it has no join to measure. Times are the kernel's, on the box's
downstream interface, as in multicast_join.py."""

from __future__ import annotations

import contextlib
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "kernel"), str(ROOT / "benchmarks")]

import multicast_join  # noqa: E402
import netns  # noqa: E402
from netd_box import NetdBox, wait_for  # noqa: E402

from accelerator.protocols import igmp  # noqa: E402
from accelerator.protocols.membership.messages import Heard, Report  # noqa: E402

PORT, ASM, SSM, SOURCE = 5004, "239.1.2.3", "232.1.2.3", "10.0.0.2"
N_PACKETS = 4000

IGMPPROXY = """quickleave
phyint wan upstream ratelimit 0 threshold 1
    altnet 10.0.0.0/8
phyint lan0 downstream ratelimit 0 threshold 1
phyint lo disabled
"""
SMCROUTE = f"""phyint wan enable
phyint lan0 enable
mgroup from wan group {ASM}
mroute from wan group {ASM} to lan0
mgroup from wan source {SOURCE} group {SSM}
mroute from wan source {SOURCE} group {SSM} to lan0
"""


@contextlib.contextmanager
def ours(box: netns.Namespace, folder: Path) -> Iterator[None]:
    with NetdBox(box, folder) as netd:
        netd.desire({"name": "tv", "upstream": "wan", "downstream": ["lan0"], "fast_leave": True})
        netd.ready()
        yield


@contextlib.contextmanager
def ours_static(box: netns.Namespace, folder: Path) -> Iterator[None]:
    routes = [
        {"name": group, "source": source, "group": group, "interface": "wan", "to": ["lan0"]}
        for group, source in ((ASM, None), (SSM, SOURCE))
    ]
    with NetdBox(box, folder) as netd:
        netd.desire(multicast_routes=routes)
        wait_for(lambda: len(box.read("/proc/net/ip_mr_cache").splitlines()) == 3, "the routes")
        yield


@contextlib.contextmanager
def program(box: netns.Namespace, folder: Path, *command: str) -> Iterator[None]:
    with open(folder / "peer.log", "ab") as log:
        process = box.popen(*command, stdout=log, stderr=log)
    try:
        # Its interfaces are the kernel's.
        wait_for(lambda: len(box.read("/proc/net/ip_mr_vif").splitlines()) >= 3, f"{command[0]} has its interfaces")
        yield
    finally:
        process.terminate()
        process.wait(10)


@contextlib.contextmanager
def igmpproxy(box: netns.Namespace, folder: Path) -> Iterator[None]:
    (folder / "igmpproxy.conf").write_text(IGMPPROXY)
    (folder / "igmpproxy.conf").chmod(0o600)
    with program(box, folder, "igmpproxy", "-n", str(folder / "igmpproxy.conf")):
        yield


@contextlib.contextmanager
def smcroute(box: netns.Namespace, folder: Path) -> Iterator[None]:
    (folder / "smcroute.conf").write_text(SMCROUTE)
    command = ["smcrouted", "-n", "-N", "-f", str(folder / "smcroute.conf"), "-i", f"bench{time.monotonic_ns()}"]
    with program(box, folder, *command, "-P", str(folder / "smc.pid"), "-u", str(folder / "smc.sock")):
        yield


def asked_upstream(source: netns.Namespace, host: netns.Namespace) -> str:
    """What the box says of SSM on its upstream link when the host joins one source of it."""

    def opened() -> socket.socket:
        made = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
        made.bind(("eth0", 0x0800))
        made.settimeout(5)
        return made

    capture = source.call(opened)
    player = netns.join(host, "eth0", SSM, PORT, (SOURCE,))
    try:
        while True:
            heard = igmp.read(capture.recv(2048), needs_router_alert=False)
            if not isinstance(heard, Heard) or not isinstance(heard.message, Report):
                continue
            for record in heard.message.records:
                if record.group == socket.inet_aton(SSM):
                    named = ", ".join(socket.inet_ntoa(each) for each in sorted(record.sources))
                    return f"IGMPv{heard.message.version} {record.kind.name} {{{named}}}"
    except TimeoutError:
        return "nothing"
    finally:
        player.close()
        capture.close()


def joins(box: netns.Namespace, source: netns.Namespace, host: netns.Namespace, n: int) -> list[float]:
    """Delays of joins of groups whose streams run already: another group each time, since igmpproxy needs minutes to
    end one."""
    delays = []
    for each in range(n):
        group = f"239.1.3.{each + 1}"
        stop = threading.Event()
        running = multicast_join.stream(source, [group], stop)
        capture = multicast_join.Capture(box, "lan0", group)
        try:
            with netns.join(host, "eth0", group, PORT):
                delays.append(capture.delay_s())
        finally:
            capture.close()
            stop.set()
            running.join()
    return delays


def lost(source: netns.Namespace, host: netns.Namespace, group: str, sources: tuple[str, ...]) -> int:
    """Packets of a new flow that don't arrive, its group joined a second before."""
    player = netns.join(host, "eth0", group, PORT, sources)
    time.sleep(1)
    stop = threading.Event()
    running = multicast_join.stream(source, [group], stop)
    try:
        numbers = [int.from_bytes(player.recv(100)) for _ in range(N_PACKETS)]
    finally:
        stop.set()
        running.join()
        player.close()
    return numbers[-1] + 1 - len(numbers)


def main() -> int:
    reason = netns.why_not()
    if reason is not None:
        print(f"not measured: {reason}")
        return 1
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    print(f"{'router':<22}{'report to first packet, ms':<30}{'lost of 4,000: any, one source':<34}one source, upstream")
    for name, run, needs, has_joins in (
        ("accelerator-netd", ours, "ip", True),
        ("igmpproxy 0.3", igmpproxy, "igmpproxy", True),
        ("netd, static routes", ours_static, "ip", False),
        ("smcroute 2.5", smcroute, "smcrouted", False),
    ):
        if shutil.which(needs) is None:
            print(f"{name:<22}not installed")
            continue
        with tempfile.TemporaryDirectory() as folder, netns.Topology() as topology:
            source, box, hosts = topology.proxy(1)
            box.sysctl("net.ipv4.ip_forward", "1")
            try:
                with run(box, Path(folder)):
                    asked = asked_upstream(source, hosts[0]) if has_joins else "by its file"
                    time.sleep(1)
                    gone = [lost(source, hosts[0], ASM, ()), lost(source, hosts[0], SSM, (SOURCE,))]
                    delays = joins(box, source, hosts[0], n) if has_joins else []
            except (AssertionError, subprocess.SubprocessError, TimeoutError) as fault:
                print(f"{name:<22}failed: {fault}")
                continue
        took = f"median {statistics.median(delays) * 1e3:.2f}, max {max(delays) * 1e3:.2f}" if delays else "-"
        print(f"{name:<22}{took:<30}{f'{gone[0]}, {gone[1]}':<34}{asked}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
