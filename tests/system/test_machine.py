"""The installed product under a real systemd: docs/install.md, step by step. Slow: boots a machine (machine.py)."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from machine import Machine, skip_unless_possible
from recording_origin import GOOD_BODY, RecordingOrigin
from running_box import HOST, policy_for, read_response, wait_for
from steady_load import SteadyLoad

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

UNIT = "acceleratord.service"
# The machine shares the network with whatever runs here: addresses of its own.
ADDRESS = f"127.93.{os.getpid() % 250}.{os.getpid() // 250 % 250 + 1}"
GET = f"GET /good/film HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()


@dataclass
class Site:
    machine: Machine
    policy: dict[str, Any]

    def write_policy(self) -> None:
        self.machine.write("/etc/accelerator/policy.d/10-site.yaml", yaml.safe_dump(self.policy, sort_keys=False))

    def ask(self, port: int) -> bytes:
        with socket.create_connection((ADDRESS, port), timeout=20) as viewer:
            viewer.sendall(GET)
            return read_response(viewer)[0].body

    def status(self) -> dict[str, Any]:
        return json.loads(self.machine.run("accelctl", "--json", "status").stdout)  # type: ignore[no-any-return]

    def connection(self) -> dict[str, Any]:
        """Of relay hall's first input."""
        shown = json.loads(self.machine.run("accelctl", "--json", "relay", "show", "hall").stdout)
        return shown["legs"][0]["connection"]  # type: ignore[no-any-return]

    def main_pid(self) -> int:
        return int(self.machine.property("MainPID"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    skip_unless_possible()
    with RecordingOrigin() as origin, Machine(tmp_path_factory.mktemp("machine")) as machine:
        machine.run("systemd-sysusers")
        machine.run("systemd-tmpfiles", "--create")
        policy = policy_for(origin.url, listen={"lan": {"address": f"{ADDRESS}:8080"}})
        policy["admin"]["address"] = f"{ADDRESS}:8081"
        found = Site(machine, policy)
        found.write_policy()
        machine.write("/etc/credstore/accelerator.site.crt", "a certificate\n")
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "enable", "--now", UNIT)
        yield found


def test_it_starts_and_says_so(site: Site) -> None:
    machine = site.machine
    assert machine.property("ActiveState") == "active"
    assert machine.property("StatusText") == "0.1.0, 1 listeners"
    assert site.status()["health"]["ok"]
    assert site.ask(8080) == GOOD_BODY
    assert "acceleratord" not in machine.run("systemctl", "--failed", "--plain", "--no-legend").stdout


def test_it_has_no_privilege(site: Site) -> None:
    status = dict(
        line.split(":\t", 1)
        for line in site.machine.run("cat", f"/proc/{site.main_pid()}/status").stdout.splitlines()
        if ":\t" in line
    )
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[name], 16) == 0, name
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert "0" not in status["Uid"].split()
    limits = site.machine.run("cat", f"/proc/{site.main_pid()}/limits").stdout
    assert "Max core file size        0 " in limits
    site.machine.run("systemd-analyze", "security", "--no-pager", "--threshold=10", UNIT)


def test_credentials_are_there_and_the_missing_ones_are_not(site: Site) -> None:
    names = site.machine.run("ls", "/run/credentials/acceleratord.service").stdout.split()
    assert names == ["site.crt"]


def test_its_group_may_read_and_only_root_may_change(site: Site) -> None:
    machine = site.machine
    assert machine.run("stat", "--format=%a %G", "/run/accelerator/control.sock").stdout == "660 accelerator\n"
    reader = ("setpriv", "--reuid=daemon", "--regid=daemon", "--groups=accelerator")
    stranger = ("setpriv", "--reuid=daemon", "--regid=daemon", "--clear-groups")
    assert machine.run(*reader, "accelctl", "status", check=False).returncode == 0
    refused = machine.run(*reader, "accelctl", "cache", "purge", "--origin", "media", check=False)
    assert (refused.returncode, "only root" in refused.stderr) == (1, True)
    assert machine.run(*stranger, "accelctl", "status", check=False).returncode != 0
    machine.run("accelctl", "cache", "purge", "--origin", "media")


