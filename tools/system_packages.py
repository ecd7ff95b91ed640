"""Installs the Debian packages that building, running, testing and measuring need, and no others. Stdlib only: it runs
before there is a .venv. Nothing about Python or npm packages may live here (requirements.lock, package-lock.json)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

POLICY_RC_D = Path("/usr/sbin/policy-rc.d")

# Without these nothing runs: failing to get one stops `make`.
REQUIRED = {
    "ca-certificates": "certificate authorities, for origins with TLS",
    "ffmpeg": "makes the demo's channel; plays in the tests",
    "fonts-dejavu-core": "draws the running clock into the demo's picture",
    "gcc": "builds the data plane; brings the sanitizers' run-time",
    "libc6-dev": "builds the data plane",
    "libnghttp2-dev": "builds the data plane",
    "libssl-dev": "builds the data plane",
    "nodejs": "fetches hls.js for the demo's page; runs the browser test",
    "npm": "fetches hls.js for the demo's page; runs the browser test",
    "python3-dev": "builds the data plane",
    "python3-venv": "makes .venv",
}
# Without these some tests skip themselves and some benchmarks have no peer.
OPTIONAL = {
    "chromium": "browser test",
    "curl": "tests",
    "debootstrap": "the machine that the units are tested on",
    "ethtool": "turns segmentation by the device off in a benchmark",
    "faketime": "tests with a clock that is wrong",
    "frr": "router with PIM upstream of ours in the tests of multicast",
    "gstreamer1.0-plugins-bad": "peers of relays in the tests",
    "gstreamer1.0-plugins-base": "peers of relays in the tests",
    "gstreamer1.0-plugins-good": "peers of relays in the tests: RTP, its jitter buffer, FEC, retransmission",
    "gstreamer1.0-tools": "peers of relays in the tests",
    "igmpproxy": "peer of the benchmarks and tests of multicast",
    "iproute2": "tests in network namespaces",
    "liburing-dev": "a loop that benchmarks compare ours with",
    "librist4": "RIST inputs of relays",
    "libsrt1.5-gnutls": "SRT inputs of relays",
    "multicat": "peer of relays in the tests",
    "nftables": "accelerator-netd keeps its packet rules with it; tests in network namespaces",
    "nghttp2-client": "load for benchmarks",
    "nginx-light": "peer of the benchmarks",
    "openssl": "certificates of the tests",
    "rist-tools": "peer of relays in the tests",
    "smcroute": "peer of the benchmarks and tests of multicast",
    "squid": "parent proxy in the tests",
    "srt-tools": "peer of relays in the tests",
    "strace": "tests that count system calls",
    "systemd": "checks of the units' exposure",
    "systemd-container": "the machine that the units are tested on",
    "tinyproxy-bin": "parent proxy in the tests",
    "varnish": "peer of the benchmarks",
    "vlc-bin": "player in the tests",
    "vlc-plugin-base": "player in the tests",
    "wrk": "load for benchmarks",
}
# What some of them would start at boot.
SERVICES = {
    "frr": "frr.service",
    "igmpproxy": "igmpproxy.service",
    "nginx-light": "nginx.service",
    "smcroute": "smcroute.service",
    "squid": "squid.service",
    "varnish": "varnish.service",
}
# A program that is there already, from wherever, makes its packages unnecessary.
COVERED_BY = {"nodejs": "node", "npm": "npm", "chromium": "chromium", "systemd": "systemd-analyze"}


def missing() -> list[str]:
    """Names of the packages that are neither installed nor covered by a program on PATH."""
    names = [
        name
        for name in sorted({**REQUIRED, **OPTIONAL})
        if name not in COVERED_BY or shutil.which(COVERED_BY[name]) is None
    ]
    query = ["dpkg-query", "--show", "--showformat=${Package} ${db:Status-Status}\n", *names]
    answer = subprocess.run(query, capture_output=True, text=True, check=False)  # exits 1 when it does not know a name
    installed = {line.split()[0] for line in answer.stdout.splitlines() if line.endswith(" installed")}
    return [name for name in names if name not in installed]


@contextmanager
def no_service_starts() -> Iterator[None]:
    """Packages' scripts ask policy-rc.d whether to start what they installed: no. One that is there already stays."""
    if POLICY_RC_D.exists():
        yield
        return
    POLICY_RC_D.write_text("#!/bin/sh\nexit 101\n")
    try:
        POLICY_RC_D.chmod(0o755)
        yield
    finally:
        POLICY_RC_D.unlink()


def install(names: list[str]) -> None:
    """Needs root. Raises CalledProcessError when apt refuses."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with no_service_starts():
        subprocess.run(["apt-get", "-q", "update"], env=environment, check=True)
        command = ["apt-get", "-q", "install", "--yes", "--no-install-recommends", *names]
        subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, check=True)
    for name, service in SERVICES.items():
        # They are here to be measured and tested with, not to take a port at the next boot.
        if name in names and shutil.which("systemctl"):
            subprocess.run(["systemctl", "--quiet", "disable", service], check=False)


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["--install"]:
        install(arguments[1:])
        return 0
    names = missing()
    if not names:
        return 0
    print("Debian packages to install:")
    for name in names:
        print(f"  {name:<20} {({**REQUIRED, **OPTIONAL})[name]}")
    sys.stdout.flush()
    command = [sys.executable, str(Path(__file__).resolve()), "--install", *names]
    if os.geteuid() != 0 and shutil.which("sudo"):
        command = ["sudo", *command]
    by_hand = f"apt-get install --no-install-recommends {' '.join(names)}"
    needed = [name for name in names if name in REQUIRED]
    if os.geteuid() != 0 and command[0] != "sudo":
        print(f"neither root nor sudo: as root, run  {by_hand}", file=sys.stderr)
        return 1 if needed else 0
    if subprocess.run(command, check=False).returncode != 0:
        print(f"the packages could not be installed: as root, run  apt-get update && {by_hand}", file=sys.stderr)
        return 1 if needed else 0
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
