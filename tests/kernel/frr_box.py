"""FRR's zebra and pimd in a namespace, as the router upstream of ours; started and ended here, never as a service. No
assertion stands here."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
from pathlib import Path
from typing import Any

from netd_box import wait_for
from netns import Namespace, run

PROGRAMS = Path("/usr/lib/frr")


# Asks once for a last member, and for a tenth of a second.
_QUICK = (" ip igmp last-member-query-count 1", " ip igmp last-member-query-interval 1")


def why_not() -> str | None:
    if not (PROGRAMS / "pimd").exists() or shutil.which("vtysh") is None:
        return "FRR is not installed (Debian package frr)"
    # Its daemons give up root for a user that a user namespace doesn't have.
    number = pwd.getpwnam("frr").pw_uid
    ranges = [line.split() for line in Path("/proc/self/uid_map").read_text().splitlines()]
    if not any(int(first) <= number < int(first) + int(count) for first, _, count in ranges):
        return "FRR needs its user, which this user namespace doesn't have"
    return None


class Frr:
    """Asks for members on the interfaces that are named, by IGMPv3. Use with `with`."""

    def __init__(self, namespace: Namespace, folder: Path, *interfaces: str) -> None:
        self._namespace = namespace
        # Daemons give up root for the user frr, whose sockets must be reached.
        self._folder = folder
        self._lines = [
            line
            for name in interfaces
            for line in (f"interface {name}", " ip igmp", " ip igmp version 3", " ip pim", *_QUICK, "!")
        ]
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Frr:
        self._folder.mkdir(parents=True, exist_ok=True)
        for above in (self._folder, *self._folder.parents[:4]):  # one more where tests run side by side
            if above.stat().st_uid == os.geteuid() and above != Path("/tmp"):
                above.chmod(above.stat().st_mode | 0o011)
        configuration = self._folder / "frr.conf"
        configuration.write_text("\n".join(["hostname upstream", *self._lines]) + "\n")
        shutil.chown(self._folder, "frr", "frr")
        shutil.chown(configuration, "frr", "frr")
        for name in ("zebra", "pimd"):
            command = [str(PROGRAMS / name), "-u", "frr", "-g", "frr", "-f", str(configuration)]
            command += ["-i", f"{self._folder}/{name}.pid", "-z", f"{self._folder}/zserv.api"]
            command += ["--vty_socket", str(self._folder), "-P", "0", "--log", f"file:{self._folder}/{name}.log"]
            self._processes.append(self._namespace.popen(*command, stderr=subprocess.DEVNULL))
            wait_for(lambda name=name: (self._folder / f"{name}.vty").exists(), f"{name} listens")
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._processes):
            process.terminate()
            process.wait(10)

    def ask(self, command: str) -> Any:
        return json.loads(run("vtysh", "--vty_socket", str(self._folder), "-d", "pimd", "-c", f"{command} json"))