def test_reload(site: Site) -> None:
    machine, pid = site.machine, site.main_pid()
    site.policy["site"]["name"] = "reloaded"
    site.write_policy()
    machine.run("systemctl", "reload", UNIT)
    wait_for(lambda: site.status()["site"] == "reloaded")
    good = site.policy["cache"]["memory"]
    site.policy["cache"]["memory"] = "much"
    site.write_policy()
    assert machine.run("systemctl", "reload", UNIT, check=False).returncode != 0
    assert "cache.memory" in machine.journal()
    site.policy["cache"]["memory"] = good
    site.write_policy()
    assert (site.main_pid(), site.status()["site"]) == (pid, "reloaded")
    machine.becomes("ActiveState", "active")


def test_an_upgrade_in_place_fails_no_request(site: Site) -> None:
    machine = site.machine
    restarts = machine.property("NRestarts")
    with SteadyLoad((ADDRESS, 8080), 200, HOST) as load:
        for _ in range(3):
            pid = str(site.main_pid())
            machine.run("systemctl", "kill", "--signal=USR2", "--kill-who=main", UNIT)
            machine.becomes("MainPID", lambda now, before=pid: now not in (before, "0"))
            assert machine.property("ActiveState") == "active"
            wait_for(lambda: site.status()["health"]["ok"])
        result = load.end()
    assert result["failures"] == {}
    assert machine.property("NRestarts") == restarts
    # Its watchdog is the successor's now: longer than WatchdogSec= and still the same process.
    pid = str(site.main_pid())
    machine.run("journalctl", "--sync")
    stamp = int(machine.property("WatchdogTimestampMonotonic"))
    machine.becomes("WatchdogTimestampMonotonic", lambda now: int(now) > stamp + 6_000_000)
    assert str(site.main_pid()) == pid


def refusals(result: dict[str, Any]) -> list[str]:
    return [failure for failure in result["failures"] if failure.startswith("refused")]


@pytest.mark.skipif(None in map(shutil.which, ("srt-live-transmit", "ristsender")), reason="needs their tools")
@pytest.mark.parametrize("scheme", ["srt", "rist"])
def test_an_input_that_connects_starts_within_the_restrictions(scheme: str, site: Site) -> None:
    """Its process has the unit's sandbox and its own; what a real sender sends reaches a screen."""
    before = site.policy.get("relays", {})
    port, fed = {"srt": (9000, 7000), "rist": (9010, 7010)}[scheme]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as screen:
        screen.bind((ADDRESS, 0))
        screen.setblocking(False)
        site.policy["relays"] = {
            "hall": {
                "from": [f"{scheme}://{ADDRESS}:{port}"], "connection": {"mode": "listener"},
                "sources": ["127.0.0.0/8"], "to": [{"unicast": [f"{ADDRESS}:{screen.getsockname()[1]}"]}],
            }
        }  # fmt: skip
        site.write_policy()
        site.machine.run("systemctl", "reload", UNIT)
        wait_for(lambda: site.connection()["state"] == "waiting", seconds=20)
        if scheme == "srt":
            command = ["srt-live-transmit", "-q", f"udp://{ADDRESS}:{fed}", f"srt://{ADDRESS}:{port}"]
        else:
            command = ["ristsender", "-i", f"udp://@{ADDRESS}:{fed}", "-o", f"rist://{ADDRESS}:{port}", "-S", "0"]
        sender = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        packet = (b"\x47\x1f\xff\x10" + bytes(184)) * 7
        try:

            def heard() -> bytes:
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as media:
                    media.sendto(packet, (ADDRESS, fed))
                try:
                    return screen.recv(2000)
                except BlockingIOError:
                    return b""

            assert wait_for(heard, seconds=30) == packet
        finally:
            sender.kill()
            sender.wait()
        known = site.connection()
        status = site.machine.run("cat", f"/proc/{known['pid']}/status").stdout
        assert "NoNewPrivs:\t1" in status
        assert "Seccomp:\t2" in status
        assert "CapEff:\t0000000000000000" in status
        assert "can't be confined" not in site.machine.journal()
        assert site.status()["relays"]["follows_links"] is False, "docs/relays.md says so of the unit"
    site.policy["relays"] = before
    site.write_policy()
    site.machine.run("systemctl", "reload", UNIT)


