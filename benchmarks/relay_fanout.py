"""What does a relay cost above its system calls? CPU of the relay worker per packet to 1,000 receivers, beside a bare
recvmmsg/sendmmsg loop in C with the same sockets, packets and batches. Namespaces and veth; nothing leaves them.

Run: .venv/bin/python benchmarks/relay_fanout.py [RUNS]     (root; medians of RUNS, by default 5)
"""

from __future__ import annotations

import os
import socket
import statistics
import struct
import subprocess
import sys
import threading
from collections.abc import Callable

import measure

sys.path.append(str(measure.ROOT))
sys.path.append(str(measure.ROOT / "tests"))
sys.path.append(str(measure.ROOT / "tests" / "dataplane"))
import netns
from relay_rig import destination

from ext.relay_plane import RelayPlane, Settings

RECEIVERS = 1000
PACKETS = 1024
TRAIN = 16
PORT = 5004
PACKET = struct.pack("!BBHII", 0x80, 33, 0, 0, 1) + bytes(1304)
# (name, packets of a train, what of it the device takes)
CASES = (
    ("single packets", 1, True),
    ("trains of 16, cut in software", TRAIN, False),
    ("trains of 16, kept by veth", TRAIN, True),
)


def cpu_ns(task: str) -> int:
    with open(f"/proc/{task}/schedstat") as file:
        return int(file.read().split()[0])


def feed(sender: socket.socket, taken: Callable[[], int], first: int) -> None:
    """Trains of 16 packets to the loopback of the namespace, each when the one before has been sent on."""
    for at in range(0, PACKETS, TRAIN):
        for i in range(TRAIN):
            sender.sendto(PACKET[:2] + struct.pack("!H", (first + at + i) & 0xFFFF) + PACKET[4:], ("127.0.0.1", PORT))
        while taken() < first + at + TRAIN:
            pass


def bare(box: netns.Namespace, train: int) -> float:
    """CPU microseconds per packet sent."""
    program = measure.compiled("bare_fanout")
    loop = box.popen(
        "taskset", "-c", str(measure.SERVER_CPU), str(program), str(PORT), str(RECEIVERS), str(train),
        str(PACKETS + TRAIN), stdout=subprocess.PIPE,
    )  # fmt: skip
    assert loop.stdout is not None
    assert loop.stdout.readline() == b"ready\n"
    sender = box.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    count = 0

    def taken() -> int:
        nonlocal count
        count = struct.unpack("q", sender.recv(8))[0]
        return count

    begin = cpu_ns(str(loop.pid))
    feed(sender, taken, 0)
    used = cpu_ns(str(loop.pid)) - begin
    for _ in range(TRAIN):
        sender.sendto(PACKET, ("127.0.0.1", PORT))
    loop.wait()
    sender.close()
    return used / 1000 / (PACKETS * RECEIVERS)


def ours(box: netns.Namespace, train: int) -> float:
    incoming, out, sender = box.call(lambda: [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(3)])
    box.call(lambda: incoming.bind(("127.0.0.1", PORT)))
    incoming.setblocking(False)
    plane = RelayPlane(1)
    plane.add(0, Settings(legs=[(incoming.fileno(), "media", ())], is_rtp=True, window_packets=1024))
    hold_ns = 0 if train == 1 else 5_000_000
    plane.open_output(0, 0, out.fileno(), hold_ns=hold_ns, train_packets=TRAIN, segments=train > 1)
    receivers = b"".join(destination((f"10.9.{i >> 8}.{i & 255}", PORT)) for i in range(RECEIVERS))
    plane.set_receivers(0, [(0, receivers)])
    plane.start()
    worker = next(thread for thread in threading.enumerate() if thread.name == "relay-0")
    assert worker.native_id is not None
    os.sched_setaffinity(worker.native_id, {measure.SERVER_CPU})
    row = plane.outputs[0]
    begin = cpu_ns(f"self/task/{worker.native_id}")
    feed(sender, lambda: int(row[0]) // RECEIVERS, 0)
    used = cpu_ns(f"self/task/{worker.native_id}") - begin
    plane.close()
    for made in (incoming, out, sender):
        made.close()
    lost = int(row[4:8].sum())
    if lost or int(row[0]) != PACKETS * RECEIVERS:
        raise SystemExit(f"the relay lost {lost} of {int(row[0])}: no figure")
    return used / 1000 / (PACKETS * RECEIVERS)


def main() -> int:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    if why := netns.why_not() or ("needs gcc, nft and ethtool" if measure.missing("gcc", "nft", "ethtool") else None):
        print(f"not measured: {why}")
        return 0
    os.sched_setaffinity(0, {measure.LOAD_CPU})
    print(f"{len(PACKET)} bytes to {RECEIVERS} receivers, {PACKETS} packets in, medians of {runs}; CPU µs per packet")
    print(f"{'case':<32}{'relay':>8}{'bare C':>8}{'bare/relay':>12}   (target 0.9; packets/s of a core by the relay)")
    with netns.Topology() as topology:
        _, box, (host,) = topology.proxy()
        box.ip("route", "add", "10.9.0.0/16", "via", "10.1.0.2")
        # Who receives costs the sender's core as well on veth: as little as can be, and the same for both.
        host.run("nft", "add table ip gone")
        host.run("nft", "add chain ip gone in { type filter hook prerouting priority -400; policy drop; }")
        for name, train, is_kept in CASES:
            box.run("ethtool", "-K", "lan0", "tx-udp-segmentation", "on" if is_kept else "off")
            found: dict[str, list[float]] = {"ours": [], "bare": []}
            for _ in range(runs):
                found["ours"].append(ours(box, train))
                found["bare"].append(bare(box, train))
            relay_us, bare_us = statistics.median(found["ours"]), statistics.median(found["bare"])
            spread = " | ".join(f"{min(row):.3f} to {max(row):.3f}" for row in found.values())
            ratio = f"{bare_us / relay_us:>12.2f}   {1e6 / relay_us:,.0f}/s"
            print(f"{name:<32}{relay_us:>8.3f}{bare_us:>8.3f}{ratio}   {spread}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
