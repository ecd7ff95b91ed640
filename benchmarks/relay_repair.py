"""What does a lossy network leave of a channel? Packets lost at random towards the box, mended by a second leg (SMPTE
2022-7) or repair packets (SMPTE 2022-1, L=8 D=5); beside a player that has the same lossy network without the box.
ffmpeg sends and plays, in namespaces. Loss is drawn anew in each run, so sums over the runs are printed, not medians.

Run: .venv/bin/python benchmarks/relay_repair.py [RUNS]     (root; by default 5 runs of 6 s of each case)
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import measure

sys.path.append(str(measure.ROOT))
sys.path.append(str(measure.ROOT / "tests"))
sys.path.append(str(measure.ROOT / "tests" / "system"))
import netns
from relay_box import RelayBox, groups
from running_box import wait_for

SECONDS = 6
TO_SCREEN = [{"group": "239.2.1.1:5004", "interface": "lan0", "rtp": "strip"}]
LEGS = ("239.1.1.1", "239.1.1.2")
CHANNEL = (
    "ffmpeg -v error -re -f lavfi -i testsrc2=s=320x240:r=25 -c:v libx264 -preset ultrafast -g 25 -b:v 3500k "
    f"-minrate 3500k -maxrate 3500k -bufsize 700k -t {SECONDS} -muxrate 4000k -f rtp_mpegts"
)
# What players complain of when packets are missing: MPEG-TS out of continuity, RTP out of sequence.
TROUBLE = re.compile(rb"Continuity check failed|RTP: missed (\d+) packets|Packet corrupt")


@dataclass
class Case:
    name: str
    percent: int
    of_legs: tuple[str, ...]
    relay: dict[str, Any]
    repair: str = ""
    sums: Counter[str] = field(default_factory=Counter)


CASES = (
    Case("1 % on one of two legs", 1, LEGS[:1], {"from": [f"rtp://{leg}:5004" for leg in LEGS]}),
    Case("1 % on each of two legs", 1, LEGS, {"from": [f"rtp://{leg}:5004" for leg in LEGS]}),
    Case("1 % with repair packets", 1, LEGS[:1], {"from": ["rtp://239.1.1.1:5004"], "fec": "both"}, "prompeg=l=8:d=5"),
    Case("7 % with repair packets", 7, LEGS[:1], {"from": ["rtp://239.1.1.1:5004"], "fec": "both"}, "prompeg=l=8:d=5"),
)


def player(namespace: netns.Namespace, url: str) -> subprocess.Popen[bytes]:
    words = ["-v", "warning", "-analyzeduration", "300000", "-i", url, "-c", "copy", "-f", "null", "-"]
    return namespace.popen("ffmpeg", *words, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)


def troubles(playing: subprocess.Popen[bytes]) -> int:
    """How often it complained. It ends when nothing comes any more."""
    return len(TROUBLE.findall(playing.communicate(timeout=30)[1]))


@contextmanager
def copied(source: netns.Namespace) -> Iterator[str]:
    """Where a sender of one stream sends so that both legs have it."""
    heard = source.call(lambda: netns.socket.socket(netns.socket.AF_INET, netns.socket.SOCK_DGRAM))
    heard.bind(("127.0.0.1", 0))
    heard.settimeout(0.05)
    out = netns.sender(source, "eth0")
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            try:
                data = heard.recv(2000)
            except TimeoutError:
                continue
            for leg in LEGS:
                out.sendto(data, (leg, 5004))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield f"rtp://127.0.0.1:{heard.getsockname()[1]}"
    finally:
        stop.set()
        thread.join()
        heard.close()
        out.close()


def once(case: Case) -> None:
    with netns.Topology() as topology, tempfile.TemporaryDirectory() as work:
        source, namespace, (screens,) = topology.proxy(1)
        namespace.run("nft", "add table ip loss")
        namespace.run("nft", "add chain ip loss in { type filter hook prerouting priority -300; }")
        for leg in case.of_legs:
            # Repair packets are lost as the media are.
            match = f"ip daddr {leg} udp dport {{ 5004, 5006, 5008 }} numgen random mod 100 < {case.percent}"
            namespace.run("nft", f"add rule ip loss in {match} counter drop")
        hall = {**case.relay, "interface": "wan", "to": TO_SCREEN}
        with RelayBox(namespace, Path(work), hall=hall) as box:
            screen = player(screens, "udp://239.2.1.1:5004?localaddr=10.1.0.2&timeout=2000000")
            bare = player(namespace, "rtp://239.1.1.1:5004?localaddr=10.0.0.1&timeout=2000000")
            wait_for(lambda: "239.2.1.1" in groups(screens, "eth0") and groups(namespace, "wan").count("239.1.1.1"))
            if case.repair:
                to = f"-fec {case.repair} rtp://239.1.1.1:5004?localaddr=10.0.0.2&ttl=4"
                source.run(*CHANNEL.split(), *to.split())
            else:
                with copied(source) as to:
                    source.run(*CHANNEL.split(), to)
            known = box.relay()
        counters = known["counters"]
        case.sums["sent"] += counters["packets"] + counters["lost"]
        # Of the media on the first leg, whether it came again or not.
        case.sums["lost"] += known["legs"][0]["lost"]
        case.sums["left"] += counters["lost"]
        case.sums["box"] += troubles(screen)
        case.sums["bare"] += troubles(bare)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=int, nargs="?", default=5)
    runs = parser.parse_args().runs
    if reason := netns.why_not() or measure.missing("ffmpeg", "nft"):
        print(f"not measured: {reason}")
        return 0
    for case in CASES:
        for _ in range(runs):
            once(case)
    print(f"lost at random towards the box, ffmpeg before and behind; {runs} runs of {SECONDS} s, summed")
    print(f"  {'':<26}{'packets':>9}{'lost':>7}{'for good':>10}{'mended':>9}   complaints behind the box / without it")
    for case in CASES:
        sums = case.sums
        mended = 100 * (1 - sums["left"] / sums["lost"]) if sums["lost"] else 100.0
        print(
            f"  {case.name:<26}{sums['sent']:>9,}{sums['lost']:>7,}{sums['left']:>10,}{mended:>8.1f}%"
            f"   {sums['box']} / {sums['bare']}"
        )
    print("  targets: at 1 % no complaint behind the box (both legs lose 1 in 10,000 packets); at 7 % 80 % mended")
    return 0


if __name__ == "__main__":
    sys.exit(main())
