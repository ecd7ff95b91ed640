"""What every benchmark needs to measure honestly: CPU time of a server, wrk's answer, medians, conditions, one table.

Nothing here knows a server's configuration (servers.py) or a question (the other files). Times are seconds, sizes bytes
unless a name says otherwise. A run that had any error is a `Failure` and never enters a median.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CPUS = sorted(os.sched_getaffinity(0))
# The last core for the server, as interrupts come to the first one; on one core both share it, which is printed.
SERVER_CPU, LOAD_CPU = CPUS[-1], CPUS[0]
# On a machine that others use too: -20 to 19 for servers and load alike (root only below 0).
NICE = int(os.environ.get("BENCH_NICE", "0"))
if NICE:
    # Where the kernel groups processes by session, niceness counts only within one: the group has its own.
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(NICE))
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Run:
    """One counted window of one server."""

    requests: int
    elapsed_s: float
    server_cpu_s: float
    load_cpu_s: float
    others_cpu_s: float  # what neither server nor load used of both their cores: other processes, the kernel's threads

    @property
    def cpu_us(self) -> float:
        """Server CPU time per request, microseconds."""
        return self.server_cpu_s / self.requests * 1e6

    @property
    def both_cpu_us(self) -> float:
        """Server and load together: what one side spares by moving it to the other shows here."""
        return (self.server_cpu_s + self.load_cpu_s) / self.requests * 1e6

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.requests / self.elapsed_s

    @property
    def server_share(self) -> float:
        return self.server_cpu_s / self.elapsed_s

    @property
    def load_share(self) -> float:
        return self.load_cpu_s / self.elapsed_s

    @property
    def others_share(self) -> float:
        return self.others_cpu_s / self.elapsed_s


@dataclass(frozen=True)
class Failure:
    """A window that is shown, not counted."""

    why: str


# --- processes --------------------------------------------------------------------------------------------------------


def pin(command: Sequence[str], cpu: int) -> list[str]:
    """`command` bound to one core, at the priority of this measurement."""
    priority = ["nice", "-n", str(NICE)] if NICE else []
    return ["taskset", "-c", str(cpu), *priority, *command]


def tree(pid: int) -> list[int]:
    """A process and its descendants."""
    found = [pid]
    for children in Path("/proc").glob(f"{pid}/task/*/children"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            for child in children.read_text().split():
                found += tree(int(child))
    return found


def cpu_s(pids: Iterable[int]) -> float:
    """User and system time of all threads of these processes. The kernel scales both to the exact run time, and without
    CONFIG_IRQ_TIME_ACCOUNTING (see conditions) network work done on their behalf is in it."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{pid}/stat").read_text()
            fields = text[text.rindex(")") + 2 :].split()
            total += int(fields[11]) + int(fields[12])
    return total / _TICKS_PER_S


def pss_bytes(pids: Iterable[int]) -> int:
    """Proportional set size: private pages, and each shared page divided by those who share it. Resident pages where
    only root may look closer (the daemon isn't dumpable)."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except PermissionError:
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


def compiled(name: str, *libraries: str) -> str:
    """The program of NAME.c, built when its source is newer. CalledProcessError when gcc refuses it."""
    source = ROOT / "benchmarks" / f"{name}.c"
    program = ROOT / "build" / "bench" / name
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        program.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["gcc", "-O2", "-Wall", "-o", str(program), str(source), *libraries], check=True)
    return str(program)


def busy_s(cpus: Iterable[int]) -> float:
    """Time that cores were not idle, with stolen time."""
    names = {f"cpu{cpu}" for cpu in cpus}
    total = 0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *values = line.split()
        if name in names:
            times = list(map(int, values))[:8]
            total += sum(times) - times[3] - times[4]
    return total / _TICKS_PER_S


def allow_many_files(n: int) -> int:
    """Raises the limit of open files, as far as it goes, for this process and what it starts. Returns the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = n if hard == resource.RLIM_INFINITY else min(n, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(n, soft), max(n, hard)))
    except (ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(wanted, soft), hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def free_port() -> int:
    """A loopback port that was free just now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


# --- load -------------------------------------------------------------------------------------------------------------


def wrk(url: str, connections: int, seconds: int, server: Sequence[int], *, script: str = "") -> Run | Failure:
    """One window of wrk with one thread on LOAD_CPU. `server`: whose CPU counts; `script`: Lua for requests."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", *(["-s", script] if script else []), url]
    before_children = resource.getrusage(resource.RUSAGE_CHILDREN)
    before = cpu_s(server)
    before_busy = busy_s({SERVER_CPU, LOAD_CPU})
    begin = time.monotonic()
    done = subprocess.run(
        pin(command, LOAD_CPU), capture_output=True, text=True, timeout=seconds + 30, check=False
    )
    elapsed_s = time.monotonic() - begin
    server_cpu_s = cpu_s(server) - before
    busy = busy_s({SERVER_CPU, LOAD_CPU}) - before_busy
    after_children = resource.getrusage(resource.RUSAGE_CHILDREN)
    load_cpu_s = (after_children.ru_utime - before_children.ru_utime) + (
        after_children.ru_stime - before_children.ru_stime
    )
    counted = re.search(r"(\d+) requests in ", done.stdout)
    if done.returncode != 0 or counted is None:
        return Failure((done.stderr or done.stdout).strip().splitlines()[-1] if done.stderr or done.stdout else "wrk")
    trouble = re.findall(r"^\s*((?:Socket errors|Non-2xx or 3xx responses):.*)$", done.stdout, re.MULTILINE)
    if trouble:
        return Failure("; ".join(trouble))
    if int(counted[1]) == 0 or server_cpu_s == 0:
        return Failure("nothing was answered")
    others = max(0.0, busy - server_cpu_s - load_cpu_s)
    return Run(int(counted[1]), elapsed_s, server_cpu_s, load_cpu_s, others)


