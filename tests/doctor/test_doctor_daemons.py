"""What the doctor says of a box whose daemons run, or don't; and what it says when it can't look, or has no time."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import netns
import pytest
from conftest import BASE, LISTEN, Doctor

from accelerator.doctor.facts import Heard, Link, Network, Proxy, Stream
from accelerator.doctor.finding import Report
from accelerator.doctor.judge_kernel import judge_kernel
from accelerator.doctor.judge_network import judge_network
from accelerator.doctor.judge_service import judge_clock

pytestmark = [pytest.mark.netns, pytest.mark.skipif(bool(netns.why_not()), reason=netns.why_not() or "")]

BIN = Path(sys.executable).parent
POLICY = """
relays: {hall: {from: ["udp://239.1.1.1:5004"], interface: wan, join: always, to: [{unicast: ["10.0.0.9:5004"]}]}}
origins: {media: {from: ["http://127.0.0.1:9"], hosts: [media.example]}}
steering: {intercept: {interfaces: [wan], destinations: [10.0.0.0/24]}}
workers: 1
cache: {memory: 64MiB}
"""


def wait_for(condition: Callable[[], object], what: str, seconds: float = 20.0) -> None:
    ends_s = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends_s, what
        time.sleep(0.02)


@contextmanager
def daemon(box: netns.Namespace, folder: Path) -> Iterator[Path]:
    """Its control socket."""
    path = folder / "running.yaml"
    path.write_text(BASE + LISTEN + POLICY)
    with (folder / "box.log").open("ab") as log:
        running = box.popen(str(BIN / "acceleratord"), "--policy", str(path), "--state-dir", str(folder), stderr=log)
    try:
        wait_for(lambda: b"serving viewers" in (folder / "box.log").read_bytes(), "the daemon serves")
        yield folder / "control.sock"
    finally:
        running.kill()
        running.wait()


def test_what_only_the_daemons_know(box: netns.Namespace, doctor: Doctor, tmp_path: Path) -> None:
    """A relay that waits for its signal, and interception without accelerator-netd."""
    with netns.Topology() as topology:
        topology.wire(topology.namespace("switch"), "eth0", box, "wan")
        box.ip("addr", "add", "10.0.0.1/24", "dev", "wan")
        with daemon(box, tmp_path) as control:
            ask = lambda: doctor(POLICY, "--socket", str(control))["found"]  # noqa: E731
            wait_for(lambda: "relay-silent" in ask(), "the relay is silent")
            found = ask()
            assert "hall" in found["relay-silent"]["text"]
            assert "interception" in found["netd-missing"]["text"]
            assert "accelerator-netd" in found["netd-missing"]["mend"]
            with (tmp_path / "netd.log").open("ab") as log:
                netd = box.popen(str(BIN / "accelerator-netd"), "--state-dir", str(tmp_path), stderr=log)
            try:
                wait_for(lambda: "netd-missing" not in ask(), "netd answers")
            finally:
                netd.terminate()
                netd.wait()
            command = [str(BIN / "accelctl"), "--socket", str(control), "doctor", "--listen", "0"]
            control.chmod(0o600)
            os.chmod(tmp_path, 0o755)
            done = box.popen("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *command,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
            out, err = done.communicate(timeout=30)
            assert done.returncode in (0, 1)
            assert err == b"", "somebody without rights is told what he could not see, and nothing fails"
            assert b"not looked at (policy)" in out
            assert b"permission denied" in out


@contextmanager
def slow_resolver(box: netns.Namespace, delay_s: float | None, address: str) -> Iterator[None]:
    """Answers each question for an address by `address`, late; None: never."""

    def opened() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind(("127.0.0.1", 53))
        return made

    listening = box.call(opened)

    def serve() -> None:
        while True:
            question, who = listening.recvfrom(512)
            if not question:
                return
            if delay_s is None:
                continue
            time.sleep(delay_s)
            is_v4 = question[-3] == 1
            head = question[:2] + b"\x81\x80\0\1" + (b"\0\1" if is_v4 else b"\0\0") + b"\0\0\0\0"
            record = b"\xc0\x0c\0\1\0\1\0\0\0\1\0\4" + socket.inet_aton(address) if is_v4 else b""
            end = 12 + question[12:].index(b"\0") + 5
            listening.sendto(head + question[12:end] + record, who)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield
    finally:
        box.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"", ("127.0.0.1", 53)))
        thread.join()
        listening.close()


@pytest.fixture
def resolving(tmp_path: Path) -> tuple[str, ...]:
    (tmp_path / "hosts").write_text("127.0.0.1 localhost\n")
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:5 attempts:2\n")
    script = 'mount --bind $0/hosts /etc/hosts && mount --bind $0/resolv.conf /etc/resolv.conf && exec "$@"'
    return ("unshare", "--mount", "sh", "-c", script, str(tmp_path))


NAMED = 'origins: {media: {from: ["http://media.corp.example:9"], hosts: [media.example]}}\n'


def test_a_resolver_that_is_slow(box: netns.Namespace, doctor: Doctor, resolving: tuple[str, ...]) -> None:
    with slow_resolver(box, 0.7, "127.0.0.2"):
        box.sysctl("net.ipv4.ip_nonlocal_bind", "1")  # so that nobody's address looks like ours
        found = doctor(NAMED, before=resolving)["found"]
    assert "s to find media.corp.example" in found["dns-slow"]["text"]


def test_the_doctor_is_over_in_ten_seconds_whatever_is_silent(
    box: netns.Namespace, doctor: Doctor, resolving: tuple[str, ...]
) -> None:
    """A resolver that says nothing, and forty origins that nothing is heard of."""
    with netns.Topology() as topology:
        topology.wire(topology.namespace("switch"), "eth0", box, "wan")
        box.ip("addr", "add", "10.0.0.1/24", "dev", "wan")
        box.run("nft", "add table ip f; add chain ip f o { type filter hook output priority 0; };"
                " add rule ip f o ip daddr 10.0.0.0/24 drop")  # fmt: skip
        rows = [f'o{n}: {{from: ["http://10.0.0.{n + 10}"], hosts: [o{n}.example]}}' for n in range(40)]
        named = 'media: {from: ["http://media.corp.example"], hosts: [media.example]}'
        with slow_resolver(box, None, ""):
            begun_s = time.monotonic()
            said = doctor(f"origins: {{{', '.join([named, *rows])}}}\n", listen=2, before=resolving)
            took_s = time.monotonic() - begun_s
    assert sum(each["code"] == "origin-connect" for each in said["findings"]) == 40
    assert "silent" in said["found"]["origin-dns"]["text"]
    assert took_s < 10 + 5, "with what a loaded machine adds"


# -- what can't be provoked: from what observers would give ------------------------------------------------------------


def codes(network: Network) -> dict[str, str]:
    report = Report()
    judge_network(network, report)
    return {each.code: each.text for each in report.findings}


def test_large_receive_offload_which_no_virtual_device_has() -> None:
    links = {"wan": Link("wan", True, 1500, has_lro=True, has_gro=True)}
    stream = Stream("relays.hall", "wan", "239.1.1.1", 5004, "")
    assert "LRO" in codes(Network(links, (stream,)))["offload-lro"]
    assert not codes(Network({"wan": Link("wan", True, 1500, has_lro=False, has_gro=True)}, (stream,)))


def test_kernel_options_which_this_kernel_has() -> None:
    found = codes(Network({}, kernel={"ip_mroute": False, "igmp": True}))
    assert "no IPv4 multicast routing" in found["kernel-option"]


def test_no_querier_in_the_time_that_two_of_its_queries_take() -> None:
    links = {name: Link(name, True, 1500) for name in ("wan", "lan")}
    stream = Stream("relays.hall", "wan", "239.1.1.1", 5004, "")
    assert "no-querier" in codes(Network(links, (stream,), heard=(Heard("wan", 130.0),)))
    assert "no-querier" not in codes(Network(links, (stream,), heard=(Heard("wan", 2.0),)))
    assert "no-querier" not in codes(Network(links, (stream,), heard=(Heard("wan", 130.0, ("10.0.0.254",)),)))
    for asked_by, is_bad in (("", True), ("10.0.0.254", False)):
        proxy = Proxy("tv", "wan", ("lan",), "never", {"lan": asked_by})
        assert ("no-querier" in codes(Network(links, proxies=(proxy,)))) is is_bad


@pytest.mark.parametrize(
    ("why", "code"),
    [("query-absurd", "absurd-query"), ("group-limit-of-host", "host-groups"), ("group-limit", "link-groups")],
)
def test_what_hosts_of_a_link_said_was_left_aside(why: str, code: str) -> None:
    """How netd comes to count it is tests/kernel's."""
    links = {name: Link(name, True, 1500) for name in ("wan", "lan")}
    proxy = Proxy("tv", "wan", ("lan",), "if-none", {"lan": "us"}, {"lan": {why: 3, "checksum": 9}})
    assert list(codes(Network(links, proxies=(proxy,)))) == [code]