def test_a_restart_refuses_nobody(site: Site) -> None:
    machine = site.machine
    assert machine.property("NFileDescriptorStore") == "1"
    with SteadyLoad((ADDRESS, 8080), 200, HOST) as load:
        pid = site.main_pid()
        machine.run("systemctl", "restart", UNIT)
        assert site.main_pid() != pid
        result = load.end()
    assert refusals(result) == []
    assert machine.property("NFileDescriptorStore") == "1"


def test_a_crash_refuses_nobody(site: Site) -> None:
    machine = site.machine
    before = int(machine.property("NRestarts"))
    with SteadyLoad((ADDRESS, 8080), 200, HOST) as load:
        machine.run("systemctl", "kill", "--signal=KILL", "--kill-who=main", UNIT)
        machine.becomes("NRestarts", str(before + 1))
        machine.becomes("ActiveState", "active")
        assert site.ask(8080) == GOOD_BODY
        result = load.end()
    assert refusals(result) == []


def test_the_watchdog_ends_one_that_hangs(site: Site) -> None:
    """reliability.md, fault 5."""
    machine = site.machine
    pid, before = site.main_pid(), int(machine.property("NRestarts"))
    machine.run("systemctl", "kill", "--signal=STOP", "--kill-who=main", UNIT)
    with socket.create_connection((ADDRESS, 8080), timeout=40) as viewer:
        viewer.sendall(GET)
        machine.becomes("NRestarts", str(before + 1), seconds=30)
        assert "Watchdog timeout" in machine.journal()
        machine.becomes("ActiveState", "active")
        assert site.main_pid() != pid
    assert site.ask(8080) == GOOD_BODY


def test_a_socket_unit_has_a_port_below_1024_and_starts_it(site: Site) -> None:
    machine = site.machine
    site.policy["listen"]["web"] = {"address": f"{ADDRESS}:80"}
    site.write_policy()
    machine.run("systemctl", "stop", UNIT)
    machine.write(
        "/etc/systemd/system/acceleratord@web.socket.d/address.conf", f"[Socket]\nListenStream={ADDRESS}:80\n"
    )
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "reset-failed")
    machine.run("systemctl", "enable", "--now", "acceleratord@web.socket")
    assert machine.property("ActiveState") == "inactive"
    assert site.ask(80) == GOOD_BODY
    assert machine.property("ActiveState") == "active"
    assert [row["address"] for row in site.status()["listeners"]] == [f"{ADDRESS}:8080", f"{ADDRESS}:80"]
    # And it goes with the others from one to the next.
    pid = str(site.main_pid())
    machine.run("systemctl", "kill", "--signal=USR2", "--kill-who=main", UNIT)
    machine.becomes("MainPID", lambda now: now not in (pid, "0"))
    assert site.ask(80) == site.ask(8080) == GOOD_BODY


def test_stop_frees_the_ports_and_waits_for_an_upgraded_one_too(site: Site) -> None:
    """Bug: a successor that was not init's child was killed at a stop, as systemd could not see its end."""
    machine = site.machine
    machine.run("systemctl", "stop", UNIT, "acceleratord@web.socket")
    assert machine.property("Result") == "success"
    for port in (80, 8080, 8081):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((ADDRESS, port))


def test_a_build_that_crashes_at_each_start_is_not_started_for_ever(site: Site, tmp_path: Path) -> None:
    """reliability.md, fault 6."""
    machine = site.machine
    machine.write(f"/run/systemd/system/{UNIT}.d/broken.conf", "[Service]\nExecStart=\nExecStart=/bin/false\n")
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "reset-failed")
    machine.run("systemctl", "start", UNIT, check=False)
    machine.becomes("ActiveState", "failed", seconds=40)
    assert int(machine.property("NRestarts")) <= 5