def get(port: int, path: str, host: str = "bench") -> tuple[int, dict[str, str], bytes, int]:
    """One plain GET: status, fields (lower-case names), body, bytes of the head. Raises OSError, ValueError, KeyError
    (no Content-Length)."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as s, s.makefile("rb") as stream:
        s.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        lines = [stream.readline()]
        while lines[-1].rstrip():
            lines.append(stream.readline())
        first, *pairs = [line.decode("latin-1").rstrip("\r\n") for line in lines[:-1]]
        fields = {name.lower(): value.strip() for name, _, value in (pair.partition(":") for pair in pairs)}
        size = int(fields["content-length"])
        body = stream.read(size)
    if len(body) != size:
        raise ValueError(f"{path}: {first}: {len(body)} body bytes, Content-Length {size}")
    return int(first.split()[1]), fields, body, sum(map(len, lines))


# --- figures ----------------------------------------------------------------------------------------------------------


def median(values: Iterable[float]) -> float:
    return statistics.median(values)


def spread(values: Sequence[float]) -> str:
    """All values, so that a reader sees what a median hides."""
    return " ".join(f"{value:.3g}" for value in values)


def reached(is_so: bool) -> str:
    return "reached" if is_so else "NOT reached"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints columns, the first to the left and the others to the right. A row of two cells is a name and a remark."""
    lines = [list(head), *map(list, rows)]
    whole = [line for line in lines if len(line) == len(head)]
    widths = [max(len(line[i]) for line in whole) for i in range(len(head))]
    widths[0] = max(len(line[0]) for line in lines)
    for name, *rest in lines:
        if len(rest) + 1 == len(head):
            rest = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        print("  " + "  ".join([name.ljust(widths[0]), *rest]).rstrip())
    sys.stdout.flush()


def output_of(*command: str) -> str:
    """What a program prints on either stream; empty when it isn't there."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return (done.stdout + done.stderr).strip()


def missing(*programs: str) -> str:
    """Names of programs that aren't installed, for a line that says why nothing is measured."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    return ", ".join(name for name in programs if shutil.which(name, path=path) is None)


def conditions() -> list[tuple[str, str]]:
    """What a figure depends on besides the code."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    commit = output_of("git", "rev-parse", "--short", "HEAD")
    if output_of("git", "status", "--porcelain", "--", "ext", "accelerator", "benchmarks", "setup.py"):
        commit += " with changes not committed"
    sysctl = Path("/proc/sys/net/ipv4")
    return [
        ("commit", commit or "unknown"),
        ("CPU", f"{cpu[1] if cpu else platform.machine()}, {len(CPUS)} cores: "
                f"server on {SERVER_CPU}, load on {LOAD_CPU}{' (shared!)' if SERVER_CPU == LOAD_CPU else ''}"),
        ("kernel", f"{platform.release()}, TCP {(sysctl / 'tcp_congestion_control').read_text().strip()}, "
                   f"tcp_wmem {' '.join((sysctl / 'tcp_wmem').read_text().split())}"),
        ("nginx", output_of("/usr/sbin/nginx", "-v").removeprefix("nginx version: ") or "not installed"),
        ("wrk", (output_of("wrk", "-v").splitlines() or ["not installed"])[0]),
        ("python", platform.python_version()),
        ("load average", " ".join(f"{value:.2f}" for value in os.getloadavg()) + (f", nice {NICE}" if NICE else "")),
    ]  # fmt: skip