@pytest.mark.parametrize(
    ("asked_by", "code"), [("us", None), ("10.0.0.254", "other-querier"), ("", "no-address"), (None, None)]
)
def test_who_asks_in_our_place_was_not_said(asked_by: str | None, code: str | None) -> None:
    """A snooping switch with the lower address: the box forwards nothing there, and viewers get nothing."""
    links = {name: Link(name, True, 1500) for name in ("wan", "lan")}
    proxy = Proxy("tv", "wan", ("lan",), "if-none", None if asked_by is None else {"lan": asked_by})
    assert list(codes(Network(links, proxies=(proxy,)))) == ([code] if code is not None else [])
    assert not codes(Network(links, proxies=(Proxy("tv", "wan", ("lan",), "always", {"lan": "10.0.0.254"}),)))


def test_a_clock_that_nobody_vouches_for() -> None:
    assert [each.code for each in judge_clock(False, [])] == ["clock-free"]
    assert [*judge_clock(True, [])] == []


@pytest.mark.parametrize(
    ("kernel", "code"),
    [
        ({"problem": "no such device"}, "kernel-refuses"),
        ({"waiting_for": ["wan2"]}, "kernel-waits"),
        ({"taken_tables": [86010]}, "kernel-taken"),
        ({"taken_interfaces": ["wan"]}, "kernel-taken"),
        ({"stopped": ["table 86010"]}, "kernel-fight"),
        ({"n_steps": 3}, "kernel-differs"),
    ],
)
def test_the_kernel_is_not_as_the_policy_wants_it(kernel: dict[str, object], code: str) -> None:
    """How netd comes to say so is tests/kernel's."""
    (found,) = judge_kernel(["multicast"], {"kernel": kernel}, "")
    assert found.code == code
    assert found.text.endswith(".")
    assert found.mend


def test_a_kernel_that_is_as_it_should_be_is_no_finding() -> None:
    assert [*judge_kernel(["multicast"], {"kernel": {"waiting_for": [], "n_steps": 0, "problem": ""}}, "")] == []
